"""`Jobs`: the queue and those who work on it. What they do is in the journal first, so that a kill -9 loses none of it.

What a service that died has left is judged by what was written before anything was changed:

- no plan yet: nothing was begun, so it waits in the queue again;
- a cleanup, a drain or a return: all of them go on where they stand, whoever began them, so they begin again;
- a move with a plan: it is never repeated.  A cleanup finds out by observation where the guest is, and leads it to an
  end; until a node answers that it needs, it is tried again.

Long, because the queue, what is under way and what is written of both are one state, below one lock.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from lvmigrate.cluster import Cluster
from lvmigrate.defect import defect
from lvmigrate.drain import all_known
from lvmigrate.drain_report import DrainReport
from lvmigrate.errors import (
    Code,
    ExitCode,
    LvmigrateError,
    MoveAborted,
    UsageError,
)
from lvmigrate.journal import OK, JournalUnusable
from lvmigrate.jsonable import error_object, jsonable
from lvmigrate.service import work
from lvmigrate.service.events import Hub, News
from lvmigrate.service.job import LEFT_OPEN, Job, State, Wish
from lvmigrate.service.ledger import Ledger, new_id
from lvmigrate.service.messages import Checked
from lvmigrate.service.metrics import Metrics
from lvmigrate.service.orders import Drain, Order, about
from lvmigrate.service.parcels import Parcels
from lvmigrate.service.problem import NotDone
from lvmigrate.service.recovery import Recovery
from lvmigrate.service.settings import Settings, Stop
from lvmigrate.service.under import Under
from lvmigrate.service.wire import plain
from lvmigrate.service.work import Hands

_log = structlog.get_logger()

#: After the journal could not be written.
_LEDGER_AGAIN_S: Final = 5.0
#: After no thread was to be had for a job.
_BEGIN_AGAIN_S: Final = 1.0
#: How often a stop looks whether everything has ended.
_LOOK_S: Final = 0.1
#: What mends waits for nobody but the guest's own job.
_MENDS: Final = ("cleanup",)
#: Whose journal says nothing that another of the same order could not find out again.
_GOES_ON: Final = ("cleanup", "drain", "return")
_MANY: Final = ("drain", "return")


class _Later(LvmigrateError):
    """The nodes of its plan have no room for one more; nothing was begun."""


class Jobs:
    """See above. Its methods may be called from any thread; those that write raise `JournalUnusable`."""

    def __init__(
        self, cluster: Cluster, ledger: Ledger, hub: Hub, metrics: Metrics, settings: Settings, directory: Path
    ) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._hub = hub
        self._metrics = metrics
        self._settings = settings
        self._parcels = Parcels(directory)
        self._change = threading.Condition()
        #: In the order in which they were asked for.
        self._queue: list[Job] = []
        #: The nodes that a job which waits needs a place on, as far as its plan has told.
        self._wants: dict[str, frozenset[str]] = {}
        self._under: dict[str, Under] = {}
        self._stopping = False
        #: Jobs of which something could not be written, and that: what is in the file is older.
        self._unwritten: dict[str, tuple[Job, dict[str, Any]]] = {}
        self._recovery = Recovery(
            cluster,
            ledger,
            self._change,
            stopping=lambda: self._stopping,
            says=self._says,
            finish=self._finish,
        )
        metrics.jobs_are(self._count)

    # ---- from the outside

    def start(self) -> None:
        """Take up what an earlier service has left, and begin to work.

        Where that cannot be read it raises `JournalUnusable`, and nothing has begun: it may be called again.  What
        cannot be written of it is written later.
        """
        left = self._ledger.unfinished()
        self._parcels.keep_only([job.id for job in left])
        with self._change:
            for job in left:
                self._take_up(job)
        threading.Thread(target=self._dispatch, name="jobs", daemon=True).start()

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stopping

    def sentence(self) -> str:
        """What it is doing, in a line for people."""
        with self._change:
            states = Counter(under.job.state for under in self._under.values())
            told = {
                "under way": states[State.RUNNING] + states[State.QUEUED],
                "being cleaned up": states[State.RECOVERING],
                "waiting": len(self._queue),
            }
        words = ", ".join(f"{count} {what}" for what, count in told.items() if count) or "nothing to do"
        return f"{'Stopping' if self._stopping else 'Serving'}: {words}"

    def add(self, order: Order, *, subject: str, key: str | None, fingerprint: str) -> tuple[Job, bool]:
        """Accept an order, and whether it is a new one; it is on the disk when this returns.

        Raises `NotDone` (`Code.QUEUE_FULL`, `Code.STOPPING`), `UsageError` (`Code.KEY_REUSED`), and `Refused`
        (`Code.NODE_UNKNOWN`) where a drain names nodes that there are not.
        """
        told = plain(order)
        text = told.pop("definition_text", None)
        job = Job(
            id=new_id(),
            what=told["what"],
            about=about(order),
            order=told,
            subject=subject,
            priority=order.priority,
            state=State.QUEUED,
            asked=time.time(),  # the wall clock: it is for people, and a job outlives its service and the boot
        )
        with self._change:
            # First: who repeats an order must not be told that it was not taken when it was.
            before = None if key is None else self._ledger.ordered(subject, key, fingerprint)
            if before is not None:
                return self._newest(before), False
            if self._stopping:
                raise NotDone("The service is about to stop.", hint="Ask again when it is back.", code=Code.STOPPING)
            if isinstance(order, Drain):
                # It would refuse that itself; but it can name many, which its job and each of its events would repeat.
                all_known((*order.nodes, *order.to), self._cluster.config.nodes)
            if len(self._queue) >= self._settings.queue:
                raise NotDone(
                    f"{len(self._queue)} jobs wait already: no more may.",
                    hint="Wait until some have ended, or abort some; [service] queue raises the number.",
                    code=Code.QUEUE_FULL,
                )
            if text is not None:
                self._parcels.keep(job.id, text)
            try:
                self._ledger.add(job, key=key, fingerprint=fingerprint)
            except BaseException:
                self._parcels.forget(job.id)
                raise
            self._queue.append(job)
            self._tell(job)
            self._change.notify_all()
        return job, True

    def one(self, job: str, what: tuple[str, ...] | None = None) -> Job:
        """The job of that id. Raises `UsageError` (`Code.JOB_UNKNOWN`)."""
        found = self._ledger.one(job)
        if found is None or (what is not None and found.what not in what):
            raise UsageError(
                f"There is no job {job[:80]!r} here.",
                hint="List them: GET /v1/moves, /v1/drains, /v1/cleanups.",
                code=Code.JOB_UNKNOWN,
            )
        return self._newest(found)

    def some(
        self,
        *,
        what: tuple[str, ...],
        states: tuple[State, ...] | None,
        about: str | None,
        most: int,
        left_open: bool = False,
    ) -> list[Job]:
        """The newest, newest first; ``left_open``: only those that have left something for a person to look at."""
        exit_codes = tuple(map(int, LEFT_OPEN)) if left_open else None
        found = self._ledger.some(what=what, states=states, about=about, exit_codes=exit_codes, most=most)
        return [self._newest(job) for job in found]

    def wish(self, job: Job, wanted: Wish) -> Job:
        """Have it stop, or abort, whether or not that can be written (`Job.unwritten`).

        Raises `UsageError` (`Code.JOB_ENDED`).
        """
        with self._change:
            now = self._newest(self.one(job.id))
            if now.over:
                raise _ended(now)
            under = self._under.get(now.id)
            if under is not None:  # first: a disk that is full must not keep a move from being aborted
                if wanted is Wish.ABORT:
                    under.abort.set()
                under.cancel.set()
            if now.wish is not Wish.ABORT and wanted is not now.wish:
                now = self._write(msgspec.structs.replace(now, wish=wanted), wish=wanted)
            if under is None and now.state is not State.QUEUED:
                raise NotDone("The service is about to stop.", hint="Ask again when it is back.", code=Code.STOPPING)
            if under is None:
                return self._end(now, error=_not_begun())
            under.job = msgspec.structs.replace(under.job, wish=now.wish, unwritten=now.unwritten)
            self._tell(under.job)
            return under.job

    def post_copy(self, job: Job) -> Job:
        """Have the guest go on at the target at once, where the order allows it. Raises `UsageError`."""
        with self._change:
            under = self._under.get(job.id)
            if under is None:
                raise _ended(job)
            under.post_copy.set()
            return under.job

    def stands(self, job: str | None = None) -> Iterator[News]:
        """How one job stands, or all that have not ended."""
        for id_ in [job] if job is not None else [each.id for each in self._ledger.unfinished()]:
            with self._change:
                under = self._under.get(id_)
                if under is not None and under.plan is not None:
                    yield News(id_, "plan", under.plan)
                if under is not None and under.progress is not None:
                    yield News(id_, "progress", under.progress)
                with contextlib.suppress(UsageError):
                    now = self.one(id_)
                    yield News(id_, "job", now, now.over)

    def stop(self, how: Stop, deadline_s: float, *, hurry: Callable[[], bool] = lambda: False) -> tuple[str, ...]:
        """Begin nothing more, and do ``how`` with what is under way; who is handed over to the next service.

        ``hurry`` true: from then on as `Stop.ABORT`.
        """
        began = time.monotonic()
        aborted = False
        with self._change:
            self._stopping = True
            for under in self._under.values():
                if how is Stop.WAIT and under.job.what in _MANY:  # what is under way arrives; the rest goes on later
                    under.handed_over = not under.cancel.is_set()
                    under.cancel.set()
            self._change.notify_all()
        while how is not Stop.HAND_OVER and time.monotonic() - began < deadline_s:
            with self._change:
                left = list(self._under.values())
                if not left:
                    break
                if (how is Stop.ABORT or hurry()) and not aborted:
                    aborted = True
                    for under in left:
                        under.cancel.set()
                        under.abort.set()
                self._change.wait(_LOOK_S)
        with self._change:
            self._write_again()
            return tuple(self._under)

    # ---- what an earlier service has left

    def _take_up(self, job: Job) -> None:
        if job.state is State.QUEUED:
            self._queue.append(job)
            return
        _log.warning("job_was_under_way", job=job.id, what=job.what, about=job.about)
        self._metrics.interrupted.inc()
        job = msgspec.structs.replace(job, interruptions=job.interruptions + 1)
        begun = bool(job.target) and job.what not in _GOES_ON
        stopped = job.wish is not Wish.NONE and job.what in _MANY
        if begun or stopped:
            job = msgspec.structs.replace(job, state=State.RECOVERING)
            job = self._write(job, state=job.state, interruptions=job.interruptions)
            # It has a place already, also where there is none: what was begun is never held back.
            under = self._under[job.id] = Under(job=job, nodes=frozenset({job.source, job.target} - {""}))
            if job.wish is Wish.ABORT:
                under.abort.set()
            self._run(under, partial(self._recovery.many if stopped else self._recovery.move, under))
        elif job.wish is Wish.ABORT and job.what not in _MENDS:
            self._end(job, error=_not_begun())
        else:
            job = msgspec.structs.replace(job, state=State.QUEUED)
            job = self._write(job, state=job.state, interruptions=job.interruptions)
            self._queue.append(job)
            self._tell(job)

    # ---- the queue

    def _dispatch(self) -> None:
        with self._change:
            while not self._stopping:
                try:
                    if not self._begin_one():
                        self._change.wait(_LEDGER_AGAIN_S if self._unwritten else None)
                        self._write_again()
                except Exception as error:  # noqa: BLE001 -- without this thread nothing would ever begin again
                    _log.error("nothing_begun", error=repr(error), exc_info=error)
                    self._change.wait(_BEGIN_AGAIN_S)

    def _begin_one(self) -> bool:
        """Begin the next job, if one may; where it cannot be begun it stands in the queue as before."""
        job = self._next()
        if job is None:
            return False
        under = Under(job=job, nodes=self._wants.get(job.id, frozenset()))
        self._under[job.id] = under
        try:
            self._run(under, partial(self._work, under))
        except BaseException:
            del self._under[job.id]
            raise
        # It waits for our lock before it changes anything of these.
        self._queue.remove(job)
        self._wants.pop(job.id, None)
        return True

    def _next(self) -> Job | None:
        """The first that may begin, by priority and then by age."""
        busy = {under.job.about for under in self._under.values()} | {u.job.uuid for u in self._under.values()}
        working = sum(under.job.what not in _MENDS and not under.idle for under in self._under.values())
        # One that is being checked may need the very place that one of a lower priority would take meanwhile.
        checked = (u.job for u in self._under.values() if u.job.what not in _GOES_ON and not u.nodes)
        before = min((job.priority.rank for job in checked), default=0)
        for job in sorted(self._queue, key=lambda job: job.priority.rank):
            if job.about in busy:
                continue
            may = working < self._settings.at_once and job.priority.rank <= before
            if job.what in _MENDS or (may and self._have_room(self._wants.get(job.id, frozenset()))):
                return job
        return None

    def _have_room(self, nodes: frozenset[str]) -> bool:
        taken = Counter(node for under in self._under.values() if not under.idle for node in under.nodes)
        return all(taken[node] < self._settings.per_node for node in nodes)

    def _count(self) -> dict[State, int]:
        """Without the lock, which is held while the journal is written: it can be told then, too."""
        waiting, under_way = len(self._queue), list(self._under.values())
        return {State.QUEUED: waiting, **Counter(under.job.state for under in under_way)}

    # ---- one job

    def _run(self, under: Under, act: Callable[[], None]) -> None:
        """In a thread of its own."""

        def run() -> None:
            with structlog.contextvars.bound_contextvars(job=under.job.id):
                try:
                    act()
                except Exception as error:  # noqa: BLE001 -- a defect must not end the others
                    self._finish(under, error=defect(error))
                finally:
                    with self._change:
                        if self._under.get(under.job.id) is under:  # it may be under way again already
                            del self._under[under.job.id]
                        self._change.notify_all()

        under.thread = threading.Thread(
            target=contextvars.copy_context().run, args=(run,), name=f"job-{under.job.id}", daemon=True
        )
        under.thread.start()

    def _work(self, under: Under) -> None:
        now = time.time()  # the wall clock, as `asked`
        begun = {"begun": now} if under.job.begun is None else {}
        try:
            self._ledger.set(under.job.id, state=State.RUNNING, **begun)
        except JournalUnusable as error:
            _log.error("job_not_begun", job=under.job.id, error=str(error))
            time.sleep(_LEDGER_AGAIN_S)
            self._back(under)
            return
        self._changed(under, state=State.RUNNING, waits_for="", **begun)
        self._metrics.wait_seconds.labels(under.job.what).observe(now - under.job.asked)
        if under.job.wish is Wish.ABORT:  # asked of the service that was killed
            under.cancel.set()
        hands = Hands(
            cancel=under.cancel,
            abort=under.abort,
            post_copy=under.post_copy,
            planned=partial(self._planned, under),
            told=partial(self._told, under),
            touched=partial(self._touched, under),
            definition=self._parcels.of(under.job.id),
        )
        try:
            order: Order = msgspec.convert(under.job.order, Order)
            result = work.perform(self._cluster, order, hands)
        except _Later:
            self._back(under)
        except LvmigrateError as error:
            if under.job.what == "return" and under.job.interruptions and error.code is Code.ERRAND_UNKNOWN:
                self._finish(under, result=_all_are_back(under.job))
            else:
                self._finish(under, error=error)
        else:
            if under.handed_over and isinstance(result, DrainReport) and result.exit_code is not ExitCode.OK:
                self._ledger.set(under.job.id, state=State.QUEUED, touched=[])
            else:
                self._finish(under, result=result)

    def _planned(self, under: Under, checked: Checked) -> None:
        """The plan is written down before anything is changed. Raises `_Later` where its nodes have no room."""
        changes: dict[str, Any] = {}
        plan = checked.plan
        if plan is not None:
            nodes = frozenset({plan.source, plan.target})
            with self._change:
                under.nodes = frozenset()
                if not self._have_room(nodes):
                    self._wants[under.job.id] = nodes
                    raise _Later("Its nodes have no room.", hint="It waits.")
                under.nodes = nodes
                self._change.notify_all()
            changes = {"uuid": plan.domain.uuid, "source": plan.source, "target": plan.target}
        elif checked.cleanup is not None:
            changes = {"uuid": checked.cleanup.scene.uuid}
        if changes:
            self._ledger.set(under.job.id, **changes)
            self._changed(under, **changes)
        under.plan = {"job": under.job.id, "plan": checked}
        self._hub.publish(under.job.id, "plan", under.plan)

    def _told(self, under: Under, kind: str, value: object) -> None:
        news = {"job": under.job.id, kind: value}
        if kind == "progress":
            under.progress = news
        self._hub.publish(under.job.id, kind, news)

    def _touched(self, under: Under, guests: tuple[str, ...]) -> None:
        try:
            self._ledger.set(under.job.id, touched=list(guests))
        except JournalUnusable as error:  # the drain goes on: what it left could be found by an audit
            _log.error("job_not_written", job=under.job.id, error=str(error))

    def _says(self, under: Under, sentence: str) -> None:
        _log.warning("job_waits", job=under.job.id, why=sentence)
        self._changed(under, waits_for=sentence)

    def _back(self, under: Under) -> None:
        """Into the queue again, at its old place."""
        with contextlib.suppress(JournalUnusable):
            self._ledger.set(under.job.id, state=State.QUEUED, begun=None)
        with self._change:
            wants = self._wants.get(under.job.id)
            words = f"a place on {' and '.join(sorted(wants))}" if wants else ""
            under.nodes = frozenset()
            under.job = msgspec.structs.replace(under.job, state=State.QUEUED, begun=None, waits_for=words)
            self._queue.append(under.job)
            self._queue.sort(key=lambda job: (job.asked, job.id))
            self._under.pop(under.job.id, None)
            self._tell(under.job)
            self._change.notify_all()
            if under.job.wish is Wish.ABORT:
                self._end(under.job, error=_not_begun())

    def _finish(self, under: Under, *, result: object = None, error: LvmigrateError | None = None) -> None:
        with self._change:
            if not under.job.over:
                under.job = self._end(under.job, result=result, error=error)

    def _end(self, job: Job, *, result: object = None, error: LvmigrateError | None = None) -> Job:
        """Write its outcome, tell it, and count it."""
        exit_code, code = ExitCode.OK, OK
        if error is not None:
            exit_code, code = error.exit_code, error.code.value
        elif isinstance(result, DrainReport) and result.exit_code is not ExitCode.OK:
            exit_code, code = result.exit_code, result.code.value
        changes: dict[str, Any] = {
            "state": State.ENDED,
            "ended": time.time(),  # the wall clock, as `asked`
            "outcome": code,
            "exit_code": int(exit_code),
            "result": None if result is None else jsonable(result),
            "error": None if error is None else error_object(error),
        }
        job = msgspec.structs.replace(job, waits_for="", **changes)
        with self._change:
            self._queue = [each for each in self._queue if each.id != job.id]
            self._wants.pop(job.id, None)
            job = self._write(job, interruptions=job.interruptions, **changes)
            self._tell(job)
        self._parcels.forget(job.id)
        self._metrics.ended.labels(job.what, code).inc()
        if job.begun is not None and job.ended is not None:
            self._metrics.job_seconds.labels(job.what).observe(job.ended - job.begun)
        self._metrics.arrived(result)
        _log.info("job_ended", job=job.id, what=job.what, about=job.about, outcome=code, subject=job.subject)
        return job

    def _write(self, job: Job, **changes: object) -> Job:
        """Write what has changed of it, now or as soon as it can be written; the job as it stands then."""
        _, before = self._unwritten.pop(job.id, (job, {}))
        everything = {**before, **changes}
        try:
            self._ledger.set(job.id, **everything)
        except JournalUnusable as error:
            _log.error("job_not_written", job=job.id, error=str(error))
            job = msgspec.structs.replace(job, unwritten=True)
            self._unwritten[job.id] = job, everything
            self._change.notify_all()
            return job
        return msgspec.structs.replace(job, unwritten=False)

    def _write_again(self) -> None:
        for job, _ in list(self._unwritten.values()):
            under = self._under.get(job.id)
            now = self._write(job)
            if under is not None and not now.unwritten:
                self._changed(under, unwritten=False)

    def _changed(self, under: Under, **changes: object) -> None:
        with self._change:
            under.job = msgspec.structs.replace(under.job, **changes)
            self._tell(under.job)

    def _tell(self, job: Job) -> None:
        self._hub.publish(job.id, "job", job, last=job.over)

    def _newest(self, job: Job) -> Job:
        """What memory knows better than the file."""
        with self._change:
            under = self._under.get(job.id)
            if under is not None:
                return under.job
            waiting = next((each for each in self._queue if each.id == job.id), None)
            return waiting or self._unwritten.get(job.id, (job, {}))[0]


def _all_are_back(job: Job) -> DrainReport:
    """The service ended after the last guest had come back, and before that was written down."""
    return DrainReport(
        what=job.what, nodes=(job.about,), seconds=0.0, forecast_s=0.0, moved=(), stayed=(), not_begun=(), off=()
    )


def _not_begun() -> MoveAborted:
    return MoveAborted("Aborted as asked, before anything began.", hint="Nothing is left to do.")


def _ended(job: Job) -> UsageError:
    state = "has ended" if job.over else "is not under way"
    return UsageError(f"The job {job.id} {state}.", hint="See its outcome and its result.", code=Code.JOB_ENDED)
