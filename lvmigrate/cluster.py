"""`Cluster`: the Python interface, and the one module that puts adapters and core together.

Long, because every command is one method here, with what it promises.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from hv import LibvirtHypervisor
from lvmigrate import config, convergence
from lvmigrate.audit import Audit, audit
from lvmigrate.bundle import Bundle, collect
from lvmigrate.by_hand import ByHand, by_hand
from lvmigrate.cleanup import CleanupInstance, CleanupPlan
from lvmigrate.config import Config
from lvmigrate.convergence import Policy
from lvmigrate.display import story_lines
from lvmigrate.doctor import Diagnosis, diagnose
from lvmigrate.domain import Domain
from lvmigrate.drain import DrainNodes, ReturnGuests
from lvmigrate.drain_report import DrainReport, Moved
from lvmigrate.errors import Code, ConfigurationError, MoveAborted, UsageError
from lvmigrate.failover import FailoverInstance, FailoverOptions
from lvmigrate.fencing import commands
from lvmigrate.journal import NO_JOURNAL, Entry, Journal, Story
from lvmigrate.log import quiet_by_default
from lvmigrate.manner import Manner
from lvmigrate.migrate import MigrateInstance
from lvmigrate.node import Node, unknown
from lvmigrate.node_states import Gone, NodeState, NodeStates, State, Wish, under_way, wish
from lvmigrate.plan import Options, Plan
from lvmigrate.progress import StepProgress
from lvmigrate.protocols import Hypervisor, Storage
from lvmigrate.rehearse import Rehearsal, RehearseInstance
from lvmigrate.report import CleanupReport, Report
from lvmigrate.sqlite_journal import SqliteJournal
from lvmigrate.status import NodeStatus, status
from lvmigrate.survey import find
from lvmigrate.tasklet import Context
from lvmigrate.traffic import Departure, Limits, Schedule
from lvmigrate.unless_stopped import unless_stopped
from storage import DrbdStorage

T = TypeVar("T")
M_co = TypeVar("M_co", covariant=True)


class Cluster:
    """Some KVM hosts that share DRBD-replicated guests.

    ::

        with Cluster.open("/etc/lvmigrate/cluster.toml") as cluster:
            report = cluster.migrate("web1", target="node2")

    Nothing is connected to before it is needed.  One object may be used from several threads, for several moves.
    """

    def __init__(
        self, configuration: Config, hypervisor: Hypervisor, storage: Storage, journal: Journal = NO_JOURNAL
    ) -> None:
        quiet_by_default()
        self.config = configuration
        self._hypervisor = hypervisor
        self._storage = storage
        self._journal = journal
        #: Where this machine keeps what is not for the journal; ``None``: nowhere.
        self._directory: Path | None = None if configuration.journal is None else configuration.journal.parent
        self._states = NodeStates(self._directory)

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None) -> Cluster:
        """The cluster that the configuration file describes. Raises `lvmigrate.errors.ConfigurationError`."""
        configuration = config.load(path)
        limits = configuration.limits
        return cls(
            configuration,
            LibvirtHypervisor(
                configuration.nodes, connect_timeout_s=limits.connect_s, call_timeout_s=2 * limits.command_s
            ),
            DrbdStorage(
                configuration.nodes,
                ssh_config=configuration.ssh_config,
                command_timeout_s=limits.command_s,
                connect_timeout_s=limits.connect_s,
                directories=configuration.shared_directories,
            ),
            NO_JOURNAL
            if configuration.journal is None
            else SqliteJournal(configuration.journal, keep_days=configuration.keep_days),
        )

    def options(self, instance: str) -> Options:
        """What holds for ``instance`` (a name or a UUID) where nothing else is said: the defaults, and its own."""
        own = self.config.guests.get(instance)
        if own is None and self.config.guests:  # by its other name, as its node knows it
            seen = find(self._hypervisor, tuple(self.config.nodes), instance).domains
            names = {name for domain in seen for name in (domain.name, domain.uuid)}
            own = next((self.config.guests[name] for name in sorted(names) if name in self.config.guests), None)
        return replace(self.config.defaults, **(own or {}))

    def options_of(self, domain: Domain) -> Options:
        """The same for a guest that was seen."""
        own = self.config.guests.get(domain.name) or self.config.guests.get(domain.uuid)
        return replace(self.config.defaults, **(own or {}))

    def policy(self, name: str) -> Policy:
        """The convergence policy of that name, one of lvmigrate's or the configuration's. Raises `UsageError`."""
        return convergence.of_name(name, self.config.policies)

    def drain_limits(self) -> Limits:
        """How many guests a drain moves at once where nothing else is said."""
        return self.config.drain

    def closed(self) -> Mapping[str, str]:
        """By node, why no guest may come, as a clause; empty: guests may."""
        return {name: node.closed or "" for name, node in self.nodes.items()}

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The configuration's nodes, with the states that were set by command on this machine."""
        return self._states.over(self.config.nodes)

    def node_states(self) -> Mapping[str, NodeState]:
        """What was set by command, and which guests a drain has sent away, by node."""
        return self._states.all()

    def set_node(self, node: str, state: State, reason: str = "") -> None:
        """Have a node be drained, offline or online from now on, for every command on this machine.

        What the configuration says of it stays.  Raises `UsageError`, `lvmigrate.errors.ConfigurationError`.
        """
        if node not in self.config.nodes:
            found = unknown(node, self.config.nodes)
            raise UsageError(found.sentence, hint=found.hint, code=found.code)
        self._states.set(node, state, reason)

    def check_drain(self, nodes: Sequence[str], *, manner: Manner | None = None) -> Schedule:
        """What `drain` would do, and how long it would take. Changes nothing; guests that cannot go are named in it."""
        return DrainNodes(self._context(threading.Event(), None), nodes, self._manner(manner)).check_prereq()

    def drain(
        self,
        nodes: Sequence[str],
        *,
        manner: Manner | None = None,
        reason: str = "",
        stop: threading.Event | None = None,
        abort: threading.Event | None = None,
    ) -> DrainReport:
        """Move every guest away from ``nodes``, several at once; the nodes are drained from then on.

        It goes on where an earlier one stood, whoever ran that.  Setting ``stop`` (or a first ``KeyboardInterrupt``)
        lets what is under way come to its end, and begins nothing more; setting ``abort`` (or a second one) aborts that
        as well.  A guest that cannot move does not stop the others, and raises nothing: it is in the report.  Raises
        what `ManyMoves.check_prereq` and `ManyMoves.exec` raise, and `Refused` (`Code.LOCKED`) where another drain of
        these nodes is under way on this machine.
        """
        stop, abort = stop or threading.Event(), abort or threading.Event()

        def work() -> DrainReport:
            with under_way(self._directory, tuple(nodes)) as wished:
                tasklet = DrainNodes(
                    self._context(stop, None),
                    nodes,
                    replace(self._manner(manner), wish=wished, leaving=self._sent_away, nodes=self._nodes_or_none_open),
                    abort=abort,
                )
                tasklet.check_prereq()
                if not self._states.kept:
                    tasklet.manner.onlooker.says(
                        "without a journal nothing keeps that the nodes are drained, and who was sent away"
                    )
                for node in nodes if self._states.kept else ():
                    if self._states.of(node).state is State.ONLINE:
                        self._states.set(node, State.DRAINED, reason or "by `lvmigrate drain`")
                return tasklet.exec()

        return _in_thread(work, stop, name="drain", harder=abort)

    def check_return(self, node: str, *, manner: Manner | None = None, every: bool = False) -> Schedule:
        """What `bring_back` would do. Changes nothing."""
        context, away = self._returning(node, threading.Event(), every=every)
        guests = None if every else away.keys()
        return ReturnGuests(context, [node], self._manner(manner), guests=guests, away=away).check_prereq()

    def bring_back(
        self,
        node: str,
        *,
        manner: Manner | None = None,
        every: bool = False,
        stop: threading.Event | None = None,
        abort: threading.Event | None = None,
    ) -> DrainReport:
        """Open ``node`` again, and move back what a drain on this machine has sent away.

        With ``every``, all guests that have a copy of their disks there, whether or not they ever ran there.  The rest
        as `drain`.
        """
        stop, abort = stop or threading.Event(), abort or threading.Event()

        def work() -> DrainReport:
            with under_way(self._directory, (node,)) as wished:
                context, away = self._returning(node, stop, every=every)
                chosen = replace(
                    self._manner(manner), wish=wished, arrived=self._came_back, nodes=partial(self._opened, node)
                )
                guests = None if every else away.keys()
                tasklet = ReturnGuests(context, [node], chosen, abort=abort, guests=guests, away=away)
                tasklet.check_prereq()
                if self._states.of(node).state is not State.ONLINE:
                    self._states.set(node, State.ONLINE)
                report = tasklet.exec()
                if not report.not_begun:
                    self._states.back(node, away.keys() - {stayed.uuid for stayed in report.stayed})
                return report

        return _in_thread(work, stop, name="return", harder=abort)

    def wish(self, node: str, wanted: Wish) -> None:
        """Have the drain of ``node`` that is under way on this machine pause, go on, or stop. Raises `UsageError`."""
        wish(self._directory, node, wanted)

    def _nodes_or_none_open(self) -> Mapping[str, Node]:
        """The nodes; where their states cannot be read, no guest may come to any, and what mends goes on."""
        try:
            return self.nodes
        except ConfigurationError as error:
            why = error.sentence.rstrip(".")
            return {name: replace(node, drained=node.drained or why) for name, node in self.config.nodes.items()}

    def _manner(self, manner: Manner | None) -> Manner:
        manner = manner or Manner(chosen={})
        chosen = manner.chosen
        if chosen is None:
            return manner
        return replace(manner, options=lambda domain: replace(self.options_of(domain), **chosen))

    def _sent_away(self, departure: Departure) -> None:
        gone = Gone(uuid=departure.uuid, name=departure.name, target=departure.target)
        self._states.sent_away(departure.source, gone)

    def _came_back(self, moved: Moved) -> None:
        self._states.back(moved.target, {moved.uuid})

    def _returning(self, node: str, stop: threading.Event, *, every: bool) -> tuple[Context, Mapping[str, Gone]]:
        """A context in which the node is open as far as commands have closed it, and who was sent away."""
        gone = self._states.of(node).gone
        if not every and not gone and node in self.config.nodes:
            raise UsageError(
                f"No guest that a drain of {node} has sent away is remembered on this machine.",
                hint=f"`lvmigrate return {node} --all` brings every guest that has its disks there; `lvmigrate migrate`"
                f" brings one; `lvmigrate node {node} --online` opens the node alone.",
                code=Code.ERRAND_UNKNOWN,
            )
        return replace(self._context(stop, None), nodes=self._opened(node)), gone

    def _opened(self, node: str) -> Mapping[str, Node]:
        """The nodes, this one as far as the configuration has not closed it."""
        nodes = self._nodes_or_none_open()
        return {**nodes, node: self.config.nodes[node]} if node in self.config.nodes else nodes

    def check(self, instance: str, *, target: str | None = None, options: Options | None = None) -> Plan:
        """What `migrate` would do. Changes nothing; raises `Refused` with every reason not to start."""
        context = self._context(threading.Event(), None)
        return MigrateInstance(
            context, instance, target=target, options=options or self.options(instance)
        ).check_prereq()

    def by_hand(self, plan: Plan, options: Options) -> tuple[ByHand, ...]:
        """A plan of `check`, made with these options, as the commands that a person would type."""
        return by_hand(plan, options, self.config.nodes[plan.target])

    def migrate(  # noqa: PLR0913 -- each by its name
        self,
        instance: str,
        *,
        target: str | None = None,
        options: Options | None = None,
        on_plan: Callable[[Plan], None] | None = None,
        on_progress: Callable[[StepProgress], None] | None = None,
        cancel: threading.Event | None = None,
        post_copy: threading.Event | None = None,
    ) -> Report:
        """Move a running guest to ``target`` (or to the best node that has its disks) and tell what happened.

        Setting ``cancel``, or a ``KeyboardInterrupt`` in the calling thread, aborts: the guest goes on at the source,
        everything is undone, and `lvmigrate.errors.MoveAborted` is raised; past the point of no return the move is
        finished instead.  Setting ``post_copy`` lets the guest go on at the target at once, if ``options`` allow it
        (`Options.may_post_copy`) and replication is whole; from then on nothing aborts it.  ``on_plan`` and
        ``on_progress`` are called from a thread of the move's own.  Raises what `MigrateInstance.exec` raises, and
        `Refused` before anything was changed.
        """
        stop = cancel or threading.Event()
        context = self._context(stop, on_progress, post_copy)
        tasklet = MigrateInstance(context, instance, target=target, options=options or self.options(instance))

        return _moved(tasklet, on_plan, stop, name=f"move-{instance}")

    def rehearse(
        self,
        instance: str,
        *,
        target: str | None = None,
        options: Options | None = None,
        on_plan: Callable[[Plan], None] | None = None,
        on_progress: Callable[[StepProgress], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> Rehearsal:
        """Go through a move up to the first bytes of memory, and back: the guest stays where it is.

        ``cancel`` is set by the rehearsal itself, too.  Raises what `RehearseInstance.exec` raises, and `Refused`
        before anything was changed.
        """
        stop = cancel or threading.Event()
        tasklet = RehearseInstance(
            self._context(stop, on_progress), instance, target=target, options=options or self.options(instance)
        )
        return _moved(tasklet, on_plan, stop, name=f"rehearse-{instance}")

    def check_failover(
        self, instance: str, *, target: str | None = None, options: FailoverOptions | None = None
    ) -> Plan:
        """What `failover` would do. Changes nothing; raises `Refused` with every reason not to start."""
        context = self._context(threading.Event(), None)
        chosen = options or FailoverOptions.of(self.options(instance))
        return FailoverInstance(context, instance, target=target, options=chosen).check_prereq()

    def failover(
        self,
        instance: str,
        *,
        target: str | None = None,
        options: FailoverOptions | None = None,
        on_plan: Callable[[Plan], None] | None = None,
        on_progress: Callable[[StepProgress], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """Shut a guest down where it is and start it on ``target``; or start it there when its node is off.

        ``cancel`` is obeyed until the guest is to be started on the target.  Raises what `FailoverInstance.exec`
        raises, and `Refused` before anything was changed.
        """
        stop = cancel or threading.Event()
        chosen = options or FailoverOptions.of(self.options(instance))
        tasklet = FailoverInstance(self._context(stop, on_progress), instance, target=target, options=chosen)

        return _moved(tasklet, on_plan, stop, name=f"failover-{instance}")

    def check_cleanup(self, instance: str, *, abort: bool = False) -> CleanupPlan:
        """What `cleanup` sees, and would do. Changes nothing; raises `Refused` when a node does not answer."""
        return CleanupInstance(self._context(threading.Event(), None), instance, abort=abort).check_prereq()

    def cleanup(
        self,
        instance: str,
        *,
        abort: bool = False,
        on_plan: Callable[[CleanupPlan], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> CleanupReport:
        """Finish or undo what a move of ``instance`` has left, by what the nodes say now; safe to repeat.

        A copy that is still under way is watched to its end and finished, or ended if ``abort`` or ``cancel`` is set.
        Raises what `CleanupInstance.exec` raises.
        """
        stop = cancel or threading.Event()
        tasklet = CleanupInstance(self._context(stop, None), instance, abort=abort)

        def work() -> CleanupReport:
            plan = tasklet.check_prereq()
            if on_plan is not None:
                on_plan(plan)
            return tasklet.exec()

        return _in_thread(work, stop, name=f"cleanup-{instance}")

    def audit(self) -> Audit:
        """Everything that no move under way accounts for, on every node."""
        return audit(self._context(threading.Event(), None))

    def doctor(self) -> Diagnosis:
        """What is to be mended on any node, and how; leftovers too. Changes nothing."""
        return diagnose(self._context(threading.Event(), None))

    def status(self, instance: str | None = None) -> tuple[NodeStatus, ...]:
        """What every node says of its guests, or of ``instance`` alone, and of their disks."""
        return status(self._hypervisor, self._storage, self.config.nodes, instance)

    def history(self, instance: str | None = None, *, most: int = 50) -> tuple[Entry, ...]:
        """The newest errands that the journal knows, of all guests or of one, newest first."""
        return self._journal.history(instance=instance, most=most)

    def prune(self, days: float) -> int:
        """Have the journal forget what is older than so many days; how many errands that was."""
        return self._journal.prune(days)

    def story(self, errand: str) -> Story:
        """Everything the journal knows of one errand: its id, the beginning of it, or ``last``."""
        return self._journal.story(errand)

    def bundle(self, errand: str) -> Bundle:
        """All that a report of a defect needs about one errand of the journal, without secrets. Changes nothing."""
        story = self.story(errand)
        return collect(
            self._context(threading.Event(), None),
            story,
            report=story_lines(story),
            configuration=self.config.written,
            version=version("lvmigrate"),
        )

    def close(self) -> None:
        """End every connection. Moves must have ended."""
        self._hypervisor.close()
        self._storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _context(
        self,
        cancel: threading.Event,
        on_progress: Callable[[StepProgress], None] | None,
        post_copy: threading.Event | None = None,
    ) -> Context:
        return Context(
            nodes=self._nodes_or_none_open(),
            hypervisor=self._hypervisor,
            storage=self._storage,
            cancel=cancel,
            post_copy=post_copy or threading.Event(),
            on_progress=on_progress or (lambda _progress: None),
            lease_s=self.config.limits.lease_s,
            journal=self._journal,
            fences=commands(self.config.nodes),
            hooks=self.config.hooks,
            definitions=None if self._directory is None else self._directory / "definitions",
            hook_timeout_s=self.config.hook_timeout_s,
        )


class _Errand(Protocol[M_co]):
    def check_prereq(self) -> Plan: ...

    def exec(self) -> M_co: ...


def _moved(
    tasklet: _Errand[M_co],
    on_plan: Callable[[Plan], None] | None,
    stop: threading.Event,
    *,
    name: str,
) -> M_co:
    """Plan, tell of the plan, and do it, unless somebody has asked to stop by then."""

    def work() -> M_co:
        plan = unless_stopped(tasklet.check_prereq, stop)
        if on_plan is not None:
            on_plan(plan)
        if stop.is_set():
            raise MoveAborted("Aborted as asked, before anything began.", hint="Nothing is left to do.")
        return tasklet.exec()

    return _in_thread(work, stop, name=name)


def _in_thread(work: Callable[[], T], stop: threading.Event, *, name: str, harder: threading.Event | None = None) -> T:
    """Run ``work`` where no KeyboardInterrupt can strike in the middle of a step; one that comes here sets ``stop``.

    A second one sets ``harder``.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001 -- raised again in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    while True:
        try:
            while thread.is_alive():
                thread.join(0.2)
            break
        except KeyboardInterrupt:
            (harder if harder is not None and stop.is_set() else stop).set()
    if failure:
        raise failure[0]
    return result[0]
