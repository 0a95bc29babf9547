"""What is read rather than watched, as lines for people: explanations, and whatever else only tells."""

from __future__ import annotations

from collections.abc import Iterator

from lvmigrate.display import finding_lines
from lvmigrate.doctor import Diagnosis
from lvmigrate.explanation import EXITS, EXPLANATIONS, Explanation


def explanation_lines(one: Explanation) -> Iterator[str]:
    """One code explained."""
    name = f"exit code {one.code}" if one.code.isdigit() else one.code
    yield f"{name}: {one.meaning}"
    for title, text in (("changed", one.changed), ("do", one.remedy), ("more", one.where)):
        yield f"  {title:<9} {text}"


def explanations_lines() -> Iterator[str]:
    """Every code in a line."""
    yield "exit codes"
    yield from (f"  {one.code:<24} {one.meaning}" for one in EXITS.values())
    yield "codes"
    yield from (f"  {one.code:<24} {one.meaning}" for one in EXPLANATIONS.values())


def diagnosis_lines(found: Diagnosis) -> Iterator[str]:
    """What a look at every node has found."""
    for held in found.under_way:
        yield f"under way: {held.instance} ({held.holder}, seen on {held.node})"
    if not found.complaints:
        yield f"nothing is to be mended on {', '.join(found.nodes)}"
    for complaint in found.complaints:
        yield from finding_lines(complaint.finding, mark=f"{complaint.severity.value} ")
