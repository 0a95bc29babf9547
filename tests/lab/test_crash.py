"""Crashes and cuts on the real nodes: the guards close what is open, `cleanup` from elsewhere does the rest."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from lvmigrate import ExitCode
from lvmigrate.move import STEPS
from tests.lab.support import LVMIGRATE, Outcome, Running, side_by_side
from vagrant.labkit.guests import DB1, WEB1, Guest
from vagrant.labkit.lab import NODES, Lab, other

pytestmark = pytest.mark.long

Command = Callable[..., Outcome]
Start = Callable[..., Running]
T = TypeVar("T")
R = TypeVar("R")
NAMES = [step.name for step in STEPS]

#: Enough memory traffic that the copy takes some seconds, so that there is a middle of it; and not more, since each
#: guest is emulated by a processor that is emulated itself.
WEB, DB = (dataclasses.replace(guest, dirty_mib=3, rate=200, record_ms=100) for guest in (WEB1, DB1))
SLOWLY = ("--bandwidth", "2")

#: The steps at which the moves of `WEB` and of `DB` meet their fault, two moves side by side on the same nodes: each
#: step once.  Most of the time passes in waiting for leases to run out.
PAIRS = [("lock", "memory"), ("switch", "sync"), ("guard", "close"), ("verify", "open")]


def test_every_step_has_its_turn() -> None:
    assert sorted(step for pair in PAIRS for step in pair) == sorted(NAMES)


@pytest.fixture
def short_lease(cluster_file: Path, tmp_path: Path) -> Path:
    """The lab's configuration with a lease that runs out soon."""
    text = cluster_file.read_text(encoding="utf-8")
    assert "lease_s = 60" in text
    found = tmp_path / "cluster.toml"
    found.write_text(text.replace("lease_s = 60", "lease_s = 30"), encoding="utf-8")
    return found


@pytest.fixture
def elsewhere(short_lease: Path, tmp_path: Path) -> Path:
    """The configuration of another machine, which has no journal of what was begun."""
    text = short_lease.read_text(encoding="utf-8")
    text, found_it = re.subn(r'(?<=\[journal\]\npath = )".+"', '""', text)
    assert found_it == 1
    found = tmp_path / "elsewhere" / "cluster.toml"
    found.parent.mkdir()
    found.write_text(text, encoding="utf-8")
    return found


class Under:
    """A migration under way, whose lines are read."""

    def __init__(self, guest: Guest, config: Path, *words: str) -> None:
        command = [str(LVMIGRATE), "migrate", guest.name, "--config", str(config), *SLOWLY, *words]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        self.said = ""

    def until(self, step: str) -> None:
        """Wait until ``step`` begins."""
        assert self.process.stderr is not None
        while f"/{len(NAMES)} {step}:" not in self.said:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line

    def kill(self) -> None:
        """End it and everything it has started here, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def end(self) -> int:
        assert self.process.stderr is not None
        self.said += self.process.communicate(timeout=400)[1]
        assert "Traceback" not in self.said
        return self.process.returncode


def wait_until(holds: Callable[[], object], what: str, *, every_s: float = 3, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(every_s)  # to look takes a good part of a node's time


def no_guard(lab: Lab, guest: Guest) -> bool:
    """The guards have ended by themselves: their services, by systemd's word."""
    unit = f"lvmigrate-guard-{guest.uuid}*"
    return not "".join(lab.both(f"systemctl list-units --all --plain --no-legend '{unit}'").values()).strip()


def until_copying(it: Running) -> None:
    """Wait until libvirt has the job: from then on it needs its client no more, and may be over within seconds."""
    look = f"virsh domjobinfo {it.guest.name} | grep -q Unbounded && echo yes; true"
    wait_until(lambda: "yes" in it.lab.run(it.home, look), "the copy did not begin", every_s=0.1)


def running_on(lab: Lab, guest: Guest) -> list[str]:
    states = lab.both(f"virsh domstate {guest.name} 2>/dev/null; true")
    return [node for node, state in states.items() if state.strip() == "running"]


def closed(lab: Lab, guest: Guest) -> bool:
    """Two primaries are forbidden, and one node at most is Primary."""
    shown = lab.both(f"drbdsetup show {guest.resource}; drbdsetup status {guest.resource}")
    primary = [node for node, text in shown.items() if f"{guest.resource} role:Primary" in text]
    return len(primary) <= 1 and not any("allow-two-primaries" in text for text in shown.values())


@pytest.fixture
def pair(running: Start) -> tuple[Running, Running]:
    """`WEB` and `DB`, which change places: each node is a source and a target, and has the same to do."""
    web, db = side_by_side(partial(running, WEB, NODES[0]), partial(running, DB, NODES[1]))
    return web, db


def each(pair: Sequence[Running], act: Callable[[Running, T], R], of: Sequence[T]) -> list[R]:
    """Do it for both guests side by side."""
    return side_by_side(*(partial(act, it, one) for it, one in zip(pair, of, strict=True)))


def ids(steps: object) -> str:
    return "+".join(steps) if isinstance(steps, tuple) else str(steps)


def cleaned(lvmigrate: Command, guest: Guest, config: Path, *words: str) -> Any:
    """What `cleanup` says that it has done, all being well then."""
    outcome = lvmigrate("cleanup", guest.name, "--json", *words, config=config)
    assert outcome.code == ExitCode.OK, outcome.out + outcome.err
    return outcome.json


@pytest.mark.parametrize("steps", PAIRS, ids=ids)
def test_the_guards_close_what_a_killed_command_leaves(
    pair: tuple[Running, Running],
    lvmigrate: Command,
    short_lease: Path,
    elsewhere: Path,
    steps: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kill(it: Running, step: str) -> None:
        under = Under(it.guest, short_lease)
        under.until(step)
        under.kill()
        wait_until(lambda: no_guard(it.lab, it.guest), "the guards did not end")
        # A job that goes on without its client is not theirs to end: whoever it brings where, one copy runs at the end.
        wait_until(
            lambda: len(running_on(it.lab, it.guest)) == 1, f"{it.guest.name} runs on {running_on(it.lab, it.guest)}"
        )
        assert closed(it.lab, it.guest)

    each(pair, kill, steps)
    monkeypatch.chdir(elsewhere.parent)
    homes = each(pair, lambda it, _: cleaned(lvmigrate, it.guest, elsewhere)["node"], steps)
    each(pair, Running.whole_on, homes)
    assert each(pair, lambda it, _: cleaned(lvmigrate, it.guest, elsewhere)["acts"], steps) == [[], []]
    audited = lvmigrate("audit", "--json", config=elsewhere)
    assert (audited.code, audited.json["findings"]) == (ExitCode.OK, []), audited.out


@pytest.mark.parametrize("steps", [("memory", "open"), ("close", "switch")], ids=ids)
def test_a_cleanup_at_once_from_elsewhere_finishes_or_undoes_it(
    pair: tuple[Running, Running],
    lvmigrate: Command,
    short_lease: Path,
    elsewhere: Path,
    steps: tuple[str, str],
) -> None:
    def kill_and_clean(it: Running, step: str) -> str:
        under = Under(it.guest, short_lease)
        under.until(step)
        if step == "memory":
            until_copying(it)
        under.kill()
        assert cleaned(lvmigrate, it.guest, elsewhere, "--dry-run")["acts"]
        home = str(cleaned(lvmigrate, it.guest, elsewhere)["node"])
        if step == "memory":
            assert home == other(it.home), "the job that outlived its client was not adopted"
        return home

    each(pair, Running.whole_on, each(pair, kill_and_clean, steps))


def test_a_copy_that_outlived_its_client_is_aborted_if_asked(
    running: Start, lvmigrate: Command, short_lease: Path
) -> None:
    slow = dataclasses.replace(WEB1, dirty_mib=4, rate=400)
    it = running(slow)
    under = Under(slow, short_lease, "--downtime-limit", "0.001", "--bandwidth", "1")
    under.until("memory")
    until_copying(it)
    under.kill()
    assert cleaned(lvmigrate, slow, short_lease, "--abort")["node"] == NODES[0]
    it.whole_on(NODES[0])


class Link:
    """DRBD's connection of one guest alone, which can be cut and mended on both nodes."""

    def __init__(self, lab: Lab, guest: Guest) -> None:
        self._lab = lab
        shown = lab.run(NODES[0], f"drbdsetup show {guest.resource}")
        self._port = shown.split("ipv4", 1)[1].split(";")[0].rsplit(":", 1)[1].strip()

    def cut(self) -> None:
        self._lab.both(self._rules("I"))

    def mend(self) -> None:
        self._lab.both(f"{self._rules('D')}; true", check=False)

    def _rules(self, verb: str) -> str:
        return "; ".join(
            f"iptables -w -{verb} {chain} -p tcp --{side} {self._port} -j DROP"
            for chain in ("INPUT", "OUTPUT")
            for side in ("dport", "sport")
        )


@pytest.mark.parametrize("steps", PAIRS, ids=ids)
def test_a_short_cut_of_drbds_link_alone(
    pair: tuple[Running, Running], lvmigrate: Command, short_lease: Path, steps: tuple[str, str]
) -> None:
    def cut(it: Running, step: str) -> str:
        link = Link(it.lab, it.guest)
        under = Under(it.guest, short_lease)
        under.until(step)
        try:
            link.cut()
            time.sleep(5)  # the fault itself: five seconds
        finally:
            link.mend()
        code = under.end()
        expected = {ExitCode.OK, ExitCode.FAILED, ExitCode.UNKNOWN, ExitCode.LEFT_BEHIND, ExitCode.REFUSED}
        assert code in expected, under.said
        assert len(running_on(it.lab, it.guest)) <= 1
        return settled(it, lvmigrate, short_lease, under.said)

    each(pair, Running.whole_on, each(pair, cut, steps))


def settled(it: Running, lvmigrate: Command, config: Path, said: str) -> str:
    """Where the guest is in the end: by `cleanup`, after a person has mended a connection that DRBD does not."""
    wait_until(
        lambda: no_guard(it.lab, it.guest) or parted(it.lab, it.guest) is not None,
        "the guards neither end nor wait for a person",
    )
    loser = parted(it.lab, it.guest)
    if loser is not None:
        # DRBD's own rule when both were Primary at the cut (8.4: always; 9: when one has written): a person decides.
        held = lvmigrate("cleanup", it.guest.name, "--json", config=config)
        assert held.code in {ExitCode.UNKNOWN, ExitCode.LEFT_BEHIND}, held.out + said
        assert "StandAlone" in held.out, held.out
        resource = it.guest.resource
        it.lab.run(other(loser), f"drbdadm disconnect {resource}; true")
        it.lab.run(loser, f"drbdadm disconnect {resource}; drbdadm secondary {resource}; true")
        it.lab.run(loser, f"drbdadm connect --discard-my-data {resource}")
        it.lab.run(other(loser), f"drbdadm connect {resource}")
    last = lvmigrate("cleanup", it.guest.name, "--json", config=config)
    assert last.code == ExitCode.OK, last.out + last.err + said
    assert last.json["node"]
    return str(last.json["node"])


def parted(lab: Lab, guest: Guest) -> str | None:
    """The node whose data may be given up, if the two have parted: the one where the guest does not run."""
    states = lab.both(f"drbdsetup events2 --now {guest.resource}")
    if not any("connection:StandAlone" in text for text in states.values()):
        return None
    (home,) = running_on(lab, guest)
    return other(home)
