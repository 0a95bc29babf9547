"""Writes docs/codes.md from `lvmigrate.explanation`: ``python -m docs.codes``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from lvmigrate.errors import ExitCode
from lvmigrate.explanation import EXITS, EXPLANATIONS, Explanation

_PAGE: Final = Path(__file__).with_suffix(".md")

_HEAD: Final = """\
# Every code

Made from `lvmigrate/explanation.py` by `make docs`; do not edit. `lvmigrate explain CODE` says the same, and
`lvmigrate explain` lists all.

Codes are stable: programs may compare them, in `--json` and in Python (`lvmigrate.errors.Code`). Sentences may change.
"""


def page() -> str:
    """The whole page."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield _HEAD
    yield "## Exit codes\n"
    yield from _section((f"{one.code} {ExitCode(int(one.code)).name}", one) for one in EXITS.values())
    yield "## Codes\n"
    yield from _section((one.code, one) for one in EXPLANATIONS.values())


def _section(titled: Iterable[tuple[str, Explanation]]) -> Iterator[str]:
    for title, one in titled:
        yield f"### {title}\n"
        yield f"{one.meaning}\n"
        yield f"- **Changed**: {one.changed}"
        yield f"- **Do**: {one.remedy}"
        yield f"- **More**: [{one.where}]({_link(one.where)})\n"


def _link(where: str) -> str:
    """The same, from docs/."""
    return where.removeprefix("docs/") if where.startswith("docs/") else f"../{where}"


if __name__ == "__main__":
    _PAGE.write_text(page(), encoding="utf-8")
