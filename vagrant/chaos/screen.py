"""What `make chaos` shows: each fact as a command and what it answered, and a verdict for each half."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TextIO

_BOLD: Final = "1"
_DIM: Final = "2"
_RED: Final = "1;31"
_GREEN: Final = "1;32"
_YELLOW: Final = "1;33"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A command and its answer; or, without a command, what the guest itself proved."""

    at_s: float
    node: str
    command: str
    output: str


@dataclass(slots=True, kw_only=True)
class Half:
    """One way to move the guest while a disaster happens."""

    disaster: int
    title: str
    #: ``bare`` or ``lvmigrate``.
    who: str
    began: float = field(default_factory=time.monotonic)
    facts: list[Fact] = field(default_factory=list)
    #: The fault was seen to act, and what followed is what this half is there to show.
    as_promised: bool = False
    #: How it ended, in one sentence.
    verdict: str = "it did not come to its end"
    copies: int | None = None
    records_lost: int | None = None
    seconds: float = 0.0


class Screen:
    """Plain lines, with colour on a terminal only (and not where ``NO_COLOR`` is set)."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._colour = out.isatty() and not os.environ.get("NO_COLOR")
        self._began = time.monotonic()
        self.halves: list[Half] = []

    def title(self, text: str) -> None:
        """A disaster begins."""
        self._print(f"\n== {text}", _BOLD)

    def half(self, disaster: int, title: str, who: str) -> Half:
        """One half of it begins; what is shown from now on belongs to it."""
        self._print(f"\n-- {disaster}, {who}: {title}", _BOLD)
        self.halves.append(Half(disaster=disaster, title=title, who=who))
        return self.halves[-1]

    def says(self, text: str) -> None:
        """What happens, in words of this program."""
        self._print(f"   {text}")

    def fault(self, text: str) -> None:
        """What is done to the world."""
        self._print(f"!! {text}", _YELLOW)

    def command(self, node: str, command: str) -> None:
        """A command is typed that takes a while; its answer follows line by line."""
        self._print(f"   {node}$ {command}")

    def line(self, text: str) -> None:
        """A line of an answer."""
        self._print(f"   | {text}", _DIM)

    def fact(self, node: str, command: str, output: str) -> None:
        """A command and all of its answer."""
        self.command(node, command)
        for line in output.splitlines():
            self.line(line)
        self.noted(node, command, output)

    def proof(self, text: str) -> None:
        """What the guest's records prove."""
        self._print(f"   records: {text}")
        self.noted("", "", text)

    def noted(self, node: str, command: str, output: str) -> None:
        """Keep a fact that was shown already."""
        if self.halves:
            at_s = round(time.monotonic() - self._began, 1)
            self.halves[-1].facts.append(Fact(at_s=at_s, node=node, command=command, output=output))

    def verdict(self, half: Half) -> None:
        """A half has ended."""
        half.seconds = round(time.monotonic() - half.began, 1)
        word = {("bare", True): "DISASTER", ("lvmigrate", True): "WHOLE"}.get(
            (half.who, half.as_promised), "UNEXPECTED"
        )
        colour = _GREEN if word == "WHOLE" else _RED
        self._print(f"=> {half.disaster}, {half.who}: {word}: {half.verdict} ({half.seconds:.0f} s)", colour)

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Columns as wide as they need to be; the first row is their heading."""
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        self._print("")
        for number, row in enumerate(rows):
            text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self._print(text.rstrip(), _BOLD if number == 0 else "")

    def _print(self, text: str, colour: str = "") -> None:
        coloured = f"\033[{colour}m{text}\033[0m" if self._colour and colour else text
        print(coloured, file=self._out, flush=True)
