"""`DrainNodes`: every guest leaves some nodes. `ReturnGuests`: they come back. Many moves by one plan.

Each move is a `MigrateInstance` of its own, with all of its checks and proofs; here is only decided which begins when,
by `lvmigrate.traffic`, and with how much of the link.  No memory of an earlier drain is needed: who is still there is
asked, and what somebody has left unfinished there is led to its end by a cleanup first.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from lvmigrate import fleet
from lvmigrate.assignment import Stay, Traveller
from lvmigrate.domain import Domain
from lvmigrate.drain_report import DrainReport, finding_of
from lvmigrate.drain_run import Run
from lvmigrate.errors import Code, ExitCode, Finding, LvmigrateError, Refused, UsageError
from lvmigrate.fleet import Fleet, Question
from lvmigrate.journal import Opening, Record, keep
from lvmigrate.jsonable import jsonable
from lvmigrate.lease import holder
from lvmigrate.manner import Manner
from lvmigrate.migrate import MigrateInstance
from lvmigrate.node import unknown
from lvmigrate.node_states import Gone
from lvmigrate.once import once
from lvmigrate.tasklet import Context
from lvmigrate.together import outcomes_of
from lvmigrate.traffic import Departure, Schedule, plan

#: How many guests are checked side by side before the first one moves.
_CHECKS: Final = 8


class ManyMoves(ABC):
    """What a drain and a return have in common.

    ``context.cancel``: begin nothing more, and end once what is under way has ended.  ``abort``: end that as well, each
    as an abort of a single move would.
    """

    what = ""

    def __init__(
        self,
        context: Context,
        nodes: Sequence[str],
        manner: Manner | None = None,
        *,
        abort: threading.Event | None = None,
    ) -> None:
        self._context = context
        self._nodes = tuple(dict.fromkeys(nodes))
        self.manner: Final = manner or Manner()
        self._abort = abort or threading.Event()
        self._schedule: Schedule | None = None
        #: By UUID: the nodes that the checks of its move have refused, with what they said.
        self._not_to: dict[str, dict[str, Stay]] = {}
        #: Whether nobody else's move may still take room, or leave it.
        self._firm = True

    @abstractmethod
    def _question(self) -> Question:
        """Who is to leave which nodes, and where to."""

    def check_prereq(self) -> Schedule:
        """Look at every node, check every move, and plan; change nothing.

        A guest that cannot go is named in the schedule, with the reason.  Raises `Refused` when a node in question
        gives no answer, or when the configuration does not name it.
        """
        all_known((*self._nodes, *sorted(self.manner.to)), self._context.nodes)
        seen = fleet.observe(self._context, self._question())
        rooms = seen.left()
        self._firm = not seen.arrivals
        context = once(self._context)
        checked: set[tuple[str, str]] = set()
        refused: list[Stay] = []
        while True:
            drawn = plan(rooms, seen.travellers, self.manner.limits)
            against = self._against(context, seen, drawn, checked)
            if not against:
                break
            for (uuid, node), stay in against.items():
                self._not_to.setdefault(uuid, {})[node] = stay
            guests = {guest.uuid: _without(guest, against) for guest in seen.travellers}
            # Those that have another node go there; the others are named.
            refused += [stay for (uuid, _), stay in against.items() if not _goes_somewhere(guests[uuid])]
            seen = replace(seen, travellers=tuple(guest for guest in guests.values() if _goes_somewhere(guest)))
        stays = sorted((*seen.stays, *refused, *drawn.stays), key=lambda stay: stay.name)
        self._schedule = replace(drawn, stays=tuple(stays))
        return self._schedule

    def exec(self) -> DrainReport:
        """Do it, and tell what became of every guest.

        Guaranteed afterwards: each guest in ``moved`` is on its target, as after a single move; each other one is named
        with what its own move, its checks or the plan said.  Raises `Refused` when the journal cannot be written
        (nothing was begun).
        """
        if self._schedule is None:
            raise UsageError("exec() was called before check_prereq().", hint="Call check_prereq() first.")
        schedule, question = self._schedule, self._question()

        def work(record: Record) -> DrainReport:
            run = Run(self._context, question, self.manner, record, abort=self._abort, not_to=self._not_to)
            report = run.run(schedule, self.what, self._nodes, firm=self._firm)
            if report.exit_code is not ExitCode.OK:
                raise _Incomplete(report)
            return report

        departures = [leg.departure for leg in schedule.legs]
        opening = Opening(
            tasklet=self.what,
            instance=", ".join(self._nodes),
            uuid="",
            source=", ".join(sorted({departure.source for departure in departures})),
            target=", ".join(sorted({departure.target for departure in departures})),
            holder=holder(),
            plan=jsonable(schedule),
        )
        try:
            return keep(self._context.journal, opening, work, now=self._context.clock.now)
        except _Incomplete as incomplete:
            return incomplete.report

    def _against(
        self, context: Context, seen: Fleet, drawn: Schedule, checked: set[tuple[str, str]]
    ) -> dict[tuple[str, str], Stay]:
        """Every move that was not yet checked, checked as it is planned; those that are refused, by guest and node."""
        legs = [leg.departure for leg in drawn.legs if (leg.departure.uuid, leg.departure.target) not in checked]
        found = {}
        for first in range(0, len(legs), _CHECKS):
            some = legs[first : first + _CHECKS]
            words = outcomes_of([partial(self._check, context, seen.domains[leg.uuid], leg) for leg in some])
            for leg, word in zip(some, words, strict=True):
                checked.add((leg.uuid, leg.target))
                if isinstance(word, LvmigrateError) and not _of_room_alone(word):
                    found[leg.uuid, leg.target] = Stay(
                        uuid=leg.uuid, name=leg.name, source=leg.source, finding=finding_of(word)
                    )
        return found

    def _check(self, context: Context, domain: Domain, leg: Departure) -> None:
        options = replace(self.manner.options(domain), iallocator=None, forecast_s=0)
        MigrateInstance(context, leg.uuid, target=leg.target, options=options).check_prereq()


class DrainNodes(ManyMoves):
    """Every guest leaves ``nodes``: running ones move, paused ones too; what is off stays defined there."""

    what = "drain"

    def _question(self) -> Question:
        leaving = frozenset(self._nodes)
        others = frozenset(self._context.nodes) - leaving
        return Question(
            sources=leaving,
            targets=others & self.manner.to if self.manner.to else others,
            leaves=lambda _domain: True,
            options=self.manner.options,
            about=leaving,
            forecast_s=self.manner.forecast_s,
        )


class ReturnGuests(ManyMoves):
    """Guests come to ``nodes``: those with these UUIDs, or, with ``None``, every one that has its disks there.

    Of those in ``away``, which a drain has sent there, one that may be where nobody answers is named.
    """

    what = "return"

    def __init__(
        self,
        context: Context,
        nodes: Sequence[str],
        manner: Manner | None = None,
        *,
        abort: threading.Event | None = None,
        guests: Collection[str] | None = None,
        away: Mapping[str, Gone] | None = None,
    ) -> None:
        super().__init__(context, nodes, manner, abort=abort)
        self._guests = guests
        self._away = away or {}

    def check_prereq(self) -> Schedule:
        """As `ManyMoves.check_prereq`; refused also where a node takes nobody."""
        for name in self._nodes:
            node = self._context.nodes.get(name)
            if node is not None and node.closed is not None:
                closed = Finding(
                    code=Code.NODE_DRAINED if node.offline is None else Code.NODE_OFFLINE,
                    sentence=f"{name} {node.closed}: no guest may come back.",
                    hint=f"Take that out of [nodes.{name}] in the configuration.",
                )
                raise Refused(name, [closed])
        return super().check_prereq()

    def _question(self) -> Question:
        coming = frozenset(self._nodes)
        guests = self._guests
        return Question(
            sources=frozenset(name for name, node in self._context.nodes.items() if node.offline is None) - coming,
            targets=coming,
            leaves=lambda domain: guests is None or domain.uuid in guests,
            options=self.manner.options,
            about=coming,
            forecast_s=self.manner.forecast_s,
            if_replicated=guests is None,
            away=self._away,
        )


class _Incomplete(LvmigrateError):
    """For the journal: not every guest is where it was to go."""

    def __init__(self, report: DrainReport) -> None:
        left = [*(stayed.name for stayed in report.stayed), *report.not_begun]
        super().__init__(
            f"{len(report.moved)} guests moved; not moved: {', '.join(left)}.",
            hint="Mend what their own errands say, and run it again: it goes on where it stands.",
            code=report.code,
        )
        self.report = report


def _without(guest: Traveller, against: Collection[tuple[str, str]]) -> Traveller:
    """The guest without the nodes that it was refused on."""
    return replace(
        guest,
        peers=tuple(peer for peer in guest.peers if (guest.uuid, peer) not in against),
        last_resort=tuple(peer for peer in guest.last_resort if (guest.uuid, peer) not in against),
    )


def _goes_somewhere(guest: Traveller) -> bool:
    return bool(guest.peers or guest.last_resort)


def _of_room_alone(error: LvmigrateError) -> bool:
    """Too little room is the plan's business: others may leave before."""
    return isinstance(error, Refused) and {finding.code for finding in error.findings} == {Code.MEMORY_SHORT}


def all_known(nodes: Collection[str], known: Collection[str]) -> None:
    """The configuration names all of ``nodes``: those of ``known``. Raises `Refused` for the first that it does not."""
    for node in nodes:
        if node not in known:
            raise Refused(node, [unknown(node, known)])
