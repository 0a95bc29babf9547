"""``make bench-reaction``: from a kernel's word to the next command leaving, and from a command's start to its words.

Moves by the real steps run between two nodes whose kernels another process plays (`tests.bench.played`), with the
journal that a command has.  That process writes lines of events2 into the pipe of a stream, and reads the pipes of the
sessions in which calls of node.sh come: both clocks are its own, CLOCK_MONOTONIC.  What lies between is the
controller's: the pipe, parsing, the world, the waiting step, whatever it does before it asks for the next thing, and
that command written.  Of the target's promotion the end is libvirt's migrate call, and of a cut during the copy the
call that aborts it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from tests.bench.figure import percentile, show
from tests.bench.moved import Mover
from tests.bench.played import played

_SEED: Final = 20261128
#: What a command that only prints its help has no use for.
_HEAVY: Final = ("libvirt", "sh", "rich", "sqlite3", "msgspec", "starlette", "uvicorn", "httpx2", "prometheus_client")


def main() -> int:
    """Every figure; 1 if a goal does not hold."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    parser = argparse.ArgumentParser(prog="python -m tests.bench.reaction")
    parser.add_argument("--moves", type=int, default=150, help="moves that arrive, and as many that are cut (150)")
    parser.add_argument("--starts", type=int, default=20, help="starts of a command (20)")
    parser.add_argument("--only", choices=("reaction", "start"))
    asked = parser.parse_args()
    done = []
    if asked.only in (None, "reaction"):
        done.append(reaction(asked.moves))
    if asked.only in (None, "start"):
        done.append(start(asked.starts))
    return 0 if all(done) else 1


def reaction(moves: int) -> bool:
    """Four words of the kernels that a move waits for, or is stopped by."""
    waits: dict[str, list[float]] = {"in step": [], "Primary": [], "Secondary": [], "cut": []}
    load = os.getloadavg()[0]
    with played(resources=1, volumes=2, seed=_SEED) as nodes, tempfile.TemporaryDirectory() as directory:
        mover = Mover(nodes, resources=1, volumes=2, journal=Path(directory) / "journal.sqlite")
        mover.move()  # the sessions are opened with the first
        nodes.notes()
        for number in range(2 * moves):
            cut = bool(number % 2)
            nodes.cut(on=cut)
            _, job = mover.move(cut=cut)
            by_libvirt = {"Primary": job.began_at, "cut": job.aborted_at}
            for note in nodes.notes()[0]:
                came = by_libvirt[note.what] if note.came is None else note.came
                waits[note.what].append(1000 * (came - note.told))
        mover.close()
    every = [ms for kind in waits.values() for ms in kind]
    return show(
        "reaction_p99_ms",
        percentile(every, 99),
        "ms",
        goal=10,
        higher=False,
        reactions=len(every),
        p50_ms=round(percentile(every, 50), 3),
        max_ms=round(max(every), 3),
        p99_ms_by_word={what: round(percentile(kind, 99), 3) for what, kind in waits.items()},
        p50_ms_by_word={what: round(percentile(kind, 50), 3) for what, kind in waits.items()},
        moves=2 * moves,
        seed=_SEED,
        load=[round(load, 1), round(os.getloadavg()[0], 1)],
        includes="from the line written into a stream's pipe until the next command was read from a session's: pipes,"
        " parsing, world, step, journal; in step: the checks that are made again, of a libvirt that answers at once;"
        " Primary: until the copy is called for; cut: until abortJob is;"
        " the kernels are played by a process of this machine, which forks nothing",
    )


def start(times: int) -> bool:
    """``lvmigrate --help`` against an interpreter that does nothing, in turn."""
    bare = [sys.executable, "-c", "pass"]
    ours = [str(Path(sys.executable).with_name("lvmigrate")), "--help"]
    load = os.getloadavg()[0]
    took: dict[str, list[float]] = {"bare": [], "ours": []}
    cpu: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(times + 1):
        for name, words in (("bare", bare), ("ours", ours)):
            before = os.times()
            took[name].append(_timed(words))
            spent = os.times()
            seconds = spent.children_user + spent.children_system - before.children_user - before.children_system
            cpu[name].append(1000 * seconds)
    imported = heavy()
    took = {name: runs[1:] for name, runs in took.items()}  # the first reads files from the disk
    ms = statistics.median(took["ours"])
    held = show(
        "command_start_ms",
        ms,
        "ms",
        goal=150,
        higher=False,
        starts=times,
        bare_interpreter_ms=round(statistics.median(took["bare"]), 1),
        max_ms=round(max(took["ours"]), 1),
        cpu_ms={name: round(statistics.median(runs[1:])) for name, runs in cpu.items()},
        heavy_imports=imported,
        load=[round(load, 1), round(os.getloadavg()[0], 1)],
        includes="lvmigrate --help, from the start of its process to its end; the median",
    )
    return held and not imported


def _timed(words: Sequence[str]) -> float:
    begin = time.monotonic()
    subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return 1000 * (time.monotonic() - begin)


def heavy() -> list[str]:
    """Which of the modules that are slow to import are imported for ``lvmigrate --help``."""
    look = (
        "import contextlib, io, sys\n"
        "from lvmigrate.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        f"print(*(name for name in {_HEAVY!r} if name in sys.modules))\n"
    )
    return subprocess.check_output([sys.executable, "-c", look], text=True).split()


if __name__ == "__main__":
    sys.exit(main())
