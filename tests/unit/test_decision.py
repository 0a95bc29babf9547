"""The decision after the copy: every combination, against the invariant and not against the table."""

from __future__ import annotations

import itertools

import pytest

from lvmigrate.decision import PASSING, TABLE, Action, Sight, decide

S = Sight
EVERY = list(itertools.product(Sight, Sight, [False, True], [False, True]))


@pytest.mark.parametrize(("source", "target", "ran", "last"), EVERY)
def test_the_invariant_holds_for_every_combination(source: Sight, target: Sight, ran: bool, last: bool) -> None:  # noqa: FBT001
    action = decide(source, target, ran_before=ran, last_chance=last)
    if action is Action.SWITCH:  # the target will be resumed: the source must be proved gone
        assert (source, target) == (S.GONE, S.WAITS)
    if action in (Action.DISCARD_AND_RESUME, Action.RESUME_SOURCE):  # the source will be resumed: it must wait
        assert source is S.WAITS
        assert target in (S.WAITS, S.GONE)
        assert last or target is S.GONE
        assert ran
    if action in (Action.DISCARD, Action.DISCARD_AND_RESUME):  # a copy will be ended: it must not run, another must be
        assert target is S.WAITS
        assert source in (S.RUNS, S.WAITS)
    if action is Action.STAYED:
        assert target is S.GONE
        assert source is S.RUNS or (source is S.WAITS and not ran)
    if S.UNKNOWN in (source, target) or S.BUSY in (source, target):
        assert action is (Action.HOLD if last else Action.ASK_AGAIN)
    if (source, target) == (S.RUNS, S.RUNS):
        assert action is Action.TWICE


@pytest.mark.parametrize(("source", "target", "ran", "last"), [case for case in EVERY if case[3]])
def test_at_the_last_chance_nothing_is_asked_again(source: Sight, target: Sight, ran: bool, last: bool) -> None:  # noqa: FBT001
    assert decide(source, target, ran_before=ran, last_chance=last) is not Action.ASK_AGAIN


def test_pairs_that_pass_are_in_the_table() -> None:
    assert set(TABLE) >= PASSING


def test_every_action_has_a_sentence_of_its_own() -> None:
    assert len({action.value for action in Action}) == len(Action)
