"""``make bench-hv``: a move against ``virsh migrate --live --p2p`` of the same guest, in turn; on the pair, as root.

Both ways go between the same two libvirt daemons over the same wire, with the same bandwidth limit, which makes the
copy of this small guest take 10 s and more.  The disk is shared, so nothing of DRBD is in the figures; tokens are taken
and given back in each host's own namespace, as a move on real hosts does over ssh.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from hv import LibvirtHypervisor
from lvmigrate import convergence
from lvmigrate.cluster import Cluster
from lvmigrate.errors import MoveAborted
from lvmigrate.plan import Options, Switch
from lvmigrate.progress import StepProgress
from lvmigrate.report import Report
from tests.bench.figure import percentile, show
from tests.pair.cluster import Description
from tests.pair.guest import CALM, Guest, Load
from tests.pair.host import Host
from tests.pair.pair import Pair

_MIB_S: Final = 4
#: Dirtied at half of what is sent, which libvirt tells in whole MiB/s; nearly all of what the guest has, as it is with
#: a guest that has run for long. With 22 MiB a copy took 7.7 s, too little.
_LOAD: Final = Load(mib=34, rate=512, record_ms=20)
_MEMORY_MIB: Final = 38
_SEED: Final = 20261124
_OPTIONS: Final = Options(bandwidth_mib_s=_MIB_S, policy=convergence.PATIENT)
#: The fast switch wants a keepalive of 20 s.
_KEEPALIVE: Final = (5, 4)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """One move of the guest. Seconds."""

    #: From the call until the target's CPUs were seen running.
    until_running: float
    #: The longest silence that was heard of the guest.
    silence: float
    report: Report | None = None


class Bench:
    """A guest that goes there and back, this way and that."""

    def __init__(self, pair: Pair, cluster: Cluster, watcher: LibvirtHypervisor, guest: Guest) -> None:
        self.pair = pair
        self.cluster = cluster
        self.watcher = watcher
        self.guest = guest
        self.here: Host = pair.one

    def virsh(self) -> Took:
        """The guest moved by hand."""
        there = self.pair.other(self.here)
        return self._timed(
            lambda: self.here.virsh(
                "migrate",
                "--live",
                "--p2p",
                "--persistent",
                "--undefinesource",
                "--bandwidth",
                str(_MIB_S),
                self.guest.name,
                there.node.peer_uri,
                f"tcp://{there.address}",
            )
        )

    def ours(self, switch: Switch, *, forecast_s: int = 0) -> Took:
        """The guest moved by lvmigrate."""
        there = self.pair.other(self.here)
        options = dataclasses.replace(_OPTIONS, switch=switch, forecast_s=forecast_s)
        return self._timed(lambda: self.cluster.migrate(self.guest.name, target=there.name, options=options))

    def _timed(self, move: Callable[[], Report | str]) -> Took:
        there = self.pair.other(self.here)
        running: list[float] = []

        def event(node: str, what: str) -> None:
            if node == there.name and what.startswith("resumed"):
                running.append(time.monotonic())

        self.guest.runs()
        mark = self.guest.ear.mark()
        with self.watcher.on_change(self.guest.uuid, event):
            begin = time.monotonic()
            done = move()
        self.here = there
        self.guest.runs()
        return Took(
            until_running=running[-1] - begin,
            silence=self.guest.ear.longest_gap(mark),
            report=done if isinstance(done, Report) else None,
        )

    def check(self) -> float:
        """How long the checks before a move take."""
        begin = time.monotonic()
        self.cluster.check(self.guest.name, target=self.pair.other(self.here).name, options=_OPTIONS)
        return time.monotonic() - begin

    def abort(self, after_s: float) -> float:
        """From asking a move to stop, so long after its copy began, until it came back with everything undone."""
        cancel, under_way = threading.Event(), threading.Event()

        def look(progress: StepProgress) -> None:
            if progress.memory is not None:
                under_way.set()

        with ThreadPoolExecutor(max_workers=1) as pool:
            move = pool.submit(
                self.cluster.migrate,
                self.guest.name,
                target=self.pair.other(self.here).name,
                options=_OPTIONS,
                on_progress=look,
                cancel=cancel,
            )
            assert under_way.wait(300)
            time.sleep(after_s)
            begin = time.monotonic()
            cancel.set()
            outcome = move.exception()
            took = time.monotonic() - begin
            assert isinstance(outcome, MoveAborted), outcome
            return took


@contextmanager
def benched() -> Iterator[Bench]:
    """A new pair with its guest."""
    with Pair(keepalive=_KEEPALIVE) as pair:
        description = Description.of(pair)
        cluster, _ = description.cluster()
        watcher = LibvirtHypervisor(description.nodes)
        for host in pair.hosts:
            watcher.host(host.name)  # connected: its events come
        with cluster:
            guest = pair.guest("web1", on=pair.one, load=_LOAD, memory_mib=_MEMORY_MIB)
            guest.memory_verified()  # a page that was never written is sent in no time
            yield Bench(pair, cluster, watcher, guest)
        watcher.close()


def moves(rounds: int) -> bool:
    """Time and downtime against virsh, and what they are made of."""
    virsh: list[Took] = []
    strict: list[Took] = []
    fast: list[Took] = []
    checks: list[float] = []
    with benched() as bench:
        bench.virsh()  # daemons warm up with the first
        for _ in range(rounds):
            checks.append(bench.check())
            virsh.append(bench.virsh())
            strict.append(bench.ours(Switch.STRICT))
            fast.append(bench.ours(Switch.FAST))
        told = [bench.ours(Switch.STRICT, forecast_s=2) for _ in range(max(3, rounds // 3))]
        assert not bench.guest.faults(), bench.guest.faults()
    ratios = [ours.until_running / by_hand.until_running for ours, by_hand in zip(strict, virsh, strict=True)]
    copies = [took.until_running for took in virsh]
    held = [
        show(
            "move_ratio_to_virsh",
            statistics.median(ratios),
            "",
            goal=1.05,
            higher=False,
            pairs=rounds,
            virsh_s=round(statistics.median(copies), 3),
            ours_s=round(statistics.median([took.until_running for took in strict]), 3),
            includes="ours: checks, tokens, copy, strict switch; virsh: its start, copy; until the target's CPUs run",
        )
    ]
    for name, took, goal in (
        ("downtime_over_virsh_ms_strict", strict, 250.0),
        ("downtime_over_virsh_ms_fast", fast, 10.0),
    ):
        over = [1000 * (ours.silence - hand.silence) for ours, hand in zip(took, virsh, strict=True)]
        held.append(
            show(
                name,
                statistics.median(over),
                "ms",
                goal=goal,
                higher=False,
                virsh_ms=round(1000 * statistics.median([t.silence for t in virsh])),
                ours_ms=round(1000 * statistics.median([t.silence for t in took])),
                includes="the longest silence between two of the guest's records, which it writes every 20 ms",
            )
        )
    proofs = [
        1000 * sum(step.seconds for step in took.report.steps if step.name in ("switch", "close", "verify"))
        for took in strict
        if took.report is not None
    ]
    held += [
        show("prechecks_ms", 1000 * statistics.median(checks), "ms", goal=2000, higher=False),
        show(
            "proof_ms",
            statistics.median(proofs),
            "ms",
            goal=2000,
            higher=False,
            includes="the steps switch, close and verify: 0.3 s of it, twice, is looking whether the guest still lives",
        ),
    ]
    errors = [
        error
        for took in told
        if took.report is not None
        and took.report.forecast is not None
        and (error := took.report.forecast.error_percent(took.report.copy_s)) is not None
    ]
    return all(
        [
            *held,
            show(
                "forecast_error_percent_median",
                statistics.median(errors) if errors else 100.0,
                "%",
                goal=25,
                higher=False,
                moves=len(errors),
            ),
        ]
    )


def aborts(times: int) -> bool:
    """How soon a move that is asked to stop has put everything back."""
    chance = random.Random(_SEED)
    with benched() as bench:
        took = [bench.abort(chance.uniform(0, 3)) for _ in range(times)]
        bench.pair.whole(bench.guest, on=bench.pair.one)
    return show(
        "abort_p99_s",
        percentile(took, 99),
        "s",
        goal=1.0,
        higher=False,
        aborts=times,
        median_s=round(statistics.median(took), 3),
        seed=_SEED,
        includes="from the request until the call came back: job ended, both nodes asked, tokens given back",
    )


def memory() -> bool:
    """What a controller needs for 20 moves at once."""
    before = _rss_mib()
    most = before
    with Pair(keepalive=_KEEPALIVE) as pair:
        # Long leases: twenty moves at once on a busy machine are slow, not dead.
        cluster, _ = dataclasses.replace(Description.of(pair), lease_s=60.0, call_timeout_s=60.0).cluster()
        guests = [pair.guest(f"web{number}", on=pair.one, load=CALM) for number in range(20)]
        ears = _rss_mib() - before  # the listeners of this test are no part of it
        with cluster, ThreadPoolExecutor(max_workers=len(guests)) as pool:
            running = [pool.submit(cluster.migrate, guest.name, target="node2", options=_OPTIONS) for guest in guests]
            while not all(move.done() for move in running):
                most = max(most, _rss_mib())
                time.sleep(0.1)
            for move in running:
                move.result()
    return show(
        "rss_mib_20_moves",
        most - ears,
        "MiB",
        goal=200,
        higher=False,
        before_mib=round(before, 1),
        includes="this process with its interpreter and libraries, at its largest",
    )


def _rss_mib() -> float:
    line = next(li for li in Path("/proc/self/status").read_text().splitlines() if li.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main() -> int:
    """Every figure; 1 if a goal does not hold."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hv")
    parser.add_argument("--rounds", type=int, default=10, help="moves of each kind (10)")
    parser.add_argument("--aborts", type=int, default=20, help="aborted moves (20)")
    parser.add_argument("--only", choices=("moves", "aborts", "memory"))
    parser.add_argument("--quick", action="store_true", help="three moves of each kind and six aborts, for a look")
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.aborts = 3, 6
    done = []
    if asked.only in (None, "aborts"):
        done.append(aborts(asked.aborts))
    if asked.only in (None, "moves"):
        done.append(moves(asked.rounds))
    if asked.only in (None, "memory"):
        # Its own process: what the others needed is not counted.
        if asked.only == "memory":
            done.append(memory())
        else:
            again = subprocess.run([sys.executable, "-m", "tests.bench.hv", "--only", "memory"], check=False)
            done.append(again.returncode == 0)
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
