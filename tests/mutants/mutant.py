"""A mutant: one line of the product taken away or turned round, in a copy of the tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]


class NoSuchTextError(Exception):
    """The source does not have a mutant's text exactly once: the mutant has to be written anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One change of one file.

    ``old`` stands in ``file`` exactly once; or the change is at the characters ``span`` of it, where it was found.
    """

    name: str
    #: Below the root.
    file: str
    old: str
    new: str
    span: tuple[int, int] | None = field(default=None, compare=False)

    def changed(self, text: str) -> str:
        """The file's ``text`` with the change. Raises `NoSuchTextError`."""
        if self.span is not None:
            begin, end = self.span
            if text[begin:end] != self.old:
                raise NoSuchTextError(f"{self.name}: {self.file} has another text at {begin}")
            return text[:begin] + self.new + text[end:]
        number = text.count(self.old)
        if number != 1:
            raise NoSuchTextError(f"{self.name}: {self.file} has this {number} times: {self.old!r}")
        return text.replace(self.old, self.new)
