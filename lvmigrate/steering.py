"""Steering a copy of memory that is under way: the policy's rules, and post-copy when somebody asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import structlog

from lvmigrate.chronicle import Chronicle
from lvmigrate.convergence import Course, Firing, Then, judge
from lvmigrate.disks import Disks
from lvmigrate.errors import Code, LvmigrateError, MoveFailed
from lvmigrate.lease import Lease
from lvmigrate.plan import Options
from lvmigrate.progress import MemoryProgress
from lvmigrate.protocols import MemoryCopy
from lvmigrate.tasklet import Context

_log = structlog.get_logger()

#: The chronicle's mark of a guest that goes on at the target before all of its memory is there.
POST_COPY: Final = "post-copy"
NOT_CONVERGING_HINT: Final = (
    "The guest dirties memory faster than it is sent. --policy force slows it down, --policy post-copy lets it go on at"
    " the target; or raise --downtime-limit or --bandwidth, or give it a --compression."
)


@dataclass(slots=True, kw_only=True)
class Steering:
    """What is done to one copy. Nothing of it is done twice, and nothing any more once the copy is a post-copy."""

    context: Context
    options: Options
    chronicle: Chronicle
    disks: Disks
    lease: Lease
    #: Whether the copy was begun such that it can become a post-copy.
    may_post_copy: bool
    #: Every rule that fired, in order.
    fired: list[Firing] = field(default_factory=list)
    most_throttle_percent: int = 0
    #: Bytes per second.
    peak_rate: int = 0
    _course: Course = field(init=False)
    #: The pass in which post-copy was tried last because somebody asks for it; below 0: it was not.
    _asked_in: int = -1
    #: What a rule asked for and could not be done, the pass, and the course before: another pass is another try.
    _undone: tuple[Firing, int, Course] | None = None

    def __post_init__(self) -> None:
        self._course = Course(downtime_limit_s=self.options.downtime_limit_s)

    def steer(self, copy: MemoryCopy, progress: MemoryProgress | None) -> MoveFailed | None:
        """Do what follows from one look at the copy; why it is to be given up, if a rule says so."""
        if self.chronicle.happened(POST_COPY):
            return None
        number = 0 if progress is None else progress.iteration
        if self.context.post_copy.is_set() and number > self._asked_in and (self.may_post_copy or self._asked_in < 0):
            self._asked_in = number
            self._post_copy(copy, "as asked")
            return None
        if progress is None:
            return None
        self.peak_rate = max(self.peak_rate, progress.rate)
        if progress.throttle_percent > self.most_throttle_percent:
            if not self.most_throttle_percent:
                self.chronicle.note(f"auto-converge slows the guest down by {progress.throttle_percent} %")
            self.most_throttle_percent = progress.throttle_percent
        self._again(progress.iteration)
        before = self._course
        self._course, firing = judge(self.options.rules, self._course, progress)
        if firing is None:
            return None
        reason, done = self._do(copy, firing)
        if not done:
            self._undone = firing, progress.iteration, before
        return reason

    def _again(self, number: int) -> None:
        """In a pass after that in which a rule's act failed, it may fire again, and the limit is what it was."""
        if self._undone is None or number <= self._undone[1]:
            return
        (firing, _, before), self._undone = self._undone, None
        raised = self._course.downtime_limit_s != firing.downtime_limit_s  # by another rule since
        self._course = replace(
            self._course,
            spent=self._course.spent - {firing.rule - 1},
            downtime_limit_s=self._course.downtime_limit_s if raised else before.downtime_limit_s,
        )

    def _do(self, copy: MemoryCopy, firing: Firing) -> tuple[MoveFailed | None, bool]:
        """Why the copy is to be given up, if it is; and whether what the rule asks for was done, or never can be."""
        self.fired.append(firing)
        self.chronicle.note(f"policy {firing.policy}, rule {firing.rule}: {firing.then.value}: {firing.why}")
        _log.info("rule_fired", policy=firing.policy, rule=firing.rule, then=firing.then.value, why=firing.why)
        match firing.then:
            case Then.RAISE_DOWNTIME | Then.PAUSE:
                try:
                    copy.limit_downtime(firing.downtime_limit_s or 0.0)
                except LvmigrateError as error:
                    self._note(f"the downtime limit was not set: {error}")
                    return None, False
            case Then.POST_COPY:
                return None, self._post_copy(copy, firing.why) or not self.may_post_copy
            case Then.ABORT:
                reason = MoveFailed(
                    f"The copy of memory does not come to its end ({firing.why}; policy {firing.policy}).",
                    code=Code.NOT_CONVERGING,
                    hint=NOT_CONVERGING_HINT,
                )
                return reason, True
        return None, True

    def _post_copy(self, copy: MemoryCopy, why: str) -> bool:
        """Begin a post-copy if everything that it cannot do without is there now; whether it was begun."""
        if not self.may_post_copy:
            self._note("no post-copy: the copy was not begun such that it can become one (--mode, --policy post-copy)")
            return False
        if doubts := [*self.disks.watch.breaks(), *self.disks.doubts()]:
            self._note(f"no post-copy: replication is not whole ({doubts[0]})")
            return False
        if lapsed := self.lease.lapsed():
            self._note(f"no post-copy: {lapsed}")
            return False
        try:
            copy.start_post_copy()
        except LvmigrateError as error:
            # If it acts all the same, libvirt's events will tell; until then an abort is refused by libvirt itself.
            self._note(f"post-copy was not begun: {error}")
            return False
        self.chronicle.mark(POST_COPY)
        self.chronicle.note(f"post-copy: {why}")
        return True

    def _note(self, what: str) -> None:
        self.chronicle.note(what)
        _log.warning("steering_failed", what=what)
