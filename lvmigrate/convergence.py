"""What is done about a copy of memory that does not come to its end: rules as data, judged by one pure function.

The invariants: at most one rule fires at a look, so that its effect is seen before the next one does; the downtime
limit never falls; a load whose copy makes progress meets no rule that asks for a stall; nothing fires after an abort.

A *stall* is seen at the boundary of a pass, where what remains is the size of the next pass.  The low-water mark is the
smallest such figure so far; a pass that is not at least `GAIN` below it is one more stalled pass.  Within a pass what
remains always falls, which says nothing: a look that comes late has what the pass has gone through by then added to it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from lvmigrate.errors import UsageError
from lvmigrate.progress import MemoryProgress

_GIB: Final = 1 << 30
#: How far below the low-water mark a pass must begin to count as progress.
GAIN: Final = 0.02
#: The most that QEMU takes as a downtime limit: the guest stands still from the next pass on, until all is sent.
UNLIMITED_S: Final = 2000.0


class Then(enum.Enum):
    """What a rule does."""

    RAISE_DOWNTIME = "raise-downtime"
    #: The guest goes on at the target and fetches what is missing: it cannot be aborted from then on.
    POST_COPY = "post-copy"
    #: The guest stands still for the rest of the copy.  Not suspended by a call: QEMU stops it as for the last pass
    #: (an unlimited downtime), so that a failure, or a controller that dies, leaves it to libvirt to let it run again.
    PAUSE = "pause"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When all of the conditions that are above 0 hold, do ``then``."""

    then: Then
    #: So many passes in a row have stalled, since the last rule fired.
    stalled_passes: int = 0
    #: The copy has begun its pass of this number (1 is the first).
    passes: int = 0
    #: It has taken so many seconds per GiB of the guest's memory, which counts as 1 GiB at least.
    seconds_per_gib: float = 0.0
    #: It has taken so many seconds.
    after_s: float = 0.0
    #: `Then.RAISE_DOWNTIME` only: by how much the limit is multiplied each time, and where it ends.
    factor: float = 1.5
    up_to_s: float = 1.0

    @property
    def words(self) -> str:
        """Its conditions, for people."""
        told = [
            f"{self.stalled_passes} passes without progress" if self.stalled_passes else "",
            f"pass {self.passes}" if self.passes else "",
            f"{self.seconds_per_gib:g} s per GiB" if self.seconds_per_gib else "",
            f"{self.after_s:g} s" if self.after_s else "",
        ]
        return " and ".join(word for word in told if word) or "at once"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A name and rules, the first of which that holds counts."""

    name: str
    rules: tuple[Rule, ...] = ()
    #: Let QEMU slow the guest's CPUs down when it dirties memory faster than it is sent.  libvirt can turn that on only
    #: as the copy begins; QEMU then begins with it by itself, and harder from pass to pass.
    auto_converge: bool = False

    @property
    def may_post_copy(self) -> bool:
        """Whether the copy must be begun such that it can be switched to post-copy."""
        return any(rule.then is Then.POST_COPY for rule in self.rules)


#: Nothing is done; the copy has the time that ``copy_timeout_s`` gives it.
PATIENT: Final = Policy(name="patient")
#: A standstill of up to a second; then the move is given up. The default.
GENTLE: Final = Policy(
    name="gentle",
    rules=(
        Rule(then=Then.RAISE_DOWNTIME, stalled_passes=2, factor=1.5, up_to_s=1.0),
        Rule(then=Then.ABORT, stalled_passes=4, after_s=60.0),
        Rule(then=Then.ABORT, stalled_passes=1, seconds_per_gib=300.0),
    ),
)
#: The guest arrives, whatever that costs it: it is slowed down, stands still for longer, and at last until all is sent.
FORCE: Final = Policy(
    name="force",
    rules=(
        Rule(then=Then.RAISE_DOWNTIME, stalled_passes=2, factor=2.0, up_to_s=2.0),
        Rule(then=Then.PAUSE, stalled_passes=4),
        Rule(then=Then.PAUSE, seconds_per_gib=300.0),
    ),
    auto_converge=True,
)
#: The guest goes on at the target before all of its memory is there.
POST_COPY: Final = Policy(
    name="post-copy",
    rules=(
        Rule(then=Then.POST_COPY, stalled_passes=2),
        Rule(then=Then.POST_COPY, seconds_per_gib=150.0),
    ),
)
#: As by hand: after the first pass, whatever remains.
POST_COPY_SOON: Final = Policy(name="post-copy at once", rules=(Rule(then=Then.POST_COPY, passes=2),))

NAMED: Final = {policy.name: policy for policy in (PATIENT, GENTLE, FORCE, POST_COPY)}


def of_name(name: str, policies: Mapping[str, Policy]) -> Policy:
    """The one of that name. Raises `UsageError`, which names them all."""
    if name not in policies:
        raise UsageError(
            f"There is no policy {name}.",
            hint=f"There are {', '.join(policies)}; [policies.NAME] in the configuration makes others.",
        )
    return policies[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """A rule that fired, for the report."""

    policy: str
    #: 1 for the policy's first.
    rule: int
    then: Then
    #: Why, in words: the rule's conditions and what was seen.
    why: str
    #: Seconds since the copy began.
    at_s: float
    #: `Then.RAISE_DOWNTIME` and `Then.PAUSE`: the limit from now on.
    downtime_limit_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a copy has gone so far, as far as rules ask for it."""

    #: The limit in force.
    downtime_limit_s: float
    #: The pass seen last, what was left at the last look, and how much had been gone through by then.
    iteration: int = 0
    remaining: int | None = None
    passed: int = 0
    #: The fewest bytes that were left at the boundary of a pass; ``None`` before the first.
    low_water: int | None = None
    #: Stalled passes since the last rule fired.
    stalled: int = 0
    #: The rules (by position) that fire no more.
    spent: frozenset[int] = frozenset()
    over: bool = False


def judge(policy: Policy, course: Course, progress: MemoryProgress) -> tuple[Course, Firing | None]:
    """What follows from one look at the copy. The new course replaces the old one."""
    course = _seen(course, progress)
    if course.over:
        return course, None
    for position, rule in enumerate(policy.rules):
        if position in course.spent or not _holds(rule, course, progress):
            continue
        limit = _limit(rule, course.downtime_limit_s)
        if limit is not None and limit <= course.downtime_limit_s:
            course = replace(course, spent=course.spent | {position})
            continue  # as high as it may be: the next rule's turn
        firing = Firing(
            policy=policy.name,
            rule=position + 1,
            then=rule.then,
            why=f"{rule.words} (pass {progress.iteration}, {progress.remaining >> 20} MiB to go,"
            f" {progress.elapsed_s:.0f} s)",
            at_s=progress.elapsed_s,
            downtime_limit_s=limit,
        )
        return (
            replace(
                course,
                downtime_limit_s=course.downtime_limit_s if limit is None else limit,
                stalled=0,
                spent=course.spent if rule.then is Then.RAISE_DOWNTIME else course.spent | {position},
                over=rule.then is Then.ABORT,
            ),
            firing,
        )
    return course, None


def _seen(course: Course, progress: MemoryProgress) -> Course:
    looked = replace(course, remaining=progress.remaining, passed=progress.passed)
    if progress.iteration <= course.iteration:
        return looked
    begun = replace(looked, iteration=progress.iteration)
    if progress.iteration <= 1:
        return begun  # the first pass is all of the memory: no mark yet
    size = _size(course, progress)
    if course.low_water is None or size < course.low_water * (1.0 - GAIN):
        return replace(begun, low_water=size, stalled=0)
    return replace(begun, stalled=course.stalled + 1)


def _size(course: Course, progress: MemoryProgress) -> int:
    """What was left as the pass began that is seen here for the first time.

    Since the last look first what was left then has been gone through, and then of this pass what is not left any more;
    of passes that nobody saw, all, which makes this the mean of their sizes.
    """
    before = progress.total if course.remaining is None else course.remaining
    unseen = max(1, progress.iteration - max(1, course.iteration))
    return max(progress.remaining, (progress.remaining + progress.passed - course.passed - before) // unseen)


def _holds(rule: Rule, course: Course, progress: MemoryProgress) -> bool:
    gib = max(1.0, progress.total / _GIB)
    return (
        course.stalled >= rule.stalled_passes
        and progress.iteration >= rule.passes
        and progress.elapsed_s >= rule.after_s
        and progress.elapsed_s >= rule.seconds_per_gib * gib
    )


def _limit(rule: Rule, now_s: float) -> float | None:
    match rule.then:
        case Then.RAISE_DOWNTIME:
            return min(rule.up_to_s, now_s * rule.factor)
        case Then.PAUSE:
            return UNLIMITED_S
    return None
