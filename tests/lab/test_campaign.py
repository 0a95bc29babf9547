"""The short version of ``make campaign-lab``: a command that dies where most is open, and cuts of DRBD's link alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.lab.campaign import Campaign, desk
from tests.lab.faults import case
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
        assert [outcome.errors for outcome in outcomes] == [[], []]
        if not any(outcome.not_met for outcome in outcomes):
            break
    assert [outcome.not_met for outcome in outcomes] == ["", ""]
