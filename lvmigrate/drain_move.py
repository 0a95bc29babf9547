"""One move, and one cleanup, of many: each a tasklet of its own, with its share of the link."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from lvmigrate.ahead import Ahead
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

#: The first step that begins once the memory is on the target alone: of a live migration, where both nodes have said
#: so, and of a failover, where the guest runs.
_AFTER_COPY: Final = frozenset({"switch", "close", "verify"})
#: A copy that has no more than this to go gives its place away soon, in seconds: time for the next one's checks.
_SOON_S: Final = 15.0
#: After these, where the guest is allowed to, it is shut down and started on the target.
_TOO_BUSY: Final = frozenset({Code.NOT_CONVERGING, Code.COPY_TIMEOUT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ears:
    """What a move tells of itself, each at most once and from its own thread."""

    #: Its copy comes to its end: whoever follows may get ready.
    ends_soon: Callable[[], None] = lambda: None
    #: Its memory is on the target alone: what is left to do uses neither its share of the link nor the source's memory.
    landed: Callable[[], None] = lambda: None


def made(context: Context, uuid: str, target: str, manner: Manner, options: Options, *, ears: Ears) -> MigrateInstance:
    """A move that was not checked yet; ``context.cancel`` aborts it."""
    return MigrateInstance(_own(context, on_progress=_told(manner, ears)), uuid, target=target, options=options)


def move(
    context: Context,
    departure: Departure,
    manner: Manner,
    domain: Domain,
    *,
    ears: Ears,
    ahead: Ahead | None = None,
) -> Report:
    """Live, or as the guest's options say; and where that was too much for it, and is allowed, by a failover.

    ``context.cancel`` aborts it; ``ahead``: where its checks may have been made already.  Raises what `MigrateInstance`
    and `FailoverInstance` raise.
    """
    options = shared(manner.options(domain), departure.bandwidth_mib_s)
    uuid, target = departure.uuid, departure.target
    try:
        checked = None
        if ahead is not None:
            checked = unless_stopped(partial(ahead.take, uuid, target, context.nodes), context.cancel)
        if checked is not None:
            checked.paced(options)
            return checked.exec()
        return _done(made(context, uuid, target, manner, options, ears=ears), context.cancel)
    except LvmigrateError as error:
        if error.code not in _TOO_BUSY or not options.allow_failover:
            raise
        manner.onlooker.says(f"{departure.name}: {error.sentence} It is shut down and started there, as allowed")
    own = _own(context, on_progress=_told(manner, ears))
    return _done(FailoverInstance(own, uuid, target=target, options=FailoverOptions.of(options)), context.cancel)


def _told(manner: Manner, ears: Ears) -> Callable[[StepProgress], None]:
    """What hears of a move's progress, and tells the ears."""
    waiting = {ears.ends_soon, ears.landed}

    def told(progress: StepProgress) -> None:
        manner.onlooker.progress(progress)
        eta_s = None if progress.memory is None else progress.memory.eta_s
        if eta_s is not None and eta_s < _SOON_S and ears.ends_soon in waiting:
            waiting.remove(ears.ends_soon)
            ears.ends_soon()
        if progress.step in _AFTER_COPY and ears.landed in waiting:
            waiting.remove(ears.landed)
            ears.landed()

    return told


def shared(options: Options, rate_mib_s: int) -> Options:
    """A guest's options with its share of the link, unless its own limit is lower; the target is chosen already."""
    rate = min(rate_mib_s, options.bandwidth_mib_s or rate_mib_s)
    options = replace(options, bandwidth_mib_s=rate, iallocator=None)
    if not options.may_post_copy:
        return options
    return replace(options, postcopy_bandwidth_mib_s=min(rate, options.postcopy_bandwidth_mib_s or rate))


def clean_up(context: Context, uuid: str, manner: Manner) -> CleanupReport:
    """Finish or undo what somebody has left of a move; ``context.cancel`` aborts that.

    Raises what `CleanupInstance` raises.
    """
    tasklet = CleanupInstance(_own(context, on_progress=manner.onlooker.progress), uuid)
    tasklet.check_prereq()
    return tasklet.exec()


def _done(tasklet: MigrateInstance | FailoverInstance, abort: threading.Event) -> Report:
    unless_stopped(tasklet.check_prereq, abort)
    return tasklet.exec()


def _own(context: Context, *, on_progress: Callable[[StepProgress], None]) -> Context:
    """The context of one move."""
    return replace(context, post_copy=threading.Event(), on_progress=on_progress)
