"""The choice of a target, policies, closed nodes, and failovers in place of moves."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmigrate import cli, config, iallocator, target
from lvmigrate.config import Config
from lvmigrate.domain import DomainDisk, DomainState, Host, Nic
from lvmigrate.errors import Code, ConfigurationError, ExitCode, NodeUnreachable, Refused
from lvmigrate.failover import FailoverInstance, FailoverOptions
from lvmigrate.iallocator import NodeView
from lvmigrate.ipolicy import Bounds, InstancePolicy
from lvmigrate.migrate import MigrateInstance
from lvmigrate.plan import Mode, Options
from lvmigrate.premises import Match
from lvmigrate.replication import DiskState, Place, Resource, Role, Volume
from lvmigrate.target import Candidate, choose
from lvmigrate.tasklet import Context
from tests.unit.fakes import NODES, PATH, UUID, World, guest, node_of

GIB = 1 << 20  # in KiB
HAIL = Path("/usr/lib/ganeti/iallocators/hail")


# ---- the pure choice


def some(node: str, free_gib: float = 8, **changes: Any) -> Candidate:
    return Candidate(node=node, **{"free_kib": int(free_gib * GIB), "cpus": 8, **changes})


def test_most_memory_free() -> None:
    choice = choose([some("b", 4), some("c", 16), some("d", 8)], GIB)
    assert choice is not None
    assert choice.node == "c"
    assert choice.why == "most memory is free there (MiB: c 16384, d 8192, b 4096; 15360 after the move)"


def test_where_memory_is_about_equal_load_decides() -> None:
    choice = choose([some("b", 8, vcpus=16), some("c", 7.9, vcpus=4), some("d", 2)], GIB)
    assert choice is not None
    assert choice.node == "c"
    assert "c 0.5, b 2" in choice.why


def test_what_is_out_is_never_chosen_and_said() -> None:
    choice = choose([some("b", 64, out=("is drained (new disks)",)), some("c", 1)], GIB)
    assert choice is not None
    assert (choice.node, choice.why) == ("c", "no other node can take it; b is drained (new disks)")
    assert choose([some("b", out=("is offline (gone)",))], GIB) is None
    assert choose([], GIB) is None


def test_one_with_a_doubt_is_the_last_resort() -> None:
    doubt = ("has 1 MiB of memory free",)
    better = choose([some("b", 64, doubts=doubt), some("c", 1)], GIB)
    assert better is not None
    assert better.node == "c"
    only = choose([some("b", 64, doubts=doubt)], GIB)
    assert only is not None
    assert only.node == "b"


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        node=st.sampled_from("abcdefgh"),
        free_kib=st.integers(0, 1 << 30),
        vcpus=st.integers(0, 1000),
        cpus=st.integers(0, 64),
        out=st.sampled_from([(), ("is out",)]),
        doubts=st.sampled_from([(), ("is doubtful",)]),
    ),
    unique_by=lambda candidate: candidate.node,
)


@given(CANDIDATES)
def test_the_choice_keeps_its_promises(candidates: list[Candidate]) -> None:
    choice = choose(candidates, GIB)
    fit = [candidate for candidate in candidates if not candidate.out]
    if choice is None:
        assert fit == []
        return
    best = next(candidate for candidate in fit if candidate.node == choice.node)
    if any(not candidate.doubts for candidate in fit):
        assert best.doubts == ()
        fit = [candidate for candidate in fit if not candidate.doubts]
    assert best.free_kib >= 0.9 * max(candidate.free_kib for candidate in fit)
    for other in fit:
        assert other.free_kib < 0.9 * max(c.free_kib for c in fit) or other.load >= best.load
    assert choice == choose(list(reversed(candidates)), GIB) or choice.node == best.node


# ---- the choice among nodes


def look(free_gib: float, *, disk: DiskState | None = DiskState.UP_TO_DATE, vcpus: int = 0, node: str = "n") -> Any:
    volume = Volume(number=0, minor=7, disk=disk or DiskState.DISKLESS, size_kib=1024)
    resource = Resource(name="r0", node=node, role=Role.SECONDARY, suspended="no", volumes=(volume,), connections=())
    guests = (guest(node, name="other", uuid="u", vcpus=vcpus),) if vcpus else ()
    return target.Look(
        host=Host(
            node=node,
            free_memory_kib=int(free_gib * GIB),
            libvirt_version=(11, 3, 0),
            qemu_version=(10, 0, 0),
            memory_kib=64 * GIB,
            cpus=8,
        ),
        domains=guests,
        places={} if disk is None else {PATH: Place(resource="r0", volume=0)},
        resources={} if disk is None else {"r0": resource},
        shared=frozenset(),
    )


def world_of(
    monkeypatch: pytest.MonkeyPatch, looks: Mapping[str, Any], **nodes: Mapping[str, Any]
) -> Callable[[], Context]:
    """A context of all nodes that ``looks`` has, and node1 with the guest."""
    seen = {"node1": look(8, node="node1"), **looks}
    monkeypatch.setattr(target, "look_at", lambda _context, node, _paths: seen[node])
    made = {name: dataclasses.replace(node_of(name), **nodes.get(name, {})) for name in seen}
    return lambda: dataclasses.replace(World().context(), nodes=made)


def chosen(context: Context, wanted: str | None = None, options: Options | None = None) -> target.Choice:
    return target.chosen(context, guest("node1"), wanted, options or Options())


def test_the_best_of_those_that_have_the_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = {"node2": look(4), "node3": look(64, disk=DiskState.DISKLESS), "node4": look(32, disk=None)}
    choice = chosen(world_of(monkeypatch, looks)())
    assert choice.node == "node2"
    assert "node3 has no copy of vda" in choice.why
    assert "node4 has no copy of vda" in choice.why


def test_a_node_that_is_named_is_taken_whatever_others_have(monkeypatch: pytest.MonkeyPatch) -> None:
    context = world_of(monkeypatch, {"b": look(4), "c": look(32)})()
    assert chosen(context, "b") == target.Choice(node="b", why="")


def test_the_only_node_of_all_has_nowhere_to_send_a_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="web1 can go nowhere: the configuration names no other node"):
        chosen(world_of(monkeypatch, {})())


def test_one_that_gives_no_answer_is_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = NodeUnreachable("c", "no route to host", hint="none")
    context = world_of(monkeypatch, {"b": look(4), "c": silent})()

    def look_at(_context: Context, node: str, _paths: frozenset[str]) -> Any:
        if node == "c":
            raise silent
        return look(4, node=node)

    monkeypatch.setattr(target, "look_at", look_at)
    choice = chosen(context)
    assert choice.node == "b"
    assert "c gives no answer (" in choice.why


def network_disk() -> DomainDisk:
    return DomainDisk(target="vdb", source=None, kind="network", device="disk", read_only=False, network=True)


LOCAL = look(8, disk=None)
SHARED = dataclasses.replace(look(8, disk=None), shared=frozenset({PATH}))
ELSEWHERE = dataclasses.replace(look(8), places={PATH: Place(resource="r0", volume=1)})


@pytest.mark.parametrize(
    ("there", "here", "more", "missing"),
    [
        (look(8), look(8), (), []),
        (LOCAL, look(8), (), ["has no copy of vda"]),
        (look(8, disk=DiskState.DISKLESS), look(8), (), ["has no copy of vda"]),
        (ELSEWHERE, look(8), (), ["has no copy of vda"]),
        (SHARED, LOCAL, (), []),
        (LOCAL, LOCAL, (), ["has no copy of vda"]),
        (SHARED, look(8), (), ["has no copy of vda"]),
        (look(8), look(8), (network_disk(),), []),
        (LOCAL, LOCAL, (network_disk(),), ["has no copy of vda"]),
    ],
)
def test_which_disks_a_node_lacks(
    there: target.Look, here: target.Look, more: tuple[DomainDisk, ...], missing: list[str]
) -> None:
    domain = guest("node1")
    assert target.lacks(there, here, dataclasses.replace(domain, disks=(*domain.disks, *more))) == missing


def test_what_the_guest_has_now_is_what_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    context = world_of(monkeypatch, {"node2": look(2), "node3": look(1)})()
    domain = guest("node1", memory_kib=4 * GIB, current_kib=GIB * 3 // 2)
    candidates, _ = target._looked(context, domain, [context.nodes["node2"], context.nodes["node3"]], Options())
    doubts = {candidate.node: " ".join(candidate.doubts) for candidate in candidates}
    assert "MiB of memory free" not in doubts["node2"]
    assert "1024 MiB of memory free" in doubts["node3"]
    assert target.chosen(context, domain, None, Options()).node == "node2"


def test_closed_nodes_and_policies_are_out(monkeypatch: pytest.MonkeyPatch) -> None:
    small = InstancePolicy(cpus=Bounds(least=2))
    context = world_of(
        monkeypatch,
        {"node2": look(4), "node3": look(64), "node4": look(32), "node5": look(16)},
        node3={"drained": "new disks"},
        node4={"offline": "burnt"},
        node5={"policy": small},
    )()
    choice = chosen(context)
    assert choice.node == "node2"
    for words in ("node3 is drained (new disks)", "node4 is offline (burnt)", "node5 takes no guest with 1 CPUs (at l"):
        assert words in choice.why
    assert chosen(context, options=Options(ignore_ipolicy=True)).node == "node5"


def test_none_that_can_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    context = world_of(
        monkeypatch, {"node2": look(4), "node3": look(4)}, node2={"drained": "x"}, node3={"offline": "y"}
    )
    with pytest.raises(Refused) as caught:
        chosen(context())
    assert caught.value.code is Code.NO_TARGET
    assert "node2 is drained (x); node3 is offline (y)" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "code"), [("drained", Code.NODE_DRAINED), ("offline", Code.NODE_OFFLINE)], ids=["drained", "offline"]
)
@pytest.mark.parametrize("tasklet", [MigrateInstance, FailoverInstance])
def test_a_closed_node_is_refused_by_name_too(tasklet: Any, key: str, code: Code) -> None:
    for wanted in ("node2", None):
        context = World().context()
        changes: dict[str, Any] = {key: "new disks"}
        nodes = {**context.nodes, "node2": dataclasses.replace(node_of("node2"), **changes)}
        with pytest.raises(Refused, match=r"node2 is .* \(new disks\)") as caught:
            tasklet(dataclasses.replace(context, nodes=nodes), "web1", target=wanted).check_prereq()
        assert caught.value.code is code


def test_a_node_that_is_offline_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    context = world.context()
    gone = dataclasses.replace(node_of("node3"), offline="burnt")
    monkeypatch.setattr(target, "look_at", lambda _context, node, _paths: look(4, node=node))
    tasklet = MigrateInstance(dataclasses.replace(context, nodes={**context.nodes, "node3": gone}), "web1")
    plan = tasklet.check_prereq()
    assert plan.target == "node2"
    assert "node3 is offline (burnt)" in plan.target_because
    assert {node for _, node in world.calls} == set(NODES)
    assert tasklet.exec().target_because == plan.target_because


# ---- policies


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"memory_mib": Bounds(most=512)}, "1024 MiB of memory (at most 512)"),
        ({"cpus": Bounds(least=4, most=8)}, "2 CPUs (4 to 8)"),
        ({"disks": Bounds(most=0)}, "1 disks (at most 0)"),
        ({"disk_mib": Bounds(least=100)}, "64 MiB on vda (at least 100)"),
        ({"nics": Bounds(least=2)}, "1 interfaces (at least 2)"),
    ],
)
def test_bounds(bounds: dict[str, Bounds], words: str) -> None:
    nic = Nic(mac="", kind="bridge", link="br0")
    domain = guest("node1", memory_kib=GIB, vcpus=2, nics=(nic,))
    assert list(InstancePolicy(**bounds).objections(domain, {PATH: 64})) == [words]
    assert list(InstancePolicy().objections(domain, {PATH: 64})) == []


@pytest.mark.parametrize("tasklet", [MigrateInstance, FailoverInstance])
def test_a_policy_refuses_unless_it_is_ignored(tasklet: Any) -> None:
    def of(**options: Any) -> Any:
        context = World().context()
        bounded = dataclasses.replace(node_of("node2"), policy=InstancePolicy(cpus=Bounds(least=2)))
        kind = Options if tasklet is MigrateInstance else FailoverOptions
        nodes = {**context.nodes, "node2": bounded}
        return tasklet(dataclasses.replace(context, nodes=nodes), "web1", options=kind(**options))

    with pytest.raises(Refused) as caught:
        of().check_prereq()
    assert [(found.code, "1 CPUs" in found.sentence) for found in caught.value.findings] == [(Code.IPOLICY, True)]
    assert [found.code for found in of(ignore_ipolicy=True).check_prereq().warnings] == [Code.IPOLICY]


def test_bounds_of_nodes_go_before_those_of_groups_and_of_all(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(
        """
[nodes.a]
group = "rack1"
drained = "new disks"
[nodes.b]
group = "rack1"
offline = true
[nodes.c]
[ipolicy.all]
memory_mib = { min = 128, max = 4096 }
cpus = { max = 8 }
[ipolicy.groups.rack1]
cpus = { max = 4 }
[ipolicy.nodes.a]
memory_mib = { max = 1024 }
[guests.web1]
mode = "non-live"
always_failover = true
keep_definition = false
[defaults]
allow_failover = true
keep_definition = true
shutdown_timeout_s = 30
iallocator = "hail"
"""
    )
    read = config.load(path)
    found = {name: (node.policy.memory_mib, node.policy.cpus) for name, node in read.nodes.items()}
    assert found == {
        "a": (Bounds(most=1024), Bounds(most=4)),
        "b": (Bounds(least=128, most=4096), Bounds(most=4)),
        "c": (Bounds(least=128, most=4096), Bounds(most=8)),
    }
    assert [node.closed for node in read.nodes.values()] == [
        "is drained (new disks)",
        "is offline (as the configuration says)",
        None,
    ]
    assert read.guests == {"web1": {"mode": Mode.NON_LIVE, "always_failover": True, "keep_definition": False}}
    assert (read.defaults.allow_failover, read.defaults.iallocator) == (True, "hail")
    assert FailoverOptions.of(read.defaults) == FailoverOptions(
        shutdown_timeout_s=30, keep_definition=True, iallocator="hail"
    )


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[nodes.a]\n[ipolicy.all]\ncpus = { max = -1 }\n", 3, "numbers of 0 or more"),
        ("[nodes.a]\n[ipolicy.all]\ncpus = { min = 3, max = 2 }\n", 3, "a min above its max"),
        ("[nodes.a]\n[ipolicy.all]\ncpus = { least = 3 }\n", 3, "'least' is not known"),
        ("[nodes.a]\n[ipolicy.all]\ngpus = { max = 3 }\n", 3, "'gpus' is not known"),
        ("[nodes.a]\n[ipolicy.nodes.b]\ncpus = { max = 3 }\n", 2, "'b' is not known in [ipolicy.nodes]"),
        ("[nodes.a]\n[ipolicy.groups.x]\n", 2, "'x' is not known in [ipolicy.groups]"),
        ("[nodes.a]\ndrained = 3\n", 2, "drained must be true, false, or the reason"),
        ('[nodes.a]\n[guests.w]\nmode = "x"\n', 3, "'x' is not known"),
        ("[nodes.a]\n[guests.w]\nalways_failover = 1\n", 3, "true or false"),
    ],
)
def test_every_mistake_has_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        config.load(path)
    assert f"line {line}: " in str(caught.value)
    assert words in str(caught.value)


# ---- a failover instead


@pytest.mark.parametrize("allowed", [True, False])
def test_what_cannot_move_live_is_failed_over_if_that_was_allowed(*, allowed: bool) -> None:
    world = World(guard_trouble="there is no systemd")
    tasklet = MigrateInstance(world.context(), "web1", options=Options(allow_failover=allowed))
    if not allowed:
        with pytest.raises(Refused) as caught:
            tasklet.check_prereq()
        assert caught.value.code is Code.GUARD_UNAVAILABLE
        return
    plan = tasklet.check_prereq()
    assert (plan.mode, "shutdown" in [name for name, _ in plan.steps]) == (Mode.FAILOVER, True)
    (note,) = [found for found in plan.warnings if found.code is Code.FAILOVER_INSTEAD]
    assert "GUARD_UNAVAILABLE: No guard can be armed on node1" in note.sentence
    assert world.running() == ["node1"]
    report = tasklet.exec()
    assert (report.mode, report.target, world.running()) == ("failover", "node2", ["node2"])
    assert note in report.warnings


def test_memory_that_would_not_arrive_is_no_reason_against_a_failover() -> None:
    world = World()
    world.premises["node1"] = dataclasses.replace(world.premises["node1"], memory=Match.NO)
    with pytest.raises(Refused) as caught:
        MigrateInstance(world.context(), "web1").check_prereq()
    assert caught.value.code is Code.PORTS_UNREACHABLE
    plan = MigrateInstance(world.context(), "web1", options=Options(allow_failover=True)).check_prereq()
    assert plan.mode is Mode.FAILOVER
    assert "PORTS_UNREACHABLE" in plan.warnings[0].sentence
    assert FailoverInstance(world.context(), "web1").check_prereq().mode is Mode.FAILOVER


def test_a_mistake_of_the_callers_shuts_no_guest_down() -> None:
    options = Options(allow_failover=True, throttle_initial=5)
    with pytest.raises(Refused) as caught:
        MigrateInstance(World().context(), "web1", options=options).check_prereq()
    assert caught.value.code is Code.OPTIONS_CONFLICT


def test_what_a_failover_cannot_do_either_is_refused_with_all_reasons() -> None:
    world = World(guard_trouble="there is no systemd", connected=False)
    with pytest.raises(Refused) as caught:
        MigrateInstance(world.context(), "web1", options=Options(allow_failover=True)).check_prereq()
    codes = {found.code for found in caught.value.findings}
    assert {Code.GUARD_UNAVAILABLE, Code.NOT_CONNECTED} <= codes
    paused = World(domains={"node1": guest("node1", state=DomainState.PAUSED)}, guard_trouble="none")
    with pytest.raises(Refused, match="guard"):
        MigrateInstance(paused.context(), "web1", options=Options(allow_failover=True)).check_prereq()


def test_a_guest_that_always_fails_over() -> None:
    world = World()
    tasklet = MigrateInstance(world.context(), "web1", options=Options(always_failover=True))
    plan = tasklet.check_prereq()
    assert (plan.mode, plan.warnings[0].code) == (Mode.FAILOVER, Code.FAILOVER_INSTEAD)
    assert tasklet.exec().mode == "failover"
    assert ("copy_memory", "node1") not in world.calls


def test_a_guests_own_defaults_by_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.unit.test_cli import InMemory  # noqa: PLC0415

    for key in ("web1", UUID):
        cluster = InMemory(World())
        own: Mapping[str, Any] = {key: {"mode": Mode.NON_LIVE}}
        cluster.config = dataclasses.replace(cluster.config, guests=own)
        assert isinstance(cluster.config, Config)
        for name in ("web1", UUID):
            assert cluster.options(name).mode is Mode.NON_LIVE
            assert cluster.check(name).mode is Mode.NON_LIVE
        assert cluster.options("web2").mode is Mode.LIVE


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lvmigrate import cluster  # noqa: PLC0415
    from tests.unit.test_cli import InMemory  # noqa: PLC0415

    world = World(guard_trouble="there is no systemd")
    monkeypatch.setattr(cluster.Cluster, "open", lambda _path=None: InMemory(world))
    assert cli.main(["check", "web1", "--allow-failover"]) == ExitCode.OK
    out = capsys.readouterr().out
    assert "web1: node1 -> node2, failover" in out
    assert "warning FAILOVER_INSTEAD: web1 is shut down and started on node2" in out
    assert cli.main(["migrate", "web1", "--to", "node2", "--iallocator", "hail"]) == ExitCode.USAGE
    assert cli.main(["failover", "web1", "--to", "node2", "--iallocator", "hail", "--dry-run"]) == ExitCode.USAGE


# ---- programs that choose


def program(tmp_path: Path, text: str) -> str:
    path = tmp_path / "choose"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def views(**frees: float) -> list[NodeView]:
    here = NodeView(node=node_of("node1"), host=look(8, node="node1").host, guests=(guest("node1", memory_kib=GIB),))
    others = [NodeView(node=node_of(name), host=look(free, node=name).host, guests=()) for name, free in frees.items()]
    return [here, *others]


def ask(name: str, found: list[NodeView], fitting: list[str], memory_kib: int = GIB) -> str:
    domain = guest("node1", memory_kib=memory_kib)
    here = dataclasses.replace(found[0], guests=(domain,))
    return iallocator.ask(name, domain, [here, *found[1:]], fitting, cancel=threading.Event())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo it is broken >&2; exit 4", "ended with 4: it is broken"),
        ("echo out; exit 1", "ended with 1: out"),
        ("echo '{'", "did not answer as an iallocator program does"),
        ("echo '[]'", "did not answer as an iallocator program does"),
        ("head -c 200000 /dev/zero | tr '\\0' '['", "did not answer as an iallocator program does"),
        ('echo \'{"success": true, "info": ""}\'', "did not answer as"),
        ('echo \'{"success": false, "info": "too full", "result": []}\'', "found no target for web1: too full"),
        ('echo \'{"success": true, "info": "", "result": ["node9"]}\'', 'chose ["node9"]; web1 can go to node2'),
        ('echo \'{"success": true, "info": "", "result": "node2"}\'', 'chose "node2"'),
    ],
)
def test_whatever_a_program_says_is_shown(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(Refused) as caught:
        ask(program(tmp_path, text), views(node2=8), ["node2"])
    assert caught.value.code is Code.ALLOCATOR_FAILED
    assert words in str(caught.value)


def test_a_program_may_be_named_from_here_or_from_the_configuration_s_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, 'echo \'{"success": true, "info": "", "result": ["node2"]}\'')
    monkeypatch.chdir(tmp_path)
    assert ask("./choose", views(node2=8), ["node2"]) == "node2"
    (tmp_path / "c.toml").write_text('[nodes.a]\n[defaults]\niallocator = "./choose"\n')
    assert config.load(tmp_path / "c.toml").defaults.iallocator == str(tmp_path / "choose")


def test_where_there_is_no_room_for_the_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(Refused, match="cannot be told of the nodes") as caught:
        ask(program(tmp_path, "true"), views(node2=8), ["node2"])
    assert caught.value.code is Code.ALLOCATOR_FAILED


def test_a_program_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iallocator, "_WITHIN_S", 0.3)
    with pytest.raises(Refused, match="did not end in time"):
        ask(program(tmp_path, "sleep 1000"), views(node2=8), ["node2"])


def test_a_program_that_nobody_waits_for_any_more_is_ended(tmp_path: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    found = views(node2=8)
    with pytest.raises(Refused):
        iallocator.ask(program(tmp_path, "sleep 1000"), guest("node1"), found, ["node2"], cancel=cancel)


@pytest.mark.parametrize("name", ["no-such-program", "/no/such/program"])
def test_a_program_that_is_not_there(name: str) -> None:
    with pytest.raises(Refused, match="There is no iallocator program") as caught:
        ask(name, views(node2=8), ["node2"])
    assert "ganeti-htools" in caught.value.findings[0].hint


def test_what_a_program_is_told(tmp_path: Path) -> None:
    said = tmp_path / "said"
    answer = 'echo \'{"success": true, "info": "", "result": ["node3"]}\''
    found = [*views(node2=8, node3=8), NodeView(node=node_of("node4"), host=None, guests=())]
    assert ask(program(tmp_path, f'cp "$1" {said}; {answer}'), found, ["node3"]) == "node3"
    told = json.loads(said.read_text())
    assert (told["version"], told["request"]["type"], told["request"]["relocate_from"]) == (2, "relocate", ["node1"])
    assert told["instances"][UUID]["nodes"] == ["node1"]
    closed = {name: (node["drained"], node["offline"]) for name, node in told["nodes"].items()}
    assert closed == {
        "node1": (False, False),
        "node2": (True, False),
        "node3": (False, False),
        "node4": (True, True),
    }
    assert "free_memory" not in told["nodes"]["node4"]
    for node in (told["nodes"]["node1"], told["nodes"]["node2"]):
        assert node["total_memory"] == node["free_memory"] + node["reserved_memory"] + node["i_pri_memory"]


@pytest.fixture
def hail() -> str:
    """The real one, of Debian's ganeti-htools, which ``vagrant/setup`` installs."""
    assert os.access(HAIL, os.X_OK), "run vagrant/setup: it installs ganeti-htools"
    return "hail"


def test_hail_chooses(hail: str) -> None:
    assert ask(hail, views(node2=2, node3=32, node4=4), ["node2", "node3", "node4"]) == "node3"
    assert ask(hail, views(node2=2, node3=32, node4=4), ["node2", "node4"]) == "node4"
    found = views(node2=2, node3=32)
    gone = NodeView(node=dataclasses.replace(node_of("node4"), offline="burnt", group="rack2"), host=None, guests=())
    assert ask(hail, [*found, gone], ["node2", "node3"]) == "node3"


def test_hail_is_shown_a_full_cluster(hail: str) -> None:
    with pytest.raises(Refused) as caught:
        ask(hail, views(node2=2, node3=3), ["node2", "node3"], memory_kib=4 * GIB)
    assert caught.value.code is Code.ALLOCATOR_FAILED
    assert "node3 failed: FailMem" in str(caught.value)


def test_hail_chooses_for_a_move(hail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = {"node2": look(4, node="node2", vcpus=2), "node3": look(64, node="node3", disk=None)}
    context = world_of(monkeypatch, looks)()
    plan = MigrateInstance(context, "web1", options=Options(iallocator=hail)).check_prereq()
    assert (plan.target, plan.target_because) == ("node2", "hail chose it")


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.integers(0, 512), st.integers(0, 1 << 30))
def test_figures_always_add_up(total: int, free: int, cpus: int, memory: int) -> None:
    host = dataclasses.replace(look(1).host, memory_kib=total, free_memory_kib=free, cpus=cpus)
    domain = guest("node1", memory_kib=memory)
    told = iallocator.request(domain, [NodeView(node=node_of("node1"), host=host, guests=(domain,))], [])
    node = told["nodes"]["node1"]
    assert node["total_memory"] == node["free_memory"] + node["reserved_memory"] + node["i_pri_memory"]
    assert node["total_cpus"] > 0
