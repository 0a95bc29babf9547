"""`RemoteCluster`: a service, with the methods of `lvmigrate.cluster.Cluster`. What it gives and raises is the same.

So whoever speaks with a cluster speaks with a service too: the command shows both with the same words.

Long, because every method of `Cluster` that a command calls has its other half here.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import msgspec

from lvmigrate import convergence
from lvmigrate.audit import Audit
from lvmigrate.bundle import Bundle
from lvmigrate.by_hand import ByHand
from lvmigrate.cleanup import CleanupPlan
from lvmigrate.convergence import Policy
from lvmigrate.doctor import Diagnosis
from lvmigrate.drain_report import DrainReport, Moved, Stayed
from lvmigrate.errors import Code, LvmigrateError, UsageError
from lvmigrate.failover import FailoverOptions
from lvmigrate.journal import Entry, Story
from lvmigrate.kept import KEPT
from lvmigrate.manner import Manner
from lvmigrate.node_states import NodeState, State, Wish
from lvmigrate.plan import Options, Plan
from lvmigrate.progress import StepProgress
from lvmigrate.rehearse import Rehearsal
from lvmigrate.report import CleanupReport, Report
from lvmigrate.service import orders
from lvmigrate.service.client import Client, Way, part
from lvmigrate.service.job import Job
from lvmigrate.service.messages import (
    Checked,
    Defaults,
    Errands,
    Forgotten,
    Nodes,
    Prune,
    Said,
    SetNode,
    Status,
    WishDrain,
)
from lvmigrate.service.orders import (
    Cleanup,
    Drain,
    DrainLimits,
    Failover,
    FailoverChoices,
    Migrate,
    MoveOptions,
    Order,
    Rehearse,
    Return,
)
from lvmigrate.service.problem import error_of
from lvmigrate.service.wire import value_of
from lvmigrate.status import NodeStatus
from lvmigrate.traffic import Departure, Limits, Schedule

T = TypeVar("T")

#: Before a wish that the service did not hear is told again, in seconds.
_AGAIN_S: Final = 1.0


class RemoteCluster:
    """See above. Its methods raise what the service's cluster raises, and `LvmigrateError` with the service's codes."""

    def __init__(self, way: Way) -> None:
        self._client = Client(way)
        self._by_hand: dict[tuple[str, str], tuple[ByHand, ...]] = {}
        self._defaults: Defaults | None = None
        self._options: dict[str, Options] = {}

    def close(self) -> None:
        """End the connections. Jobs go on."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- what is chosen

    def options(self, instance: str) -> Options:
        """As `Cluster.options`."""
        if instance not in self._options:
            self._options[instance] = self._client.get(f"/v1/instances/{part(instance)}/options", Options)
        return self._options[instance]

    def policy(self, name: str) -> Policy:
        """As `Cluster.policy`."""
        return convergence.of_name(name, self._get_defaults().policies)

    def drain_limits(self) -> Limits:
        """As `Cluster.drain_limits`."""
        return self._get_defaults().drain

    # ---- nodes

    def closed(self) -> Mapping[str, str]:
        """As `Cluster.closed`."""
        return {view.node: view.closed or "" for view in self._client.get("/v1/nodes", Nodes).nodes}

    def node_states(self) -> Mapping[str, NodeState]:
        """As `Cluster.node_states`."""
        views = self._client.get("/v1/nodes", Nodes).nodes
        return {view.node: view.by_command for view in views if view.by_command is not None}

    def set_node(self, node: str, state: State, reason: str = "") -> None:
        """As `Cluster.set_node`."""
        self._client.send("PUT", f"/v1/nodes/{part(node)}/state", SetNode(state=state, reason=reason), Nodes)

    def wish(self, node: str, wanted: Wish) -> None:
        """As `Cluster.wish`."""
        self._client.send("POST", f"/v1/nodes/{part(node)}/drain", WishDrain(wish=wanted), Said)

    # ---- looking

    def status(self, instance: str | None = None) -> tuple[NodeStatus, ...]:
        """As `Cluster.status`."""
        if instance is None:
            return self._client.get("/v1/instances", Status).nodes
        return self._client.get(f"/v1/instances/{part(instance)}", Status).nodes

    def audit(self) -> Audit:
        """As `Cluster.audit`."""
        return self._client.get("/v1/audit", Audit)

    def doctor(self) -> Diagnosis:
        """As `Cluster.doctor`."""
        return self._client.get("/v1/doctor", Diagnosis)

    def history(self, instance: str | None = None, *, most: int = 50) -> tuple[Entry, ...]:
        """As `Cluster.history`; at most 1000."""
        return self._client.get("/v1/history", Errands, instance=instance, most=min(most, 1000)).errands

    def story(self, errand: str) -> Story:
        """As `Cluster.story`."""
        return self._client.get(f"/v1/history/{part(errand)}", Story)

    def bundle(self, errand: str) -> Bundle:
        """As `Cluster.bundle`."""
        return self._client.get(f"/v1/history/{part(errand)}/bundle", Bundle)

    def prune(self, days: float) -> int:
        """As `Cluster.prune`."""
        return self._client.send("POST", "/v1/history/prune", Prune(days=days), Forgotten).forgotten

    # ---- checking

    def check(self, instance: str, *, target: str | None = None, options: Options | None = None) -> Plan:
        """As `Cluster.check`."""
        return self._planned(
            self._check(Migrate(instance=instance, target=target, options=self._moving(instance, options)))
        )

    def check_failover(
        self, instance: str, *, target: str | None = None, options: FailoverOptions | None = None
    ) -> Plan:
        """As `Cluster.check_failover`."""
        return self._planned(self._check(self._failover(instance, target, options)))

    def check_cleanup(self, instance: str, *, abort: bool = False) -> CleanupPlan:
        """As `Cluster.check_cleanup`."""
        return _there(self._check(Cleanup(instance=instance, abort=abort)).cleanup)

    def check_drain(self, nodes: Sequence[str], *, manner: Manner | None = None) -> Schedule:
        """As `Cluster.check_drain`."""
        return _there(self._check(self._drain(nodes, manner)).schedule)

    def check_return(self, node: str, *, manner: Manner | None = None, every: bool = False) -> Schedule:
        """As `Cluster.check_return`."""
        return _there(self._check(self._return(node, manner, every=every)).schedule)

    def by_hand(self, plan: Plan, options: Options) -> tuple[ByHand, ...]:  # noqa: ARG002 -- as `Cluster` has it
        """As `Cluster.by_hand`, of a plan that this object was given: it came with it."""
        return self._by_hand.get((plan.instance, plan.target), ())

    # ---- doing

    def migrate(  # noqa: PLR0913 -- as `Cluster` has it
        self,
        instance: str,
        *,
        target: str | None = None,
        options: Options | None = None,
        on_plan: Callable[[Plan], None] | None = None,
        on_progress: Callable[[StepProgress], None] | None = None,
        cancel: threading.Event | None = None,
        post_copy: threading.Event | None = None,
    ) -> Report | CleanupReport:
        """As `Cluster.migrate`; a cleanup's report where the service ended meanwhile, and a cleanup finished it."""
        order = Migrate(instance=instance, target=target, options=self._moving(instance, options))
        wishes = _Wishes(abort=cancel, post_copy=post_copy)
        return self._move(order, Report, on_plan, on_progress, wishes)

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
        """As `Cluster.rehearse`."""
        order = Rehearse(instance=instance, target=target, options=self._moving(instance, options))
        told = self._move(order, Rehearsal, on_plan, on_progress, _Wishes(abort=cancel))
        return _there(told if isinstance(told, Rehearsal) else None)

    def failover(
        self,
        instance: str,
        *,
        target: str | None = None,
        options: FailoverOptions | None = None,
        on_plan: Callable[[Plan], None] | None = None,
        on_progress: Callable[[StepProgress], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> Report | CleanupReport:
        """As `Cluster.failover`, and `migrate`."""
        order = self._failover(instance, target, options)
        return self._move(order, Report, on_plan, on_progress, _Wishes(abort=cancel))

    def cleanup(
        self,
        instance: str,
        *,
        abort: bool = False,
        on_plan: Callable[[CleanupPlan], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> CleanupReport:
        """As `Cluster.cleanup`."""

        def on_event(kind: str, value: Any) -> None:  # noqa: ANN401 -- JSON is what it is
            if kind == "plan" and on_plan is not None:
                on_plan(_there(value_of(value["plan"], Checked).cleanup))

        job = self._done("cleanups", Cleanup(instance=instance, abort=abort), on_event, _Wishes(abort=cancel))
        return _result(job, CleanupReport)

    def drain(
        self,
        nodes: Sequence[str],
        *,
        manner: Manner | None = None,
        reason: str = "",
        stop: threading.Event | None = None,
        abort: threading.Event | None = None,
    ) -> DrainReport:
        """As `Cluster.drain`."""
        order = msgspec.structs.replace(self._drain(nodes, manner), reason=reason)
        return self._many(order, manner, _Wishes(stop=stop, abort=abort))

    def bring_back(
        self,
        node: str,
        *,
        manner: Manner | None = None,
        every: bool = False,
        stop: threading.Event | None = None,
        abort: threading.Event | None = None,
    ) -> DrainReport:
        """As `Cluster.bring_back`."""
        return self._many(self._return(node, manner, every=every), manner, _Wishes(stop=stop, abort=abort))

    # ---- how

    def _get_defaults(self) -> Defaults:
        if self._defaults is None:
            self._defaults = self._client.get("/v1/defaults", Defaults)
        return self._defaults

    def _check(self, order: Order) -> Checked:
        return self._client.send("POST", "/v1/checks", order, Checked)

    def _planned(self, checked: Checked) -> Plan:
        plan = _there(checked.plan)
        self._by_hand[plan.instance, plan.target] = checked.by_hand
        return plan

    def _moving(self, instance: str, options: Options | None) -> MoveOptions:
        if options is None:
            return MoveOptions()
        return _difference(self.options(instance), options, MoveOptions)

    def _failover(self, instance: str, target: str | None, options: FailoverOptions | None) -> Failover:
        if options is None:
            return Failover(instance=instance, target=target)
        text = None
        if options.definition not in (None, KEPT):
            text = _text_of(str(options.definition))
            options = dataclasses.replace(options, definition=None)
        chosen = _difference(FailoverOptions.of(self.options(instance)), options, FailoverChoices)
        return Failover(instance=instance, target=target, options=chosen, definition_text=text)

    def _drain(self, nodes: Sequence[str], manner: Manner | None) -> Drain:
        words = self._in_what_manner(manner)
        return Drain(nodes=list(nodes), to=sorted(manner.to) if manner is not None else [], **words)

    def _return(self, node: str, manner: Manner | None, *, every: bool) -> Return:
        return Return(node=node, every=every, **self._in_what_manner(manner))

    def _in_what_manner(self, manner: Manner | None) -> dict[str, Any]:
        if manner is None:
            return {}
        if manner.chosen is None:
            raise UsageError("A service cannot call a function of ours.", hint="Give Manner(chosen=...), not options.")
        named = {name: orders.word(value) for name, value in manner.chosen.items()}
        chosen = _ordered(named, MoveOptions)
        if manner.forecast_s:
            chosen = msgspec.structs.replace(chosen, forecast_s=manner.forecast_s)
        return {"limits": _difference(self.drain_limits(), manner.limits, DrainLimits), "options": chosen}

    def _move(
        self,
        order: orders.MoveOrder,
        kind: type[T],
        on_plan: Callable[[Plan], None] | None,
        on_progress: Callable[[StepProgress], None] | None,
        wishes: _Wishes,
    ) -> T | CleanupReport:
        """A cleanup's report: the service ended while the guest was on its way, and a cleanup has finished that."""
        seen: list[Plan] = []

        def on_event(what: str, value: Any) -> None:  # noqa: ANN401 -- JSON is what it is
            if what == "plan":
                plan = self._planned(value_of(value["plan"], Checked))
                if on_plan is not None and not seen:  # a stream that was taken up again tells it again
                    on_plan(plan)
                seen.append(plan)
            if what == "progress" and on_progress is not None:
                on_progress(value_of(value["progress"], StepProgress))

        job = self._done("moves", order, on_event, wishes)
        if job.error is None and job.result is not None and "acts" in job.result:
            return _result(job, CleanupReport)
        return _result(job, kind)

    def _many(self, order: orders.DrainOrder, manner: Manner | None, wishes: _Wishes) -> DrainReport:
        onlooker = (manner or Manner()).onlooker

        def on_event(what: str, value: Any) -> None:  # noqa: ANN401 -- as above
            match what:
                case "plan":
                    onlooker.planned(_there(value_of(value["plan"], Checked).schedule))
                case "begun":
                    onlooker.begun(value_of(value[what], Departure))
                case "progress":
                    onlooker.progress(value_of(value[what], StepProgress))
                case "moved":
                    onlooker.moved(value_of(value[what], Moved))
                case "stays":
                    stayed = value_of(value[what]["stayed"], Stayed)
                    onlooker.stays(stayed, again=value_of(value[what]["again"], bool))
                case "says":
                    onlooker.says(value_of(value[what], str))

        return _result(self._done("drains", order, on_event, wishes), DrainReport)

    def _done(self, collection: str, order: Order, on_event: Callable[[str, Any], None], wishes: _Wishes) -> Job:
        job, since = self._client.order(collection, order)
        while True:
            try:
                return self._client.follow(collection, job, since, on_event, wishes.pass_on)
            except KeyboardInterrupt:
                wishes.interrupted()
                since = ""


class _Wishes:
    """What somebody wishes meanwhile, passed on once each."""

    def __init__(self, **events: threading.Event | None) -> None:
        self._events = {name.replace("_", "-"): event or threading.Event() for name, event in events.items()}
        self._asked: set[str] = set()
        self._tried = 0.0

    def pass_on(self, ask: Callable[[str], bool]) -> None:
        """Ask for what was wished since the last time, until the service has heard it."""
        for name, event in self._events.items():
            if event.is_set() and name not in self._asked and time.monotonic() - self._tried > _AGAIN_S:
                if ask(name):
                    self._asked.add(name)
                else:
                    self._tried = time.monotonic()

    def interrupted(self) -> None:
        """As Ctrl-C has it: the gentlest first."""
        wished = [self._events[name] for name in ("stop", "abort") if name in self._events]
        next((event for event in wished if not event.is_set()), wished[-1]).set()


def _result(job: Job, kind: type[T]) -> T:
    """What became of a job: its report, or its error raised."""
    if job.error is not None:
        raise error_of(job.error)
    return value_of(job.result, kind)


def _difference(before: object, wanted: object, kind: type[T]) -> T:
    try:
        return orders.difference(before, wanted, kind)
    except msgspec.ValidationError as error:
        raise _no_order(error) from error


def _ordered(named: Mapping[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(dict(named), kind)
    except msgspec.ValidationError as error:
        raise _no_order(error) from error


def _no_order(error: Exception) -> UsageError:
    return UsageError(
        f"That cannot be asked of a service: {error}.",
        hint="A path of a program is for the machine itself: name one in the service's iallocator directories.",
        code=Code.NOT_REMOTE,
    )


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read: {error}.", hint="Name a file that `virsh dumpxml` has written."
        ) from error


def _there(value: T | None) -> T:
    if value is None:
        raise LvmigrateError(
            "The service has answered something else than it was asked for.",
            hint="Install the same version of lvmigrate at both ends.",
            code=Code.SERVICE_DIFFERS,
        )
    return value
