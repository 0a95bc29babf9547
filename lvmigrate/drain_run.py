"""A drain (or a return) under way: moves begin as the plan lets them, and the plan follows what becomes of them.

Long, because the turn, the look before it and what becomes of each guest change one state between them.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import structlog

from lvmigrate import drain_move, fleet
from lvmigrate.ahead import Ahead
from lvmigrate.assignment import Stay, assign, short
from lvmigrate.census import Unfinished
from lvmigrate.defect import defect
from lvmigrate.domain import Domain
from lvmigrate.drain_move import Ears, shared
from lvmigrate.drain_report import AFTERWARDS, FOR_GOOD, LASTING, DrainReport, Moved, Stayed
from lvmigrate.errors import (
    Code,
    ExitCode,
    Finding,
    GuestLost,
    LeftBehind,
    LvmigrateError,
    MoveAborted,
    OutcomeUnknown,
    Refused,
    TokenLost,
)
from lvmigrate.fleet import Question
from lvmigrate.journal import Kind, Record
from lvmigrate.manner import Manner
from lvmigrate.node_states import Wish
from lvmigrate.report import CleanupReport, Report
from lvmigrate.tasklet import Context
from lvmigrate.together import in_turn
from lvmigrate.traffic import Departure, Schedule, Traffic

_log = structlog.get_logger()

T = TypeVar("T")

#: In place of an end: the guest's memory is on the target alone, and its move goes on; its copy comes to its end soon.
_LANDED: Final = object()
_ENDS_SOON: Final = object()
#: How often it is looked whether somebody asked to pause or to stop, in seconds.
_TICK_S: Final = 0.2
#: How long a node that this is about may be silent, and how often it is asked meanwhile, in seconds.
_PATIENCE_S: Final = 60.0
_ASK_S: Final = 5.0
#: How often a guest is tried that failed for what may have passed since.
_TRIES: Final = 2
#: The same for one that somebody else is working on, and will have done with.
_TRIES_LOCKED: Final = 10
#: How many guests are checked before it is their turn, at the most.
_CHECKS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Word:
    """What a guest's move to one node, or the check of it, came to; ``for_good``: the next one would too."""

    stayed: Stayed
    for_good: bool

    @classmethod
    def by_plan(cls, stay: Stay) -> _Word:
        return cls(stayed=Stayed.by_plan(stay), for_good=stay.finding.code in FOR_GOOD)


class Run:
    """One drain under way. ``context.cancel``: begin nothing more; ``abort``: end what is under way as well."""

    def __init__(
        self,
        context: Context,
        question: Question,
        manner: Manner,
        record: Record,
        *,
        abort: threading.Event,
        not_to: Mapping[str, Mapping[str, Stay]],
    ) -> None:
        self._context = context
        self._question = question
        self._manner = manner
        self._record = record
        self._abort = abort
        self._traffic = Traffic((), manner.limits)
        #: What has ended, from each move's thread.
        self._ends: queue.SimpleQueue[tuple[str, object]] = queue.SimpleQueue()
        self._threads: dict[str, threading.Thread] = {}
        #: By UUID: whose memory is on the target, and whose move is still being finished.  They count for no limit any
        #: more.
        self._landed: dict[str, Departure] = {}
        self._ahead = Ahead()
        #: By UUID: what became of each guest; the names of all that there ever were.
        self._moved: dict[str, Moved] = {}
        self._stayed: dict[str, Stayed] = {}
        self._again: dict[str, Stayed] = {}
        #: What was said last of those that are tried again; where everybody was at the last look.
        self._words: dict[str, Stayed] = {}
        self._whereabouts: Mapping[str, str] = {}
        self._names: dict[str, str] = {}
        self._off: tuple[str, ...] = ()
        self._domains: dict[str, Domain] = {}
        self._peers: dict[str, tuple[str, ...]] = {}
        #: By UUID: the nodes where it is not to go, with what its own move, or the check of it, came to there.
        self._not_to: dict[str, dict[str, _Word]] = {
            uuid: {node: _Word.by_plan(stay) for node, stay in nodes.items()} for uuid, nodes in not_to.items()
        }
        #: The nodes that others' moves bring memory to.
        self._others: frozenset[str] = frozenset()
        self._tries: Counter[str] = Counter()
        #: By UUID: the cleanups that did all they could.
        self._cleanups: Counter[str] = Counter()
        self._began: dict[str, float] = {}
        #: Whether the plan is to be made anew; whether it was, by a look at which nobody was under way, and since then
        #: nobody has set out.
        self._stale = True
        self._firm = False
        self._silent_since: float | None = None
        self._paused = False

    def run(self, schedule: Schedule, what: str, nodes: tuple[str, ...], *, firm: bool = True) -> DrainReport:
        """Do all of it. ``firm``: no room that the schedule lacks can come of others' moves."""
        began = self._context.clock.now()
        self._names = {leg.departure.uuid: leg.departure.name for leg in schedule.legs}
        self._told(self._manner.onlooker.planned, schedule)
        for stay in schedule.stays:
            short_for_good = firm and stay.finding.code is Code.MEMORY_SHORT
            self._stays(Stayed.by_plan(stay), for_good=short_for_good or stay.finding.code in LASTING)
        try:
            while self._turn():
                pass
        finally:
            for thread in self._threads.values():
                thread.join()
        not_begun = self._settle_the_rest()
        return DrainReport(
            what=what,
            nodes=nodes,
            seconds=self._context.clock.now() - began,
            forecast_s=schedule.seconds,
            moved=tuple(self._moved.values()),
            stayed=tuple(self._stayed.values()),
            not_begun=not_begun,
            off=tuple(sorted({*self._off} - {stayed.name for stayed in self._stayed.values()})),
        )

    def _settle_the_rest(self) -> tuple[str, ...]:
        """What to say of those that nobody has brought to an end; the names of those that have not begun."""
        not_begun = []
        self._stayed |= self._again
        for uuid, name in sorted(self._names.items(), key=lambda item: item[1]):
            if uuid in self._moved or uuid in self._stayed:
                continue
            word, where = self._words.get(uuid), self._whereabouts.get(uuid)
            gone = where is not None and where not in self._question.sources
            if gone and (word is None or word.exit_code is ExitCode.REFUSED):
                source = self._domains[uuid].node if uuid in self._domains else ""
                self._moved[uuid] = Moved(
                    uuid=uuid, name=name, source=source, target=str(where), how="another", seconds=0.0
                )
            elif word is not None:
                self._stayed[uuid] = word
            elif self._context.cancel.is_set() or where is not None:
                not_begun.append(name)
            else:
                self._stays(self._off_now(uuid, name), for_good=True)
        return tuple(not_begun)

    def _off_now(self, uuid: str, name: str) -> Stayed:
        source = self._domains[uuid].node if uuid in self._domains else ", ".join(sorted(self._question.sources))
        finding = Finding(
            code=Code.INSTANCE_STOPPED,
            sentence=f"{name} does not run any more, on any node that answers.",
            hint=f"If it is to: look with `lvmigrate status {name}`, and start it where its disks are Primary.",
        )
        return Stayed(uuid=uuid, name=name, source=source, finding=finding)

    def _context_now(self) -> Context:
        """With the nodes as they are by now: one that was drained or put out of use meanwhile takes nobody more."""
        nodes = self._manner.nodes
        return self._context if nodes is None else replace(self._context, nodes=nodes())

    def _of_one(self) -> Context:
        """For one move: what stops the whole from going on does not stop this one."""
        return replace(self._context_now(), cancel=self._abort)

    # ---- one turn after the other

    def _turn(self) -> bool:
        """Begin what may begin, wait for what is under way; whether there is more to do."""
        if self._may_begin() and self._stale:
            self._look_again()
        while self._may_begin() and not self._stale and (begun := self._traffic.next(1)):
            self._begin(begun[0])
        if self._alive:
            self._wait()
            return True
        if self._context.cancel.is_set():
            return False
        return self._anything_left()

    @property
    def _alive(self) -> dict[str, Departure]:
        """Whose move has not ended."""
        return {**self._traffic.under_way, **self._landed}

    def _may_begin(self) -> bool:
        wish = self._manner.wish()
        if wish is Wish.STOP or self._abort.is_set():
            self._context.cancel.set()
        paused = wish is Wish.PAUSE
        if paused is not self._paused:
            self._paused = paused
            self._say("paused: nothing new begins" if paused else "goes on")
        return not paused and not self._context.cancel.is_set()

    def _anything_left(self) -> bool:
        """With nobody under way, and nobody who may begin: whether to go on, once what there is to wait for is over."""
        if self._paused or self._stale:
            self._context.clock.sleep(_TICK_S)
        elif not self._firm:
            self._stale = True  # by a look while others were under way: who found no room may have it now
        elif self._traffic.waiting:
            for ticket in self._traffic.waiting:  # they wait for room that nobody makes
                self._finds_no_room(short(ticket.traveller, self._traffic.free_kib))
            self._stale = True
        elif self._again:
            self._try_again()
        else:
            return False
        return True

    def _try_again(self) -> None:
        """Once more with those that failed, after a while."""
        names = ", ".join(sorted(stayed.name for stayed in self._again.values()))
        self._say(f"in {self._manner.again_s:.0f} s once more: {names}")
        until = self._context.clock.now() + self._manner.again_s
        while self._context.clock.now() < until and not self._context.cancel.is_set():
            self._may_begin()
            self._context.clock.sleep(_TICK_S)
        if not self._context.cancel.is_set():
            for uuid in self._again:
                self._not_to.pop(uuid, None)
            self._words |= self._again
            self._again.clear()
            self._stale = True

    # ---- looking, and planning anew

    def _look_again(self) -> None:
        """Ask every node, and plan for all that have not set out; those that can go nowhere are named at once."""
        alive, under_way = self._alive, tuple(self._traffic.under_way.values())
        done = self._moved.keys() | self._stayed.keys() | self._again.keys()
        question = replace(self._question, not_to=self._not_to, leave_alone=frozenset({*done, *alive}))
        try:
            seen = fleet.observe(self._context_now(), question)
        except Refused as error:
            self._not_told(error)
            return
        self._silent_since = None
        self._stale = False
        self._firm = not alive
        self._off = tuple(sorted(domain.name for domain in seen.off))
        self._whereabouts = seen.whereabouts
        self._domains |= seen.domains
        self._peers |= {guest.uuid: (*guest.peers, *guest.last_resort) for guest in seen.travellers}
        self._names |= {guest.uuid: guest.name for guest in seen.travellers}
        finishing = [left for left in seen.unfinished if self._cleanups[left.uuid] < _TRIES]
        mine = {*alive, *(left.uuid for left in finishing)}
        self._others = frozenset(arrival.target for arrival in seen.arrivals if arrival.uuid not in mine)
        self._traffic = Traffic(seen.left(but=mine), self._manner.limits)
        # What is under way, and what was left, counts as if none of its memory were there yet: too much rather than too
        # little; and before anybody else is promised room.
        for departure in under_way:
            self._traffic.occupy(departure)
        for left in seen.unfinished:
            self._finish(left)
        rooms = [replace(room, free_kib=self._traffic.free_kib[room.node]) for room in seen.rooms]
        tickets, no_room = assign(rooms, seen.travellers)
        self._traffic.add(tickets)
        for stay in seen.stays:
            self._goes_nowhere(stay, for_good=stay.finding.code in LASTING)
        for stay in no_room if self._firm else ():
            self._finds_no_room(stay)

    def _not_told(self, error: Refused) -> None:
        """A node that this is about is silent: what is under way is waited for, and then the node, for a while."""
        now = self._context.clock.now()
        self._silent_since = now if self._silent_since is None else self._silent_since
        if self._alive:
            return
        if now - self._silent_since < _PATIENCE_S:
            self._context.clock.sleep(_ASK_S)
            return
        done = self._moved.keys() | self._stayed.keys()
        for uuid, name in self._names.items():
            if uuid not in done:
                self._again.pop(uuid, None)
                domain = self._domains.get(uuid)
                source = error.instance if domain is None else domain.node
                self._stays(Stayed.by_error(uuid, name, source, error), for_good=True)
        self._context.cancel.set()

    # ---- one guest

    def _begin(self, departure: Departure) -> None:
        self._firm = False
        self._remembered(self._manner.leaving, departure, departure.name)
        self._told(self._manner.onlooker.begun, departure)
        self._note(f"{departure.name} sets out for {departure.target}, with {departure.bandwidth_mib_s} MiB/s")
        self._start(departure, partial(self._move, departure))

    def _finish(self, left: Unfinished) -> None:
        """A move that was left: a cleanup watches it to its end, or undoes it."""
        if self._cleanups[left.uuid] >= _TRIES:
            finding = Finding(
                code=Code.LEFT_BEHIND,
                sentence=f"What a move of {left.name} has left is still there after {_TRIES} cleanups.",
                hint="`lvmigrate audit` says what it is, and where.",
            )
            stayed = Stayed(
                uuid=left.uuid, name=left.name, source=left.source, finding=finding, exit_code=ExitCode.LEFT_BEHIND
            )
            self._stays(stayed, for_good=True)
            return
        self._firm = False
        there = {left.source, left.target} <= self._traffic.free_kib.keys()
        departure = Departure(
            uuid=left.uuid,
            name=left.name,
            source=left.source,
            target=left.target,
            memory_kib=left.memory_kib,
            bandwidth_mib_s=self._traffic.share_mib_s(left.source, left.target) if there else 0,
            seconds=0.0,
        )
        self._names[left.uuid] = left.name
        self._traffic.occupy(departure)
        if left.source in self._question.sources and left.target in self._question.targets:
            self._remembered(self._manner.leaving, departure, left.name)
        self._say(f"{left.name}: a move to {left.target} was begun before; it is finished or undone first")
        self._start(departure, partial(self._clean_up, left))

    def _start(self, departure: Departure, work: Callable[[], object]) -> None:
        """In a thread of its own; its end comes through the queue."""
        self._began[departure.uuid] = self._context.clock.now()

        def run() -> None:
            ended: object
            try:
                ended = work()
            except Exception as error:  # noqa: BLE001 -- a defect must not end the others
                ended = defect(error)
            self._ends.put((departure.uuid, ended))

        if in_turn.get():
            run()
            return
        # Context variables (the log's bound values) do not follow into threads by themselves.
        thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name=f"move-{departure.name}")
        self._threads[departure.uuid] = thread
        thread.start()

    def _move(self, departure: Departure) -> Report:
        domain = self._domains[departure.uuid]
        return drain_move.move(
            self._of_one(),
            departure,
            self._manner,
            domain,
            ears=self._ears(departure.uuid),
            ahead=self._ahead,
        )

    def _ears(self, uuid: str) -> Ears:
        return Ears(
            ends_soon=partial(self._ends.put, (uuid, _ENDS_SOON)), landed=partial(self._ends.put, (uuid, _LANDED))
        )

    def _check_ahead(self) -> None:
        """One for each place that is taken: all of them may become free at once."""
        if not self._may_begin() or self._stale:
            return
        context = self._of_one()
        for ticket in self._traffic.soon(min(len(self._traffic.under_way), _CHECKS)):
            guest = ticket.traveller
            domain = self._domains[guest.uuid]
            options = shared(self._manner.options(domain), self._traffic.share_mib_s(guest.source, ticket.target))
            if options.forecast_s:
                continue  # it depends on the share of the link, which is known when it sets out
            make = partial(
                drain_move.made,
                context,
                guest.uuid,
                ticket.target,
                self._manner,
                options,
                ears=self._ears(guest.uuid),
            )
            self._ahead.begin(context, domain, ticket.target, make)

    def _clean_up(self, left: Unfinished) -> CleanupReport:
        try:
            return drain_move.clean_up(replace(self._context, cancel=self._abort), left.uuid, self._manner)
        except LvmigrateError as error:
            locked = isinstance(error, Refused) and {finding.code for finding in error.findings} == {Code.LOCKED}
            if locked or isinstance(error, MoveAborted | GuestLost | LeftBehind | OutcomeUnknown | TokenLost):
                raise
            # Whatever kept the cleanup from its work: what that move has left is there.
            raise LeftBehind(
                f"The move of {left.name} that was begun before is not finished: {error.sentence}",
                leftovers=[f"what the move of {left.name} to {left.target} has opened"],
                hint=f"{error.hint} Then `lvmigrate cleanup {left.name}`.",
                detail=error.detail,
            ) from error

    # ---- what became of it

    def _wait(self) -> None:
        """For the next end, or a little while."""
        try:
            uuid, ended = self._ends.get(timeout=_TICK_S)
        except queue.Empty:
            return
        if ended is _ENDS_SOON:
            self._check_ahead()
            return
        if ended is _LANDED:
            self._landed[uuid] = self._traffic.under_way[uuid]
            self._traffic.ended(uuid, arrived=True, more=False)
            return
        thread = self._threads.pop(uuid, None)
        if thread is not None:
            thread.join()
        departure = self._alive[uuid]
        match ended:
            case Report():
                self._free(uuid, arrived=True)
                after = tuple(finding for finding in ended.warnings if finding.code in AFTERWARDS)
                self._has_moved(departure, ended.target, ended.mode, ended.downtime_s, after)
            case CleanupReport():
                self._cleaned(departure, ended)
            case LvmigrateError():
                self._free(uuid, arrived=False)
                self._stale = True  # nobody knows better than a new look what is free now, and who answers
                self._failed(departure, ended)

    def _free(self, uuid: str, *, arrived: bool) -> None:
        if self._landed.pop(uuid, None) is None:
            self._traffic.ended(uuid, arrived=arrived, more=False)

    def _cleaned(self, departure: Departure, report: CleanupReport) -> None:
        """What it was: a guest that is where it was to go, or one more that is to leave."""
        where = report.node
        self._free(departure.uuid, arrived=where == departure.target)
        self._stale = True
        if where is not None and where in self._question.targets and where not in self._question.sources:
            self._has_moved(departure, where, "cleanup", 0.0)
        else:
            self._cleanups[departure.uuid] += 1
            self._say(f"{departure.name}: cleaned up; it is {'off' if where is None else f'on {where}'}")

    def _has_moved(
        self, departure: Departure, target: str, how: str, downtime_s: float, warnings: tuple[Finding, ...] = ()
    ) -> None:
        moved = Moved(
            uuid=departure.uuid,
            name=departure.name,
            source=departure.source,
            target=target,
            how=how,
            seconds=self._context.clock.now() - self._began[departure.uuid],
            downtime_s=downtime_s,
            warnings=warnings,
        )
        self._moved[departure.uuid] = moved
        self._remembered(self._manner.arrived, moved, moved.name)
        self._told(self._manner.onlooker.moved, moved)
        self._note(f"{moved.name} is on {moved.target} ({how})")

    def _failed(self, departure: Departure, error: LvmigrateError) -> None:
        """It goes to another node that has its disks, or is tried once more in the end, or stays."""
        uuid = departure.uuid
        stayed = Stayed.by_error(uuid, departure.name, departure.source, error)
        if isinstance(error, GuestLost | MoveAborted):
            self._stays(stayed, for_good=True)
            return
        undecided = isinstance(error, LeftBehind | OutcomeUnknown | TokenLost)
        codes = {finding.code for finding in error.findings} if isinstance(error, Refused) else {error.code}
        words = self._not_to.setdefault(uuid, {})
        elsewhere = [peer for peer in self._peers.get(uuid, ()) if peer not in words and peer != departure.target]
        if error.code is Code.MEMORY_SHORT and self._tries[uuid] < _TRIES:
            self._tries[uuid] += 1  # it filled up: the next look tells how much is free
            self._tell(stayed, again=True)
            return
        words[departure.target] = _Word(stayed=stayed, for_good=bool(codes & FOR_GOOD))
        if elsewhere and not undecided:
            self._tell(stayed, again=True)
        else:
            self._stays(stayed, for_good=all(word.for_good for word in words.values()))

    def _goes_nowhere(self, stay: Stay, *, for_good: bool) -> None:
        """By a look. Where its own moves failed, that is the reason; and what passes of it is tried again."""
        words = tuple(self._not_to.get(stay.uuid, {}).values())
        stayed = words[-1].stayed if words else Stayed.by_plan(stay)
        self._stays(stayed, for_good=for_good and all(word.for_good for word in words))

    def _finds_no_room(self, stay: Stay) -> None:
        """Nobody of this drain is going to make any; others who are on their way to its nodes may."""
        if self._others.isdisjoint(self._peers.get(stay.uuid, ())):
            self._goes_nowhere(stay, for_good=True)
        else:
            self._stays(Stayed.by_plan(stay), for_good=False, most=_TRIES_LOCKED)

    def _stays(self, stayed: Stayed, *, for_good: bool, most: int = _TRIES) -> None:
        """It does not go: not any more, or not before the others."""
        self._names[stayed.uuid] = stayed.name
        self._tries[stayed.uuid] += 1
        most = _TRIES_LOCKED if stayed.finding.code is Code.LOCKED else most
        again = not for_good and self._tries[stayed.uuid] < most and not self._context.cancel.is_set()
        (self._again if again else self._stayed)[stayed.uuid] = stayed
        self._tell(stayed, again=again)

    def _tell(self, stayed: Stayed, *, again: bool) -> None:
        self._told(partial(self._manner.onlooker.stays, again=again), stayed)
        self._note(f"{stayed.name} stays: {stayed.finding.code}: {stayed.finding.sentence}")

    def _told(self, call: Callable[[T], None], what: T) -> None:
        """As of one move: a listener's defect must not stop the others half-way."""
        try:
            call(what)
        except Exception:  # noqa: BLE001 -- whatever it is
            _log.exception("drain_listener_failed")

    def _remembered(self, call: Callable[[T], None], what: T, name: str) -> None:
        """Nor must a disk that is full: the guest goes all the same, and only a return has to be told of it."""
        try:
            call(what)
        except LvmigrateError as error:
            self._say(f"{name}: it is not written down for a return: {error.sentence}")

    def _say(self, sentence: str) -> None:
        self._told(self._manner.onlooker.says, sentence)
        self._note(sentence)

    def _note(self, sentence: str) -> None:
        self._record.add(Kind.MOMENT, sentence, {"said_by": "lvmigrate"})
        _log.info("drain", what=sentence)
