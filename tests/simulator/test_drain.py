"""Drains and returns in the simulator: whatever happens to one guest, the rest goes on, and nothing is left behind."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest
import structlog
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lvmigrate.drain import DrainNodes, ReturnGuests
from lvmigrate.drain_move import Ears, move
from lvmigrate.drain_report import DrainReport, Moved, Nobody, Stayed
from lvmigrate.errors import Code, ExitCode, Refused
from lvmigrate.manner import Manner
from lvmigrate.migrate import MigrateInstance
from lvmigrate.node_states import Wish
from lvmigrate.plan import Options
from lvmigrate.progress import StepProgress
from lvmigrate.replication import ConnectionOptions
from lvmigrate.simulator import ControllerKilled, Guest, Happening, Kind, World, audit
from lvmigrate.simulator.host import Job, TokenFile
from lvmigrate.sqlite_journal import SqliteJournal
from lvmigrate.token import Errand, Token
from lvmigrate.traffic import Departure, Limits, Schedule

NODES = ("node1", "node2", "node3")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.configure(**before)


@dataclass
class Eye(Nobody):
    """Notes everything."""

    lines: list[str] = field(default_factory=list)

    def begun(self, departure: Departure) -> None:
        self.lines.append(f"begun {departure.name}")

    def moved(self, moved: Moved) -> None:
        self.lines.append(f"moved {moved.name} {moved.target}")

    def stays(self, stayed: Stayed, *, again: bool) -> None:
        self.lines.append(f"{'again' if again else 'stays'} {stayed.name} {stayed.finding.code}")

    def says(self, sentence: str) -> None:
        self.lines.append(sentence)


def web(world: World, count: int, **changes: Any) -> list[Guest]:
    """So many guests on the first node, their other copies on the second and the third in turn."""
    guests = [world.add_guest(f"web{n}", "node1", peer=NODES[1 + n % 2], **changes) for n in range(count)]
    world.timeline.advance(1.0)
    return guests


def drain(world: World, name: str = "c1", manner: Manner | None = None, **changes: Any) -> DrainReport:
    tasklet = DrainNodes(world.controller(name, **changes), ["node1"], manner)
    tasklet.check_prereq()
    return tasklet.exec()


def whole(world: World, guests: dict[str, list[Guest]]) -> None:
    """Each guest runs on its node alone; nothing forbidden has happened; nothing is left."""
    for node, there in guests.items():
        for guest in there:
            assert world.running(guest) == [node], guest.name
    assert world.violations == []
    assert [str(finding) for finding in audit(world)] == []


# ---- there and back


def test_there_and_back() -> None:
    with World(NODES) as world:
        guests = web(world, 5)
        report = drain(world)
        assert (report.exit_code, report.stayed, report.not_begun) == (ExitCode.OK, (), ())
        assert {moved.name: moved.target for moved in report.moved} == {f"web{n}": NODES[1 + n % 2] for n in range(5)}
        whole(world, {"node2": guests[::2], "node3": guests[1::2]})
        back = ReturnGuests(world.controller("c2"), ["node1"], guests=[guest.uuid for guest in guests[:3]])
        assert [leg.departure.target for leg in back.check_prereq().legs] == ["node1"] * 3
        assert back.exec().exit_code is ExitCode.OK
        whole(world, {"node1": guests[:3], "node2": [guests[4]], "node3": [guests[3]]})


def test_all_that_have_their_disks_there_come_and_no_other() -> None:
    with World(NODES) as world:
        here = world.add_guest("web1", "node2", peer="node1")
        elsewhere = world.add_guest("web2", "node2", peer="node3")
        world.timeline.advance(1.0)
        back = ReturnGuests(world.controller("c1"), ["node1"])
        assert [leg.departure.name for leg in back.check_prereq().legs] == ["web1"]
        back.exec()
        whole(world, {"node1": [here], "node2": [elsewhere]})


def test_a_paused_guest_goes_too_and_one_that_is_off_is_left_there() -> None:
    with World(NODES) as world:
        paused = world.add_guest("web1", "node1", peer="node2", running=False)
        off = world.add_guest("web2", "node1", peer="node2")
        world.timeline.advance(1.0)
        world.kill_qemu("node1", off)
        report = drain(world)
        assert ([moved.name for moved in report.moved], report.off) == (["web1"], ("web2",))
        assert [copy.node for copy in world.copies(paused)] == ["node2"]


def test_a_plan_changes_nothing() -> None:
    with World(NODES) as world:
        guests = web(world, 4)
        tasklet = DrainNodes(world.controller("c1"), ["node1"])
        schedule = tasklet.check_prereq()
        assert (len(schedule.legs), schedule.stays) == (4, ())
        assert not any(call.acts for call in world.calls)
        whole(world, {"node1": guests})


def test_for_a_plan_a_node_is_asked_once_for_all_guests_and_before_each_move_anew() -> None:
    with World(NODES) as world:
        guests = web(world, 20, memory_kib=1 << 16)
        tasklet = DrainNodes(world.controller("c1"), ["node1"])
        tasklet.check_prereq()
        asked = Counter(call.place.method for call in world.calls)
        for look in ("domains", "host", "traces"):
            assert asked[look] == 2 * len(NODES), look  # by the look at the fleet, and by the checks of all guests
        for look in ("guard_trouble", "keepalive_s"):
            assert asked[look] == len(NODES), look
        assert asked["domain"] == 2 * len(guests)  # nowhere but where it is
        assert len(world.calls) <= 20 * len(guests)
        tasklet.exec()
        before_each = Counter(call.place.method for call in world.calls)
        before_each.subtract(asked)
        for look in ("domains", "host", "traces", "guard_trouble", "keepalive_s", "openers"):
            assert before_each[look] >= 2 * len(guests), look
        whole(world, {"node2": guests[::2], "node3": guests[1::2]})


def test_a_node_that_gives_no_answer_to_one_check_is_asked_again_by_the_next() -> None:
    with World(NODES) as world:
        web(world, 4)
        world.faults.add("c1.domains@node1#2", Kind.LOST_BEFORE)
        schedule = DrainNodes(world.controller("c1"), ["node1"]).check_prereq()
        assert [(stay.name, stay.finding.code) for stay in schedule.stays] == [("web0", Code.NODE_UNREACHABLE)]
        assert len(schedule.legs) == 3


@pytest.mark.parametrize("options", [Options(), Options(always_failover=True)], ids=["live", "failover"])
def test_the_next_one_may_begin_once_a_guest_s_memory_is_there_alone(options: Options) -> None:
    with World(NODES) as world:
        (guest,) = web(world, 1)
        landed: list[list[str]] = []
        steps: list[str] = []

        class Steps(Nobody):
            def progress(self, progress: StepProgress) -> None:
                steps.append(progress.step)

        context = world.controller("c1")
        domain = context.hypervisor.domain("node1", "web0")
        assert domain is not None
        departure = Departure(
            uuid=guest.uuid, name="web0", source="node1", target="node2", memory_kib=1, bandwidth_mib_s=1, seconds=1.0
        )
        manner = Manner(options=lambda _domain: options, onlooker=Steps())

        def land() -> None:
            landed.append([*(copy.node for copy in world.copies(guest)), steps[-1]])

        move(context, departure, manner, domain, ears=Ears(landed=land))
        assert landed == [["node2", "verify" if options.always_failover else "switch"]]


def test_a_node_that_nobody_knows_and_one_that_is_silent() -> None:
    with World(NODES) as world:
        web(world, 1)
        with pytest.raises(Refused) as caught:
            DrainNodes(world.controller("c1"), ["node9"]).check_prereq()
        assert caught.value.code is Code.NODE_UNKNOWN
        world.power_cut("node1")
        with pytest.raises(Refused) as caught:
            DrainNodes(world.controller("c1"), ["node1"]).check_prereq()
        assert caught.value.code is Code.NODE_UNREACHABLE
        assert "lvmigrate failover" in caught.value.hint


# ---- who cannot go


def test_who_cannot_go_is_named_before_anything_begins() -> None:
    with World(NODES) as world:
        guests = web(world, 4)
        nodes = {**world.nodes, "node3": replace(world.nodes["node3"], drained="new disks")}
        eye = Eye()
        report = drain(world, nodes=nodes, manner=Manner(onlooker=eye))
        assert eye.lines[:2] == ["stays web1 NODE_DRAINED", "stays web3 NODE_DRAINED"]
        assert [moved.name for moved in report.moved] == ["web0", "web2"]
        assert report.exit_code is ExitCode.REFUSED
        assert "new disks" in report.stayed[0].finding.sentence
        whole(world, {"node1": guests[1::2], "node2": guests[::2]})


def test_only_to_where_was_asked_for() -> None:
    with World(NODES) as world:
        guests = web(world, 2)
        report = drain(world, manner=Manner(to=frozenset({"node2"})))
        assert [(stayed.name, stayed.finding.code) for stayed in report.stayed] == [("web1", Code.REPLICA_MISSING)]
        whole(world, {"node1": [guests[1]], "node2": [guests[0]]})


def test_a_target_without_room_is_not_overfilled() -> None:
    with World(NODES) as world:
        guests = web(world, 4)
        world.hosts["node2"].free_memory_kib = (1 << 20) + 64 * 1024 + 2048  # for one, with its QEMU
        report = drain(world)
        assert {stayed.finding.code for stayed in report.stayed} == {Code.MEMORY_SHORT}
        assert sorted(moved.name for moved in report.moved) in (["web0", "web1", "web3"], ["web1", "web2", "web3"])
        assert world.violations == []
        assert len(guests) == 4


def test_a_move_that_somebody_has_left_is_finished_first() -> None:
    with World(NODES) as world:
        guests = web(world, 2)
        eye = Eye()
        world.faults.add("c9.promote@node2#1", Kind.KILLED_BEFORE)
        move = MigrateInstance(world.controller("c9"), "web0")
        move.check_prereq()
        with pytest.raises(ControllerKilled):
            move.exec()
        report = drain(world, manner=Manner(onlooker=eye))
        assert "web0: a move to node2 was begun before; it is finished or undone first" in eye.lines
        assert report.exit_code is ExitCode.OK
        whole(world, {"node2": [guests[0]], "node3": [guests[1]]})


def test_what_a_move_that_was_left_needs_is_promised_to_nobody() -> None:
    with World(NODES) as world:
        guests = web(world, 3)
        world.hosts["node2"].free_memory_kib = guests[0].memory_kib + 64 * 1024 + 2048  # with its QEMU
        world.faults.add("c9.promote@node2#1", Kind.KILLED_BEFORE)
        move = MigrateInstance(world.controller("c9"), "web0")
        move.check_prereq()
        with pytest.raises(ControllerKilled):
            move.exec()
        schedule = DrainNodes(world.controller("c1"), ["node1"]).check_prereq()
        assert [(stay.name, stay.finding.code) for stay in schedule.stays] == [("web2", Code.MEMORY_SHORT)]
        assert [leg.departure.name for leg in schedule.legs] == ["web1"]


def announced(world: World, guest: Guest, source: str, target: str, left_s: float) -> None:
    """The token of a move of somebody else's, on both nodes."""
    errand = Errand(source=source, target=target, ran=True, autostart=True, target_had_definition=False)
    token = Token(uuid=guest.uuid, instance=guest.name, id="t", holder="somebody", lease_s=30.0, errand=errand)
    for node in (source, target):
        deadline_s = world.hosts[node].uptime(world.now) + left_s
        world.hosts[node].tokens[guest.uuid] = TokenFile(token=token, deadline_s=deadline_s)


@pytest.mark.parametrize(("left_s", "stays"), [(30.0, ["web0"]), (-1.0, [])])
def test_room_that_the_move_of_another_command_has_announced_is_not_promised(left_s: float, stays: list[str]) -> None:
    """Between two nodes that this drain is not about; nothing comes of a token that ran out."""
    with World(NODES) as world:
        guests = web(world, 1)
        other = world.add_guest("db", "node3", peer="node2")
        world.timeline.advance(1.0)
        world.hosts["node2"].free_memory_kib = guests[0].memory_kib * 3 // 2
        announced(world, other, "node3", "node2", left_s)
        schedule = DrainNodes(world.controller("c1"), ["node1"]).check_prereq()
        assert [stay.name for stay in schedule.stays if stay.finding.code is Code.MEMORY_SHORT] == stays
        # Its room comes back when that move has ended elsewhere: the guest is tried again then.
        for node in ("node2", "node3"):
            world.timeline.after(20.0, world.hosts[node].tokens.clear)
        assert drain(world).exit_code is ExitCode.OK
        assert world.running(guests[0]) == ["node2"]


def test_room_that_a_copy_without_a_token_fills_is_not_promised() -> None:
    """As `virsh migrate` makes one, by hand."""
    with World(NODES) as world:
        guests = web(world, 1)
        other = world.add_guest("db", "node3", peer="node2", copy_s=1000.0)
        world.timeline.advance(1.0)
        world.hosts["node2"].free_memory_kib = guests[0].memory_kib * 3 // 2
        for node in ("node2", "node3"):
            world.set_options(node, other.resources[0].name, ConnectionOptions(allow_two_primaries=True, protocol="C"))
        other.resources[0].promote("node2")
        by_hand = world.controller("somebody").hypervisor
        domain = by_hand.domain("node3", "db")
        assert domain is not None
        by_hand.copy_memory(domain, "node2", Options())
        world.timeline.advance(5.0)
        assert {copy.node for copy in world.copies(other)} == {"node2", "node3"}
        schedule = DrainNodes(world.controller("c1"), ["node1"]).check_prereq()
        assert [(stay.name, stay.finding.code) for stay in schedule.stays] == [("web0", Code.MEMORY_SHORT)]


def test_what_no_cleanup_takes_away_is_not_cleaned_up_for_ever() -> None:
    """Here a token on a node that has nothing to do with the guest, and that says it has."""
    with World(NODES) as world:
        guests = web(world, 2)
        errand = Errand(source="node1", target="node2", ran=True, autostart=True, target_had_definition=False)
        token = Token(uuid=guests[0].uuid, instance="web0", id="t", holder="somebody", lease_s=30.0, errand=errand)
        world.hosts["node3"].tokens[token.uuid] = TokenFile(token=token, deadline_s=-100.0)

        class Patient(Eye):
            def says(self, sentence: str) -> None:
                super().says(sentence)
                if sum("cleaned up" in line for line in self.lines) > 5:
                    pytest.fail("it goes on for ever")

        report = drain(world, manner=Manner(onlooker=Patient()))
        assert [(stayed.name, stayed.finding.code) for stayed in report.stayed] == [("web0", Code.LEFT_BEHIND)]
        assert [moved.name for moved in report.moved] == ["web1"]
        assert report.exit_code is ExitCode.LEFT_BEHIND


@pytest.mark.parametrize(("held_s", "moved"), [(70.0, ["web1", "web0"]), (10_000.0, ["web1"])])
def test_a_guest_that_somebody_alive_works_on_is_named_and_tried_again(held_s: float, moved: list[str]) -> None:
    with World(NODES) as world:
        guests = web(world, 2)
        token = Token(uuid=guests[0].uuid, instance="web0", id="t", holder="somebody", lease_s=30.0, errand=None)
        until = world.now + held_s

        def hold() -> None:
            if world.now < until:
                world.hosts["node1"].tokens[token.uuid] = TokenFile(
                    token=token, deadline_s=world.hosts["node1"].uptime(world.now) + token.lease_s
                )
                world.timeline.after(5.0, hold)
            else:
                del world.hosts["node1"].tokens[token.uuid]

        hold()
        eye = Eye()
        report = drain(world, manner=Manner(onlooker=eye))
        assert "again web0 LOCKED" in eye.lines
        assert [each.name for each in report.moved] == moved
        assert [(stayed.name, stayed.finding.code) for stayed in report.stayed] == [("web0", Code.LOCKED)][
            len(moved) - 1 :
        ]
        assert world.violations == []


# ---- faults on the way


def test_a_guest_that_never_converges_stays_and_the_others_go() -> None:
    with World(NODES) as world:
        busy = world.add_guest("busy", "node1", peer="node2", copy_s=10_000.0, memory_kib=1 << 21)
        world.hosts["node2"].free_memory_kib = 5 << 20
        guests = web(world, 3)
        report = drain(world, manner=Manner(options=lambda _domain: Options(copy_timeout_s=60.0)))
        assert [(stayed.name, stayed.finding.code) for stayed in report.stayed] == [("busy", Code.COPY_TIMEOUT)]
        assert report.exit_code is ExitCode.FAILED
        whole(world, {"node1": [busy], "node2": guests[::2], "node3": guests[1::2]})


def test_a_guest_that_never_converges_is_shut_down_and_started_there_where_that_is_allowed() -> None:
    with World(NODES) as world:
        busy = world.add_guest("busy", "node1", peer="node2", copy_s=10_000.0)
        world.timeline.advance(1.0)
        options = Options(copy_timeout_s=60.0, allow_failover=True)
        report = drain(world, manner=Manner(options=lambda _domain: options))
        assert [(moved.name, moved.how) for moved in report.moved] == [("busy", "failover")]
        whole(world, {"node2": [busy]})


def test_a_guest_that_is_shut_down_for_that_leaves_its_definition_where_that_is_wished() -> None:
    with World(NODES) as world:
        busy = world.add_guest("busy", "node1", peer="node2", copy_s=10_000.0)
        world.timeline.advance(1.0)
        options = Options(copy_timeout_s=60.0, allow_failover=True, keep_definition=True)
        report = drain(world, manner=Manner(options=lambda _domain: options))
        assert [(moved.name, moved.how) for moved in report.moved] == [("busy", "failover")]
        assert busy.uuid in world.hosts["node1"].definitions
        assert world.running(busy) == ["node2"]


def test_a_target_that_fills_up_on_the_way() -> None:
    with World(NODES) as world:
        guests = web(world, 6)

        def fill(job: Job) -> None:
            world.hosts["node2"].free_memory_kib = 1 << 10

        world.faults.watchers.append(fill)
        report = drain(world)
        moved = {each.name for each in report.moved}
        assert {stayed.finding.code for stayed in report.stayed} == {Code.MEMORY_SHORT}
        assert {"web1", "web3", "web5"} <= moved
        assert len(moved) + len(report.stayed) == 6
        stay = [guest for guest in guests if guest.name not in moved]
        whole(world, {"node1": stay, "node3": guests[1::2]})


@pytest.mark.parametrize("what", [Happening.TARGET_DAEMON_KILLED, Happening.SOURCE_DAEMON_KILLED])
@pytest.mark.parametrize("phase", ["prepare#2", "transfer#1", "finished#2"])
def test_a_daemon_that_is_killed(phase: str, what: Happening) -> None:
    with World(NODES) as world:
        guests = web(world, 4)
        world.faults.add(phase, what)
        report = drain(world)
        assert report.stayed == ()
        whole(world, {"node2": guests[::2], "node3": guests[1::2]})


@pytest.mark.parametrize("what", [Happening.DRBD_CUT_LONG, Happening.BOTH_CUT_LONG, Happening.TARGET_WAY_CUT_LONG])
def test_a_link_that_is_cut_for_long(what: Happening) -> None:
    """The guests of the other target go; those of this one are named; once it is back, a second drain takes them."""
    with World(NODES) as world:
        guests = web(world, 4)
        world.faults.add("transfer#1", what)
        first = drain(world)
        names = {stayed.name for stayed in first.stayed}
        assert names
        if what is Happening.TARGET_WAY_CUT_LONG:
            # No guest moves while any node in use is silent: it might run there.
            assert Code.NODE_UNREACHABLE in {stayed.finding.code for stayed in first.stayed}
        else:
            assert names <= {"web0", "web2"}
        assert first.exit_code is not ExitCode.OK
        assert world.violations == []
        world.timeline.advance(400.0)
        second = drain(world, "c2")
        assert second.exit_code is ExitCode.OK
        whole(world, {"node2": guests[::2], "node3": guests[1::2]})


@pytest.mark.parametrize(
    "what", [Happening.DRBD_CUT_SHORT, Happening.LIBVIRT_CUT_SHORT, Happening.TARGET_WAY_CUT_SHORT]
)
def test_a_link_that_is_cut_for_a_moment_stops_nobody(what: Happening) -> None:
    with World(NODES) as world:
        guests = web(world, 4)
        world.faults.add("transfer#1", what)
        report = drain(world)
        assert report.stayed == ()
        whole(world, {"node2": guests[::2], "node3": guests[1::2]})


def test_a_target_that_loses_its_power() -> None:
    with World(NODES) as world:
        guests = web(world, 4)
        world.faults.add("transfer#1", Happening.TARGET_POWER_CUT)
        report = drain(world)
        assert {stayed.name for stayed in report.stayed} <= {"web0", "web2"}
        assert {moved.name for moved in report.moved} >= {"web1", "web3"}
        assert world.violations == []
        world.timeline.advance(200.0)
        assert drain(world, "c2").exit_code is ExitCode.OK
        whole(world, {"node2": guests[::2], "node3": guests[1::2]})


# ---- somebody asks, or dies


def test_asked_to_stop_it_ends_when_those_under_way_have_arrived_and_goes_on_later() -> None:
    with World(NODES) as world:
        guests = web(world, 4)
        arrived: list[str] = []
        manner = Manner(
            limits=Limits(at_once=1),
            arrived=lambda moved: arrived.append(moved.name),
            wish=lambda: Wish.STOP if arrived else Wish.GO_ON,
        )
        report = drain(world, manner=manner)
        # The second one set out when the first one ran there, before its move was finished.
        assert (len(report.moved), len(report.not_begun), report.exit_code) == (2, 2, ExitCode.ABORTED)
        assert {*arrived, *report.not_begun} == {guest.name for guest in guests}
        world.controllers["c1"].cancel.clear()
        assert len(drain(world).moved) == 2
        whole(world, {"node2": guests[::2], "node3": guests[1::2]})


def test_paused_nothing_begins_until_it_is_resumed() -> None:
    with World(NODES) as world:
        guests = web(world, 2)
        until = world.now + 130.0
        eye = Eye()
        manner = Manner(
            limits=Limits(at_once=1),
            onlooker=eye,
            wish=lambda: Wish.PAUSE if eye.lines and world.now < until else Wish.GO_ON,
        )
        report = drain(world, manner=manner)
        assert report.exit_code is ExitCode.OK
        assert world.now >= until
        paused, resumed = eye.lines.index("paused: nothing new begins"), eye.lines.index("goes on")
        assert [line for line in eye.lines[paused:resumed] if line.startswith("begun")] == []
        whole(world, {"node2": [guests[0]], "node3": [guests[1]]})


def test_aborted_the_guest_under_way_stays_whole() -> None:
    with World(NODES) as world:
        guests = web(world, 3)
        context = world.controller("c1")
        abort = context.cancel  # a second Ctrl-C: both are set

        world.faults.add("transfer#1", Happening.ABORTED)
        tasklet = DrainNodes(context, ["node1"], abort=abort)
        tasklet.check_prereq()
        report = tasklet.exec()
        assert (report.moved, report.exit_code) == ((), ExitCode.ABORTED)
        whole(world, {"node1": guests})


def kill_places(count: int) -> list[int]:
    """Calls of a drain, from its first to its last."""
    with World(NODES) as world:
        web(world, 3)
        drain(world)
        calls = [call.number for call in world.calls if call.place.controller == "c1"]
    return calls[:: max(1, len(calls) // count)]


@pytest.mark.parametrize("number", kill_places(60))
def test_the_controller_dies_and_another_goes_on_where_it_stood(number: int) -> None:
    """By what is seen alone: the second one knows nothing of the first."""
    with World(NODES) as world:
        guests = web(world, 3)
        before = world.faults.before

        def die(call: Any) -> Kind | None:
            return Kind.KILLED_BEFORE if call.number == number else before(call)

        world.before = die
        with contextlib.suppress(ControllerKilled):
            drain(world)
        world.timeline.advance(5.0)
        report = drain(world, "c2")
        assert (report.stayed, report.not_begun) == ((), ()), [str(s.finding) for s in report.stayed]
        whole(world, {"node2": guests[::2], "node3": guests[1::2]})


_PASSES: Final = [
    *(Happening.DRBD_CUT_SHORT, Happening.LIBVIRT_CUT_SHORT, Happening.BOTH_CUT_SHORT),
    *(Happening.SOURCE_WAY_CUT_SHORT, Happening.TARGET_WAY_CUT_SHORT, Happening.TARGET_WAY_CUT_LONG),
    *(Happening.TARGET_DAEMON_KILLED, Happening.SOURCE_DAEMON_KILLED, Happening.CONTROLLER_KILLED),
    *(Happening.CONTROLLER_STOPPED, Happening.DRBD_CUT_LONG, Happening.LIBVIRT_CUT_LONG),
]


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
@given(st.lists(st.tuples(st.floats(0.0, 60.0), st.sampled_from(_PASSES)), min_size=1, max_size=4))
def test_whatever_happens_meanwhile_the_node_is_empty_in_the_end(what: list[tuple[float, Happening]]) -> None:
    with World(NODES) as world:
        guests = web(world, 3)
        world.controller("c1")
        for seconds, happening in what:
            world.timeline.after(
                seconds,
                lambda happening=happening: world.faults.happen(happening, "c1"),  # type: ignore[misc]
            )
        try:
            report = drain(world)
            named = [*(m.name for m in report.moved), *(s.name for s in report.stayed), *report.not_begun]
            assert sorted(named) == sorted(guest.name for guest in guests)
        except (ControllerKilled, Refused):
            pass
        assert world.violations == []
        world.heal()
        world.timeline.advance(400.0)
        report = drain(world, "c2")
        story = "\n".join(f"{at_s:9.3f} {words}" for at_s, words in world.story)
        assert (report.stayed, report.not_begun) == ((), ()), story
        whole(world, {"node2": guests[::2], "node3": guests[1::2]})


# ---- what the journal tells


def test_the_journal_tells_of_the_whole_and_of_each(tmp_path: Path) -> None:
    with World(NODES) as world:
        web(world, 2)
        journal = SqliteJournal(tmp_path / "journal.sqlite")
        nodes = {**world.nodes, "node3": replace(world.nodes["node3"], drained="new disks")}
        drain(world, nodes=nodes, journal=journal)
        entries = {entry.tasklet: entry for entry in journal.history()}
        assert set(entries) == {"drain", "migrate"}
        whole_drain = entries["drain"]
        assert (whole_drain.instance, whole_drain.outcome) == ("node1", "NODE_DRAINED")
        assert "not moved: web1" in whole_drain.sentence
        rows = [row.name for row in journal.story(whole_drain.id).rows]
        assert any(name.startswith("web0 is on node2") for name in rows)
        assert any(name.startswith("web1 stays: NODE_DRAINED") for name in rows)


def test_a_journal_that_cannot_be_written_refuses(tmp_path: Path) -> None:
    with World(NODES) as world:
        guests = web(world, 1)
        (tmp_path / "journal.sqlite").write_text("this is no journal")
        tasklet = DrainNodes(
            world.controller("c1", journal=SqliteJournal(tmp_path / "journal.sqlite")), ["node1"], Manner()
        )
        schedule: Schedule = tasklet.check_prereq()
        assert [stay.finding.code for stay in schedule.stays] == [Code.JOURNAL_UNUSABLE]
        with pytest.raises(Refused):
            tasklet.exec()
        whole(world, {"node1": guests})
