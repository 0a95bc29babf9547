"""The commands for many guests and for nodes. What is behind them is a cluster in memory."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from rich.console import Console

from lvmigrate import cli, cluster, traffic
from lvmigrate.assignment import Stay
from lvmigrate.cluster import Cluster
from lvmigrate.config import Config, Limits
from lvmigrate.domain import DomainState
from lvmigrate.drain_display import LiveDrain, report_lines, schedule_lines
from lvmigrate.drain_report import DrainReport, Moved, Nobody, Stayed
from lvmigrate.errors import Code, ExitCode, Finding, UsageError
from lvmigrate.manner import Manner
from lvmigrate.node_states import State, Wish, under_way
from lvmigrate.plan import Options
from lvmigrate.progress import MemoryProgress, StepProgress
from lvmigrate.tasklet import Context
from lvmigrate.traffic import Departure, Leg, Schedule
from tests.unit.fakes import NODES, UUID, World, node_of, unreachable


class InMemory(Cluster):
    """Two nodes, a guest, and a directory of this machine's own."""

    def __init__(self, world: World, directory: Path) -> None:
        configuration = Config(
            path=Path("x.toml"),
            nodes={name: node_of(name) for name in NODES},
            ssh_config=None,
            defaults=Options(),
            limits=Limits(),
            journal=directory / "journal.sqlite",
        )
        context = world.context()
        super().__init__(configuration, context.hypervisor, context.storage)
        self._world = world

    def _context(self, cancel: threading.Event, on_progress: Any, post_copy: Any = None) -> Context:
        given = {"on_progress": on_progress, "post_copy": post_copy}
        known = {key: value for key, value in given.items() if value is not None}
        return replace(self._world.context(cancel=cancel, **known), nodes=self._nodes_or_none_open())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    world = World()
    monkeypatch.setattr(cluster.Cluster, "open", lambda _path=None: InMemory(world, tmp_path))
    return world


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_there_and_back(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["drain", "node1"]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert out.startswith("node1 is empty: 1 moved, 0 not")
    assert "web1: node1 -> node2, with 75 MiB/s" in err
    assert "web1: on node2 (live, " in err
    assert world.running() == ["node2"]
    assert cli.main(["node", "--json"]) == ExitCode.OK
    told = {each["node"]: each for each in said(capsys)["nodes"]}
    assert told["node1"]["closed"] == "is drained (by `lvmigrate drain`)"
    assert [gone["name"] for gone in told["node1"]["by_command"]["gone"].values()] == ["web1"]
    # Nobody comes back by chance.
    assert cli.main(["migrate", "web1", "--to", "node1"]) == ExitCode.REFUSED
    assert "NODE_DRAINED" in capsys.readouterr().err
    assert cli.main(["return", "node1", "--json"]) == ExitCode.OK
    report = said(capsys)
    assert ([moved["name"] for moved in report["moved"]], report["exit_code"]) == (["web1"], 0)
    assert world.running() == ["node1"]
    assert cli.main(["node", "--json"]) == ExitCode.OK
    assert [each["closed"] for each in said(capsys)["nodes"]] == [None, None]
    assert list(world.violations()) == []


@pytest.mark.parametrize("offline", [False, True])
def test_who_may_be_where_nobody_answers_is_named_and_not_forgotten(
    world: World, tmp_path: Path, *, offline: bool
) -> None:
    here = InMemory(world, tmp_path)
    assert here.drain(["node1"]).exit_code is ExitCode.OK
    if offline:
        here.set_node("node2", State.OFFLINE, "no power")
    else:
        world.faults["domains", "node2"] = unreachable("node2")
    report = here.bring_back("node1", manner=Manner(chosen={}, again_s=0.1))
    (stayed,) = report.stayed
    assert (stayed.name, stayed.source) == ("web1", "node2")
    assert stayed.finding.code is (Code.NODE_OFFLINE if offline else Code.NODE_UNREACHABLE)
    assert ("node2 is offline (no power)" if offline else "node2 gives no answer") in stayed.finding.sentence
    assert report.exit_code is ExitCode.REFUSED
    assert [gone.name for gone in here.node_states()["node1"].gone.values()] == ["web1"]
    world.faults.clear()
    here.set_node("node2", State.ONLINE)
    assert [moved.name for moved in here.bring_back("node1").moved] == ["web1"]
    assert "node1" not in here.node_states()


def test_a_node_that_is_drained_meanwhile_takes_nobody_more(world: World, tmp_path: Path) -> None:
    """Two drains at once: what one sends to the other's node would stay there, and nobody would say so."""
    here = InMemory(world, tmp_path)

    class Other(Nobody):
        def planned(self, schedule: Schedule) -> None:
            assert [leg.departure.target for leg in schedule.legs] == ["node2"]
            here.set_node("node2", State.DRAINED, "new disks")

    report = here.drain(["node1"], manner=Manner(chosen={}, onlooker=Other()))
    assert [stayed.finding.code for stayed in report.stayed] == [Code.NODE_DRAINED]
    assert world.running() == ["node1"]


def test_a_node_that_is_drained_between_two_moves_takes_nobody_more(world: World, tmp_path: Path) -> None:
    here = InMemory(world, tmp_path)

    class Other(Nobody):
        def begun(self, departure: Departure) -> None:
            here.set_node(departure.target, State.DRAINED, "new disks")

    report = here.drain(["node1"], manner=Manner(chosen={}, onlooker=Other()))
    assert [stayed.finding.code for stayed in report.stayed] == [Code.NODE_DRAINED]
    assert world.running() == ["node1"]


def test_who_was_undefined_meanwhile_is_waited_for_no_more(world: World, tmp_path: Path) -> None:
    here = InMemory(world, tmp_path)
    here.drain(["node1"])
    world.domains.clear()
    assert here.bring_back("node1").exit_code is ExitCode.OK
    assert "node1" not in here.node_states()


def test_who_was_shut_down_meanwhile_is_named_and_waited_for(world: World, tmp_path: Path) -> None:
    here = InMemory(world, tmp_path)
    here.drain(["node1"])
    world.set("node2", state=DomainState.OFF)
    assert [stay.finding.code for stay in here.check_return("node1").stays] == [Code.INSTANCE_STOPPED]
    report = here.bring_back("node1")
    assert [(stayed.name, stayed.finding.code) for stayed in report.stayed] == [("web1", Code.INSTANCE_STOPPED)]
    assert "is off, defined on node2" in report.stayed[0].finding.sentence
    assert report.seconds < 10.0  # it is not waited for
    assert [gone.name for gone in here.node_states()["node1"].gone.values()] == ["web1"]
    world.set("node2", state=DomainState.RUNNING)
    assert [moved.name for moved in here.bring_back("node1").moved] == ["web1"]
    assert "node1" not in here.node_states()


def test_who_is_off_at_home_again_is_waited_for_no_more(world: World, tmp_path: Path) -> None:
    here = InMemory(world, tmp_path)
    here.drain(["node1"])
    world.domains = {"node1": replace(world.domains["node2"], node="node1", state=DomainState.OFF)}
    assert here.bring_back("node1").exit_code is ExitCode.OK
    assert "node1" not in here.node_states()


def test_the_plan_first(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["drain", "node1", "--dry-run"]) == ExitCode.OK
    out = capsys.readouterr().out
    assert out.startswith("1 guest, about ")
    assert "web1: node1 -> node2" in out
    assert cli.main(["drain", "node1", "--dry-run", "--json", "--budget", "40"]) == ExitCode.OK
    leg = said(capsys)["legs"][0]
    assert (leg["begin_s"], leg["departure"]["target"], leg["departure"]["bandwidth_mib_s"]) == (0.0, "node2", 30)
    assert (world.running(), world.tokens) == (["node1"], {})
    assert cli.main(["node", "node1", "--json"]) == ExitCode.OK
    assert said(capsys)["nodes"] == [{"node": "node1", "closed": None, "by_command": None}]


def test_who_cannot_go_is_in_plan_and_report(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["node", "node2", "--drained", "new disks"]) == ExitCode.OK
    assert "is drained (new disks), by command on this machine" in capsys.readouterr().out
    assert cli.main(["drain", "node1", "--dry-run"]) == ExitCode.REFUSED
    assert "NODE_DRAINED: web1 can go nowhere: node2 is drained (new disks)." in capsys.readouterr().out
    assert cli.main(["drain", "node1"]) == ExitCode.REFUSED
    out, err = capsys.readouterr()
    assert "the drain of node1 is not done: 0 moved, 1 not" in out
    assert "web1: stays: NODE_DRAINED" in err
    assert cli.main(["node", "node2", "--online"]) == ExitCode.OK
    assert cli.main(["drain", "node1"]) == ExitCode.OK


@pytest.mark.parametrize(
    ("words", "code", "name"),
    [
        (["drain"], ExitCode.USAGE, "USAGE"),
        (["drain", "node9"], ExitCode.REFUSED, "NODE_UNKNOWN"),
        (["drain", "node1", "--to", "node9"], ExitCode.REFUSED, "NODE_UNKNOWN"),
        (["drain", "node1", "--at-once", "0"], ExitCode.USAGE, "USAGE"),
        (["drain", "node1", "--pause"], ExitCode.USAGE, "ERRAND_UNKNOWN"),
        (["drain", "node1", "--pause", "--stop"], ExitCode.USAGE, "USAGE"),
        (["return", "node1"], ExitCode.USAGE, "ERRAND_UNKNOWN"),
        (["return", "node9", "--all"], ExitCode.REFUSED, "NODE_UNKNOWN"),
        (["node", "node9"], ExitCode.USAGE, "NODE_UNKNOWN"),
        (["node", "node9", "--drained"], ExitCode.USAGE, "NODE_UNKNOWN"),
        (["node", "--drained"], ExitCode.USAGE, "USAGE"),
    ],
)
def test_mistakes(
    world: World, capsys: pytest.CaptureFixture[str], words: list[str], code: ExitCode, name: str
) -> None:
    # `node --drained X` names no node: X is why.
    assert cli.main([*words, "--json"]) == code
    error = said(capsys)["error"]
    assert (error["code"], bool(error["hint"])) == (name, True)


@pytest.mark.parametrize("command", ["drain", "return"])
@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("--at-once", "at_once"),
        ("--per-source", "per_source"),
        ("--per-target", "per_target"),
        ("--per-link", "per_link"),
        ("--budget", "budget_mib_s"),
    ],
)
def test_every_limit_is_what_its_name_says(
    world: World, monkeypatch: pytest.MonkeyPatch, command: str, said: str, name: str
) -> None:
    seen: list[traffic.Limits] = []

    def plan(_self: object, _nodes: object, *, manner: Manner, **_: object) -> NoReturn:
        seen.append(manner.limits)
        raise UsageError("Seen.", hint="")

    monkeypatch.setattr(InMemory, "check_drain", plan)
    monkeypatch.setattr(InMemory, "check_return", plan)
    assert cli.main([command, "node1", "--dry-run", said, "7"]) == ExitCode.USAGE
    assert seen == [replace(traffic.Limits(), **{name: 7})]


@pytest.mark.parametrize(("word", "wish"), [("--pause", Wish.PAUSE), ("--resume", Wish.GO_ON), ("--stop", Wish.STOP)])
def test_every_wish_is_what_its_name_says(tmp_path: Path, world: World, word: str, wish: Wish) -> None:
    with under_way(tmp_path, ("node1",)) as wished:
        assert cli.main(["return", "node1", word]) == ExitCode.OK
        assert wished() is wish


def test_a_node_is_offline_by_command(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["node", "node2", "--offline", "fire"]) == ExitCode.OK
    assert "is offline (fire), by command on this machine" in capsys.readouterr().out
    assert cli.main(["migrate", "web1"]) == ExitCode.REFUSED
    assert "NODE_OFFLINE" in capsys.readouterr().err


def test_a_node_that_is_silent(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.faults["domains", "node1"] = unreachable("node1")
    assert cli.main(["drain", "node1"]) == ExitCode.REFUSED
    assert "NODE_UNREACHABLE" in capsys.readouterr().err


def test_what_is_wished_reaches_the_one_under_way(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with under_way(tmp_path, ("node1",)) as wished:
        assert cli.main(["drain", "node1", "--pause"]) == ExitCode.OK
        assert wished() is Wish.PAUSE
        assert cli.main(["drain", "node1"]) == ExitCode.REFUSED
        assert "LOCKED" in capsys.readouterr().err


def test_all_that_have_their_disks_there(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["return", "node2", "--all"]) == ExitCode.OK
    assert world.running() == ["node2"]


def test_states_that_cannot_be_read_keep_guests_where_they_are_and_nobody_from_mending(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nodes.json").write_text("nothing of ours")
    assert cli.main(["migrate", "web1"]) == ExitCode.REFUSED
    assert "NODE_DRAINED: node2 is drained (The states of nodes in" in capsys.readouterr().err
    assert cli.main(["drain", "node1", "--json"]) == ExitCode.CONFIGURATION
    assert said(capsys)["error"]["code"] == "CONFIG_INVALID"
    assert cli.main(["node", "--json"]) == ExitCode.CONFIGURATION
    assert said(capsys)["error"]["code"] == "CONFIG_INVALID"
    assert cli.main(["cleanup", "web1", "--dry-run"]) == ExitCode.OK
    assert world.running() == ["node1"]


# ---- what is shown


FINDING = Finding(code=Code.PASSTHROUGH, sentence="web2 has a device of its own.", hint="Shut it down.")


def a_departure(**changes: Any) -> Departure:
    facts: dict[str, Any] = {
        "uuid": UUID, "name": "web1", "source": "node1", "target": "node2", "memory_kib": 1 << 20,
        "bandwidth_mib_s": 75, "seconds": 18.0,
    }  # fmt: skip
    return Departure(**facts | changes)


def test_a_schedule_in_words() -> None:
    stay = Stay(uuid="u2", name="web2", source="node1", finding=FINDING)
    legs = (
        Leg(departure=a_departure(), begin_s=0.0),
        Leg(departure=a_departure(name="db1", converges=False), begin_s=18.0),
    )
    lines = list(schedule_lines(Schedule(legs=legs, stays=(stay,), seconds=36.0)))
    assert lines[0] == "web2 cannot go:"
    assert "PASSTHROUGH" in lines[1]
    assert lines[3] == "2 guests, about 36.0 s; nothing was changed"
    assert lines[4].strip() == "0 s  web1: node1 -> node2, 1024 MiB at 75 MiB/s, about 18.0 s"
    assert "may not come to an end" in lines[5]


@pytest.mark.parametrize(
    ("codes", "not_begun", "worst"),
    [
        ((), (), ExitCode.OK),
        ((), ("web9",), ExitCode.ABORTED),
        ((ExitCode.REFUSED,), ("web9",), ExitCode.REFUSED),
        ((ExitCode.REFUSED, ExitCode.FAILED), (), ExitCode.FAILED),
        ((ExitCode.UNKNOWN, ExitCode.FAILED, ExitCode.LEFT_BEHIND), (), ExitCode.UNKNOWN),
        ((ExitCode.LOST, ExitCode.UNKNOWN), (), ExitCode.LOST),
        ((ExitCode.USAGE,), (), ExitCode.FAILED),
    ],
)
def test_the_worst_counts(codes: tuple[ExitCode, ...], not_begun: tuple[str, ...], worst: ExitCode) -> None:
    stayed = tuple(
        Stayed(uuid=str(n), name=f"g{n}", source="node1", finding=FINDING, exit_code=code)
        for n, code in enumerate(codes)
    )
    report = DrainReport(
        what="drain",
        nodes=("node1",),
        seconds=1.0,
        forecast_s=1.0,
        moved=(),
        stayed=stayed,
        not_begun=not_begun,
        off=("x",),
    )
    assert report.exit_code is worst
    lines = "\n".join(report_lines(report))
    assert ("node1 is empty" in lines) is (worst is ExitCode.OK)
    assert all(name in lines for name in (*not_begun, "x", *(f"g{n}," for n in range(len(codes)))))


def test_the_live_table() -> None:
    console = Console(width=120, force_terminal=True, color_system=None)
    with console.capture() as shown, LiveDrain(console) as live:
        live.planned(Schedule(legs=(Leg(departure=a_departure(), begin_s=0.0),), stays=(), seconds=18.0))
        live.begun(a_departure())
        live.begun(a_departure(uuid="u3", name="web3"))
        memory = MemoryProgress(
            elapsed_s=1.0, total=1 << 30, remaining=1 << 29, processed=1 << 29, rate=1 << 26, dirty_rate=0,
            iteration=1, expected_downtime_s=0.1, percent=50.0,
        )  # fmt: skip
        live.progress(
            StepProgress(
                instance="web1", source="node1", target="node2", step="memory", number=5, steps=8, sentence="copy",
                elapsed_s=2.0, memory=memory,
            )
        )  # fmt: skip
        drawn = Console(width=120, color_system=None)
        with drawn.capture() as table:
            drawn.print(live._draw())
        live.stays(Stayed(uuid="u3", name="web3", source="node1", finding=FINDING), again=False)
        live.moved(
            Moved(uuid=UUID, name="web1", source="node1", target="node2", how="live", seconds=18.0, downtime_s=0.2)
        )
    text = table.get()
    assert "5/8 memory" in text
    assert "50 %" in text
    assert "0 moved, 2 under way, 0 stay; about" in text
    assert "web3: stays: PASSTHROUGH: web2 has a device of its own." in shown.get()
    assert "web1: on node2 (live, 18.0 s, stood still for 200 ms)" in shown.get()
    assert "1 moved, 0 under way, 1 stay" in shown.get()


def test_an_interrupt_between_two_waits_is_heard_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not leave the thread to itself, with the cluster closed under it."""
    stop = threading.Event()

    class Struck(threading.Thread):
        def is_alive(self) -> bool:
            if not stop.is_set():
                raise KeyboardInterrupt
            return super().is_alive()

    monkeypatch.setattr(threading, "Thread", Struck)
    assert cluster._in_thread(lambda: stop.wait(20), stop, name="move-web1")
