"""``make bench-lab``: a move by ``lvmigrate migrate`` against the shortest correct sequence by hand and the seed's way.

Correct is what keeps what lvmigrate promises (`Care.GUARDED`); less careful ways stand beside. All move the same guest
between the same two nodes, with the same bandwidth limit, in turn; the figures are the medians of the ratios of a turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from tests.bench.figure import show
from tests.bench.hand import Care, Hand, Took
from tests.bench.trips import Counter, counted
from vagrant.labkit import audit, guests
from vagrant.labkit.guests import WEB1
from vagrant.labkit.lab import NODES, Lab, other
from vagrant.labkit.witness import Witness

LVMIGRATE: Final = Path(sys.executable).parent / "lvmigrate"
_BANDWIDTH: Final = "2"


def ours(lab: Lab, source: str, trips: Counter) -> Took:
    """The command, from its start to its end."""
    trips.begin()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        words = [str(LVMIGRATE), "migrate", WEB1.name, "--to", other(source), "--json", "--bandwidth", _BANDWIDTH]
        begin = time.monotonic()
        done = subprocess.run(
            [*words, "--config", str(lab.config), "--log-level", "debug"],
            stdout=subprocess.PIPE,
            stderr=log,
            stdin=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        total = time.monotonic() - begin
        log.seek(0)
        logged = log.read()
    dual_s = json.loads(done.stdout)["dual_primary_s"]
    return Took(total=total, dual_beyond_copy=dual_s - call_s(logged), trips=trips.made(logged))


def call_s(logged: str) -> float:
    """Seconds of libvirt's migrate call, from the moment it was made until it had returned, by the command's log."""
    lines = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
    at = {line["event"]: datetime.fromisoformat(line["timestamp"]) for line in lines if "event" in line}
    return (at["copy_call_ended"] - at["copy_call_began"]).total_seconds()


def main() -> int:
    """Every figure; 1 if a goal does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.lab")
    parser.add_argument("--rounds", type=int, default=5, help="moves of each kind (5)")
    asked = parser.parse_args()
    took: dict[str, list[Took]] = {}
    silences: dict[str, list[float]] = {}
    with counted() as trips, Lab.open() as lab, Witness(lab, WEB1) as witness:
        guests.make(lab, WEB1, NODES[0])
        witness.alive()
        before = audit.settings(lab, WEB1)
        hand = Hand(lab, WEB1, trips)
        ways: dict[str, Callable[[str], Took]] = {
            "ours": lambda source: ours(lab, source, trips),
            "hand": partial(hand.move, care=Care.GUARDED),
            "hand_with_looks": partial(hand.move, care=Care.LOOKS),
            "hand_without_looks": partial(hand.move, care=Care.BLIND),
            "seed": hand.as_the_seed,
        }
        source = NODES[0]
        try:
            for number in range(asked.rounds):
                # One later each time, so that each of them goes both ways.
                first = number % len(ways)
                for name, way in [*ways.items()][first:] + [*ways.items()][:first]:
                    witness.memory_verified()
                    mark = witness.listener.mark()
                    took.setdefault(name, []).append(way(source))
                    source = other(source)
                    witness.alive()
                    silences.setdefault(name, []).append(witness.listener.longest_gap(mark))
            faults = [*witness.faults(), *audit.violations(lab, WEB1, source, before)]
        finally:
            guests.remove(lab, WEB1)
    if faults:
        raise AssertionError("; ".join(faults))
    return 0 if shown(took, silences) else 1


def shown(took: dict[str, list[Took]], silences: dict[str, list[float]]) -> bool:
    """The figures; whether the goals hold."""

    def ratios(other_way: str, value: Callable[[Took], float]) -> float:
        pairs = zip(took["ours"], took[other_way], strict=True)
        return statistics.median(value(mine) / value(theirs) for mine, theirs in pairs)

    def each(value: Callable[[Took], float]) -> dict[str, float]:
        return {f"{name}_s": round(statistics.median(map(value, them)), 2) for name, them in took.items()}

    detail = {
        **each(lambda one: one.total),
        "downtime_ms": {name: round(1000 * statistics.median(them)) for name, them in silences.items()},
        "round_trips": {name: statistics.median(one.trips.total for one in them) for name, them in took.items()},
        "round_trips_by_kind": {name: dataclasses.asdict(them[-1].trips) for name, them in took.items()},
        "round_trip": "a command for ssh, a line for a shell that is kept open, a call of libvirt's",
        "ours": "the command with its start, checks, tokens, guards, strict switch, proof",
        "hand": "as hand_with_looks; a file keeps others away, a timer of systemd's closes after 60 s, and the guest"
        " arrives paused and is resumed once it is seen on the target alone, its disks in step",
        "hand_with_looks": "with drbdsetup status and show on both nodes before and after each act; nothing else",
        "hand_without_looks": "drbdsetup and virsh migrate --p2p by ssh over one kept connection a node; nothing else",
        "seed": "demote, disconnect both, connect with two primaries, polls of 1 s and 2 s, and back",
    }
    beyond = {
        **each(lambda one: one.dual_beyond_copy),
        "includes": "both nodes Primary, less libvirt's migrate call: for all from its being made until its return",
    }
    held = []
    for way, goal in (("hand", 1.0), ("hand_with_looks", None), ("hand_without_looks", None), ("seed", 0.6)):
        name = "seed_way" if way == "seed" else way
        total = ratios(way, lambda one: one.total)
        told = detail if way == "hand" else {}
        held.append(show(f"lab_move_ratio_to_{name}", total, "", goal=goal, higher=False, **told))
    for way, goal in (("hand", 0.7), ("hand_with_looks", None), ("hand_without_looks", None)):
        name = f"lab_dual_primary_beyond_copy_ratio_to_{way}"
        dual = ratios(way, lambda one: one.dual_beyond_copy)
        told = beyond if way == "hand" else {}
        held.append(show(name, dual, "", goal=goal, higher=False, **told))
    return all(held)


if __name__ == "__main__":
    sys.exit(main())
