"""The policies against loads of every kind: what fires, when, and that it comes to an end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmigrate.convergence import (
    FORCE,
    GAIN,
    GENTLE,
    NAMED,
    PATIENT,
    POST_COPY,
    POST_COPY_SOON,
    UNLIMITED_S,
    Course,
    Firing,
    Policy,
    Rule,
    Then,
    judge,
)
from lvmigrate.progress import MemoryProgress

MIB = 1 << 20


def look(
    iteration: int, remaining_mib: float, elapsed_s: float, *, total_mib: int = 64, passed_mib: float = 0
) -> MemoryProgress:
    return MemoryProgress(
        elapsed_s=elapsed_s,
        total=total_mib * MIB,
        remaining=int(remaining_mib * MIB),
        processed=0,
        rate=0,
        dirty_rate=0,
        iteration=iteration,
        expected_downtime_s=0.0,
        percent=0.0,
        passed=int(passed_mib * MIB),
    )


def played(sizes: Sequence[float], looks: Iterable[tuple[int, float]]) -> Iterator[MemoryProgress]:
    """A copy whose passes have these sizes, in MiB, seen at these (pass, share of it that is done)."""
    for number, done in looks:
        before, size = sum(sizes[: number - 1]), sizes[number - 1]
        passed = before + size * done
        yield look(number, size * (1 - done), passed / 10, passed_mib=passed)


def fired(policy: Policy, looks: Iterable[MemoryProgress], *, limit_s: float = 0.3) -> list[Firing]:
    course = Course(downtime_limit_s=limit_s)
    found = []
    for progress in looks:
        course, firing = judge(policy, course, progress)
        if firing is not None:
            found.append(firing)
    return found


def stuck(passes: int, *, pass_s: float = 2.5) -> Iterator[MemoryProgress]:
    """A load that dirties 40 MiB in each pass, seen twice in it."""
    yield look(1, 64, 0.1)
    for number in range(2, passes + 2):
        yield look(number, 40, number * pass_s)
        yield look(number, 10, number * pass_s + pass_s / 2)


POLICIES = st.builds(
    Policy,
    name=st.just("drawn"),
    rules=st.lists(
        st.builds(
            Rule,
            then=st.sampled_from(Then),
            stalled_passes=st.integers(0, 4),
            passes=st.integers(0, 5),
            seconds_per_gib=st.sampled_from([0.0, 5.0, 100.0]),
            after_s=st.sampled_from([0.0, 3.0, 50.0]),
            factor=st.floats(1.1, 4.0),
            up_to_s=st.floats(0.1, 5.0),
        ),
        max_size=5,
    ).map(tuple),
)
LOOKS = st.lists(st.tuples(st.integers(0, 2), st.floats(0, 64), st.floats(0, 5)), min_size=1, max_size=60).map(
    lambda drawn: [
        look(sum(step for step, _, _ in drawn[: n + 1]), mib, sum(s for _, _, s in drawn[: n + 1]))
        for n, (_, mib, _) in enumerate(drawn)
    ]
)


@given(POLICIES, LOOKS, st.floats(0.01, 3.0))
def test_the_limit_never_falls_and_nothing_follows_an_abort(
    policy: Policy, looks: list[MemoryProgress], limit_s: float
) -> None:
    firings = fired(policy, looks, limit_s=limit_s)
    limits = [limit_s, *(f.downtime_limit_s for f in firings if f.downtime_limit_s is not None)]
    assert limits == sorted(limits)
    assert limits[-1] <= max(UNLIMITED_S, limit_s)
    assert Then.ABORT not in [f.then for f in firings[:-1]]
    once = [(f.rule, f.then) for f in firings if f.then is not Then.RAISE_DOWNTIME]
    assert len(once) == len(set(once))


@given(POLICIES, LOOKS)
def test_every_firing_names_its_rule_and_its_conditions_held(policy: Policy, looks: list[MemoryProgress]) -> None:
    for firing in fired(policy, looks):
        rule = policy.rules[firing.rule - 1]
        assert firing.then is rule.then
        assert firing.at_s >= max(rule.after_s, rule.seconds_per_gib)  # the guest has less than a GiB


@given(st.sampled_from(sorted(NAMED)), st.integers(2, 60), st.floats(0.01, 1.0))
def test_a_copy_that_makes_progress_is_left_alone(name: str, passes: int, share: float) -> None:
    left = 64.0
    looks = []
    for number in range(1, passes):
        if left < 0.01:
            break  # it has ended
        looks.append(look(number, left, number * 0.5))
        left *= 1.0 - GAIN - share * (0.9 - GAIN)
    assert fired(NAMED[name], looks) == []


@given(st.lists(st.floats(0.985, 1.2), min_size=30, max_size=60))
def test_a_load_that_never_converges_is_brought_to_an_end(noise: list[float]) -> None:
    looks = [look(1, 64, 0.1), *(look(n, 40 * by, n * 2.5) for n, by in enumerate(noise, 2))]
    assert fired(GENTLE, looks)[-1].then is Then.ABORT
    assert fired(FORCE, looks)[-1].then is Then.PAUSE
    assert fired(POST_COPY, looks)[0].then is Then.POST_COPY
    assert fired(PATIENT, looks) == []


def test_gentle_step_by_step() -> None:
    firings = fired(GENTLE, stuck(40))
    assert [(f.rule, f.then, f.downtime_limit_s) for f in firings] == [
        (1, Then.RAISE_DOWNTIME, pytest.approx(0.45)),
        (1, Then.RAISE_DOWNTIME, pytest.approx(0.675)),
        (1, Then.RAISE_DOWNTIME, pytest.approx(1.0)),
        (2, Then.ABORT, None),
    ]
    assert firings[0].at_s == pytest.approx(4 * 2.5)  # the third boundary is the second without progress
    assert 60 <= firings[-1].at_s < 65
    assert "4 passes without progress and 60 s" in firings[-1].why


def test_force_ends_with_a_standstill() -> None:
    assert [(f.rule, f.then, f.downtime_limit_s) for f in fired(FORCE, stuck(40))] == [
        (1, Then.RAISE_DOWNTIME, pytest.approx(0.6)),
        (1, Then.RAISE_DOWNTIME, pytest.approx(1.2)),
        (1, Then.RAISE_DOWNTIME, pytest.approx(2.0)),
        (2, Then.PAUSE, UNLIMITED_S),
    ]


def test_a_limit_that_is_higher_already_is_left() -> None:
    assert [f.then for f in fired(FORCE, stuck(40), limit_s=5.0)] == [Then.PAUSE]


def test_post_copy_by_hand_begins_with_the_second_pass() -> None:
    firings = fired(POST_COPY_SOON, [look(0, 64, 0.0), look(1, 64, 0.1), look(1, 5, 3.0), look(2, 4, 3.1)])
    assert [(f.then, f.at_s) for f in firings] == [(Then.POST_COPY, 3.1)]


def test_time_is_counted_per_gib_and_a_small_guest_counts_as_one() -> None:
    rule = Policy(name="t", rules=(Rule(then=Then.ABORT, seconds_per_gib=10.0),))
    assert fired(rule, [look(2, 1, 9.9)]) == []
    assert fired(rule, [look(2, 1, 10.0)])
    assert fired(rule, [look(2, 1, 39.0, total_mib=4096)]) == []
    assert fired(rule, [look(2, 1, 40.0, total_mib=4096)])


def test_a_slow_gain_is_progress_in_the_end() -> None:
    """One percent a pass is no progress from pass to pass, and is from the low-water mark on."""
    looks = [look(1, 64, 0.1), *(look(n, 40 * 0.99**n, n * 1.0) for n in range(2, 50))]
    rule = Policy(name="t", rules=(Rule(then=Then.ABORT, stalled_passes=3),))
    assert fired(rule, looks) == []


SHRINKING = [64.0, *(40.0 * 0.9**number for number in range(30))]
STUCK = [64.0, *([40.0] * 30)]
STALLED: dict[str, Any] = {"then": Then.ABORT, "stalled_passes": 2}


def test_one_late_look_does_not_make_stalls_of_the_passes_that_follow() -> None:
    """At its end little is left of any pass."""
    for late in range(1, 10):
        looks = [(number, 0.95 if number == late else 0.0) for number in range(1, 31)]
        assert fired(GENTLE, played(SHRINKING, looks)) == []


@given(st.lists(st.floats(0, 0.99), min_size=31, max_size=31), st.lists(st.booleans(), min_size=31, max_size=31))
def test_when_in_a_pass_it_is_looked_at_decides_nothing(late: list[float], again: list[bool]) -> None:
    looks = []
    for number, (share, twice) in enumerate(zip(late, again, strict=True), 1):
        looks += [(number, share), (number, (1 + share) / 2)] if twice else [(number, share)]
    rule = Policy(name="t", rules=(Rule(**STALLED),))
    assert fired(rule, played(SHRINKING, looks)) == []
    assert [firing.then for firing in fired(rule, played(STUCK, looks))] == [Then.ABORT]
    # The second pass has the mark, the third is the first that stalls.
    assert fired(rule, played(STUCK, looks))[0].why.startswith("2 passes without progress (pass 4,")


@given(st.lists(st.integers(1, 4), min_size=12, max_size=12), st.lists(st.floats(0, 0.99), min_size=12, max_size=12))
def test_passes_that_nobody_saw(steps: list[int], late: list[float]) -> None:
    seen = [sum(steps[: number + 1]) for number in range(len(steps))]
    looks = [(number, share) for number, share in zip(seen, late, strict=True) if number <= len(STUCK)]
    rule = Policy(name="t", rules=(Rule(**STALLED),))
    assert fired(rule, played(SHRINKING, looks)) == []
    assert len(fired(rule, played(STUCK, looks))) == (len([number for number, _ in looks if number > 1]) > 2)
