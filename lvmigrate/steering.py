"""Steering a copy of memory that is under way: the policy's rules, and post-copy when somebody asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    _asked: bool = False

    def __post_init__(self) -> None:
        self._course = Course(downtime_limit_s=self.options.downtime_limit_s)

    def steer(self, copy: MemoryCopy, progress: MemoryProgress | None) -> MoveFailed | None:
        """Do what follows from one look at the copy; why it is to be given up, if a rule says so."""
        if self.chronicle.happened(POST_COPY):
            return None
        if self.context.post_copy.is_set() and not self._asked:
            self._asked = True
            self._post_copy(copy, "as asked")
            return None
        if progress is None:
            return None
        self.peak_rate = max(self.peak_rate, progress.rate)
        if progress.throttle_percent > self.most_throttle_percent:
            if not self.most_throttle_percent:
                self.chronicle.note(f"auto-converge slows the guest down by {progress.throttle_percent} %")
            self.most_throttle_percent = progress.throttle_percent
        self._course, firing = judge(self.options.rules, self._course, progress)
        return None if firing is None else self._do(copy, firing)

    def _do(self, copy: MemoryCopy, firing: Firing) -> MoveFailed | None:
        self.fired.append(firing)
        self.chronicle.note(f"policy {firing.policy}, rule {firing.rule}: {firing.then.value}: {firing.why}")
        _log.info("rule_fired", policy=firing.policy, rule=firing.rule, then=firing.then.value, why=firing.why)
        match firing.then:
            case Then.RAISE_DOWNTIME | Then.PAUSE:
                try:
                    copy.limit_downtime(firing.downtime_limit_s or 0.0)
                except LvmigrateError as error:
                    self._note(f"the downtime limit was not set: {error}")
            case Then.POST_COPY:
                self._post_copy(copy, firing.why)
            case Then.ABORT:
                return MoveFailed(
                    f"The copy of memory does not come to its end ({firing.why}; policy {firing.policy}).",
                    code=Code.NOT_CONVERGING,
                    hint=NOT_CONVERGING_HINT,
                )
        return None

    def _post_copy(self, copy: MemoryCopy, why: str) -> None:
        """Begin a post-copy if everything that it cannot do without is there now."""
        if not self.may_post_copy:
            self._note("no post-copy: the copy was not begun such that it can become one (--mode, --policy post-copy)")
            return
        if doubts := [*self.disks.watch.breaks(), *self.disks.doubts()]:
            self._note(f"no post-copy: replication is not whole ({doubts[0]})")
            return
        if lapsed := self.lease.lapsed():
            self._note(f"no post-copy: {lapsed}")
            return
        try:
            copy.start_post_copy()
        except LvmigrateError as error:
            # If it acts all the same, libvirt's events will tell; until then an abort is refused by libvirt itself.
            self._note(f"post-copy was not begun: {error}")
            return
        self.chronicle.mark(POST_COPY)
        self.chronicle.note(f"post-copy: {why}")

    def _note(self, what: str) -> None:
        self.chronicle.note(what)
        _log.warning("steering_failed", what=what)
