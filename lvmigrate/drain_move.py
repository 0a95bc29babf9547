"""One move, and one cleanup, of many: each a tasklet of its own, with its share of the link."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from lvmigrate.cleanup import CleanupInstance
from lvmigrate.domain import Domain
from lvmigrate.errors import Code, LvmigrateError
from lvmigrate.failover import FailoverInstance, FailoverOptions
from lvmigrate.manner import Manner
from lvmigrate.migrate import MigrateInstance
from lvmigrate.plan import Options
from lvmigrate.progress import StepProgress
from lvmigrate.report import CleanupReport, Report
from lvmigrate.tasklet import Context
from lvmigrate.traffic import Departure
from lvmigrate.unless_stopped import unless_stopped

#: The first step that begins once the guest runs on the target: of a live migration, where it was seen there alone, and
#: of a failover.
_AFTER_ARRIVAL: Final = frozenset({"close", "verify"})
#: After these, where the guest is allowed to, it is shut down and started on the target.
_TOO_BUSY: Final = frozenset({Code.NOT_CONVERGING, Code.COPY_TIMEOUT})


def move(
    context: Context,
    departure: Departure,
    manner: Manner,
    domain: Domain,
    *,
    abort: threading.Event,
    arrived: Callable[[], None],
) -> Report:
    """Live, or as the guest's options say; and where that was too much for it, and is allowed, by a failover.

    ``arrived`` is called once the guest runs on the target: what is left to do uses neither its share of the link nor
    the source's memory.  Raises what `MigrateInstance` and `FailoverInstance` raise.
    """
    options = shared(manner.options(domain), departure.bandwidth_mib_s)
    own = _own(context, abort, on_progress=_told(manner, arrived))
    try:
        return _done(MigrateInstance(own, departure.uuid, target=departure.target, options=options), abort)
    except LvmigrateError as error:
        if error.code not in _TOO_BUSY or not options.allow_failover:
            raise
        manner.onlooker.says(f"{departure.name}: {error.sentence} It is shut down and started there, as allowed")
    chosen = FailoverOptions.of(options)
    return _done(FailoverInstance(own, departure.uuid, target=departure.target, options=chosen), abort)


def _told(manner: Manner, arrived: Callable[[], None]) -> Callable[[StepProgress], None]:
    """What hears of a move's progress, and calls ``arrived`` at most once."""
    waiting = [arrived]

    def told(progress: StepProgress) -> None:
        manner.onlooker.progress(progress)
        if progress.step in _AFTER_ARRIVAL and waiting:
            waiting.pop()()

    return told


def shared(options: Options, rate_mib_s: int) -> Options:
    """A guest's options with its share of the link, unless its own limit is lower; the target is chosen already."""
    rate = min(rate_mib_s, options.bandwidth_mib_s or rate_mib_s)
    options = replace(options, bandwidth_mib_s=rate, iallocator=None)
    if not options.may_post_copy:
        return options
    return replace(options, postcopy_bandwidth_mib_s=min(rate, options.postcopy_bandwidth_mib_s or rate))


def clean_up(context: Context, uuid: str, manner: Manner, *, abort: threading.Event) -> CleanupReport:
    """Finish or undo what somebody has left of a move. Raises what `CleanupInstance` raises."""
    tasklet = CleanupInstance(_own(context, abort, on_progress=manner.onlooker.progress), uuid)
    tasklet.check_prereq()
    return tasklet.exec()


def _done(tasklet: MigrateInstance | FailoverInstance, abort: threading.Event) -> Report:
    unless_stopped(tasklet.check_prereq, abort)
    return tasklet.exec()


def _own(context: Context, abort: threading.Event, *, on_progress: Callable[[StepProgress], None]) -> Context:
    """The context of one move: what stops the whole from going on does not stop this one."""
    return replace(context, cancel=abort, post_copy=threading.Event(), on_progress=on_progress)
