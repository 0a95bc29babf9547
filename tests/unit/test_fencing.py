"""Whether a node may be taken for dead: the rule, and the command that switches it off."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from lvmigrate import cli, fencing
from lvmigrate.config import load
from lvmigrate.errors import Code, CommandFailed, ExitCode, LvmigrateError, NodeUnreachable
from lvmigrate.fencing import FenceFailed, Signs, commands, objections
from tests.unit.fakes import World
from tests.unit.test_cli import world as world  # noqa: PLC0414 -- the fixture


def unreachable(words: str, code: Code | None = None) -> NodeUnreachable:
    return NodeUnreachable("node1", "it gave no answer", hint="", detail=words, code=code)


def signs(*, libvirt: bool = False, ssh: bool = False, drbd: bool = False) -> Signs:
    return Signs(node="node1", libvirt=libvirt, ssh=ssh, drbd=drbd)


def test_whatever_answers_speaks_against_it_whoever_says_that_it_is_off() -> None:
    for libvirt, ssh, drbd in itertools.product([False, True], repeat=3):
        for has_command, typed in ((True, None), (False, "node1"), (True, "node1")):
            found = list(objections(signs(libvirt=libvirt, ssh=ssh, drbd=drbd), has_command=has_command, typed=typed))
            assert [f.code for f in found] == ([Code.NODE_ALIVE] if libvirt or ssh or drbd else [])


@pytest.mark.parametrize(("has_command", "typed"), [(False, None), (False, "node2"), (True, "node2")])
def test_silence_alone_is_no_proof(*, has_command: bool, typed: str | None) -> None:
    (found,) = objections(signs(), has_command=has_command, typed=typed)
    assert (found.code, "--is-off node1" in found.hint) == (Code.NOT_FENCED, True)


def fence(tmp_path: Path, command: str) -> None:
    (tmp_path / "c.toml").write_text(f"[nodes.node1]\nfence_command = '''{command}'''\n[nodes.node2]\n")
    made = commands(load(tmp_path / "c.toml").nodes)
    assert set(made) == {"node1"}
    made["node1"]()


def test_a_command_is_told_the_node_and_0_says_that_it_is_off(tmp_path: Path) -> None:
    fence(tmp_path, f'echo "$LVMIGRATE_NODE" > {tmp_path}/said')
    assert (tmp_path / "said").read_text() == "node1\n"
    assert os.environ.get("LVMIGRATE_NODE") is None


def test_any_other_end_says_nothing_and_its_words_are_kept(tmp_path: Path) -> None:
    with pytest.raises(FenceFailed) as caught:
        fence(tmp_path, "echo no such outlet >&2; exit 3")
    assert "failed (3)" in str(caught.value)
    assert "no such outlet" in caught.value.detail


@pytest.mark.parametrize("command", ["", " ", "\t\n"])
def test_a_command_that_is_blank_is_none_a_shell_would_say_0(tmp_path: Path, command: str) -> None:
    (tmp_path / "c.toml").write_text(f"[nodes.node1]\nfence_command = '''{command}'''\n[nodes.node2]\n")
    assert commands(load(tmp_path / "c.toml").nodes) == {}


def test_one_that_hangs_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvmigrate.fencing._COMMAND_S", 0.2)
    with pytest.raises(FenceFailed) as caught:
        fence(tmp_path, "exec sleep 1000")
    assert "did not end" in str(caught.value)
    assert isinstance(caught.value, LvmigrateError)


def test_the_command_fails_over(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["failover", "web1", "--dry-run"]) == ExitCode.OK
    assert world.running() == ["node1"]
    assert "shutdown" in capsys.readouterr().out
    assert cli.main(["failover", "web1"]) == ExitCode.OK
    assert "web1 runs on node2 (from node1, failover)" in capsys.readouterr().out
    assert list(world.violations()) == []


def test_the_command_says_why_not(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["failover", "web1", "--is-off", "node1"]) == ExitCode.REFUSED
    assert "NODE_ALIVE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "alive"),
    [
        ((), True),
        (CommandFailed("node1", "Asking", status=1, hint=""), True),
        (unreachable("ssh: connect to host node1 port 22: Connection timed out"), False),
        (unreachable("ssh: connect to host node1 port 22: No route to host"), False),
        (unreachable("ssh: Could not resolve hostname node1: Name or service not known"), False),
        (unreachable("ssh's greeting did not come within 10 s"), False),
        (unreachable("Cannot recv data: ssh: connect to host node1 port 22: No route: Connection reset"), False),
        (unreachable("root@node1: Permission denied (publickey)."), True),
        (unreachable("Host key verification failed."), True),
        (unreachable("ssh: connect to host node1 port 22: Connection refused"), True),
        (unreachable("kex_exchange_identification: Connection closed by remote host"), True),
        (unreachable("unable to connect to server at 'node1:16509': Connection refused"), True),
        (unreachable("authentication unavailable: no polkit agent", Code.AUTH_FAILED), True),
    ],
)  # fmt: skip
def test_a_login_that_is_refused_is_a_sign_of_life(outcome: object, *, alive: bool) -> None:
    assert fencing.answers(outcome) is alive
