"""Crashes and cuts on the real nodes: the guards close what is open, `cleanup` from elsewhere does the rest."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lvmigrate import ExitCode
from lvmigrate.move import STEPS
from tests.lab.support import LVMIGRATE, Outcome, Running
from vagrant.labkit.guests import WEB1, Guest
from vagrant.labkit.lab import NODES, Lab, other

Command = Callable[..., Outcome]
Start = Callable[[Guest], Running]
NAMES = [step.name for step in STEPS]

#: Enough memory traffic that the copy takes some seconds, so that there is a middle of it.
BUSY = dataclasses.replace(WEB1, dirty_mib=4, rate=600)
SLOWLY = ("--bandwidth", "4")


@pytest.fixture
def short_lease(cluster_file: Path, tmp_path: Path) -> Path:
    """The lab's configuration with a lease that runs out soon."""
    text = cluster_file.read_text(encoding="utf-8")
    assert "lease_s = 60" in text
    found = tmp_path / "cluster.toml"
    found.write_text(text.replace("lease_s = 60", "lease_s = 15"), encoding="utf-8")
    return found


class Under:
    """A migration under way, whose lines are read."""

    def __init__(self, config: Path, *words: str) -> None:
        command = [str(LVMIGRATE), "migrate", BUSY.name, "--config", str(config), *SLOWLY, *words]
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


def wait_until(holds: Callable[[], object], what: str, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(1)


def no_guard(lab: Lab) -> bool:
    """The guards have ended by themselves: their services, by systemd's word."""
    return not "".join(lab.both("systemctl list-units --all --plain --no-legend 'lvmigrate-guard-*'").values()).strip()


def running_on(lab: Lab, guest: Guest) -> list[str]:
    states = lab.both(f"virsh domstate {guest.name} 2>/dev/null; true")
    return [node for node, state in states.items() if state.strip() == "running"]


def closed(lab: Lab, guest: Guest) -> bool:
    """Two primaries are forbidden, and one node at most is Primary."""
    shown = lab.both(f"drbdsetup show {guest.resource}; drbdsetup status {guest.resource}")
    primary = [node for node, text in shown.items() if f"{guest.resource} role:Primary" in text]
    return len(primary) <= 1 and not any("allow-two-primaries" in text for text in shown.values())


@pytest.mark.parametrize("step", NAMES)
def test_the_guards_close_what_a_killed_command_leaves(
    running: Start, lvmigrate: Command, short_lease: Path, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = running(BUSY)
    under = Under(short_lease)
    under.until(step)
    under.kill()
    wait_until(lambda: no_guard(it.lab), "the guards did not end")
    # A job that goes on without its client is not theirs to end: whoever it brings where, one copy runs at the end.
    wait_until(lambda: len(running_on(it.lab, BUSY)) == 1, f"running on {running_on(it.lab, BUSY)}")
    assert closed(it.lab, BUSY)
    monkeypatch.chdir(tmp_path)
    cleaned = lvmigrate("cleanup", BUSY.name, "--json", config=short_lease)
    assert cleaned.code == ExitCode.OK, cleaned.out + cleaned.err
    it.whole_on(cleaned.json["node"])
    again = lvmigrate("cleanup", BUSY.name, "--json", config=short_lease)
    assert (again.code, again.json["acts"]) == (ExitCode.OK, []), again.out + again.err
    audited = lvmigrate("audit", "--json", config=short_lease)
    assert (audited.code, audited.json["findings"]) == (ExitCode.OK, []), audited.out


@pytest.mark.parametrize("step", ["open", "memory", "switch", "close"])
def test_a_cleanup_at_once_from_elsewhere_finishes_or_undoes_it(
    running: Start, lvmigrate: Command, short_lease: Path, step: str
) -> None:
    it = running(BUSY)
    under = Under(short_lease)
    under.until(step)
    if step == "memory":
        wait_until(
            lambda: (
                "yes" in it.lab.run(NODES[0], f"virsh domjobinfo {BUSY.name} | grep -q remaining && echo yes; true")
            ),
            "the copy did not begin",
        )
    under.kill()
    seen = lvmigrate("cleanup", BUSY.name, "--dry-run", "--json", config=short_lease)
    assert seen.code == ExitCode.OK, seen.out + seen.err
    assert seen.json["acts"]
    cleaned = lvmigrate("cleanup", BUSY.name, "--json", config=short_lease)
    assert cleaned.code == ExitCode.OK, cleaned.out + cleaned.err
    it.whole_on(cleaned.json["node"])
    if step == "memory":
        assert cleaned.json["node"] == NODES[1], "the job that outlived its client was not adopted"


def test_a_copy_that_outlived_its_client_is_aborted_if_asked(
    running: Start, lvmigrate: Command, short_lease: Path
) -> None:
    it = running(dataclasses.replace(WEB1, dirty_mib=4, rate=400))
    under = Under(short_lease, "--downtime-limit", "0.001", "--bandwidth", "1")
    under.until("memory")
    wait_until(
        lambda: "yes" in it.lab.run(NODES[0], f"virsh domjobinfo {WEB1.name} | grep -q remaining && echo yes; true"),
        "the copy did not begin",
    )
    under.kill()
    cleaned = lvmigrate("cleanup", "--abort", WEB1.name, "--json", config=short_lease)
    assert cleaned.code == ExitCode.OK, cleaned.out + cleaned.err
    assert cleaned.json["node"] == NODES[0]
    it.whole_on(NODES[0])


@pytest.fixture
def link(lab: Lab) -> Iterator[Callable[[bool], None]]:
    """Cut or mend DRBD's connection alone, on both nodes."""
    port = lab.run(NODES[0], f"drbdsetup show {WEB1.resource}")
    number = port.split("ipv4", 1)[1].split(";")[0].rsplit(":", 1)[1].strip()

    def rule(verb: str) -> str:
        return "; ".join(
            f"iptables -{verb} {chain} -p tcp --{side} {number} -j DROP"
            for chain in ("INPUT", "OUTPUT")
            for side in ("dport", "sport")
        )

    def set_link(up: bool) -> None:  # noqa: FBT001
        lab.both(rule("D" if up else "I"))

    yield set_link
    lab.both(f"{rule('D')}; true", check=False)


@pytest.mark.parametrize("step", NAMES)
def test_a_short_cut_of_drbds_link_alone(
    running: Start, lvmigrate: Command, short_lease: Path, link: Callable[[bool], None], step: str
) -> None:
    it = running(BUSY)
    under = Under(short_lease)
    under.until(step)
    link(False)  # noqa: FBT003
    time.sleep(5)  # the fault itself: five seconds
    link(True)  # noqa: FBT003
    code = under.end()
    expected = {ExitCode.OK, ExitCode.FAILED, ExitCode.UNKNOWN, ExitCode.LEFT_BEHIND, ExitCode.REFUSED}
    assert code in expected, under.said
    assert len(running_on(it.lab, BUSY)) <= 1
    home = settled(it, lvmigrate, short_lease, under.said)
    it.whole_on(home)


def settled(it: Running, lvmigrate: Command, config: Path, said: str) -> str:
    """Where the guest is in the end: by `cleanup`, after a person has mended a connection that DRBD does not."""
    wait_until(lambda: no_guard(it.lab) or parted(it.lab) is not None, "the guards neither end nor wait for a person")
    loser = parted(it.lab)
    if loser is not None:
        # DRBD's own rule when both were Primary at the cut (8.4: always; 9: when one has written): a person decides.
        held = lvmigrate("cleanup", BUSY.name, "--json", config=config)
        assert held.code in {ExitCode.UNKNOWN, ExitCode.LEFT_BEHIND}, held.out + said
        assert "StandAlone" in held.out, held.out
        resource = BUSY.resource
        it.lab.run(other(loser), f"drbdadm disconnect {resource}; true")
        it.lab.run(loser, f"drbdadm disconnect {resource}; drbdadm secondary {resource}; true")
        it.lab.run(loser, f"drbdadm connect --discard-my-data {resource}")
        it.lab.run(other(loser), f"drbdadm connect {resource}")
    cleaned = lvmigrate("cleanup", BUSY.name, "--json", config=config)
    assert cleaned.code == ExitCode.OK, cleaned.out + cleaned.err + said
    assert cleaned.json["node"]
    return str(cleaned.json["node"])


def parted(lab: Lab) -> str | None:
    """The node whose data may be given up, if the two have parted: the one where the guest does not run."""
    states = lab.both(f"drbdsetup events2 --now {BUSY.resource}")
    if not any("connection:StandAlone" in text for text in states.values()):
        return None
    (home,) = running_on(lab, BUSY)
    return other(home)
