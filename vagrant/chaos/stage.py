"""The lab as a stage: a guest whose moves do not end by themselves, commands shown as they run, order made again."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vagrant.chaos.screen import Screen
from vagrant.guest import records
from vagrant.labkit import audit, guests, links
from vagrant.labkit.by_hand import ByHand
from vagrant.labkit.guests import WEB1, Guest
from vagrant.labkit.lab import NODES, Lab
from vagrant.labkit.witness import Witness

LVMIGRATE: Final = Path(sys.executable).parent / "lvmigrate"
SOURCE, TARGET = NODES
BANDWIDTH_MIB_S: Final = 1
#: It dirties more memory than `BANDWIDTH_MIB_S` carries, so that the copy goes on until it is let go.
GUEST: Final = dataclasses.replace(WEB1, dirty_mib=2, rate=1000)
#: Emulated nodes are slow, and libvirt notices a dead connection after 30 s.
_WAIT_S: Final = 180.0


class UnmetError(Exception):
    """What was waited for did not happen."""


def until(holds: Callable[[], object], what: str, *, timeout_s: float = _WAIT_S) -> None:
    """Guaranteed afterwards: it holds. Raises `UnmetError`."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise UnmetError(f"after {timeout_s:.0f} s it is still not so: {what}")
        time.sleep(0.3)


class Running:
    """A command under way, whose lines are shown as they come."""

    def __init__(self, screen: Screen, node: str, command: str, words: Sequence[str | Path]) -> None:
        screen.command(node, command)
        self._screen, self._node, self._command = screen, node, command
        self._said: list[str] = []
        # In a session of its own: a Ctrl-C is this program's to answer, not the command's to meet by itself.
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def said(self) -> str:
        """All that it has said, once it has ended."""
        return "\n".join(self._said)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def end(self, timeout_s: float = _WAIT_S) -> int:
        """Wait for it: its exit code, which is shown. Raises `UnmetError`."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise UnmetError(f"after {timeout_s:.0f} s `{self._command}` has not ended") from None
        self._reader.join()
        self._screen.line(f"exit code {code}")
        self._screen.noted(self._node, self._command, f"{self.said}\nexit code {code}")
        return code

    def cancel(self) -> None:
        """Have it end, in good order if it can."""
        for sign, patience_s in ((signal.SIGINT, 60.0), (signal.SIGKILL, 10.0)):
            if self.over:
                return
            os.killpg(self._process.pid, sign)
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue

    def _read(self) -> None:
        for line in self._process.stdout or ():
            if text := line.rstrip():
                self._said.append(text)
                self._screen.line(text)


class Stage:
    """In the context the lab is this program's; after it there is no guest, no fault, and the disks are in step."""

    def __init__(self, lab: Lab, screen: Screen) -> None:
        self.lab = lab
        self.screen = screen
        self.guest: Guest = GUEST
        self.witness = Witness(lab, GUEST)
        self.by_hand = ByHand.of(lab, GUEST)
        self.before: dict[str, str] = {}
        self._under_way: list[Running] = []

    def __enter__(self) -> Self:
        self.witness.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Once: whoever asks to stop again would only leave half of it behind.
        ignored = [signal.signal(sign, signal.SIG_IGN) for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        if error is not None:
            self.screen.says("putting the lab in order ...")
        try:
            self.tidy()
        finally:
            self.witness.__exit__(kind, error, trace)
            for sign, handler in zip((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), ignored, strict=True):
                signal.signal(sign, handler)

    # ---- commands

    def types(self, node: str, command: str) -> str:
        """Run it as an operator who goes on whatever it answers; the answer, which is shown."""
        output = self.lab.run(node, f"{{ {command}; }} 2>&1", check=False).strip()
        self.screen.fact(node, command, output)
        return output

    def starts(self, node: str, command: str) -> Running:
        """Run it on the node while other things are done."""
        return self._begun(Running(self.screen, node, command, self.lab.ssh(node, command)))

    def lvmigrate(self, *words: str) -> Running:
        """Run lvmigrate here while other things are done."""
        whole: list[str | Path] = [LVMIGRATE, words[0], "--config", self.lab.config, *words[1:]]
        return self._begun(Running(self.screen, "controller", f"lvmigrate {' '.join(words)}", whole))

    def _begun(self, running: Running) -> Running:
        self._under_way.append(running)
        return running

    # ---- what is seen

    def running_on(self) -> list[str]:
        """Ask both nodes' libvirt, and show it: where the guest runs."""
        said = {node: self.types(node, "virsh -q list") for node in NODES}
        return [node for node, text in said.items() if re.search(rf"\b{self.guest.name}\b.*\brunning\b", text)]

    def replication(self) -> dict[str, str]:
        """Ask both nodes' DRBD, and show it."""
        return {node: self.types(node, f"drbdsetup status {self.guest.resource}") for node in NODES}

    def cut_off(self) -> bool:
        """Whether both nodes' DRBD has noticed that the other is gone."""
        return all("Connecting" in text for text in self._status().values())

    def parted(self) -> bool:
        """Whether DRBD has given the connection up."""
        return any("StandAlone" in text for text in self._events().values())

    def _status(self) -> Mapping[str, str]:
        return self.lab.both(f"drbdsetup status {self.guest.resource}", check=False)

    def _events(self) -> Mapping[str, str]:
        return self.lab.both(f"drbdsetup events2 --now {self.guest.resource}", check=False)

    def state_on(self, node: str) -> str:
        """What libvirt says of the guest there; not shown."""
        return self.lab.run(node, f"virsh -q domstate {self.guest.name} 2>/dev/null; true").strip()

    def once_copying(self, then: str) -> str:
        """The script for the source that does ``then`` as soon as memory has begun to go over."""
        look = f"virsh -q domjobinfo {self.guest.name} 2>/dev/null | grep -q '^Memory processed: *[1-9]'"
        limit = f"[ $((i += 1)) -lt {round(_WAIT_S * 5)} ] || exit 9; sleep 0.2"
        return f"i=0; until {look}; do {limit}; done; {then}"

    def copying(self) -> bool:
        """Whether libvirt has a job of the guest at the source."""
        return "Unbounded" in self.lab.run(SOURCE, f"virsh -q domjobinfo {self.guest.name} 2>/dev/null; true")

    def let_go(self) -> None:
        """The copy may come to its end."""
        self.types(SOURCE, f"virsh -q migrate-setmaxdowntime {self.guest.name} 30000")

    def acknowledged_since(self, mark: float, sender: str, count: int) -> None:
        """Wait until the guest's copy on ``sender`` has acknowledged so many records since ``mark``."""
        where = links.address(self.lab, sender)
        until(
            lambda: sum(heard.sender[0] == where for heard in self.witness.listener.since(mark)) >= count,
            f"the guest on {sender} has acknowledged {count} records",
        )

    def records_on(self, node: str, newest: int) -> dict[int, bytes]:
        """The records of this run that are whole on the node's own disk, by number, up to ``newest``."""
        image = self.witness.image(node, 0, newest)
        sectors = (image[at : at + records.SECTOR] for at in range(0, (newest + 1) * records.SECTOR, records.SECTOR))
        return {n: sector for n, sector in enumerate(sectors) if records.is_whole(sector)}

    def violations(self) -> list[str]:
        """What is not as it was before anything moved: the guest, roles, connection, options, leftovers."""
        return list(audit.violations(self.lab, self.guest, SOURCE, self.before))

    # ---- the world, in order

    def fresh(self) -> None:
        """The guest runs on the source, newly started, in step; nothing else is on the stage."""
        self.tidy()
        guests.make(self.lab, self.guest, SOURCE)
        self.witness.alive()
        self.before = audit.settings(self.lab, self.guest)
        self.screen.says(f"{self.guest.name} runs on {SOURCE}; DRBD resource {self.guest.resource} is in step")

    def tidy(self) -> None:
        """No command under way, no fault, no guest, no guard; both disks Secondary, connected, in step.

        A disk that parted from the other is brought in step with the source's: what is on it is a test's.
        """
        for running in self._under_way:
            running.cancel()
        self._under_way.clear()
        links.mended(self.lab)
        name, resource = self.guest.name, self.guest.resource
        self.lab.both(
            f"systemctl stop 'lvmigrate-guard-{self.guest.uuid}*' 2>/dev/null; virsh -q domjobabort {name} 2>/dev/null;"
            f" virsh -q destroy {name} 2>/dev/null; for i in $(seq 50); do drbdadm secondary {resource} && exit;"
            " sleep 0.2; done; exit 1",
        )
        if self.parted():
            self.lab.both(f"drbdadm disconnect {resource}; true")
            self.lab.run(TARGET, f"drbdadm connect --discard-my-data {resource}")
            self.lab.run(SOURCE, f"drbdadm connect {resource}")
        until(self.in_step, f"{resource} is in step", timeout_s=90)
        guests.remove(self.lab, self.guest)

    def in_step(self) -> bool:
        """Whether both nodes' DRBD has both disks up to date."""
        return all(text.count("UpToDate") == 2 for text in self._status().values())  # noqa: PLR2004 - both disks
