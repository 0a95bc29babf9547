"""Several moves at once, each in a thread of its own: limits, failures, pauses, aborts. The moves are made up."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from lvmigrate import drain_move, fleet
from lvmigrate.ahead import Ahead
from lvmigrate.assignment import Room, Stay, Traveller
from lvmigrate.census import Unfinished
from lvmigrate.domain import Domain
from lvmigrate.drain_move import Ears, shared
from lvmigrate.drain_report import DrainReport, Moved, Nobody, Stayed
from lvmigrate.drain_run import Run
from lvmigrate.errors import (
    Code,
    ConfigurationError,
    ExitCode,
    Finding,
    GuestLost,
    LvmigrateError,
    MoveAborted,
    MoveFailed,
    Refused,
)
from lvmigrate.fleet import Fleet, Question
from lvmigrate.journal import NO_RECORD
from lvmigrate.manner import Manner
from lvmigrate.node_states import Wish
from lvmigrate.plan import Mode, Options
from lvmigrate.report import CleanupReport, Report
from lvmigrate.traffic import Departure, Limits, plan
from tests.unit.fakes import World, guest

GIB = 1 << 20  # in KiB
#: Long enough for others to begin meanwhile.
_MOVE_S = 0.05

Act = Callable[[Departure], LvmigrateError | None]


@dataclass
class Stage(Nobody):
    """Some guests on node1, whose moves do as they are told, and a note of all that is begun."""

    count: int = 6
    free_gib: int = 100
    peers: tuple[str, ...] = ("node2",)
    #: By guest: what its moves come to, one after the other; the last one again and again.
    acts: dict[str, list[LvmigrateError | None]] = field(default_factory=dict)
    move_s: float = _MOVE_S
    begun_: list[tuple[str, str]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    now: Counter[str] = field(default_factory=Counter)
    most: int = 0
    gone: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    abort: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)

    #: Moves that somebody has left, until a cleanup has undone them; others' moves; why a guest can go nowhere.
    unfinished: list[Unfinished] = field(default_factory=list)
    arrivals: tuple[Unfinished, ...] = ()
    nowhere: dict[str, Code] = field(default_factory=dict)
    looks: int = 0
    #: By guest: what its move tells of itself; what was checked before its turn, with its share of the link; and who
    #: set out with that.
    told_of: dict[str, Ears] = field(default_factory=dict)
    checks: list[tuple[str, int | None]] = field(default_factory=list)
    checked_ahead: list[str] = field(default_factory=list)

    # ---- what is seen

    def observe(self, _context: object, question: Question) -> Fleet:
        self.looks += 1
        unfinished = tuple(left for left in self.unfinished if left.uuid not in question.leave_alone)
        known = [
            Traveller(
                uuid=f"u{number}",
                name=f"g{number}",
                source="node1",
                memory_kib=GIB,
                resident_kib=GIB,
                peers=tuple(p for p in self.peers if p not in question.not_to.get(f"u{number}", ())),
            )
            for number in range(self.count)
        ]
        away = {*self.gone, *question.leave_alone, *(left.uuid for left in unfinished)}
        there = [each for each in known if each.uuid not in away]
        taken = len(self.gone)
        rooms = [Room(node="node1", free_kib=0)]
        rooms += [Room(node=peer, free_kib=(self.free_gib - taken) * GIB) for peer in self.peers]
        domains: dict[str, Domain] = {each.uuid: guest("node1", name=each.name, uuid=each.uuid) for each in there}
        return Fleet(
            rooms=tuple(rooms),
            travellers=tuple(each for each in there if each.name not in self.nowhere and each.peers),
            stays=tuple(self._stay(each) for each in there if each.name in self.nowhere or not each.peers),
            unfinished=unfinished,
            arrivals=(*self.arrivals, *self.unfinished),
            off=(),
            whereabouts={},
            silent={},
            domains=domains,
        )

    def _stay(self, each: Traveller) -> Stay:
        code = self.nowhere.get(each.name, Code.NO_TARGET)
        finding = Finding(code=code, sentence=f"{each.name} can go nowhere.", hint="Mend that.")
        return Stay(uuid=each.uuid, name=each.name, source=each.source, finding=finding)

    # ---- what is done

    def clean_up(self, left: Unfinished) -> CleanupReport:
        self.begun_.append((left.name, "cleanup"))
        time.sleep(self.move_s)
        self.unfinished.remove(left)
        self.gone.add(left.uuid)
        self.begun_.append((left.name, "cleaned"))
        return CleanupReport(
            instance=left.name, uuid=left.uuid, node=left.target, running=True, seconds=1.0, acts=(),
            warnings=(),
        )  # fmt: skip

    def _move(self, _context: object, departure: Departure, *_more: object, ears: Ears, ahead: Ahead) -> Report:
        self.told_of[departure.name] = ears
        if (departure.uuid, departure.target) in ahead._checks:
            self.checked_ahead.append(departure.name)
        return self.move(departure)

    def _made(self, _context: object, uuid: str, _target: str, _manner: Manner, options: Options, **_: object) -> Any:
        self.checks.append((uuid, options.bandwidth_mib_s))
        return self

    def check_prereq(self) -> None:
        """In place of a move's own."""

    def move(self, departure: Departure) -> Report:
        with self.lock:
            self.begun_.append((departure.name, departure.target))
            self.now[departure.target] += 1
            self.most = max(self.most, sum(self.now.values()))
        try:
            if self.abort.wait(self.move_s):
                raise MoveAborted("Aborted.", hint="Nothing.")
            acts = self.acts.get(departure.name, [None])
            error = acts.pop(0) if len(acts) > 1 else acts[0]
            if error is not None:
                raise error
            with self.lock:
                self.gone.add(departure.uuid)
        finally:
            with self.lock:
                self.now[departure.target] -= 1
        return Report(
            instance=departure.name, uuid=departure.uuid, errand="", source="node1", target=departure.target,
            mode="live", seconds=1.0, downtime_s=0.1, dual_primary_s=0.0, two_primaries_allowed_s=0.0, memory_bytes=0,
            iterations=1, running=True, steps=(), timeline=(), warnings=(),
        )  # fmt: skip

    def run(self, monkeypatch: pytest.MonkeyPatch, limits: Limits | None = None, **changes: Any) -> DrainReport:
        monkeypatch.setattr(fleet, "observe", self.observe)
        context = World().context(cancel=self.stop)
        question = Question(
            sources=frozenset({"node1"}),
            targets=frozenset(self.peers),
            leaves=lambda _domain: True,
            options=lambda _domain: Options(),
            about=frozenset({"node1"}),
        )
        manner = Manner(
            limits=limits or Limits(per_source=3, per_target=3, per_link=3), again_s=0.1, **{"onlooker": self} | changes
        )
        run = Run(context, question, manner, NO_RECORD, abort=self.abort, not_to={})
        monkeypatch.setattr(drain_move, "move", self._move)
        monkeypatch.setattr(drain_move, "made", self._made)
        monkeypatch.setattr(run, "_clean_up", self.clean_up)
        seen = self.observe(context, question)
        return run.run(plan(seen.rooms, seen.travellers, manner.limits), "drain", ("node1",))

    # ---- what is told

    def moved(self, moved: Moved) -> None:
        self.told.append(f"moved {moved.name}")

    def stays(self, stayed: Stayed, *, again: bool) -> None:
        self.told.append(f"{'again' if again else 'stays'} {stayed.name} {stayed.finding.code}")


def test_several_at_once_and_never_more(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(count=9)
    begin = time.monotonic()
    report = stage.run(monkeypatch)
    assert (len(report.moved), report.exit_code) == (9, ExitCode.OK)
    assert stage.most == 3
    assert time.monotonic() - begin < 9 * _MOVE_S + 2
    assert sorted(name for name, _ in stage.begun_) == [f"g{n}" for n in range(9)]


def test_one_that_fails_for_good_is_told_at_once_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    error = MoveFailed("It dirties too fast.", hint="Post-copy.", code=Code.NOT_CONVERGING)
    stage = Stage(acts={"g0": [error]})
    report = stage.run(monkeypatch, Limits(at_once=1))
    assert stage.told[0] == "stays g0 NOT_CONVERGING"
    assert len(report.moved) == 5
    assert [(stayed.name, stayed.exit_code) for stayed in report.stayed] == [("g0", ExitCode.FAILED)]
    assert [name for name, _ in stage.begun_].count("g0") == 1


def test_one_that_fails_for_now_is_tried_once_more_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    error = MoveFailed("The daemon went away.", hint="Look.")
    stage = Stage(acts={"g0": [error, None], "g1": [error]})
    report = stage.run(monkeypatch, Limits(at_once=1))
    assert [stayed.name for stayed in report.stayed] == ["g1"]
    assert [name for name, _ in stage.begun_] == ["g0", "g1", "g2", "g3", "g4", "g5", "g0", "g1"]
    assert stage.told.count("again g1 COPY_FAILED") == stage.told.count("stays g1 COPY_FAILED") == 1


def test_one_that_fails_goes_to_another_node_that_has_its_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    error = Refused("g0", [Finding(code=Code.CPU_LACKS, sentence="No.", hint="Another.")])
    stage = Stage(count=2, peers=("node2", "node3"), acts={"g0": [error, None]})
    report = stage.run(monkeypatch)
    assert (report.exit_code, len(report.moved)) == (ExitCode.OK, 2)
    targets = [target for name, target in stage.begun_ if name == "g0"]
    assert sorted(targets) == ["node2", "node3"]


def test_a_target_that_fills_up_names_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Refused("g2", [Finding(code=Code.MEMORY_SHORT, sentence="Full.", hint="Make room.")])

    class Fills(Stage):
        def observe(self, context: object, question: Question) -> Fleet:
            if "again g2 MEMORY_SHORT" in self.told:
                self.free_gib = len(self.gone)
            return super().observe(context, question)

    stage = Fills(acts={"g2": [full]})
    report = stage.run(monkeypatch, Limits(at_once=1))
    assert [moved.name for moved in report.moved] == ["g0", "g1"]
    assert {stayed.name for stayed in report.stayed} == {"g2", "g3", "g4", "g5"}
    assert [name for name, _ in stage.begun_] == ["g0", "g1", "g2"]


def test_a_check_that_says_full_where_the_look_says_free_does_not_go_on_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = Refused("g0", [Finding(code=Code.MEMORY_SHORT, sentence="Full.", hint="Make room.")])
    stage = Stage(count=1, acts={"g0": [full]})
    report = stage.run(monkeypatch)
    assert [stayed.finding.code for stayed in report.stayed] == [Code.MEMORY_SHORT]
    assert len(stage.begun_) <= 3


def test_a_lost_guest_is_not_touched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(acts={"g0": [GuestLost("It runs nowhere.", hint="Start it.")]})
    report = stage.run(monkeypatch)
    assert report.exit_code is ExitCode.LOST
    assert [name for name, _ in stage.begun_].count("g0") == 1


def test_a_defect_in_one_move_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    move = stage.move

    def broken(departure: Departure) -> Report:
        if departure.name == "g3":
            raise ZeroDivisionError
        return move(departure)

    monkeypatch.setattr(stage, "move", broken)
    report = stage.run(monkeypatch)
    assert [(stayed.name, stayed.finding.code) for stayed in report.stayed] == [("g3", Code.INTERNAL)]
    assert len(report.moved) == 5


def test_a_disk_that_is_full_or_a_terminal_that_is_gone_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_what: object) -> None:
        raise ConfigurationError("No space left.", hint="Make room.")

    class Gone(Stage):
        def says(self, sentence: str) -> None:
            self.told.append(sentence)
            raise BrokenPipeError

        def begun(self, departure: Departure) -> None:
            raise BrokenPipeError(departure.name)

    stage = Gone(count=3)
    report = stage.run(monkeypatch, leaving=full, arrived=full)
    assert (len(report.moved), report.exit_code) == (3, ExitCode.OK)
    assert stage.told.count("g0: it is not written down for a return: No space left.") == 2


def test_stop_begins_nothing_more_and_lets_those_under_way_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(move_s=0.5)
    threading.Timer(0.1, stage.stop.set).start()
    report = stage.run(monkeypatch, Limits())
    assert (len(report.moved), len(report.not_begun), report.exit_code) == (2, 4, ExitCode.ABORTED)


def test_abort_ends_those_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(move_s=60.0)
    threading.Timer(0.1, stage.stop.set).start()
    threading.Timer(0.2, stage.abort.set).start()
    report = stage.run(monkeypatch, Limits())
    assert [stayed.finding.code for stayed in report.stayed] == [Code.ABORTED, Code.ABORTED]
    assert (report.moved, len(report.not_begun), report.exit_code) == ((), 4, ExitCode.ABORTED)


def test_pause_and_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(count=4)
    wished = [Wish.GO_ON]
    threading.Timer(0.02, lambda: wished.__setitem__(0, Wish.PAUSE)).start()
    resumed: list[tuple[float, int]] = []

    def resume() -> None:
        resumed.append((time.monotonic(), len(stage.begun_)))
        wished[0] = Wish.GO_ON

    threading.Timer(0.8, resume).start()
    report = stage.run(monkeypatch, Limits(at_once=1), wish=lambda: wished[0])
    assert report.exit_code is ExitCode.OK
    assert len(report.moved) == 4
    assert resumed[0][1] < 4


def test_everybody_is_told_of_before_it_sets_out_and_when_it_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(count=3)
    notes: list[str] = []
    stage.run(
        monkeypatch,
        leaving=lambda departure: notes.append(f"leaving {departure.name}"),
        arrived=lambda moved: notes.append(f"arrived {moved.name}"),
    )
    for number in range(3):
        assert notes.index(f"leaving g{number}") < notes.index(f"arrived g{number}")


def left_of(number: int, memory_gib: int) -> Unfinished:
    return Unfinished(uuid=f"u{number}", name=f"g{number}", source="node1", target="node2", memory_kib=memory_gib * GIB)


def test_what_a_move_that_was_left_needs_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3 GiB on the target 2 are still to be filled by what another command has begun."""
    stage = Stage(count=3, free_gib=3, unfinished=[left_of(2, 2)])
    stage.run(monkeypatch)
    assert len(stage.begun_[: stage.begun_.index(("g2", "cleaned"))]) <= 2
    assert {name for name, _ in stage.begun_} == {"g0", "g1", "g2"}


def test_what_no_cleanup_ends_needs_its_memory_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn(Stage):
        def clean_up(self, left: Unfinished) -> CleanupReport:
            report = super().clean_up(left)
            self.gone.remove(left.uuid)
            self.unfinished.append(left)
            return replace(report, node="node1")

    stage = Stubborn(count=3, free_gib=3, unfinished=[left_of(2, 2)])
    report = stage.run(monkeypatch)
    assert len(report.moved) == 1
    assert sorted(stayed.finding.code for stayed in report.stayed) == [Code.LEFT_BEHIND, Code.MEMORY_SHORT]


def test_who_is_brought_over_by_a_cleanup_is_remembered_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(count=1, unfinished=[left_of(0, 1)])
    left: list[tuple[str, str, str]] = []
    report = stage.run(monkeypatch, leaving=lambda d: left.append((d.uuid, d.source, d.target)))
    assert [(moved.name, moved.how) for moved in report.moved] == [("g0", "cleanup")]
    assert left == [("u0", "node1", "node2")]


def test_room_that_anothers_move_takes_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Passing(Stage):
        def observe(self, context: object, question: Question) -> Fleet:
            self.arrivals = (left_of(9, 2),) if self.looks < 3 else ()
            return super().observe(context, question)

    stage = Passing(count=3, free_gib=4)
    report = stage.run(monkeypatch)
    assert len(report.moved) == 3
    assert [line for line in stage.told if "MEMORY_SHORT" in line] == ["again g2 MEMORY_SHORT"]


def test_room_that_anothers_move_takes_for_long_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(count=3, free_gib=4, arrivals=(left_of(9, 2),))
    report = stage.run(monkeypatch)
    assert [stayed.finding.code for stayed in report.stayed] == [Code.MEMORY_SHORT]
    assert len(report.moved) == 2


def test_what_passes_is_tried_again_though_the_other_node_is_closed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    error = MoveFailed("The daemon went away.", hint="Look.")

    class Closes(Stage):
        def observe(self, context: object, question: Question) -> Fleet:
            if self.begun_:
                self.peers = (self.begun_[0][1],)
            return super().observe(context, question)

    stage = Closes(count=1, peers=("node2", "node3"), acts={"g0": [error, None]})
    report = stage.run(monkeypatch)
    assert [(moved.name, moved.target) for moved in report.moved] == [("g0", stage.begun_[0][1])]
    assert not any("NO_TARGET" in line for line in stage.told)


@pytest.mark.parametrize("closed", [Code.NO_TARGET, Code.NODE_DRAINED, Code.MEMORY_SHORT])
def test_what_is_told_of_a_guest_is_why_its_move_failed(monkeypatch: pytest.MonkeyPatch, closed: Code) -> None:
    """Not that the one other node takes it no more."""
    error = MoveFailed("The daemon went away.", hint="Look.")

    class Closes(Stage):
        def observe(self, context: object, question: Question) -> Fleet:
            if self.begun_ and question.not_to.get("u0") and closed is not Code.MEMORY_SHORT:
                self.nowhere = {"g0": closed}
            elif self.begun_ and question.not_to.get("u0"):
                self.free_gib = 0
            else:
                self.nowhere, self.free_gib = {}, 100
            return super().observe(context, question)

    stage = Closes(count=1, peers=("node2", "node3"), acts={"g0": [error]})
    report = stage.run(monkeypatch)
    assert [stayed.finding.code for stayed in report.stayed] == [error.code]
    assert len(stage.begun_) == 2


def test_told_to_abort_alone_it_begins_nobody_more(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(move_s=60.0)
    stage.abort.set()
    report = stage.run(monkeypatch, Limits())
    assert (stage.begun_, len(report.not_begun), report.exit_code) == ([], 6, ExitCode.ABORTED)


def test_aborted_on_the_way_it_begins_nobody_more(monkeypatch: pytest.MonkeyPatch) -> None:
    class Aborts(Stage):
        def move(self, departure: Departure) -> Report:
            self.abort.set()
            return super().move(departure)

    stage = Aborts(move_s=60.0)
    report = stage.run(monkeypatch, Limits(at_once=1))
    assert [stayed.finding.code for stayed in report.stayed] == [Code.ABORTED]
    assert (len(stage.begun_), len(report.not_begun)) == (1, 5)


@pytest.mark.parametrize(
    ("own", "share", "rates"),
    [
        (Options(), 40, (40, None)),
        (Options(bandwidth_mib_s=10), 40, (10, None)),
        (Options(bandwidth_mib_s=100), 40, (40, None)),
        (Options(mode=Mode.POST_COPY), 40, (40, 40)),
        (Options(mode=Mode.POST_COPY, postcopy_bandwidth_mib_s=5), 40, (40, 5)),
    ],
)
def test_the_share_of_the_link_is_the_limit_unless_the_guest_has_a_lower_one(
    own: Options, share: int, rates: tuple[int, int | None]
) -> None:
    made = shared(own, share)
    assert (made.bandwidth_mib_s, made.postcopy_bandwidth_mib_s) == rates


def test_while_copies_come_to_their_end_as_many_are_checked_who_set_out_next(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ends(Stage):
        def move(self, departure: Departure) -> Report:
            self.told_of[departure.name].ends_soon()
            return super().move(departure)

    stage = Ends(count=7, move_s=0.3)
    report = stage.run(monkeypatch, Limits(per_source=2, per_target=2, per_link=2, at_once=2, budget_mib_s=100))
    assert len(report.moved) == 7
    assert stage.checked_ahead == ["g2", "g3", "g4", "g5", "g6"]
    assert sorted({uuid for uuid, _ in stage.checks}) == ["u2", "u3", "u4", "u5", "u6"]
    assert {share for _, share in stage.checks} == {37}


def test_nobody_is_checked_ahead_who_is_not_to_begin_or_is_to_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ends(Stage):
        def move(self, departure: Departure) -> Report:
            self.stop.set()
            self.told_of[departure.name].ends_soon()
            return super().move(departure)

    stage = Ends()
    stage.run(monkeypatch, Limits())
    assert stage.checks == []

    class Told(Stage):
        def move(self, departure: Departure) -> Report:
            self.told_of[departure.name].ends_soon()
            return super().move(departure)

    told = Told()
    report = told.run(monkeypatch, options=lambda _domain: Options(forecast_s=1))
    assert (told.checks, len(report.moved)) == ([], 6)


def test_the_next_one_sets_out_once_the_memory_of_the_one_before_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    next_one = threading.Event()

    class Lands(Stage):
        def move(self, departure: Departure) -> Report:
            if departure.name == "g1":
                next_one.set()
            self.told_of[departure.name].landed()
            assert departure.name != "g0" or next_one.wait(10)
            return super().move(departure)

    report = Lands(count=2).run(monkeypatch, Limits(at_once=1))
    assert len(report.moved) == 2
