"""What the lab's campaign does to a move on real nodes: each fault is done once a step has begun, and mended again."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lvmigrate import Code, ExitCode
from tests.lab.deadlines import BLINK_S, LONG_S, SHORT_S, STOPPED_S
from tests.lab.support import LVMIGRATE, Running
from tests.lab.under import NAMES, Under
from vagrant.labkit import links
from vagrant.labkit.guests import Guest
from vagrant.labkit.lab import HERE, NODES, Lab, other

#: libvirt's default for the ports where a QEMU waits for memory.
_MEMORY_PORTS = "49152:49215"


class NotMetError(Exception):
    """The fault could not be done: what it is about was over already, or did not come."""


class KernelRefusedError(Exception):
    """A node's kernel refused to do the fault: its words."""


@dataclass(kw_only=True)
class Play:
    """One guest's move, to which something is done."""

    lab: Lab
    it: Running
    under: Under
    #: The configuration of the move.
    config: Path
    #: What the fault itself found wrong.
    wrong: list[str] = field(default_factory=list)

    @property
    def guest(self) -> Guest:
        """Who moves."""
        return self.it.guest

    @property
    def source(self) -> str:
        """Where from."""
        return self.it.home

    @property
    def target(self) -> str:
        """Where to."""
        return other(self.it.home)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that is done to a move at one of its steps."""

    name: str
    act: Callable[[Play], None]
    steps: tuple[str, ...] = NAMES
    #: It is done to a node, or to what all guests share: the other guest's move meets it as well.
    shared: bool = False
    #: The cleanup comes at once, while guards and tokens still live.
    at_once: bool = False
    #: More words for the move's command, and for the cleanup's.
    words: tuple[str, ...] = ()
    cleanup_words: tuple[str, ...] = ()
    #: Pages a second that the guest dirties, if not as many as all others do.
    rate: int | None = None
    #: The move is given up by its policy, and the guest stays at home.
    given_up: bool = False


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault at a step."""

    fault: Fault
    step: str

    def __str__(self) -> str:
        return f"{self.fault.name}@{self.step}"


def wait_until(holds: Callable[[], object], what: str, *, every_s: float = 3, timeout_s: float = 240) -> None:
    """Until it holds; raises `TimeoutError` with ``what``."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(every_s)  # to look takes a good part of a node's time


def guarded(lab: Lab, guest: Guest) -> bool:
    """Whether a guard of it lives on a node, by systemd's word."""
    unit = f"lvmigrate-guard-{guest.uuid}*"
    return bool("".join(lab.both(f"systemctl list-units --all --plain --no-legend '{unit}'").values()).strip())


def copying(play: Play) -> bool:
    """Whether libvirt has the job: from then on it needs its client no more."""
    look = f"virsh domjobinfo {play.guest.name} 2>/dev/null | grep -q Unbounded && echo yes; true"
    return "yes" in play.lab.run(play.source, look)


# ---- the command


def _kill(play: Play) -> None:
    play.under.kill()


def _kill_in_copy(share: float) -> Callable[[Play], None]:
    def act(play: Play) -> None:
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: copying(play), "the copy did not begin", every_s=0.1, timeout_s=30)
        time.sleep(share * 8)  # a copy takes about that
        play.under.kill()

    return act


def _stop(play: Play) -> None:
    play.under.stop()
    try:
        time.sleep(STOPPED_S)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not guarded(play.lab, play.guest), "the guards did not end", timeout_s=90)
    finally:
        play.under.wake()


def _rival(play: Play) -> None:
    """While it holds the guest, nobody else may act on it."""
    words = [str(LVMIGRATE), "migrate", play.guest.name, "--json", "--config", str(play.config)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode not in (ExitCode.REFUSED, ExitCode.UNREACHABLE) and play.under.process.poll() is None:
        play.wrong.append(f"a second command was not refused: {done.returncode} {done.stdout[-500:]}")


def _full(play: Play) -> None:
    """The disk with the journal takes no more."""
    journal = tomllib.loads(play.config.read_text(encoding="utf-8"))["journal"]["path"]
    ballast = Path(journal).parent / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


# ---- the links


def _of_drbd(play: Play, node: str) -> list[str]:
    return links.of_drbd(play.lab, play.guest, node)


def _of_libvirt(play: Play, node: str) -> list[str]:
    """The nodes' libvirts reach each other by ssh, and QEMU sends the memory; the controller's way to them stays."""
    return links.from_peer(play.lab, node, "22", _MEMORY_PORTS)


def _cut(of: Sequence[Callable[[Play, str], list[str]]], seconds: float) -> Callable[[Play], None]:
    def act(play: Play) -> None:
        rules = {node: [rule for one in of for rule in one(play, node)] for node in NODES}
        if seconds < 1:
            # To reach a node takes longer than that: one end is deaf, and measures it itself.
            deaf = rules[play.source]
            play.lab.run(play.source, f"{links.adding(deaf)}; sleep {seconds}; {links.deleting(deaf)}")
            return
        with links.dropped(play.lab, rules):
            time.sleep(seconds)

    return act


def _controller_cut(seconds: float) -> Callable[[Play], None]:
    """The controller reaches no node; the nodes reach each other."""

    def act(play: Play) -> None:
        ways = [
            [chain, flag, links.address(play.lab, node), "-p", "tcp", *links.MARK.split(), "-j", "DROP"]
            for node in NODES
            for chain, flag in (("INPUT", "-s"), ("OUTPUT", "-d"))
        ]
        for way in ways:
            subprocess.run(["iptables", "-w", "-I", *way], check=True)
        try:
            time.sleep(seconds)
        finally:
            for way in ways:
                subprocess.run(["iptables", "-w", "-D", *way], check=True)

    return act


# ---- the nodes


def _daemon(at: Callable[[Play], str]) -> Callable[[Play], None]:
    def act(play: Play) -> None:
        play.lab.run(at(play), "systemctl kill --signal=KILL libvirtd")
        wait_until(
            lambda: "up" in play.lab.run(at(play), "virsh -q list >/dev/null 2>&1 && echo up; true"),
            f"libvirtd of {at(play)} did not come back",
        )

    return act


def _qemu(at: Callable[[Play], str]) -> Callable[[Play], None]:
    def act(play: Play) -> None:
        # In brackets: the shell that has these words in its command is none.
        look = f"pkill -KILL -f '[q]emu.*guest={play.guest.name},' && echo hit; true"
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: "hit" in play.lab.run(at(play), look), "", every_s=0.2, timeout_s=20)
            return
        raise NotMetError(f"no QEMU of {play.guest.name} on {at(play)}")

    return act


def _power(at: Callable[[Play], str]) -> Callable[[Play], None]:
    def act(play: Play) -> None:
        node = at(play)
        subprocess.run([HERE / "lab", "cut-power", node], check=True, capture_output=True)
        time.sleep(10)
        power_on(play.lab, node)

    return act


def power_on(lab: Lab, node: str) -> None:
    """Guaranteed afterwards: libvirt and DRBD of the node answer, and DRBD has found the peer or refused it."""
    subprocess.run([HERE / "lab", "start", node], check=True, capture_output=True)
    subprocess.run([*lab.ssh(node, "true")[:-3], "-O", "exit", node], capture_output=True, check=False)
    look = (
        "systemctl is-active -q lab-drbd && virsh -q list >/dev/null 2>&1"
        " && ! drbdsetup events2 --now | grep -q 'connection:Connecting' && echo up; true"
    )
    wait_until(lambda: "up" in lab.run(node, look, check=False), f"{node} did not come up")


def _detached(at: Callable[[Play], str]) -> Callable[[Play], None]:
    def act(play: Play) -> None:
        resource, node = play.guest.resource, at(play)
        said = play.lab.run(node, f"drbdadm detach {resource} 2>&1; true")
        try:
            seen = play.lab.run(node, f"drbdsetup events2 --now {resource}")
            if not is_detached(seen):
                raise KernelRefusedError(said.strip() or "every volume has its disk still")
            time.sleep(SHORT_S)
        finally:
            play.lab.run(node, f"drbdadm attach {resource}; true")

    return act


def is_detached(events: str) -> bool:
    """Whether a node has no disk of any volume of the resource that its ``drbdsetup events2 --now`` tells of."""
    disks = re.findall(r"^exists device .*\bdisk:(\w+)", events, re.MULTILINE)
    return bool(disks) and set(disks) == {"Diskless"}


# ---- the guest


def _load(play: Play) -> None:
    """It dirties more than is sent; the policy's word for the end is there in the end."""
    given_up(play, play.under.end())


def given_up(play: Play, code: int) -> None:
    """Whether the move was ended as the default policy promises of a copy that makes no progress."""
    if code == ExitCode.OK:
        raise NotMetError("the copy came to its end")
    if code != ExitCode.FAILED or Code.NOT_CONVERGING.value not in play.under.said:
        play.wrong.append(f"a copy without progress was not given up by its policy: {code} {play.under.said[-2000:]}")


def _source(play: Play) -> str:
    return play.source


def _target(play: Play) -> str:
    return play.target


_OPENED = ("open", "memory", "switch", "close")

FAULTS: tuple[Fault, ...] = (
    Fault(name="kill", act=_kill),
    *(
        Fault(name=f"kill-in-copy-{share:.1f}", act=_kill_in_copy(share), steps=("memory",))
        for share in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    ),
    Fault(name="kill-clean", act=_kill, steps=("open", "switch", "close"), at_once=True),
    Fault(name="kill-adopt", act=_kill_in_copy(0.1), steps=("memory",), at_once=True),
    Fault(
        name="kill-abort",
        act=_kill_in_copy(0.0),
        steps=("memory",),
        at_once=True,
        words=("--downtime-limit", "0.001", "--bandwidth", "1"),
        cleanup_words=("--abort",),
    ),
    Fault(name="stop", act=_stop),
    Fault(name="rival", act=_rival),
    Fault(name="full", act=_full, steps=("sync", "open", "memory", "close")),
    Fault(
        name="load",
        act=_load,
        steps=("memory",),
        # Near the most that the policy allows, so that it has its end within a minute.
        words=("--downtime-limit", "0.9", "--bandwidth", "1"),
        # Four times as much as is sent, of an area that takes 3 s to be sent: every pass begins with all of it.
        rate=1000,
        given_up=True,
    ),
    *(
        fault
        for word, seconds in (("blink", BLINK_S), ("short", SHORT_S), ("long", LONG_S))
        for fault in (
            Fault(name=f"drbd-cut-{word}", act=_cut([_of_drbd], seconds)),
            Fault(name=f"libvirt-cut-{word}", act=_cut([_of_libvirt], seconds), shared=True),
            Fault(name=f"both-cut-{word}", act=_cut([_of_drbd, _of_libvirt], seconds), shared=True),
            Fault(name=f"controller-cut-{word}", act=_controller_cut(seconds), shared=True),
        )
    ),
    *(
        fault
        for word, at in (("source", _source), ("target", _target))
        for fault in (
            Fault(name=f"{word}-daemon", act=_daemon(at), steps=("open", "memory", "close"), shared=True),
            Fault(name=f"{word}-qemu", act=_qemu(at), steps=("memory", "switch")),
            Fault(name=f"{word}-power", act=_power(at), steps=("open", "memory", "close"), shared=True),
            Fault(name=f"{word}-disk", act=_detached(at), steps=("sync", "memory", "close")),
        )
    ),
)


def cases() -> list[Case]:
    """Every fault at each of its steps."""
    return [Case(fault=fault, step=step) for fault in FAULTS for step in fault.steps]


def case(text: str) -> Case:
    """The one that ``text`` names. Raises `ValueError`."""
    found = next((one for one in cases() if str(one) == text), None)
    if found is None:
        raise ValueError(f"there is no case {text}")
    return found
