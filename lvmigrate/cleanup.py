"""`CleanupInstance`: lead a guest back to one running copy and one Primary, by what both nodes say now.

It needs no memory of the move that was not finished: it may run on another controller, after any crash, and again after
itself.  What follows from what is seen is `lvmigrate.decision`'s; this module looks, and does it.

Long, because every act that a row of the table asks for stands here, beside what has to be seen again before it.
"""

from __future__ import annotations

import math
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from lvmigrate import acts, checks, hooks, scene
from lvmigrate.arrival import Arrival
from lvmigrate.balloon import Balloon
from lvmigrate.decision import Action, Closing, Link, Ruling, Sight
from lvmigrate.decision import closing as closing_of
from lvmigrate.definitions import Definitions
from lvmigrate.disks import Disks
from lvmigrate.dual_primary import DualPrimary
from lvmigrate.errors import (
    Code,
    CommandFailed,
    Finding,
    GuestLost,
    LeftBehind,
    LvmigrateError,
    MoveAborted,
    MoveFailed,
    NodeUnreachable,
    Refused,
    TokenLost,
    UsageError,
)
from lvmigrate.journal import NO_RECORD, Kind, Opening, Record, keep
from lvmigrate.jsonable import jsonable
from lvmigrate.lease import Lease, holder
from lvmigrate.lineage import Parting, parted
from lvmigrate.occasion import Occasion, Operation
from lvmigrate.own_names import on_each
from lvmigrate.plan import ResourcePlan
from lvmigrate.protocols import MemoryCopy
from lvmigrate.report import CleanupReport
from lvmigrate.scene import Scene
from lvmigrate.settle import Settlement
from lvmigrate.tasklet import Context
from lvmigrate.together import outcomes_of, together
from lvmigrate.token import Guarded, Held, Token
from lvmigrate.upstart import Upstart

_log = structlog.get_logger()

#: How long a connection may take to come back, and copies to be in step, before what is left is said, in seconds.
_WAIT_S: Final = 60.0
#: Between two looks at a token that somebody holds, or at a job that is followed, in seconds.
_LOOK_S: Final = 1.0
#: How often two nodes that DRBD has parted are connected again before a person has to decide.
_RECONNECTS: Final = 2
#: Before the next look, in seconds: nodes need some for finding each other, or for finding that they must not.
_AFTER_S: Final = {
    Closing.DEMOTE_AWAY: 0.2,
    Closing.DEMOTE_HOME: 0.2,
    Closing.FORBID: 0.2,
    Closing.RECONNECT: 5.0,
}
#: A token that runs out is waited for a little longer than it says.
_SLACK_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupPlan:
    """What was seen, which rows of the decision table that is, and what follows."""

    instance: str
    scene: Scene
    ruling: Ruling
    #: (resource, what follows, why) of each resource, as far as it is known where the guest is to live.
    closing: tuple[tuple[str, Closing, str], ...]
    #: What `CleanupInstance.exec` will do, in sentences; empty when there is nothing to do.
    acts: tuple[str, ...]


class CleanupInstance:
    """Finish or undo whatever was left of a move of one guest.

    ``abort``: end a copy that is still under way instead of watching it to its end.
    """

    def __init__(self, context: Context, instance: str, *, abort: bool = False) -> None:
        self._context = context
        self._instance = instance
        self._abort = abort
        self._scene: Scene | None = None

    def check_prereq(self) -> CleanupPlan:
        """Observe everything and change nothing. Raises `Refused` when a node gives no answer, or nobody knows it."""
        self._scene = scene.observe(self._context, self._instance)
        return plan_of(self._scene, abort=self._aborts(self._scene))

    def _aborts(self, seen: Scene) -> bool:
        """Whether a copy under way is to be ended: that of a rehearsal is, unasked."""
        return self._abort or (seen.errand is not None and seen.errand.rehearsal)

    def exec(self) -> CleanupReport:
        """Do what the decision table says, looking again before each act.

        Guaranteed after a report: one copy of the guest, running unless it was paused before the move or is off
        everywhere; its disks Primary there alone and in step, two primaries as they were before; its definition there
        only; no token and no guard.  Doing it again changes nothing.

        Raises `Refused` (somebody alive holds the token, a node does not answer), `OutcomeUnknown` (a person must
        decide; at most two running copies were suspended), `LeftBehind` (one copy, but something is still open),
        `GuestLost` (it runs nowhere; what was open is closed), or `TokenLost`.
        """
        if self._scene is None:
            raise UsageError("exec() was called before check_prereq().", hint="Call check_prereq() first.")
        seen = self._scene

        def clean(record: Record) -> CleanupReport:
            with ExitStack() as stack:
                context = acts.recorded(self._context, record)
                return _Cleanup(context, seen, stack, abort=self._aborts(seen), record=record).run()

        def hooked(record: Record) -> CleanupReport:
            return hooks.around(self._context, record, _occasion(seen), lambda: clean(record))

        plan = plan_of(seen, abort=self._aborts(seen))
        opening = Opening(
            tasklet="cleanup",
            instance=seen.name,
            uuid=seen.uuid,
            source=seen.source,
            target=seen.target,
            holder=holder(),
            plan={"ruling": jsonable(plan.ruling), "closing": jsonable(plan.closing), "acts": list(plan.acts)},
        )
        with structlog.contextvars.bound_contextvars(instance=seen.name):
            # What mends needs no memory: a full disk of the controller must not keep a guest from being mended.
            return keep(self._context.journal, opening, hooked, now=self._context.clock.now, needed=False)


def _occasion(seen: Scene) -> Occasion:
    """For hooks a cleanup is a migration, as it is for Ganeti."""
    known = [domain for node in seen.nodes if (domain := seen.domains.get(node)) is not None]
    return Occasion(
        operation=Operation.MIGRATE,
        instance=seen.name,
        uuid=seen.uuid,
        domain=next((domain for domain in known if domain.state.active), next(iter(known), None)),
        source=seen.source,
        target=seen.target,
        cleanup=True,
    )


def plan_of(seen: Scene, *, abort: bool) -> CleanupPlan:
    """What follows from what was seen. Pure."""
    ruling = seen.ruling()
    closing = tuple((name, row.closing, row.why) for name, row in seen.closings().items())
    acts = []
    if seen.shut_down_for_a_failover:
        acts.append(f"start it on {seen.source} again, where it was shut down for a failover that was not finished")
    elif ruling.action not in (Action.STAYED, Action.ARRIVED):
        acts.append(
            "end the copy that is under way" if abort and ruling.action is Action.FOLLOW else ruling.action.value
        )
    acts += [f"{name}: {what.value}" for name, what, _why in closing if what is not Closing.CLOSED]
    acts += [f"disarm the guard on {node}" for node in seen.guarded_nodes]
    acts += [f"remove the token on {node}" for node in seen.token_nodes]
    acts += seen.stray_definitions()
    return CleanupPlan(instance=seen.name, scene=seen, ruling=ruling, closing=closing, acts=tuple(acts))


@dataclass(slots=True)
class _Notes:
    """What was done, for the report."""

    lines: list[str] = field(default_factory=list)
    record: Record = NO_RECORD

    def add(self, sentence: str) -> None:
        self.lines.append(sentence)
        self.record.add(Kind.MOMENT, sentence, {"said_by": "lvmigrate"})
        _log.info("cleanup_did", what=sentence)


class _Cleanup:
    """One cleanup under way."""

    def __init__(
        self, context: Context, seen: Scene, stack: ExitStack, *, abort: bool, record: Record = NO_RECORD
    ) -> None:
        self.context = context
        self.seen = seen
        self.stack = stack
        self.abort = abort
        self.notes = _Notes(record=record)
        self.began = context.clock.now()
        self.lease: Lease
        self.settlement: Settlement
        self.disks: Disks

    def run(self) -> CleanupReport:
        plan = plan_of(self.seen, abort=self.abort)
        if plan.acts:
            self._lock()
            # Whoever held the token may have gone on, and the guards may have acted, until it was ours.
            self.seen = scene.observe(self.context, self.seen.uuid)
            self._prepare()
            try:
                home = self._settle()
                self._close(home, self.seen.other(home))
                self._define(home)
                self._unbury(home)
                self._lives()
            except GuestLost as lost:
                self._close_the_lost(lost)
                self._finish()
                raise
            except MoveFailed as error:
                raise self._not_finished(error) from error
            self._finish()
        # Where nothing was done, there is nothing to look at again.
        last = scene.observe(self.context, self.seen.uuid) if plan.acts else self.seen
        if plan.acts and set(last.sights.values()) == {Sight.GONE}:
            raise self._died()
        return CleanupReport(
            instance=last.name,
            uuid=last.uuid,
            node=last.home,
            running=Sight.RUNS in last.sights.values(),
            seconds=self.context.clock.now() - self.began,
            acts=tuple(self.notes.lines),
            warnings=last.warnings(ran=self.seen.ran),
        )

    def _not_finished(self, error: MoveFailed) -> LvmigrateError:
        """The token stays, as the record from which the next cleanup goes on."""
        again = f"`lvmigrate cleanup {self.seen.name}` goes on from there."
        if error.code is Code.START_FAILED:
            return GuestLost(error.sentence, hint=f"{error.hint} {again}", detail=error.detail)
        return LeftBehind(error.sentence, leftovers=[str(error)], hint=f"{error.hint} {again}", detail=error.detail)

    # What it is made of, in order.

    def _lock(self) -> None:
        """Take the token on both nodes; wait for one that nobody renews, and leave one alone that is renewed."""
        self.lease = Lease(
            self.context.storage,
            self.seen.nodes,
            Token(
                uuid=self.seen.uuid,
                instance=self.seen.name,
                id=uuid.uuid4().hex,
                holder=holder(),
                lease_s=self.context.lease_s,
                errand=self.seen.errand,
            ),
            clock=self.context.clock,
        )
        # They may know more than when the scene was looked at.
        traces = together([partial(self.context.storage.traces, node) for node in self.seen.nodes])
        held = [token for seen in traces if (token := seen.token(self.seen.uuid)) is not None]
        for token in sorted(held, key=lambda token: token.left_s):
            self._inherit(token)
        for node in sorted(self.seen.nodes):
            self._take(node)
        self.lease.keep()
        self.stack.callback(self.lease.end)
        self.lease.tell()

    def _inherit(self, held: Held) -> None:
        if held.errand is not None:
            self.lease.inherit(held.errand)

    def _take(self, node: str) -> None:
        least = float("inf")
        while (held := self.lease.take(node)) is not None:
            if math.isinf(held.left_s):
                self.lease.drop()
                raise Refused(self.seen.name, [checks.taken(held)])
            if held.left_s > least + _LOOK_S / 2:
                finding = Finding(
                    code=Code.LOCKED,
                    sentence=f"{self.seen.name} is being worked on: {node} holds the token of {held.holder}.",
                    hint="It was renewed while we waited: that command is alive. Wait for its end, or end it.",
                )
                self.lease.drop()
                raise Refused(self.seen.name, [finding])
            least = min(least, held.left_s)
            self._inherit(held)
            if self.context.cancel.is_set():
                self.lease.drop()
                raise MoveAborted("Aborted as asked, before anything was done.", hint="Run it again.")
            self.context.clock.sleep(min(_LOOK_S, max(0.1, held.left_s + _SLACK_S)))

    def _prepare(self) -> None:
        names = tuple(sorted(self.seen.options))
        watch = self.stack.enter_context(self.context.storage.watch(self.seen.nodes, names))
        self.disks = Disks(storage=self.context.storage, watch=watch, names=names, nodes=self.seen.nodes)
        self.settlement = Settlement(
            hypervisor=self.context.hypervisor,
            instance=self.seen.name,
            uuid=self.seen.uuid,
            source=self.seen.source,
            target=self.seen.target,
            ran=self.seen.ran,
            confirm=self.lease.confirm,
            handed_over=self.seen.handed_over,
            clock=self.context.clock,
        )

    def _settle(self) -> str:
        """The node where the guest is to live, and lives: by the table, act by act."""
        try:
            arrived = self.settlement.settle(self._follow)
        except GuestLost:
            if not self.seen.shut_down_for_a_failover:
                raise
            return self._start_again()
        if not arrived:
            return self.seen.source
        arrival = Arrival(settlement=self.settlement, disks=self.disks, clock=self.context.clock)
        # Asked again if there is no answer: one that waits and is not let run would be left so by every later cleanup.
        if self.settlement.look_until_known()[1] is not Sight.RUNS and self.seen.ran is not False:
            together([partial(self._join, name) for name in self.disks.names])
            arrival.let_run()
            arrival.alone()
            self.notes.add(f"let {self.seen.name} run on {self.seen.target}")
        return self.seen.target

    def _start_again(self) -> str:
        """Start the guest at the source, from which a failover was to take it.

        What is closed is in step, by both kernels' word: the disk there is the newest.
        """
        home, away = self.seen.source, self.seen.target
        self._close(home, away)
        upstart = Upstart(
            hypervisor=self.context.hypervisor,
            storage=self.context.storage,
            instance=self.seen.name,
            uuid=self.seen.uuid,
            node=home,
            promotes={name: before[0].auto_promote for name, before in self.seen.options.items()},
            token=lambda: self.lease.token,
            confirm=self.lease.confirm,
            clock=self.context.clock,
        )
        upstart.promote()
        upstart.start()
        self.notes.add(f"started {self.seen.name} on {home} again")
        return home

    def _join(self, name: str) -> None:
        """Have a resource connected again: DRBD's handshake tells whether the disk where it waits has everything.

        It refuses, and discards nothing, if the other copy is the newer: the one that waits holds its node Primary.  So
        once both are in step, whatever broke before is no doubt any more.  Copies that have both changed are left
        apart: an after-sb policy of the operator's could give up what the guest's memory goes on from.
        """
        home, away = self.seen.target, self.seen.source
        deadline = self.context.clock.now() + _WAIT_S
        reconnects_left = _RECONNECTS
        while True:
            disk = scene.disk(self.context.storage, name, home, away)
            closing = closing_of(disk).closing
            if disk.link is Link.PARTED and closing is Closing.DEMOTE_AWAY:
                self.context.storage.demote(away, name, self.lease.token)
                self.notes.add(f"{name}: made {away} Secondary")
            elif disk.link is Link.PARTED and closing is Closing.RECONNECT and reconnects_left:
                apart = self._parted(name)
                if apart is None:
                    reconnects_left -= 1
                    self._reconnect(name)
                elif not isinstance(apart, LvmigrateError) or self.context.clock.now() > deadline:
                    return
            elif disk.link in (Link.PARTED, Link.UNKNOWN) or self.context.clock.now() > deadline:
                return
            elif disk.link is Link.WHOLE:
                self.disks.watch.forgive()
                return
            self.context.clock.sleep(_AFTER_S.get(closing, _LOOK_S))

    def _follow(self) -> None:
        """Watch the job of whoever is gone to its end, or end it."""
        copy: MemoryCopy = self.context.hypervisor.adopt(self.seen.source, self.seen.uuid)
        self._guard()
        self.notes.add(f"adopted the copy from {self.seen.source} to {self.seen.target}")
        told = False
        while copy.wait(_LOOK_S) is None:
            why = self._why_to_abort()
            if why is not None:
                if not told:
                    self.notes.add(f"ended that copy: {why}")
                    told = True
                copy.abort()

    def _why_to_abort(self) -> str | None:
        if Sight.POST_COPY in self.seen.sights.values():
            return None  # half of the guest's memory is on each node: libvirt would refuse as well
        if self.abort or self.context.cancel.is_set():
            return "as asked"
        if breaks := self.disks.watch.breaks():
            return f"replication is not whole ({breaks[0]})"
        lapsed = self.lease.lapsed()
        return None if lapsed is None else f"the token could not be kept alive ({lapsed})"

    def _guard(self) -> None:
        """A copy may take long: from here on the guards are renewed with the token, and armed where there are none."""
        resources = self.seen.options
        armed = [n for n in self.seen.nodes if (g := self.seen.corners[n].traces.guard(self.seen.uuid)) and g.alive]
        if not resources:
            return
        for node in self.seen.nodes:
            if node in armed or self.context.storage.guard_trouble(node) is not None:
                continue
            end = self.seen.nodes.index(node)
            self.context.storage.arm_guard(
                node,
                self.lease.token,
                [
                    Guarded(resource=name, peer=self.seen.other(node), options=before[end])
                    for name, before in resources.items()
                ],
                resume=node == self.seen.target
                and not any(option.allow_two_primaries for before in resources.values() for option in before),
            )
            self.notes.add(f"armed a guard on {node}")
            armed.append(node)
        if set(armed) == set(self.seen.nodes):
            self.lease.guarded()

    def _close(self, home: str, away: str) -> None:
        """Close what was opened around the guest. Raises `LeftBehind` with what could not be closed."""
        outcomes = outcomes_of([partial(self._close_one, name, home, away) for name in self.disks.names])
        troubles = [outcome for outcome in outcomes if isinstance(outcome, LvmigrateError)]
        for trouble in troubles:
            if isinstance(trouble, TokenLost):
                raise trouble
        if troubles:
            raise LeftBehind(
                f"{self.seen.name} is on {home} only, but its disks could not be closed.",
                leftovers=[str(trouble) for trouble in troubles],
                hint=" ".join(dict.fromkeys(trouble.hint for trouble in troubles)),
                detail="; ".join(trouble.detail for trouble in troubles if trouble.detail),
            )

    def _close_the_lost(self, lost: GuestLost) -> None:
        """The guards stay where something is left to close: they will, as soon as it can be."""
        try:
            self._close(self.seen.source, self.seen.target)
            self._define_the_lost()
        except LeftBehind as left:
            raise LeftBehind(
                f"{lost.sentence} Its disks could not be closed.",
                leftovers=left.leftovers,
                hint=f"{left.hint} Before it is started: {lost.hint}",
                detail=left.detail,
            ) from left
        except (NodeUnreachable, CommandFailed) as error:
            raise LeftBehind(
                f"{lost.sentence} Its definitions could not be put in order.",
                leftovers=[str(error)],
                hint=f"`lvmigrate cleanup {self.seen.name}` again. {lost.hint}",
                detail=error.detail,
            ) from error

    def _close_one(self, name: str, home: str, away: str) -> None:
        deadline = self.context.clock.now() + _WAIT_S
        reconnects_left = _RECONNECTS
        while True:
            disk = scene.disk(self.context.storage, name, home, away)
            row = closing_of(disk)
            late = self.context.clock.now() > deadline
            match row.closing:
                case Closing.CLOSED:
                    return
                case Closing.DEMOTE_HOME | Closing.DEMOTE_AWAY:
                    node = home if row.closing is Closing.DEMOTE_HOME else away
                    self.context.storage.demote(node, name, self.lease.token)
                    self.notes.add(f"{name}: made {node} Secondary")
                case Closing.RECONNECT if reconnects_left:
                    apart = self._parted(name)
                    if apart is None:
                        reconnects_left -= 1
                        self._reconnect(name)
                    elif not isinstance(apart, LvmigrateError):
                        finding = apart.finding(keep=home)
                        raise LeftBehind(finding.sentence, leftovers=[f"{name}: split-brain"], hint=finding.hint)
                    elif late:
                        raise self._still_open(
                            name, row.when, f"whether both copies have changed is not known: {apart}"
                        )
                case Closing.FORBID:
                    self._dual_primary(name).close(away)
                    self.notes.add(f"{name}: restored the options of its connection")
                case _ if late or row.closing is Closing.RECONNECT:
                    raise self._still_open(name, row.when, row.why)
                case _:
                    pass
            self.context.clock.sleep(_AFTER_S.get(row.closing, _LOOK_S))

    def _reconnect(self, name: str) -> None:
        nodes = self.seen.nodes
        together(
            [
                partial(self.context.storage.reconnect, node, name, self.seen.other(node), before, self.lease.token)
                for node, before in zip(nodes, self.seen.options[name], strict=True)
            ]
        )
        self.notes.add(f"{name}: connected {nodes[0]} and {nodes[1]} again")

    def _parted(self, name: str) -> Parting | LvmigrateError | None:
        """Whether both copies have changed: connected, DRBD could choose one, by its after-sb policies; a person does.

        An error: a node gave no answer, which is no proof.
        """
        try:
            return parted(self.context.storage, name, self.seen.nodes)
        except LvmigrateError as error:
            _log.warning("lineages_not_known", resource=name, error=str(error))
            return error

    def _still_open(self, name: str, when: str, why: str) -> LeftBehind:
        return LeftBehind(
            f"{name} could not be closed: {when} ({why}).",
            leftovers=[f"{name}: {when}"],
            hint=f"Look with {on_each('drbdsetup status {} --verbose', name, self.seen.nodes)}; then run the cleanup"
            " again. Copies that have both changed (StandAlone): `drbdadm disconnect` on both, `drbdadm connect"
            " --discard-my-data` on the one whose changes are to be given up (never where the guest runs), `drbdadm"
            " connect` on the other.",
        )

    def _dual_primary(self, name: str) -> DualPrimary:
        return DualPrimary(
            storage=self.context.storage,
            watch=self.disks.watch,
            lease=self.lease,
            plan=ResourcePlan(name=name, volumes=(), options=self.seen.options[name]),
            source=self.seen.source,
            target=self.seen.target,
            clock=self.context.clock,
        )

    def _define(self, home: str) -> None:
        """Definitions where they belong."""
        errand = self.seen.errand
        if (came_back := self.seen.came_back) is not None and came_back[1] == home:
            back = self.seen.domains[came_back[0]]
            definitions = Definitions(
                hypervisor=self.context.hypervisor, uuid=self.seen.uuid, source=back.node, target=home, keep=False
            )
            definitions.moved(autostart=back.autostart or self.seen.domains[home].autostart)
            self.notes.add(f"forgot the definition on {back.node}")
        elif errand is not None:
            definitions = Definitions(
                hypervisor=self.context.hypervisor,
                uuid=self.seen.uuid,
                source=errand.source,
                target=errand.target,
                keep=errand.keep_definition,
            )
            self.lease.confirm()
            if home == errand.target and self.seen.persistent:
                try:
                    definitions.moved(autostart=errand.autostart)
                except MoveFailed:
                    self._lives()
                    raise
            elif home == errand.source:
                definitions.stayed(autostart=errand.autostart, target_had_definition=errand.target_had_definition)
            if errand.memory_kib:
                Balloon(
                    hypervisor=self.context.hypervisor,
                    storage=self.context.storage,
                    instance=self.seen.name,
                    uuid=self.seen.uuid,
                    before_kib=errand.memory_kib,
                    clock=self.context.clock,
                ).back(home)

    def _define_the_lost(self) -> None:
        """It is to be started at the source, if that has its definition, and where it is started, by a boot as well."""
        errand = self.seen.errand
        if errand is None:
            return
        self.lease.confirm()
        here, there = (self.context.hypervisor.domain(n, self.seen.uuid) for n in (errand.source, errand.target))
        if here is not None and here.persistent:
            Definitions(
                hypervisor=self.context.hypervisor,
                uuid=self.seen.uuid,
                source=errand.source,
                target=errand.target,
                keep=errand.keep_definition,
            ).stayed(autostart=errand.autostart, target_had_definition=errand.target_had_definition)
        elif there is not None and there.persistent and errand.autostart:
            self.context.hypervisor.set_autostart(errand.target, self.seen.uuid, on=True)

    def _unbury(self, home: str) -> None:
        """A failover from a node that was off has left its tombstone, and the guest is on that very node again."""
        for node in self.seen.buried(home):
            text = self.context.hypervisor.definition(node, self.seen.uuid)
            if text is not None:
                self.context.hypervisor.define(node, text)
                self.notes.add(f"took the tombstone off the definition on {node}")

    def _lives(self) -> None:
        """Raise `GuestLost` if the guest has died meanwhile: then there is more to close."""
        if self.settlement.look_until_known() == (Sight.GONE, Sight.GONE):
            raise self._died()

    def _died(self) -> GuestLost:
        return GuestLost(
            f"{self.seen.name} died while what was left of its move was closed.",
            hint=f"See /var/log/libvirt/qemu/{self.seen.name}.log on both nodes; `lvmigrate cleanup {self.seen.name}`"
            " again closes what it had open; then start it.",
        )

    def _finish(self) -> None:
        """Nothing is left to guard, and nothing to say: the guards, and the tokens last."""
        self.lease.unguarded()
        together([partial(self.context.storage.disarm_guard, node, self.lease.token) for node in self.seen.nodes])
        self.lease.end()
        self.lease.drop()
