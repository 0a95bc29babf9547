"""The command: its words, its exit codes, its errors. What is behind it is a cluster in memory."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvmigrate import cli, cluster, words
from lvmigrate.cluster import Cluster
from lvmigrate.config import Config, Limits
from lvmigrate.convergence import NAMED
from lvmigrate.domain import DomainState
from lvmigrate.errors import ExitCode
from lvmigrate.plan import Compression, Mode, Options, Switch
from lvmigrate.protocols import CopyEnd
from lvmigrate.tasklet import Context
from lvmigrate.words import parser
from tests.unit.fakes import NODES, World, guest, node_of, unreachable


class InMemory(Cluster):
    def __init__(self, world: World) -> None:
        nodes = {name: node_of(name) for name in NODES}
        configuration = Config(path=Path("x.toml"), nodes=nodes, ssh_config=None, defaults=Options(), limits=Limits())
        context = world.context()
        super().__init__(configuration, context.hypervisor, context.storage)
        self._world = world

    def _context(self, cancel: threading.Event, on_progress: Any, post_copy: Any = None) -> Context:
        given = {"on_progress": on_progress, "post_copy": post_copy}
        return self._world.context(cancel=cancel, **{key: value for key, value in given.items() if value is not None})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(cluster.Cluster, "open", lambda _path=None: InMemory(world))
    return world


def test_migrate_speaks_in_lines_where_there_is_no_terminal(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["migrate", "web1"]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert "web1 runs on node2 (from node1, live)" in out
    for word in ("total", "downtime", "dual-primary", "memory"):
        assert f"\n  {word} " in out
    assert [line.split()[2] for line in err.splitlines()[1:]] == [f"{n}/8" for n in range(1, 9)]


def test_migrate_as_json(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["migrate", "web1", "--to", "node2", "--json"]) == ExitCode.OK
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["instance"], report["target"], report["running"], err) == ("web1", "node2", True, "")


def test_check_changes_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "web1"]) == ExitCode.OK
    assert "nothing stands against it" in capsys.readouterr().out
    assert world.running() == ["node1"]
    assert world.tokens == {}


def test_check_as_json(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "web1", "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["resources"][0]["name"] == "r0"


def test_status(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == ExitCode.OK
    out = capsys.readouterr().out
    assert "web1" in out
    assert "r0 Primary" in out
    assert cli.main(["status", "web1", "--json"]) == ExitCode.OK
    nodes = json.loads(capsys.readouterr().out)["nodes"]
    assert [len(node["guests"]) for node in nodes] == [1, 0]


def test_status_of_a_node_that_is_silent(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.faults["domains", "node2"] = unreachable("node2")
    assert cli.main(["status"]) == ExitCode.UNREACHABLE
    out, err = capsys.readouterr()
    assert "web1" in out
    assert "NODE_UNREACHABLE: node2 does not answer" in err


@pytest.mark.parametrize("flag", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize(
    ("words", "code", "name"),
    [
        (["migrate"], ExitCode.USAGE, "USAGE"),
        ([], ExitCode.USAGE, "USAGE"),
        (["fly"], ExitCode.USAGE, "USAGE"),
        (["migrate", "web1", "--bandwidth", "-3"], ExitCode.USAGE, "USAGE"),
        (["migrate", "web1", "--bandwidth", "much"], ExitCode.USAGE, "USAGE"),
        (["migrate", "web1", "--downtime-limit", "nan"], ExitCode.USAGE, "USAGE"),
        (["migrate", "web1", "--compression-level", "-1"], ExitCode.USAGE, "USAGE"),
        (["migrate", "web1", "--log-level", "loud"], ExitCode.USAGE, "USAGE"),
        (["check", "web1", "--policy", "hasty"], ExitCode.USAGE, "USAGE"),
        (["migrate", "web9"], ExitCode.REFUSED, "INSTANCE_UNKNOWN"),
        (["check", "web9"], ExitCode.REFUSED, "INSTANCE_UNKNOWN"),
        (["status", "web9"], ExitCode.USAGE, "INSTANCE_UNKNOWN"),
        (["migrate", "web1", "--to", "node9"], ExitCode.REFUSED, "NODE_UNKNOWN"),
        (["migrate", "web1", "--to", "node1"], ExitCode.REFUSED, "TARGET_IS_SOURCE"),
    ],
)
def test_mistakes(
    world: World,
    capsys: pytest.CaptureFixture[str],
    flag: list[str],
    words: list[str],
    code: ExitCode,
    name: str,
) -> None:
    assert cli.main([*words, *flag]) == code
    out, err = capsys.readouterr()
    if flag:
        error = json.loads(out)["error"]
        assert (error["code"], error["exit_code"]) == (name, code)
        assert error["hint"]
    else:
        assert name in err
        assert "next: " in err
        assert out == ""


@pytest.mark.parametrize("word", ["--is", "--ignore-c", "--js", "--conf=x"])
def test_no_option_is_taken_by_its_beginning(world: World, capsys: pytest.CaptureFixture[str], word: str) -> None:
    """Some of them name a danger in words: whoever accepts it has to write these."""
    assert cli.main(["failover", "web1", word]) == ExitCode.USAGE
    assert f"Unrecognized arguments: {word}." in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--server", "--server=unix:/x", "--token-file", "--client-key"])
def test_where_a_service_is_stands_before_the_command(capsys: pytest.CaptureFixture[str], word: str) -> None:
    assert cli.main(["status", word]) == ExitCode.USAGE
    assert "stands before the command: `lvmigrate --server URL COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--json", "--config", "x.toml", "--log-level", "info", "status"],
        ["status", "--json", "--config", "x.toml", "--log-level", "info"],
        ["--json", "--config", "y.toml", "status", "--config", "x.toml", "--log-level=info"],
    ],
)
def test_what_every_command_understands_stands_before_or_after_it(words: list[str]) -> None:
    asked = parser().parse_args(words)
    assert (asked.json, asked.config, asked.log_level) == (True, "x.toml", "info")


def test_what_holds_where_none_of_it_is_said() -> None:
    asked = parser().parse_args(["status"])
    assert (asked.json, asked.config, asked.log_level) == (False, None, "error")


#: What an option says, by the names of `Options`.
SAID: dict[str, dict[str, Any]] = {
    "--mode non-live": {"mode": Mode.NON_LIVE},
    "--policy force": {"policy": NAMED["force"]},
    "--forecast": {"forecast_s": 2},
    "--forecast 5": {"forecast_s": 5},
    "--bandwidth 100": {"bandwidth_mib_s": 100},
    "--postcopy-bandwidth 50": {"postcopy_bandwidth_mib_s": 50},
    "--downtime-limit 1.5": {"downtime_limit_s": 1.5},
    "--auto-converge": {"auto_converge": True},
    "--throttle-initial 20": {"throttle_initial": 20},
    "--throttle-increment 10": {"throttle_increment": 10},
    "--compression zstd": {"compression": Compression.ZSTD},
    "--compression-level 0": {"compression_level": 0},
    "--connections 4": {"connections": 4},
    "--tls": {"tls": True},
    "--sync-timeout 60": {"sync_timeout_s": 60.0},
    "--sync-stall 30": {"sync_stall_s": 30.0},
    "--copy-timeout 90": {"copy_timeout_s": 90.0},
    "--keep-definition": {"keep_definition": True},
    "--verify-disks": {"verify_disks": True},
    "--allow-failover": {"allow_failover": True},
    "--shutdown-timeout 45": {"shutdown_timeout_s": 45.0},
    "--allow-runtime-changes": {"allow_runtime_changes": True},
    "--minimum-memory 512": {"minimum_memory_mib": 512},
    "--fast": {"switch": Switch.FAST},
    "--no-guard": {"guard": False},
    "--ignore-hvversions": {"ignore_hvversions": True},
    "--ignore-ipolicy": {"ignore_ipolicy": True},
    "--iallocator hail": {"iallocator": "hail"},
}


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("command", ["check", "migrate", "rehearse"])
def test_every_option_of_a_move_is_what_its_name_says(world: World, command: str, said: str) -> None:
    asked = parser().parse_args([command, "web1", *said.split()])
    assert cli._options(InMemory(world), asked) == replace(Options(), **SAID[said])


def test_no_option_of_a_move_is_missing_above() -> None:
    copying = {word for action in words._copying()._actions for word in action.option_strings}
    assert copying | {"--ignore-ipolicy", "--iallocator"} == {said.split()[0] for said in SAID}


def test_a_token_is_told_once_and_its_digest_goes_into_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["token", "bob", "--role", "move"]) == ExitCode.OK
    out, err = capsys.readouterr()
    (table,) = tomllib.loads(err)["service"]["tokens"].items()
    assert table == ("bob", {"sha256": hashlib.sha256(out.strip().encode()).hexdigest(), "role": "move"})
    assert cli.main(["token", "bob", "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["role"] == "look"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (lambda w: setattr(w, "ending", lambda _w: CopyEnd(ok=False, detail="no")), ExitCode.FAILED),
        (lambda w: w.faults.update({("domain", "node2"): unreachable("node2")}), ExitCode.REFUSED),
        (lambda w: w.domains.update(node1=guest("node1", state=DomainState.OFF)), ExitCode.REFUSED),
        (lambda w: w.late_faults.update({("resume", "node2"): lambda: w.set("node2", state=DomainState.OFF)}), 9),
        (lambda w: w.faults.update({("undefine", "node1"): unreachable("node1")}), ExitCode.LEFT_BEHIND),
        (lambda w: w.faults.update({("observe", "node1"): lambda: 1 / 0}), ExitCode.INTERNAL),
    ],
)
def test_exit_codes(world: World, capsys: pytest.CaptureFixture[str], fault: Any, code: int) -> None:
    fault(world)
    assert cli.main(["migrate", "web1"]) == code
    err = capsys.readouterr().err
    assert "next: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_aborts(world: World, capsys: pytest.CaptureFixture[str], number: signal.Signals) -> None:
    before = signal.getsignal(number)
    asked = threading.Event()

    def fault() -> None:
        if not asked.is_set():
            os.kill(os.getpid(), number)
        asked.set()

    def forever(_world: World) -> CopyEnd:
        raise AssertionError("it was to be aborted")

    world.ending = forever
    # The signal is delivered in the main thread, a moment after it was sent: let the copy last until then.
    original = world.context

    def patient(**changes: Any) -> Context:
        context = original(**changes)

        def kill_and_wait() -> None:
            fault()
            context.cancel.wait(30)

        world.late_faults["copy_memory", "node1"] = kill_and_wait
        return context

    world.context = patient  # type: ignore[method-assign]
    assert cli.main(["migrate", "web1"]) == ExitCode.ABORTED
    assert "stopping" in capsys.readouterr().err
    assert list(world.violations()) == []
    assert signal.getsignal(number) == before


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    assert "exit codes: 0 ok" in " ".join(capsys.readouterr().out.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("lvmigrate 0.")


def test_a_command_that_prints_its_help_imports_words_only() -> None:
    code = (
        "import contextlib, io, sys\n"
        "from lvmigrate.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        "print(*sys.modules)\n"
    )
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    ours = [name for name in modules if name.partition(".")[0] in ("lvmigrate", "hv", "storage")]
    assert sorted(ours) == ["lvmigrate", "lvmigrate.cli", "lvmigrate.errors", "lvmigrate.words"]
    assert not {"libvirt", "sh", "structlog", "rich", "sqlite3", "msgspec"} & set(modules)
