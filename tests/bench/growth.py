"""``make bench-growth``: what a move costs the controller, and how that grows with volumes and with moves at once.

With volumes: the real steps and the real storage adapter, between two nodes whose kernels are played by another process
(`tests.bench.played`); each size in a process of its own, once to warm up and then counted.  With moves at once: whole
moves by `Cluster.migrate` on the pair, with a controller that is a process of its own; there and back.  As root.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import structlog

from lvmigrate import convergence
from lvmigrate.plan import Options
from tests.bench.figure import show
from tests.bench.fit import exponent, slope
from tests.bench.moved import Mover
from tests.bench.picture import draw
from tests.bench.played import played
from tests.bench.usage import Usage
from tests.pair.cluster import Description
from tests.pair.guest import CALM
from tests.pair.pair import Pair

_SEED: Final = 20261128
_VOLUMES: Final = (1, 4, 16, 64)
_MOVES: Final = (1, 5, 10, 20)
#: The copy of one guest takes ten seconds then.
_OPTIONS: Final = Options(bandwidth_mib_s=4, policy=convergence.PATIENT)
_KEEPALIVE: Final = (5, 12)
#: How often a controller is looked at while it works, in seconds.
_LOOK_S: Final = 0.05
#: The exponent that still counts as proportional.
_STRAIGHT: Final = 1.2
#: The seconds of CPU and the MiB that one more move may cost.
_MOVE_CPU_S: Final = 1.0
_MOVE_MIB: Final = 4.0

Took = dict[str, float]


def main() -> int:
    """Both parts; 1 if a goal does not hold."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth")
    parser.add_argument("--only", choices=("volumes", "moves"))
    parser.add_argument("--moves", type=int, default=_MOVES[-1], help="the most moves at once (20)")
    parser.add_argument("--disks", nargs=2, type=int, metavar=("RESOURCES", "VOLUMES"), help=argparse.SUPPRESS)
    parser.add_argument("--controller", metavar="PAIR", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.disks:
        print(json.dumps(disks(*asked.disks)))
        return 0
    if asked.controller:
        print(json.dumps(controller(Description.read(Path(asked.controller).read_text()), asked.moves)))
        return 0
    held = []
    if asked.only in (None, "volumes"):
        held.append(volumes())
    if asked.only in (None, "moves"):
        held.append(moves([number for number in _MOVES if number <= asked.moves]))
    return 0 if all(held) else 1


# ---- with volumes


def volumes() -> bool:
    """One guest with so many disks: each a resource of its own, and all of them volumes of one resource."""
    load = os.getloadavg()[0]
    shapes: dict[str, list[Took]] = {
        "resources of one volume": [_itself("--disks", str(number), "1") for number in _VOLUMES],
        "volumes of one resource": [_itself("--disks", "1", str(number)) for number in _VOLUMES],
    }
    curves = {
        what: {name: [(n, took[what]) for n, took in zip(_VOLUMES, each, strict=True)] for name, each in shapes.items()}
        for what in ("cpu_s", "seconds", "asked", "rss_mib", "threads", "fds", "children")
    }
    _pictures("volumes", "One move of a guest with so many disks", curves, across="disks")
    exponents = {name: exponent(points[-2:]) for name, points in curves["cpu_s"].items()}
    return show(
        "growth_exponent_volumes",
        max(exponents.values()),
        "",
        goal=_STRAIGHT,
        higher=False,
        by_shape={name: round(value, 3) for name, value in exponents.items()},
        disks=_VOLUMES,
        **{what: {name: [_short(y) for _, y in points] for name, points in c.items()} for what, c in curves.items()},
        load=[round(load, 1), round(os.getloadavg()[0], 1)],
        includes="the exponent of the controller's CPU seconds of one move between the two largest sizes, the median of"
        " three moves; asked: commands to both nodes; the most threads, files, children and memory meanwhile",
    )


def disks(resources: int, volumes: int) -> Took:
    """What moves of such a guest take this process."""
    with played(resources=resources, volumes=volumes, seed=_SEED) as nodes, tempfile.TemporaryDirectory() as folder:
        mover = Mover(nodes, resources=resources, volumes=volumes, journal=Path(folder) / "journal.sqlite")
        mover.move()
        nodes.notes()
        cpu, seconds, asked = [], [], []
        for _ in range(3):
            begin, before = time.monotonic(), time.process_time()
            mover.move()
            cpu.append(time.process_time() - before)
            seconds.append(time.monotonic() - begin)
            asked.append(nodes.notes()[1])
        with _looked_at() as most:  # which takes time itself
            mover.move()
        mover.close()
    return {
        "cpu_s": statistics.median(cpu),
        "seconds": statistics.median(seconds),
        "asked": statistics.median(asked),
        **most(),
    }


# ---- with moves at once


def moves(numbers: Sequence[int]) -> bool:
    """So many guests at once, there and back."""
    load = os.getloadavg()[0]
    with Pair(keepalive=_KEEPALIVE) as pair, tempfile.TemporaryDirectory() as folder:
        # Long leases: twenty moves at once on a busy machine are slow, not dead.
        described = dataclasses.replace(Description.of(pair), lease_s=60.0, call_timeout_s=60.0)
        file = Path(folder) / "pair.json"
        file.write_text(described.written())
        guests = [pair.guest(f"web{number}", on=pair.one, load=CALM) for number in range(numbers[-1])]
        took = [_itself("--controller", str(file), "--moves", str(number)) for number in numbers]
        for guest in guests:
            pair.whole(guest, on=pair.one)
    curves = {
        what: {"lvmigrate": [(n, each[what]) for n, each in zip(numbers, took, strict=True)]}
        for what in ("cpu_s", "rss_mib", "pss_mib", "threads", "fds", "children", "children_cpu_s")
    }
    _pictures("moves", "So many moves at once, there and back", curves, across="moves at once")
    cpu, rss = curves["cpu_s"]["lvmigrate"], curves["rss_mib"]["lvmigrate"]
    detail = {
        "moves": list(numbers),
        **{what: [_short(y) for _, y in curve["lvmigrate"]] for what, curve in curves.items()},
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }
    whose = "a controller in a process of its own; moves of ten seconds, there and back; the children's CPU apart"
    return all(
        [
            show(
                "growth_exponent_moves",
                exponent(cpu[-2:]),
                "",
                goal=_STRAIGHT,
                higher=False,
                includes=f"CPU seconds of {whose}; between the two largest numbers",
                **detail,
            ),
            show(
                "cpu_s_per_move",
                slope(cpu) / 2,
                "s",
                goal=_MOVE_CPU_S,
                higher=False,
                includes=f"what one more move costs: {whose}",
            ),
            show(
                "rss_mib_per_move",
                slope(rss),
                "MiB",
                goal=_MOVE_MIB,
                higher=False,
                includes=f"what one more move at once adds to the most that it had: {whose}",
            ),
        ]
    )


def controller(described: Description, number: int) -> Took:
    """What it takes this process."""
    cluster, _ = described.cluster()

    def move(name: str, target: str) -> None:
        cluster.migrate(name, target=target, options=_OPTIONS)

    with cluster, ThreadPoolExecutor(max_workers=number) as pool, _looked_at() as most:
        before, children = time.process_time(), _children_cpu_s()
        for target in ("node2", "node1"):
            for done in [pool.submit(move, f"web{n}", target) for n in range(number)]:
                done.result()
        cpu = time.process_time() - before
    # Children are counted when they have ended, which the sessions do with the cluster.
    return {"cpu_s": cpu, "children_cpu_s": _children_cpu_s() - children, **most()}


def _children_cpu_s() -> float:
    spent = os.times()
    return spent.children_user + spent.children_system


# ---- how


@contextmanager
def _looked_at() -> Iterator[Callable[[], Took]]:
    """The most of each that this process had meanwhile."""
    seen: list[Usage] = [Usage.of()]
    over = threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_S):
            seen.append(Usage.of())

    looker = threading.Thread(target=look, daemon=True)
    looker.start()
    names = ("rss_mib", "pss_mib", "threads", "fds", "children")
    try:
        yield lambda: {name: max(float(getattr(usage, name)) for usage in seen) for name in names}
    finally:
        over.set()
        looker.join()


def _itself(*words: str) -> Took:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.growth", *words], stdout=subprocess.PIPE, text=True, check=True
    )
    took: Took = json.loads(done.stdout)
    return took


def _pictures(name: str, title: str, curves: dict[str, dict[str, Any]], *, across: str) -> None:
    words = {
        "cpu_s": "CPU seconds of the controller",
        "children_cpu_s": "CPU seconds of its children",
        "seconds": "seconds",
        "asked": "commands to both nodes",
        "rss_mib": "MiB in memory at the most",
        "pss_mib": "MiB in memory at the most, shared pages divided",
        "threads": "threads at the most",
        "fds": "file descriptors at the most",
        "children": "child processes at the most",
    }
    for what, each in curves.items():
        draw(f"growth-{name}-{what.replace('_', '-')}", title, each, across=across, up=words[what])


def _short(value: float) -> float:
    return round(value, 3)


if __name__ == "__main__":
    sys.exit(main())
