"""``make soak``: moves, aborts and faults at random on the pair, by processes that live all the while; as root.

Two controllers share the work: a program that uses the Python API (`tests.bench.commanded`) and a service with jobs
(`tests.bench.served`), asked as ``lvmigrate --server`` asks it, whose events some follow all the while.  After each
round, whatever it was, a cleanup by one of them, an audit by the other, what plain virsh says of both hosts, and the
guests' own records.  When a round is over, nothing of it may be left in the controllers either: what each of the two
uses is noted then.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from lvmigrate.errors import LvmigrateError
from lvmigrate.plan import Options
from lvmigrate.progress import StepProgress
from lvmigrate.report import Report
from lvmigrate.service.remote import RemoteCluster
from tests.bench.commanded import Commanded, Order
from tests.bench.figure import show
from tests.bench.fit import steady
from tests.bench.picture import draw
from tests.bench.served import Served, served
from tests.bench.usage import Usage
from tests.pair.cluster import Description
from tests.pair.controller import MOMENTS
from tests.pair.guest import BUSY, SLOW_MIB_S, Guest
from tests.pair.host import Host, wait_until
from tests.pair.pair import Pair

_SEED: Final = 20261128
_GUESTS: Final = 3
#: Who follow the service's events from the beginning to the end.
_WATCHERS: Final = 20
#: The part of the time after which caches, pools and the allocator have what they need.
_WARM: Final = 0.2
#: How much more the process may have in the second half than in the first: the allocator's unevenness; a leak of
#: 10 KiB a round would be 2 MiB in the hundred and more rounds between the two halves' middles.
_RSS_MIB: Final = 3.0
#: The same of what is counted: one more in four times as long a run is none.
_COUNTED: Final = 0.25
#: One more is kept from the moment at which a call had to wait for another's end (hv/lines.py) until it breaks: with a
#: leak it would be one more for every few rounds.
_CONNECTIONS: Final = 1.0
#: What there is of ssh. No sshd is among what this project installs.
SSH: Final = (
    "the pair's hosts are reached by nsenter, so that no connection of ssh's is expected; the shells that are kept open"
    " on hosts, as over ssh, are among the children"
)
#: How long what a round has left in a controller may take to go, such as a thread that is just ending.
_REST_S: Final = 2.0
#: How long a controller that was killed keeps others waiting.
_LEASE_S: Final = 8.0


class Hand(Protocol):
    """One of the two controllers."""

    name: str

    def migrate(self, guest: str, target: str, options: Options) -> Order:
        """Begin."""

    def cleanup(self, guest: str) -> tuple[str, Any]:
        """``OK`` or a code, and what it says."""

    def audit(self) -> list[str]:
        """What it finds."""

    def usage(self) -> Usage:
        """What its process uses now."""


class Api:
    """The program."""

    name = "api"

    def __init__(self, process: Commanded) -> None:
        self._process = process

    def migrate(self, guest: str, target: str, options: Options) -> Order:
        changed = {"bandwidth_mib_s": options.bandwidth_mib_s}
        return self._process.start("migrate", guest=guest, target=target, options=changed)

    def cleanup(self, guest: str) -> tuple[str, Any]:
        return self._process.start("cleanup", guest=guest).outcome()

    def audit(self) -> list[str]:
        outcome, found = self._process.start("audit").outcome()
        return list(found) if outcome == "OK" else [f"{outcome}: {found}"]

    def usage(self) -> Usage:
        self._process.start("rest").outcome()
        return Usage.of(self._process.process.pid)


class Service:
    """The service, asked from here."""

    name = "service"

    def __init__(self, service: Served) -> None:
        self._served = service

    def migrate(self, guest: str, target: str, options: Options) -> Order:
        cancel = threading.Event()
        order = Order(cancel.set)

        def look(progress: StepProgress) -> None:
            if progress.memory is not None:
                order.under_way.set()

        def run(remote: RemoteCluster) -> str:
            report = remote.migrate(guest, target=target, options=options, on_progress=look, cancel=cancel)
            return report.target if isinstance(report, Report) else str(report.node)

        threading.Thread(target=lambda: order.ended(*self._outcome(run)), daemon=True).start()
        return order

    def cleanup(self, guest: str) -> tuple[str, Any]:
        return self._outcome(lambda remote: list(remote.cleanup(guest).acts))

    def audit(self) -> list[str]:
        def look(remote: RemoteCluster) -> list[str]:
            audit = remote.audit()
            return [str(found) for found in (*audit.findings, *audit.silent, *audit.under_way)]

        outcome, found = self._outcome(look)
        return list(found) if outcome == "OK" else [f"{outcome}: {found}"]

    def usage(self) -> Usage:
        return Usage.of(self._served.process.pid)

    def _outcome(self, act: Callable[[RemoteCluster], Any]) -> tuple[str, Any]:
        try:
            with self._served.remote() as remote:
                return "OK", act(remote)
        except LvmigrateError as error:
            return error.code.value, str(error)


class Soak:
    """What goes on."""

    def __init__(self, pair: Pair, described: Description, guests: list[Guest], hands: Sequence[Hand]) -> None:
        self.pair = pair
        self.described = described
        self.hands = list(hands)
        self.where: dict[str, Host] = {guest.name: pair.one for guest in guests}
        self.guests = {guest.name: guest for guest in guests}
        self.rounds: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.violations: list[str] = []

    def warm(self) -> None:
        """Each controller moves all of them at once, there and back: what it keeps for the next time is there then."""
        for hand in self.hands:
            for _ in range(2):
                for order in [self._start(hand, name, slow=False) for name in self.guests]:
                    self._ended(order, "OK")
                for guest in self.guests.values():
                    self._find(guest, "warm")

    def round(self, chance: random.Random) -> None:
        """One of everything that may come."""
        what = chance.choice(ROUNDS)
        name = f"{what.__name__.strip('_')}"
        self.rounds[name] += 1
        begin = time.monotonic()
        try:
            what(self, chance)
        except AssertionError as error:
            self._violated(f"round {self.rounds.total()} ({name}): {error}")
        first, second = chance.sample(self.hands, 2)
        for guest in self.guests.values():
            # What a round was sure of needs no cleanup; whoever does it finds nothing to do then.
            with self._in_haste(guest):
                outcome, said = first.cleanup(guest.name)
            if outcome != "OK":
                self._violated(f"round {self.rounds.total()} ({name}): cleanup of {guest.name}: {outcome} {said}")
            self._find(guest, name)
        for found in second.audit():
            self._violated(f"round {self.rounds.total()} ({name}): audit: {found}")
        print(f"{self.rounds.total()} {name} {time.monotonic() - begin:.1f} s", file=sys.stderr, flush=True)

    def _find(self, guest: Guest, name: str) -> None:
        """Where it runs now, once, and whole."""
        wait_until(lambda: len(self.pair.running(guest)) > 0, lambda: f"{guest.name}: {self.pair.states(guest)}")
        running = self.pair.running(guest)
        here = next(host for host in self.pair.hosts if host.name == running[0])
        self.where[guest.name] = here
        try:
            wait_until(
                lambda: not self.pair.violations(guest, on=here),
                lambda: "; ".join(self.pair.violations(guest, on=here)),
                20,
            )
            guest.runs()
        except AssertionError as error:
            self._violated(f"round {self.rounds.total()} ({name}): {guest.name}: {error}")
        faults = guest.faults()
        if faults:
            self._violated(f"round {self.rounds.total()} ({name}): {guest.name}: {'; '.join(faults)}")

    def _violated(self, words: str) -> None:
        print(f"VIOLATION: {words}", file=sys.stderr, flush=True)
        self.violations.append(words)

    # ---- what may come

    def _begin(self, chance: random.Random, *, slow: bool) -> tuple[str, Order]:
        """A move to the other host whose memory is on its way; if ``slow``, it goes on until it is told otherwise."""
        name = chance.choice(list(self.guests))
        order = self._start(chance.choice(self.hands), name, slow=slow)
        assert order.under_way.wait(60), "no copy within a minute"
        return name, order

    def _start(self, hand: Hand, name: str, *, slow: bool) -> Order:
        options = Options(bandwidth_mib_s=SLOW_MIB_S if slow else None)
        return hand.migrate(name, self.pair.other(self.where[name]).name, options)

    def _ended(self, order: Order, *expected: str) -> None:
        outcome, said = order.outcome()
        self.outcomes[outcome] += 1
        assert not expected or outcome in expected, f"{outcome}: {said}"

    def moved(self, chance: random.Random) -> None:
        """A move that nothing disturbs."""
        name = chance.choice(list(self.guests))
        self._ended(self._start(chance.choice(self.hands), name, slow=False), "OK")

    def moved_together(self, chance: random.Random) -> None:
        """All of them at once, by whichever controller."""
        orders = [self._start(chance.choice(self.hands), name, slow=False) for name in self.guests]
        for order in orders:
            self._ended(order, "OK")

    def aborted(self, chance: random.Random) -> None:
        """A move that is asked to stop."""
        _, order = self._begin(chance, slow=True)
        time.sleep(chance.uniform(0, 2))
        order.cancel()
        self._ended(order, "ABORTED")

    def killed(self, chance: random.Random) -> None:
        """A command that dies at once, at whichever moment; it moves from the first host to the second."""
        here = [name for name, host in self.where.items() if host is self.pair.one]
        if not here:
            name = chance.choice(list(self.guests))
            self._ended(self._start(chance.choice(self.hands), name, slow=False), "OK")
            self._find(self.guests[name], "killed")
            here = [name]
        guest = self.guests[chance.choice(here)]
        moment = chance.choice(MOMENTS)
        words = [sys.executable, "-m", "tests.pair.controller", self.described.written(), guest.uuid, moment, "strict"]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as command:
            for _ in range(300):
                if command.poll() is not None:
                    break
                if guest.uuid in self.pair.one.virsh("list", "--uuid", check=False):
                    self.pair.one.virsh("migrate-setspeed", guest.uuid, "1000", check=False)
                time.sleep(0.2)
            else:
                command.kill()
        assert command.returncode == -9, f"{moment}: {command.returncode}"

    def daemon_killed(self, chance: random.Random) -> None:
        """libvirt's daemon of either host dies in mid-copy, and comes back."""
        name, order = self._begin(chance, slow=True)
        time.sleep(chance.uniform(0, 1))
        host = chance.choice(self.pair.hosts)
        host.kill_daemon()
        time.sleep(chance.uniform(0, 1))
        host.restart_daemon()
        self._hurried(name, order)

    def link_cut(self, chance: random.Random) -> None:
        """The wire between the hosts is cut in mid-copy, for less or more than they wait for each other."""
        name, order = self._begin(chance, slow=True)
        self.pair.one.link(up=False)
        try:
            time.sleep(chance.choice((0.5, 2, 8)))
        finally:
            self.pair.one.link(up=True)
        self._hurried(name, order)

    def _hurried(self, name: str, order: Order) -> None:
        """Let the copy end, if it has not; however it does."""
        while not order.over:
            self._hurry(self.guests[name])
            time.sleep(0.5)
        self._ended(order)

    @contextmanager
    def _in_haste(self, guest: Guest) -> Iterator[None]:
        """A slow copy that outlived who had begun it is watched to its end: it is to have one soon."""
        over = threading.Event()

        def hurry() -> None:
            while not over.wait(5):
                self._hurry(guest)

        hurrying = threading.Thread(target=hurry)
        hurrying.start()
        try:
            yield
        finally:
            over.set()
            hurrying.join()

    def _hurry(self, guest: Guest) -> None:
        for host in self.pair.hosts:
            host.virsh("migrate-setspeed", guest.uuid, "1000", check=False)


#: As often as it stands here.
ROUNDS: Final[tuple[Callable[[Soak, random.Random], None], ...]] = (
    *(Soak.moved,) * 4,
    *(Soak.moved_together,) * 2,
    *(Soak.aborted,) * 3,
    *(Soak.killed,) * 2,
    *(Soak.daemon_killed,) * 2,
    Soak.link_cut,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a controller used when a round was over, and when that was."""

    at_s: float
    usage: Usage


def main() -> int:
    """Soak, print, draw; 1 if a goal does not hold."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=_SEED)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    load = os.getloadavg()[0]
    samples: dict[str, list[Sample]] = {}
    with ExitStack() as stack:
        pair = stack.enter_context(Pair())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lvm-soak-")))
        described = dataclasses.replace(Description.of(pair), lease_s=_LEASE_S, call_timeout_s=30.0)
        guests = [pair.guest(f"web{number}", on=pair.one, load=BUSY) for number in range(_GUESTS)]
        program = stack.enter_context(Commanded(described, folder / "api"))
        service = stack.enter_context(served(described, folder / "service", at_once=_GUESTS))
        watchers = stack.enter_context(watching(service, 60 * asked.minutes))
        soak = Soak(pair, described, guests, (Api(program), Service(service)))
        soak.warm()
        begin = time.monotonic()
        while time.monotonic() - begin < 60 * asked.minutes:
            soak.round(chance)
            time.sleep(_REST_S)
            for hand in soak.hands:
                samples.setdefault(hand.name, []).append(Sample(at_s=time.monotonic() - begin, usage=hand.usage()))
        for guest in guests:
            guest.memory_verified()
            soak.violations += guest.faults()
        if watchers.poll() is not None:
            soak.violations.append("the service has ended a stream of events")
        service.stop()
    return 0 if told(soak, samples, asked.seed, [round(load, 1), round(os.getloadavg()[0], 1)]) else 1


@contextmanager
def watching(service: Served, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """With some who follow everything that the service tells, for longer than that; their process."""
    words = [sys.executable, "-m", "tests.bench.watchers", str(service.socket), str(_WATCHERS), str(2 * seconds + 3600)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as watchers:
        try:
            assert watchers.stderr is not None
            assert watchers.stderr.readline() == b"all follow\n"
            yield watchers
        finally:
            watchers.kill()


def told(soak: Soak, samples: dict[str, list[Sample]], seed: int, load: list[float]) -> bool:
    """The figures, and the pictures."""
    minutes = max(each[-1].at_s for each in samples.values()) / 60
    common = {"minutes": round(minutes, 1), "rounds": soak.rounds.total(), "seed": seed, "load": load}
    for what, words in (
        ("rss_mib", "MiB in memory"),
        ("files", "file descriptors but sockets"),
        ("threads", "threads"),
        ("children", "child processes"),
        ("ssh", "ssh's processes"),
        ("sockets", "sockets: libvirt's connections, and clients of the service"),
    ):
        curves = {
            name: [(sample.at_s / 60, float(getattr(sample.usage, what))) for sample in each]
            for name, each in samples.items()
        }
        title = "Moves, aborts and faults at random: when each round was over"
        draw(f"soak-{what.replace('_', '-')}", title, curves, across="minutes", up=words, marks=False)
    held = [
        show(
            "soak_violations",
            len(soak.violations),
            "",
            goal=0,
            higher=False,
            first=soak.violations[:3],
            kinds=dict(soak.rounds),
            outcomes=dict(soak.outcomes),
            includes="after each round: cleanup, audit, virsh's word on both hosts, the guests' own records",
            **common,
        )
    ]
    for name, what, unit, goal in (
        ("soak_rss_growth_mib", "rss_mib", "MiB", _RSS_MIB),
        ("soak_fd_growth", "files", "", _COUNTED),
        ("soak_threads_growth", "threads", "", _COUNTED),
        ("soak_children_growth", "children", "", _COUNTED),
        ("soak_connections_growth", "sockets", "", _CONNECTIONS),
        ("soak_ssh_growth", "ssh", "", _COUNTED),
    ):
        halves = {hand: growth(each, what) for hand, each in samples.items()}
        slopes = {hand: rise(each, what) for hand, each in samples.items()}
        held.append(
            show(
                name,
                max(*halves.values(), *slopes.values()),
                unit,
                goal=goal,
                higher=False,
                by_halves={hand: round(value, 2) for hand, value in halves.items()},
                by_slope={hand: round(value, 2) for hand, value in slopes.items()},
                first_and_last={hand: [value(each[0], what), value(each[-1], what)] for hand, each in samples.items()},
                per_hour={hand: per_hour(each, what) for hand, each in samples.items()},
                includes="after a fifth to warm up, the median of the second half less that of the first; and the"
                " median slope between every two samples, for half of the time: the worst of both, of a program that"
                " uses the Python API and of the service",
                ssh=SSH,
                **common,
            )
        )
    return all(held)


def growth(samples: Sequence[Sample], what: str) -> float:
    """The median of the second half less that of the first one, without the beginning."""
    warm = samples[int(_WARM * len(samples)) :]
    half = len(warm) // 2
    if not half:
        return 0.0
    return statistics.median(value(s, what) for s in warm[half:]) - statistics.median(
        value(s, what) for s in warm[:half]
    )


def rise(samples: Sequence[Sample], what: str) -> float:
    """By how much it grows, by its slope, in the time between the middles of the two halves, without the beginning."""
    warm = _points(samples, what)
    return steady(warm) * (warm[-1][0] - warm[0][0]) / 2 if warm else 0.0


def per_hour(samples: Sequence[Sample], what: str) -> float:
    """By how much it grows in an hour, by all samples without the beginning."""
    return round(3600 * steady(_points(samples, what)), 2)


def _points(samples: Sequence[Sample], what: str) -> list[tuple[float, float]]:
    return [(sample.at_s, value(sample, what)) for sample in samples[int(_WARM * len(samples)) :]]


def value(sample: Sample, what: str) -> float:
    """What the process used of it then."""
    return round(float(getattr(sample.usage, what)), 1)


if __name__ == "__main__":
    sys.exit(main())
