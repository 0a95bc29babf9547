"""Twenty guests that leave a node, against ``virsh migrate`` of the same guests: ``python -m tests.bench.drain``.

On the pair, in turn, with the same number at once and the same bandwidth each: by `Cluster.drain`, by as many threads
that run virsh, and (once) by virsh for one guest after the other.  Each copy of memory takes ten seconds, as
in ``make bench-hv``; with ``--memory 2``, a fifth of one: what is left then is the time of looking, proving and writing
down alone.  Every guest's memory and records are verified at the end.  Run by ``make bench-fleet``, as root.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from lvmigrate.cluster import Cluster
from lvmigrate.manner import Manner
from lvmigrate.node_states import State
from lvmigrate.sqlite_journal import SqliteJournal
from lvmigrate.traffic import Limits
from storage import SharedStorage
from tests.bench.figure import show
from tests.pair.cluster import DISKS, Description, PairShell
from tests.pair.guest import Guest, Load
from tests.pair.host import Host
from tests.pair.pair import Pair

_GUESTS: Final = 20
_AT_ONCE: Final = 4
#: What each copy gets of a budget of 54 MiB/s: three quarters of it, by four.
_MIB_S: Final = 10
_BUDGET_MIB_S: Final = 54
#: What is stamped of each guest's memory, and so sent, in MiB; and what it has more.
_STAMPED_MIB: Final = 100
_MORE_MIB: Final = 30
#: Pages of each that are verified, and stamped anew, in a second; and how long that may take for all of them, twice.
_RATE: Final = 128
_PATIENCE_S: Final = 900.0


class Bench:
    """Some guests that go there and back, all of them, this way and that."""

    def __init__(self, pair: Pair, cluster: Cluster, guests: list[Guest]) -> None:
        self._pair = pair
        self._cluster = cluster
        self._guests = guests
        self._here: Host = pair.one

    def drain(self) -> float:
        """By lvmigrate, with everything that it checks and proves."""
        limits = Limits(
            per_source=_AT_ONCE, per_target=_AT_ONCE, per_link=_AT_ONCE, at_once=_AT_ONCE, budget_mib_s=_BUDGET_MIB_S
        )
        there = self._pair.other(self._here)
        manner = Manner(limits=limits, options=self._cluster.options_of)

        def work() -> None:
            report = self._cluster.drain([self._here.name], manner=manner)
            assert len(report.moved) == len(self._guests), report.stayed

        took = self._timed("a drain", work)
        self._cluster.set_node(self._pair.other(there).name, State.ONLINE)
        return took

    def virsh(self, at_once: int) -> float:
        """By hand, so many at once."""
        there = self._pair.other(self._here)
        words = ("migrate", "--live", "--p2p", "--persistent", "--undefinesource", "--bandwidth", str(_MIB_S))

        def work() -> None:
            with ThreadPoolExecutor(max_workers=at_once) as pool:
                here = self._here
                ways = (there.node.peer_uri, f"tcp://{there.address}")
                for done in [pool.submit(here.virsh, *words, guest.name, *ways) for guest in self._guests]:
                    done.result()

        return self._timed(f"virsh, {at_once} at once", work)

    def _timed(self, what: str, work: Callable[[], None]) -> float:
        begin = time.monotonic()
        work()
        took = time.monotonic() - begin
        # The figure waits for the proof, which takes longer than what it proves.
        print(f"{what}: {took:.1f} s", file=sys.stderr, flush=True)
        self._here = self._pair.other(self._here)
        return took

    def verify(self) -> None:
        """Every guest runs once, with whole memory and records, after all of it."""
        with ThreadPoolExecutor(max_workers=len(self._guests)) as pool:
            list(pool.map(partial(self._pair.whole, on=self._here, patience_s=_PATIENCE_S), self._guests))


def _guest(pair: Pair, number: int, mib: int) -> Guest:
    """One whose whole memory was written: a page that never was is sent in no time."""
    load = Load(mib=mib, rate=_RATE, record_ms=200)
    return pair.guest(f"web{number}", on=pair.one, load=load, memory_mib=mib + _MORE_MIB)


def main() -> int:
    """Measure, print, and tell whether the goal holds: 0."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    parser = argparse.ArgumentParser(prog="python -m tests.bench.drain")
    parser.add_argument("--rounds", type=int, default=2, help="pairs of a drain and of virsh in parallel (2)")
    parser.add_argument("--guests", type=int, default=_GUESTS)
    parser.add_argument("--memory", type=int, default=_STAMPED_MIB, help="MiB of each guest that are sent (100)")
    asked = parser.parse_args()
    with Pair(keepalive=(5, 4)) as pair, tempfile.TemporaryDirectory() as directory:
        described = dataclasses.replace(Description.of(pair), lease_s=60.0, call_timeout_s=60.0)
        plain, hypervisor = described.cluster()
        journal = Path(directory) / "journal.sqlite"
        configuration = dataclasses.replace(plain.config, journal=journal)
        storage = SharedStorage(described.nodes, [DISKS], shell=PairShell(described.inside))
        with Cluster(configuration, hypervisor, storage, SqliteJournal(journal)) as cluster:
            guests = [_guest(pair, number, asked.memory) for number in range(asked.guests)]
            bench = Bench(pair, cluster, guests)
            bench.verify()  # by then each has written all of its memory, and not before
            drains: list[float] = []
            parallel: list[float] = []
            for number in range(asked.rounds):  # in turn, and each of them first as often
                if number % 2:
                    parallel.append(bench.virsh(_AT_ONCE))
                drains.append(bench.drain())
                if not number % 2:
                    parallel.append(bench.virsh(_AT_ONCE))
            alone = bench.virsh(1)
            bench.verify()
    ratios = [ours / by_hand for ours, by_hand in zip(drains, parallel, strict=True)]
    held = show(
        "drain_ratio_to_parallel_virsh",
        statistics.median(ratios),
        "",
        goal=1.15,
        higher=False,
        rounds=len(ratios),
        guests=asked.guests,
        at_once=_AT_ONCE,
        memory_mib=asked.memory,
        drain_s=round(statistics.median(drains), 1),
        parallel_virsh_s=round(statistics.median(parallel), 1),
        one_after_the_other_virsh_s=round(alone, 1),
        includes="drain: looking, the plan, every check (twice), every proof, the journal; virsh: the moves alone",
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
