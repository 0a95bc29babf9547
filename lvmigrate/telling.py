"""What is read rather than watched, as lines for people: explanations, and whatever else only tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lvmigrate.by_hand import ByHand
from lvmigrate.display import finding_lines, seconds, size
from lvmigrate.doctor import Diagnosis
from lvmigrate.explanation import EXITS, EXPLANATIONS, Explanation
from lvmigrate.rehearse import Rehearsal


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


def by_hand_lines(steps: Sequence[ByHand]) -> Iterator[str]:
    """Each step's commands, with the node they are for, and what must be so before the next."""
    yield "by hand, as root on the node named:"
    for number, step in enumerate(steps, 1):
        yield f"  {number} {step.step}"
        yield from (f"    {command.node}# {command}" for command in step.commands)
        yield f"      {step.then}"


def by_hand_object(steps: Sequence[ByHand]) -> list[dict[str, Any]]:
    """The same as JSON has it: each command as a line for a shell."""
    return [
        {
            "step": step.step,
            "commands": [{"node": command.node, "line": str(command)} for command in step.commands],
            "then": step.then,
        }
        for step in steps
    ]


def rehearsal_lines(told: Rehearsal) -> Iterator[str]:
    """What a rehearsal has shown."""
    yield f"{told.instance} can move from {told.source} to {told.target}; it stayed on {told.source}"
    yield f"  total         {seconds(told.seconds)}, dual-primary {seconds(told.dual_primary_s)}"
    yield f"  memory        {size(told.memory_bytes)} sent, then stopped"
    yield from (f"  proven        {clause}" for clause in told.proven)
    yield from (f"  not proven    {clause}" for clause in told.unproven)
    for warning in told.warnings:
        yield from finding_lines(warning, mark="warning ")
