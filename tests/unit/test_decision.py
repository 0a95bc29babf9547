"""The decisions: every combination of observations, against the invariants and not against the tables."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from docs.decisions import page
from lvmigrate.decision import (
    DISKS,
    GUEST,
    Action,
    Closing,
    Disk,
    Link,
    May,
    Ruling,
    Sight,
    closing,
    decide,
    handed_over,
    may_act,
    primary,
    sight_of,
)
from lvmigrate.domain import Domain, DomainState, JobKind
from lvmigrate.replication import Role
from lvmigrate.token import Held
from tests.unit.fakes import NODES, FakeStorage, World

S, A = Sight, Action
EVERY = list(itertools.product(Sight, Sight, [None, False, True], [False, True]))
#: A copy whose CPUs run, or may run.
MAY_RUN = {S.RUNS, S.LEAVING, S.UNKNOWN, S.BUSY, S.HELD, S.POST_COPY, S.HALF}
#: A copy whose CPUs stand and that no job will start by itself.
STANDS = {S.WAITS, S.STALLED}


def ruled(source: Sight, target: Sight, *, ran: bool | None, last: bool) -> Ruling:
    return decide(source, target, ran=ran, last_chance=last)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(Sight, Sight)))
def test_a_copy_is_let_run_only_when_no_other_can(source: Sight, target: Sight) -> None:
    for ran, last in itertools.product([None, False, True], [False, True]):
        match ruled(source, target, ran=ran, last=last).action:
            case A.SWITCH:
                assert (source, target) == (S.GONE, S.WAITS)
            case A.RESUME_SOURCE:
                assert (source, target) == (S.STALLED, S.GONE)
                assert ran is not False
            case A.DISCARD_AND_RESUME:
                assert source in STANDS
                assert target in STANDS
                assert last
                assert ran


@pytest.mark.parametrize(("source", "target"), list(itertools.product(Sight, Sight)))
def test_a_copy_is_ended_only_when_it_stands_and_another_is_newer(source: Sight, target: Sight) -> None:
    for ran, last in itertools.product([None, False, True], [False, True]):
        match ruled(source, target, ran=ran, last=last).action:
            case A.DISCARD_TARGET:
                assert target in STANDS
                assert source is S.RUNS or (ran is False and source in STANDS)
            case A.DISCARD_SOURCE:
                assert source in STANDS | {S.HANDING_OVER}
                assert target is S.RUNS
            case A.STAYED:
                assert target is S.GONE
                assert source in {S.RUNS, S.WAITS, S.HELD} or (source is S.STALLED and ran is False)
            case A.ARRIVED:
                assert (source, target) == (S.GONE, S.RUNS)
            case A.NOWHERE:
                assert (source, target) == (S.GONE, S.GONE)


def test_no_answer_is_no_proof_and_two_running_copies_are_suspended() -> None:
    for source, target, ran, last in EVERY:
        ruling = ruled(source, target, ran=ran, last=last)
        assert ruling.why
        if S.UNKNOWN in (source, target):
            assert ruling.action is (A.HOLD if last else A.ASK_AGAIN)
        if source in {S.RUNS, S.LEAVING} and target is S.RUNS:
            assert ruling.action is A.SUSPEND_BOTH
        if last:
            assert ruling.action is not A.ASK_AGAIN
        if source in MAY_RUN - {S.RUNS, S.LEAVING} and target is S.RUNS and last:
            assert ruling.action is A.HOLD


@pytest.mark.parametrize("passing", [S.LEAVING, S.HANDING_OVER, S.ARRIVING, S.POST_COPY, S.HALF, S.BUSY, S.UNKNOWN])
def test_what_time_may_change_is_asked_again_before_it_is_held(passing: Sight) -> None:
    for pair in ((passing, S.HELD), (S.HELD, passing)):
        assert ruled(*pair, ran=True, last=False).action is A.ASK_AGAIN
        assert ruled(*pair, ran=True, last=True).action is A.HOLD


def test_a_job_is_followed_from_wherever_it_comes() -> None:
    for source, target in itertools.product((S.LEAVING, S.HANDING_OVER), (S.GONE, S.ARRIVING, S.WAITS)):
        assert ruled(source, target, ran=None, last=False).action is A.FOLLOW
    assert ruled(S.POST_COPY, S.POST_COPY, ran=True, last=False).action is A.FOLLOW


def test_two_that_both_wait_are_a_persons_matter() -> None:
    """After two running copies were suspended, both wait, and either may have the newer memory."""
    assert ruled(S.WAITS, S.WAITS, ran=True, last=True).action is A.HOLD
    assert ruled(S.WAITS, S.WAITS, ran=None, last=True).action is A.HOLD


def domain(**changes: Any) -> Domain:
    values: dict[str, Any] = {
        "node": "node1",
        "name": "web1",
        "uuid": "u",
        "state": DomainState.RUNNING,
        "reason": "booted",
        "job": JobKind.NONE,
        "persistent": True,
        "autostart": False,
        "virt_type": "kvm",
        "memory_kib": 1,
        "vcpus": 1,
        "disks": (),
    }
    return Domain(**values | changes)


@pytest.mark.parametrize(
    ("changes", "sight"),
    [
        ({}, S.RUNS),
        ({"state": DomainState.OFF}, S.GONE),
        ({"state": DomainState.OFF, "job": JobKind.OUTGOING}, S.GONE),
        ({"state": DomainState.PAUSED, "reason": "user"}, S.WAITS),
        ({"state": DomainState.PAUSED, "reason": "migration"}, S.STALLED),
        ({"state": DomainState.PAUSED, "reason": "starting up"}, S.STALLED),
        ({"state": DomainState.PAUSED, "reason": "api error"}, S.STALLED),
        ({"state": DomainState.PAUSED, "reason": "i/o error"}, S.HELD),
        ({"state": DomainState.PAUSED, "reason": "crashed"}, S.HELD),
        ({"state": DomainState.PAUSED, "reason": "post-copy failed", "job": JobKind.OUTGOING}, S.HALF),
        ({"state": DomainState.PAUSED, "reason": "post-copy", "job": JobKind.OUTGOING}, S.POST_COPY),
        ({"reason": "post-copy", "job": JobKind.INCOMING}, S.POST_COPY),
        ({"reason": "post-copy failed", "job": JobKind.INCOMING}, S.HALF),
        ({"reason": "post-copy"}, S.HALF),
        ({"state": DomainState.SUSPENDED}, S.HELD),
        ({"state": DomainState.IN_SHUTDOWN}, S.HELD),
        ({"job": JobKind.OUTGOING}, S.LEAVING),
        ({"state": DomainState.PAUSED, "reason": "migration", "job": JobKind.OUTGOING}, S.HANDING_OVER),
        ({"state": DomainState.PAUSED, "reason": "migration", "job": JobKind.INCOMING}, S.ARRIVING),
        ({"job": JobKind.INCOMING}, S.ARRIVING),
        ({"job": JobKind.OTHER}, S.BUSY),
    ],
)
def test_what_an_observation_amounts_to(changes: dict[str, Any], sight: Sight) -> None:
    assert sight_of(domain(**changes)) is sight


def test_half_a_guest_is_never_ended_nor_let_run() -> None:
    for source, target, ran, last in EVERY:
        if {source, target} & {S.POST_COPY, S.HALF}:
            assert ruled(source, target, ran=ran, last=last).action in {A.FOLLOW, A.ASK_AGAIN, A.HOLD}
    # And a person is told what it is.
    for half in (S.POST_COPY, S.HALF):
        assert "post-copy broke" in ruled(S.GONE, half, ran=True, last=True).why


@pytest.mark.parametrize(
    ("there", "word"),
    [
        (None, None),
        (domain(reason="migrated"), None),
        (domain(state=DomainState.PAUSED, reason="migration"), None),
        (domain(state=DomainState.OFF, reason="migrated"), True),
        (domain(state=DomainState.OFF, reason="crashed"), False),
    ],
)
def test_only_a_copy_that_has_ended_tells_whether_it_was_handed_over(there: Domain | None, word: bool | None) -> None:  # noqa: FBT001
    assert handed_over(there) is word


def test_a_node_that_knows_no_such_guest_has_none() -> None:
    assert sight_of(None) is S.GONE


TERNARY = (None, False, True)
EVERY_DISK = [
    Disk(home_primary=hp, away_primary=ap, home_held=hh, away_held=ah, link=link, two_primaries=two)
    for hp, ap, hh, ah, link, two in itertools.product(TERNARY, TERNARY, TERNARY, TERNARY, Link, TERNARY)
]


def test_the_disks_invariants_hold_for_every_combination() -> None:
    assert len(EVERY_DISK) == 3**5 * len(Link)
    for disk in EVERY_DISK:
        row = closing(disk)
        known = None not in (disk.home_primary, disk.away_primary, disk.home_held, disk.away_held, disk.two_primaries)
        if not known or disk.link is Link.UNKNOWN:
            assert row.closing is Closing.HOLD
            continue
        match row.closing:
            case Closing.DEMOTE_AWAY:
                assert disk.away_primary
                assert not disk.away_held
            case Closing.DEMOTE_HOME:
                assert disk.home_primary
                assert not disk.home_held
            case Closing.FORBID:
                assert disk.link in (Link.WHOLE, Link.BEHIND)
                assert not disk.away_primary
                assert disk.two_primaries
            case Closing.CLOSED:
                assert not disk.away_primary
                assert not disk.two_primaries
                assert disk.link is Link.WHOLE
                assert disk.home_held or not disk.home_primary
            case Closing.WAIT:
                assert disk.link in (Link.CUT, Link.BEHIND)
                assert ("two primaries" in row.when) is disk.two_primaries
            case Closing.HOLD:
                assert disk.away_primary
                assert disk.away_held
            case Closing.RECONNECT:
                assert disk.link is Link.PARTED
                assert not disk.away_primary


@pytest.mark.parametrize(("role", "word"), [(Role.PRIMARY, True), (Role.SECONDARY, False), (Role.UNKNOWN, None)])
def test_a_role_that_nobody_tells_is_none(role: Role, word: bool | None) -> None:  # noqa: FBT001
    world = World(roles=dict.fromkeys(NODES, role))
    assert primary(FakeStorage(world).seen("node1")) is word
    assert primary(None) is None


def test_every_row_of_the_disks_can_be_reached() -> None:
    assert {closing(disk).when for disk in EVERY_DISK} == {row.when for row in DISKS}


def held(token_id: str, left_s: float) -> Held:
    return Held(node="node1", uuid="u", instance="web1", id=token_id, holder="somebody", left_s=left_s, errand=None)


def test_who_may_act() -> None:
    assert may_act(None, "a") is May.TAKE
    assert may_act(held("b", -1), "a") is May.TAKE
    assert may_act(held("b", 1), "a") is May.WAIT
    assert may_act(held("a", 1), "a") is May.GO_ON


def test_the_page_in_the_docs_is_the_tables() -> None:
    """`make docs` writes it; a table that changed without its page is a lie to an operator."""
    assert Path("docs/decisions.md").read_text(encoding="utf-8") == page()
    assert len(GUEST) > len(Sight)
