"""The commands of a plan: real ones, and those that the adapters send."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import libvirt
import pytest

from hv import flags
from lvmigrate import cli, cluster, convergence, move
from lvmigrate.by_hand import Command, by_hand, migrating
from lvmigrate.domain import DomainState
from lvmigrate.errors import ExitCode
from lvmigrate.failover import FailoverInstance
from lvmigrate.migrate import MigrateInstance
from lvmigrate.node import Node
from lvmigrate.plan import Compression, Mode, Options, Plan, ResourcePlan, Switch
from lvmigrate.replication import ConnectionOptions
from lvmigrate.token import Token
from storage.drbd import DrbdStorage
from tests.unit.fakes import UUID, World, guest, node_of
from tests.unit.storage.conftest import TRANSCRIPTS, FakeNode, device, fake, lines, node, shell, storage
from tests.unit.test_cli import InMemory

__all__ = ["device", "fake", "lines", "node", "shell", "storage"]  # fixtures

TARGET = node_of("node2")
TOKEN = Token(uuid=UUID, instance="web1", id="ours", holder="a test", lease_s=60, errand=None)
UNSET = ConnectionOptions(allow_two_primaries=False, protocol=None, called=("r0", "1"))

#: virsh's option -> the flag that it stands for.
FLAGS = {
    "--p2p": libvirt.VIR_MIGRATE_PEER2PEER,
    "--abort-on-error": libvirt.VIR_MIGRATE_ABORT_ON_ERROR,
    "--live": libvirt.VIR_MIGRATE_LIVE,
    "--postcopy": libvirt.VIR_MIGRATE_POSTCOPY,
    "--postcopy-resume": libvirt.VIR_MIGRATE_POSTCOPY_RESUME,
    "--suspend": libvirt.VIR_MIGRATE_PAUSED,
    "--persistent": libvirt.VIR_MIGRATE_PERSIST_DEST,
    "--auto-converge": libvirt.VIR_MIGRATE_AUTO_CONVERGE,
    "--compressed": libvirt.VIR_MIGRATE_COMPRESSED,
    "--parallel": libvirt.VIR_MIGRATE_PARALLEL,
    "--tls": libvirt.VIR_MIGRATE_TLS,
}
#: virsh's option -> the parameter that it stands for.
PARAMETERS = {
    "--migrateuri": libvirt.VIR_MIGRATE_PARAM_URI,
    "--bandwidth": libvirt.VIR_MIGRATE_PARAM_BANDWIDTH,
    "--listen-address": libvirt.VIR_MIGRATE_PARAM_LISTEN_ADDRESS,
    "--parallel-connections": libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS,
    "--tls-destination": libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION,
    "--postcopy-bandwidth": libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY,
    "--auto-converge-initial": libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INITIAL,
    "--auto-converge-increment": libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INCREMENT,
    "--comp-methods": libvirt.VIR_MIGRATE_PARAM_COMPRESSION,
    "--comp-mt-level": libvirt.VIR_MIGRATE_PARAM_COMPRESSION_MT_LEVEL,
    "--comp-zlib-level": libvirt.VIR_MIGRATE_PARAM_COMPRESSION_ZLIB_LEVEL,
    "--comp-zstd-level": libvirt.VIR_MIGRATE_PARAM_COMPRESSION_ZSTD_LEVEL,
}

CHOICES = (
    Options(),
    Options(mode=Mode.NON_LIVE, tls=True),
    Options(mode=Mode.POST_COPY, bandwidth_mib_s=7, postcopy_bandwidth_mib_s=9),
    Options(switch=Switch.FAST, connections=4, compression=Compression.ZSTD, compression_level=3),
    Options(policy=convergence.NAMED["force"], throttle_initial=20, throttle_increment=5),
    Options(auto_converge=True, compression=Compression.XBZRLE),
    Options(compression=Compression.MT, compression_level=1, downtime_limit_s=0.0001),
    Options(connections=2, compression=Compression.ZLIB, compression_level=9, tls=True),
)
PEERS = (
    TARGET,
    dataclasses.replace(TARGET, migration_ports=(50000, 50009)),
    dataclasses.replace(TARGET, listen_address="10.0.0.2", tls_name="b.example", migration_address="fd00::2"),
)


def plan(world: World | None = None, options: Options | None = None) -> Plan:
    return MigrateInstance((world or World()).context(), "web1", options=options).check_prereq()


def commands(plan: Plan, options: Options | None = None, target: Node = TARGET, step: str = "") -> list[Command]:
    steps = by_hand(plan, options or Options(), target)
    return [command for one in steps for command in one.commands if step in ("", one.step)]


def on(version: str) -> Plan:
    """A plan whose resources are those of the recorded DRBD."""
    called, resource, minors, module = {
        "drbd93": (("r1", "1"), "r1", (10, 11), "9.3.3"),
        "drbd84": (("ipv4:10.77.0.1:7788", "ipv4:10.77.0.2:7788"), "r0", (0,), "8.4.11"),
    }[version]
    options = dataclasses.replace(UNSET, called=called)
    made = ResourcePlan(
        name=resource, volumes=(0,), options=(options,) * 2, minors=(minors,) * 2, modules=(module,) * 2
    )
    return dataclasses.replace(plan(), resources=(made,))


def test_every_step_of_a_move_has_its_lines_in_order() -> None:
    steps = by_hand(plan(), Options(), TARGET)
    assert [one.step for one in steps] == [step.name for step in move.STEPS]
    assert all(one.then and "{" not in one.then for one in steps)
    told = {one.step: [f"{command.node}: {command}" for command in one.commands] for one in steps}
    assert told["lock"] == told["guard"] == []
    assert told["memory"][0] == "node1: virsh autostart web1 --disable"
    assert told["switch"][-1] == "node2: virsh resume web1"
    assert told["close"][0] == "node1: drbdsetup secondary r0"
    assert told["verify"][-2:] == [
        "node1: virsh undefine web1 --keep-nvram",
        "node2: virsh autostart web1",
    ]
    with_tpm = dataclasses.replace(plan(), domain=guest("node1", loses_tpm=True))
    assert str(commands(with_tpm, step="verify")[-2]) == "virsh undefine web1 --keep-nvram --keep-tpm"


# ---- they are real


@cache
def options_of_virsh(command: str) -> frozenset[str]:
    said = subprocess.run(["virsh", "help", command], capture_output=True, text=True, check=True).stdout
    return frozenset(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", said))


@cache
def recorded() -> dict[tuple[str, str], tuple[str, frozenset[str]]]:
    """By version and command: its arguments and its options, as the manual has them."""
    found = {}
    for line in (TRANSCRIPTS / "drbdsetup.txt").read_text().splitlines()[1:]:
        version, command, arguments, *options = line.split()
        found[version, command] = (arguments, frozenset(options))
    return found


def check_real(command: Command, version: str) -> None:
    program, *words = command.words
    if program == "sh":
        check_real(dataclasses.replace(command, words=tuple(shlex.split(words[1].partition("; ")[2])[:-1])), version)
        return
    name, *rest = words
    options = {word.partition("=")[0] for word in rest if word.startswith("--")}
    if program == "virsh":
        assert options <= options_of_virsh(name), command
    else:
        assert program == "drbdsetup"
        arguments, known = recorded()[version, name]
        assert options <= known, command
        assert len([word for word in rest if not word.startswith("--")]) == len(arguments.split(",")), command


@pytest.mark.parametrize("options", CHOICES)
@pytest.mark.parametrize(("version", "manual"), [("drbd93", "9.0"), ("drbd84", "8.4")])
def test_every_program_and_option_is_real(options: Options, version: str, manual: str) -> None:
    for peer in PEERS:
        found = commands(on(version), options, peer)
        assert len(found) > 10
        for command in found:
            check_real(command, manual)


def test_the_check_for_real_ones_finds_one_that_is_not() -> None:
    wrong = Command(step="x", node="node1", words=("drbdsetup", "net-options", "r0", "1", "--two-primaries=yes"))
    with pytest.raises(AssertionError):
        check_real(wrong, "9.0")
    with pytest.raises(AssertionError):
        check_real(dataclasses.replace(wrong, words=("virsh", "resume", "web1", "--now")), "9.0")
    with pytest.raises(AssertionError):
        check_real(dataclasses.replace(wrong, words=("drbdsetup", "primary", "r0", "0")), "9.0")


# ---- they are what the adapters do


@pytest.mark.parametrize(("version", "name"), [("drbd93", "r1"), ("drbd84", "r0")])
@pytest.mark.parametrize("protocol", ["A", None])
def test_drbdsetup_is_told_the_same(
    fake: Any, storage: DrbdStorage, version: str, name: str, protocol: str | None
) -> None:
    """A move's own acts on a node, as its drbdsetup has noted them."""
    made: FakeNode = fake(version)
    if protocol:
        made.put("show", (made.root / "show").read_text().replace("net {", f"net {{\n protocol {protocol};"))
    assert storage.take_token("node1", TOKEN) is None
    before = storage.options("node1", name, "node2")
    storage.allow_two_primaries("node1", name, "node2", TOKEN)
    storage.promote("node1", name, TOKEN)
    opened = made.told
    made.put(
        "show", (made.root / "show").read_text().replace("net {", "net {\n allow-two-primaries yes;\n protocol C;")
    )
    made.put("dump", (made.root / "dump").read_text().replace("role:Secondary", "role:Primary"))
    storage.demote("node1", name, TOKEN)
    if protocol:  # what stands first in the text counts not
        made.put("show", (made.root / "show").read_text().replace(f"protocol {protocol};", ""))
    storage.restore_options("node1", name, "node2", before, TOKEN)
    closed = made.told[len(opened) :]

    base = on(version)
    resource = dataclasses.replace(base.resources[0], options=(before, before))
    by = dataclasses.replace(base, resources=(resource,))
    # This machine plays both ends: the source's are its options, the target's its promotion.
    told = [f"drbdsetup {line}" for line in opened]
    net, *roles = [str(command) for command in commands(by, step="open") if command.node == "node2"]
    assert ([net, *sorted(roles)], len(told)) == (told[:1] + sorted(told[1:]), 1 + len(roles))
    *roles, net = [str(command) for command in commands(by, step="close") if command.node == "node1"]
    told = [f"drbdsetup {line}" for line in closed]
    assert [*sorted(roles), net] == sorted(told[:-1]) + told[-1:]


@pytest.mark.parametrize("options", CHOICES)
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.PAUSED])
@pytest.mark.parametrize("kind", ["persistent", "transient"])
def test_virsh_migrate_asks_for_what_the_adapter_asks_for(
    options: Options, peer: Node, state: DomainState, kind: str
) -> None:
    domain = guest("node1", state=state, persistent=kind == "persistent")
    made = dataclasses.replace(plan(), domain=domain)
    (line,) = (one.words for one in commands(made, options, peer, step="memory") if one.words[1] == "migrate")
    asked, given = asked_for(line, peer)
    assert asked == flags.flags(domain, options)
    port = None if peer.migration_ports is None else peer.migration_ports[0]
    assert given == {key: str(value) for key, value in flags.parameters(domain, options, peer, port).items()}


def asked_for(line: tuple[str, ...], peer: Node) -> tuple[int, dict[str, str]]:
    """The flags and the parameters that a ``virsh migrate`` stands for."""
    assert line[:4] == ("virsh", "migrate", "web1", peer.peer_uri)
    asked, given = 0, {}
    words: Iterator[str] = iter(line[4:])
    for word in words:
        if word in FLAGS:
            assert not asked & FLAGS[word]
            asked |= FLAGS[word]
        else:
            given[PARAMETERS[word]] = next(words)
    return asked, given


@pytest.mark.parametrize(
    "options",
    [
        Options(mode=Mode.POST_COPY),
        Options(policy=convergence.POST_COPY, bandwidth_mib_s=7, postcopy_bandwidth_mib_s=9, tls=True),
    ],
)
@pytest.mark.parametrize("peer", PEERS)
def test_the_ends_of_a_post_copy_are_connected_again_with_all_that_it_was_begun_with(
    options: Options, peer: Node
) -> None:
    domain = guest("node1")
    asked, given = asked_for(migrating(domain, options, peer, resume=True), peer)
    # As the adapter's resume_post_copy.
    assert asked == flags.flags(domain, options) | libvirt.VIR_MIGRATE_POSTCOPY | libvirt.VIR_MIGRATE_POSTCOPY_RESUME
    assert asked & libvirt.VIR_MIGRATE_PERSIST_DEST
    port = None if peer.migration_ports is None else peer.migration_ports[0]
    assert given == {key: str(value) for key, value in flags.parameters(domain, options, peer, port).items()}
    assert "--postcopy-resume" in options_of_virsh("migrate")


def test_the_downtime_is_said_in_milliseconds() -> None:
    lines = [str(command) for command in commands(plan(), Options(downtime_limit_s=0.5), step="memory")]
    assert lines[1] == "virsh migrate-setmaxdowntime web1 500"


def test_the_adapter_tells_what_the_connection_is_called(fake: Any, storage: DrbdStorage) -> None:
    fake("drbd84")
    assert storage.options("node1", "r0", "node2").called == ("ipv4:10.77.0.1:7788", "ipv4:10.77.0.2:7788")


# ---- what a plan leaves out


def test_what_promotes_by_itself_is_not_promoted_and_what_is_allowed_for_good_is_left() -> None:
    allowed = ConnectionOptions(allow_two_primaries=True, protocol="C", auto_promote=True, called=("r0", "1"))
    made = on("drbd93")
    resource = dataclasses.replace(made.resources[0], options=(allowed, allowed))
    made = dataclasses.replace(made, resources=(resource,))
    assert commands(made, step="open") == []
    assert [str(command) for command in commands(made, step="close")] == ["drbdsetup secondary r1"]


def test_a_connection_whose_name_is_not_known_goes_by_drbdadm() -> None:
    unnamed = dataclasses.replace(UNSET, called=())
    made = on("drbd93")
    made = dataclasses.replace(made, resources=(dataclasses.replace(made.resources[0], options=(unnamed, unnamed)),))
    assert str(commands(made, step="open")[0]) == "drbdadm net-options --protocol=C --allow-two-primaries=yes r1"


def test_a_guest_that_starts_by_itself_or_stood_still_is_not_resumed() -> None:
    def resumed(made: Plan, options: Options) -> bool:
        return any(command.words[1] == "resume" for command in commands(made, options, step="switch"))

    paused = dataclasses.replace(plan(), domain=guest("node1", state=DomainState.PAUSED))
    assert resumed(plan(), Options())
    assert not resumed(plan(), Options(switch=Switch.FAST))
    assert not resumed(plan(), Options(mode=Mode.POST_COPY))
    assert not resumed(paused, Options(mode=Mode.POST_COPY))


def test_a_transient_guest_and_one_that_keeps_its_definition_are_not_forgotten() -> None:
    transient = dataclasses.replace(plan(), domain=guest("node1", persistent=False))
    kept = plan(options=Options(keep_definition=True))
    for made in (transient, kept):
        assert "undefine" not in [command.words[1] for command in commands(made, step="verify")]


def test_a_failover_has_lines_too() -> None:
    made = FailoverInstance(World().context(), "web1").check_prereq()
    steps = by_hand(made, Options(), TARGET)
    assert [one.step for one in steps if one.commands] == ["sync", "define", "shutdown", "demote", "start", "verify"]
    for command in (command for one in steps for command in one.commands):
        check_real(command, "9.0")
    assert str(steps[-2].commands[-1]) == "virsh start web1"


# ---- the command


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(cluster.Cluster, "open", lambda _path=None: InMemory(world))
    return world


def test_check_shows_them(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "web1", "--show-commands"]) == ExitCode.OK
    out = capsys.readouterr().out
    assert "\n    node1# drbdsetup secondary r0\n" in out
    assert "nothing stands against it" in out
    assert cli.main(["check", "web1"]) == ExitCode.OK
    assert "node1# " not in capsys.readouterr().out
    assert cli.main(["check", "web1", "--show-commands", "--json"]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert told["instance"] == "web1"
    assert {"node": "node2", "line": "virsh resume web1"} in told["by_hand"][5]["commands"]


def test_migrate_shows_them_before_it_does_them(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["migrate", "web1", "--show-commands"]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert "web1 runs on node2" in out
    assert err.index("node2# virsh resume web1") < err.index("1/8 lock")


def test_migrate_shows_them_as_json(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["migrate", "web1", "--show-commands", "--json"]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["target"], len(told["by_hand"])) == ("node2", 8)
