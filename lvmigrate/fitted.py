"""Lines as wide as a terminal, broken between words and never within what is to be copied."""

from __future__ import annotations

import re
import textwrap
from typing import Final

#: Stands for a space at which nothing is broken.
_KEPT: Final = "\0"
#: What a line's further lines are indented by: its own indent, with a label (`next: `) or a column before its text.
_LABEL: Final = re.compile(r" *(?:next: |\S+(?: \S+)*? {2,})?")
#: A line that is a command as it stands, as `telling` shows it.
_COMMAND: Final = re.compile(r" *\S+# ")


def fitted(text: str, width: int) -> str:
    """The text with its lines broken where they are wider than ``width``.

    A command, in backticks or as a line of its own, stays in one piece, be it wider: it can be copied as it is.
    """
    return "\n".join(_fitted(line, width) for line in text.split("\n"))


def _fitted(line: str, width: int) -> str:
    if len(line) <= width or _COMMAND.match(line):
        return line
    label = _LABEL.match(line)
    indent = len(label[0]) if label else 0
    if indent > width // 2:
        indent = len(line) - len(line.lstrip())
    whole = re.sub(r"`[^`]*`", lambda match: match[0].replace(" ", _KEPT), line[indent:])
    pieces = textwrap.wrap(
        whole, width - indent, break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    )
    broken = f"\n{' ' * (indent or 2)}".join(pieces).replace(_KEPT, " ")
    return line[:indent] + broken
