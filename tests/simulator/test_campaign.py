"""The short version of the campaign: no single fault of a straight move breaks a promise, and no drawn one of the rest.

`make campaign` tries them all.
"""

from __future__ import annotations

import json

import pytest

from lvmigrate.simulator.calls import Call, Place
from tests.campaign.__main__ import main
from tests.campaign.cases import MAIN, SCENARIOS, VARIANTS, Case, Variant, distinct
from tests.campaign.run import run


def test_no_fault_breaks_a_promise(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--short"])
    said = capsys.readouterr()
    cases, violations = map(json.loads, said.out.splitlines())
    assert (cases["name"], violations["name"]) == ("campaign_cases", "campaign_violations")
    assert violations["value"] == 0, said.err
    assert (status, violations["holds"]) == (0, True)
    assert cases["value"] > 6000
    # The judgement is not blind: few are left to a person, and always for a reason that the world's truth gives.
    assert sum(cases["detail"]["held"].values()) < cases["value"] / 10


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_straight_move_is_straight_in_every_kind_of_world(variant: Variant) -> None:
    outcome = run(Case(variant=variant, scenario=SCENARIOS[0]))
    assert (outcome.ended, outcome.violations, outcome.held, outcome.accepted) == ("Report", [], "", [])


def test_the_main_variants_are_variants_and_a_case_is_found_again_by_its_name() -> None:
    assert set(MAIN) < set(VARIANTS)
    text = "cleanup-reply-lost 8.4/fast/running c2.domain@node2#4=SOURCE_QEMU_KILLED ended#1=SUSPENDED"
    assert str(Case.parse(text)) == text


def test_what_a_loop_repeats_is_tried_in_its_first_rounds_a_middle_one_and_its_last() -> None:
    def calls(*names: str) -> list[Call]:
        return [
            Call(number=n, place=Place("c1", name, "", n), at_s=n, acts=False, background=False)
            for n, name in enumerate(names)
        ]

    def kept(*names: str) -> list[int]:
        return [call.number for call in distinct(calls(*names))]

    assert kept("a", "b", "a", "b", "c") == [0, 1, 2, 3, 4]
    assert kept("x", *("a", "b") * 10, "y") == [0, 1, 2, 3, 4, 11, 12, 19, 20, 21]
    assert kept(*"aaaa") == [0, 1, 2, 3]
    assert kept(*"aaaaaaaa") == [0, 1, 4, 7]
