"""One order being done: each is a call of `Cluster`, and what the core tells meanwhile goes to whoever looks on."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

from lvmigrate.cluster import Cluster
from lvmigrate.drain_report import DrainReport, Moved, Stayed
from lvmigrate.errors import UsageError
from lvmigrate.failover import FailoverOptions
from lvmigrate.manner import Manner
from lvmigrate.plan import Options, Plan
from lvmigrate.progress import StepProgress
from lvmigrate.rehearse import Rehearsal
from lvmigrate.report import CleanupReport, Report
from lvmigrate.service.messages import Checked
from lvmigrate.service.orders import Cleanup, Drain, DrainOrder, Failover, Migrate, Order, Rehearse, Return
from lvmigrate.traffic import Departure, Schedule

Result = Report | Rehearsal | CleanupReport | DrainReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Hands:
    """What an order under way is steered with, and whom it tells. Called from threads of the core's own."""

    #: As `Cluster.migrate` has it; of a drain: begin nothing more.
    cancel: threading.Event = field(default_factory=threading.Event)
    #: Of a drain: end what is under way, too.
    abort: threading.Event = field(default_factory=threading.Event)
    post_copy: threading.Event = field(default_factory=threading.Event)
    #: Told of the plan before anything is changed; what it raises stops the order there.
    planned: Callable[[Checked], None]
    #: Told of everything else, by a name and a value.
    told: Callable[[str, object], None]
    #: Told of the guests that a drain has under way, by their UUIDs, whenever they change.
    touched: Callable[[tuple[str, ...]], None]
    #: The file that the order's definition was put in.
    definition: Path | None = None

    def progress(self, progress: StepProgress) -> None:
        """A step gets on."""
        self.told("progress", progress)


def check(cluster: Cluster, order: Order, *, definition: Path | None = None) -> Checked:
    """What the order would do. Changes nothing; raises what the core's checks raise."""
    match order:
        case Migrate():
            options = _options(cluster, order)
            return _checked(cluster, cluster.check(order.instance, target=order.target, options=options), options)
        case Failover():
            choices = _failover_options(cluster, order, definition)
            return Checked(plan=cluster.check_failover(order.instance, target=order.target, options=choices))
        case Cleanup():
            return Checked(cleanup=cluster.check_cleanup(order.instance, abort=order.abort))
        case Drain():
            return Checked(schedule=cluster.check_drain(order.nodes, manner=_manner(cluster, order)))
        case Return():
            return Checked(schedule=cluster.check_return(order.node, manner=_manner(cluster, order), every=order.every))
        case Rehearse():
            raise UsageError("A rehearsal is itself a check.", hint="Check a migrate instead, or order the rehearsal.")
        case _:
            assert_never(order)


def perform(cluster: Cluster, order: Order, hands: Hands) -> Result:
    """Do it. Raises what the core raises, and what ``hands.planned`` raises."""
    match order:
        case Migrate():
            options = _options(cluster, order)
            return cluster.migrate(
                order.instance,
                target=order.target,
                options=options,
                on_plan=lambda plan: hands.planned(_checked(cluster, plan, options)),
                on_progress=hands.progress,
                cancel=hands.cancel,
                post_copy=hands.post_copy,
            )
        case Rehearse():
            options = _options(cluster, order)
            return cluster.rehearse(
                order.instance,
                target=order.target,
                options=options,
                on_plan=lambda plan: hands.planned(Checked(plan=plan)),
                on_progress=hands.progress,
                cancel=hands.cancel,
            )
        case Failover():
            return cluster.failover(
                order.instance,
                target=order.target,
                options=_failover_options(cluster, order, hands.definition),
                on_plan=lambda plan: hands.planned(Checked(plan=plan)),
                on_progress=hands.progress,
                cancel=hands.cancel,
            )
        case Cleanup():
            return cluster.cleanup(
                order.instance,
                abort=order.abort,
                on_plan=lambda plan: hands.planned(Checked(cleanup=plan)),
                cancel=hands.cancel,
            )
        case Drain() | Return():
            manner = dataclasses.replace(_manner(cluster, order), onlooker=_Onlooker(hands))
            steered: dict[str, Any] = {"manner": manner, "stop": hands.cancel, "abort": hands.abort}
            if isinstance(order, Return):
                return cluster.bring_back(order.node, every=order.every, **steered)
            return cluster.drain(order.nodes, reason=order.reason, **steered)
        case _:
            assert_never(order)


class _Onlooker:
    """Passes on what a drain tells."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands
        self._lock = threading.Lock()
        self._under_way: set[str] = set()

    def planned(self, schedule: Schedule) -> None:
        self._hands.planned(Checked(schedule=schedule))

    def begun(self, departure: Departure) -> None:
        self._touch(departure.uuid, under_way=True)
        self._hands.told("begun", departure)

    def progress(self, progress: StepProgress) -> None:
        self._hands.progress(progress)

    def moved(self, moved: Moved) -> None:
        self._touch(moved.uuid, under_way=False)
        self._hands.told("moved", moved)

    def stays(self, stayed: Stayed, *, again: bool) -> None:
        self._touch(stayed.uuid, under_way=False)
        self._hands.told("stays", {"stayed": stayed, "again": again})

    def says(self, sentence: str) -> None:
        self._hands.told("says", sentence)

    def _touch(self, uuid: str, *, under_way: bool) -> None:
        with self._lock:
            before = set(self._under_way)
            (self._under_way.add if under_way else self._under_way.discard)(uuid)
            if before != self._under_way:
                self._hands.touched(tuple(sorted(self._under_way)))


def _checked(cluster: Cluster, plan: Plan, options: Options) -> Checked:
    return Checked(plan=plan, by_hand=cluster.by_hand(plan, options))


def _options(cluster: Cluster, order: Migrate | Rehearse) -> Options:
    return dataclasses.replace(cluster.options(order.instance), **order.options.chosen(cluster.policy))


def _failover_options(cluster: Cluster, order: Failover, definition: Path | None) -> FailoverOptions:
    before = FailoverOptions.of(cluster.options(order.instance))
    chosen = order.options.chosen()
    if definition is not None:
        chosen["definition"] = str(definition)
    return dataclasses.replace(before, **chosen)


def _manner(cluster: Cluster, order: DrainOrder) -> Manner:
    chosen = order.options.chosen(cluster.policy)
    return Manner(
        limits=dataclasses.replace(cluster.drain_limits(), **order.limits.chosen()),
        chosen=chosen,
        to=frozenset(order.to if isinstance(order, Drain) else ()),
        forecast_s=chosen.get("forecast_s", 0),
    )
