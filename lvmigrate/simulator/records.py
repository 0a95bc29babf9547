"""What guests have written: every write is a record that knows the one before it.

The content of a disk is the newest record on it, the memory of a guest the newest that it wrote or found there: two
contents are equal when they are the same record, and one has all that another has when it comes after it.
"""

from __future__ import annotations

from typing import Final


class Record:
    """One write, after all those ``before`` it."""

    __slots__ = ("before", "depth", "writer")

    def __init__(self, writer: str, before: Record | None) -> None:
        self.writer = writer
        self.before = before
        #: How many came before it.
        self.depth: int = 0 if before is None else before.depth + 1

    def __repr__(self) -> str:
        return f"<write {self.depth} by {self.writer}>"


#: A disk on which nothing was written yet.
EMPTY: Final = Record("nobody", None)


def includes(content: Record, other: Record) -> bool:
    """Whether ``content`` has everything that ``other`` has."""
    here: Record | None = content
    while here is not None and here.depth > other.depth:
        here = here.before
    return here is other
