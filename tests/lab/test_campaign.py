"""The short version of ``make campaign-lab``: a command that dies where most is open, and cuts of DRBD's link alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.lab.campaign import Campaign, desk, drawn, in_order
from tests.lab.faults import case, cases
from tests.lab.under import NAMES
from vagrant.labkit.lab import Lab


@pytest.fixture
def campaign(lab: Lab) -> Iterator[Campaign]:
    with desk(lab) as at, ExitStack() as stack:
        made = Campaign(lab, at, stack)
        made.begin()
        yield made
        made.end()


@pytest.mark.parametrize(
    "names",
    [
        ("kill@memory", "kill@switch"),
        ("drbd-cut-short@sync", "drbd-cut-short@close"),
    ],
    ids="+".join,
)
def test_nothing_is_wrong_after(campaign: Campaign, names: tuple[str, str]) -> None:
    for _ in range(3):  # a move that the checks refuse, as when a node is too busy to answer, meets no fault
        outcomes = campaign.play([case(name) for name in names])
        assert [outcome.violations for outcome in outcomes] == [[], []]
        assert all(outcome.home for outcome in outcomes)
        if all(outcome.met for outcome in outcomes):
            break
    assert all(outcome.met for outcome in outcomes), [outcome.held for outcome in outcomes]


def test_every_step_has_its_turn() -> None:
    for fault in ("kill", "drbd-cut-short", "drbd-cut-long", "libvirt-cut-short", "both-cut-long"):
        assert {one.step for one in cases() if one.fault.name == fault} == set(NAMES)


def test_each_case_is_drawn_once_and_what_both_guests_meet_alone() -> None:
    rounds = drawn(cases(), seed=7)
    assert Counter(str(one) for two in rounds for one in two) == Counter(map(str, cases()))
    assert all(len(two) == 1 for two in rounds if any(one.fault.shared for one in two))
    assert rounds != drawn(cases(), seed=8)
    assert [len(two) for two in in_order([case("kill@open"), case("stop@open"), case("source-power@memory")])] == [2, 1]
