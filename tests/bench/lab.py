"""``make bench-lab``: a move by ``lvmigrate migrate`` against the shortest correct sequence by hand and the seed's way.

All three move the same guest between the same two nodes, with the same bandwidth limit, in turn; the figures are the
medians of the ratios within a turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.bench.figure import show
from tests.bench.hand import Hand, Took
from vagrant.labkit import audit, guests
from vagrant.labkit.guests import WEB1
from vagrant.labkit.lab import NODES, Lab, other
from vagrant.labkit.witness import Witness

LVMIGRATE: Final = Path(sys.executable).parent / "lvmigrate"
_BANDWIDTH: Final = "2"


def ours(lab: Lab, source: str) -> Took:
    """The command, from its start to its end; what went to the nodes is counted by its own log."""
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
        commands = sum("ran_on_node" in line for line in log)
    report = json.loads(done.stdout)
    copy_s = next(step["seconds"] for step in report["steps"] if step["name"] == "memory")
    return Took(total=total, dual_beyond_copy=report["dual_primary_s"] - copy_s, commands=commands)


def main() -> int:
    """Every figure; 1 if a goal does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.lab")
    parser.add_argument("--rounds", type=int, default=5, help="moves of each kind (5)")
    asked = parser.parse_args()
    took: dict[str, list[Took]] = {"ours": [], "hand": [], "seed": []}
    silences: dict[str, list[float]] = {"ours": [], "hand": [], "seed": []}
    with Lab.open() as lab, Witness(lab, WEB1) as witness:
        guests.make(lab, WEB1, NODES[0])
        witness.alive()
        before = audit.settings(lab, WEB1)
        hand = Hand(lab, WEB1)
        ways: dict[str, Callable[[str], Took]] = {
            "ours": lambda source: ours(lab, source),
            "hand": hand.shortest,
            "seed": hand.as_the_seed,
        }
        source = NODES[0]
        try:
            for _ in range(asked.rounds):
                for name, way in ways.items():
                    witness.memory_verified()
                    mark = witness.listener.mark()
                    took[name].append(way(source))
                    source = other(source)
                    witness.alive()
                    silences[name].append(witness.listener.longest_gap(mark))
            faults = [*witness.faults(), *audit.violations(lab, WEB1, source, before)]
        finally:
            guests.remove(lab, WEB1)
    if faults:
        raise AssertionError("; ".join(faults))
    return 0 if _shown(took, silences) else 1


def _shown(took: dict[str, list[Took]], silences: dict[str, list[float]]) -> bool:
    def ratios(other_way: str, value: Callable[[Took], float]) -> float:
        pairs = zip(took["ours"], took[other_way], strict=True)
        return statistics.median(value(mine) / value(theirs) for mine, theirs in pairs)

    def each(value: Callable[[Took], float]) -> dict[str, float]:
        return {f"{name}_s": round(statistics.median(map(value, them)), 2) for name, them in took.items()}

    detail = {
        **each(lambda one: one.total),
        "downtime_ms": {name: round(1000 * statistics.median(them)) for name, them in silences.items()},
        "commands_to_nodes": {name: statistics.median(one.commands for one in them) for name, them in took.items()},
        "ours": "the command with its start, checks, tokens, guards, strict switch, proof",
        "hand": "drbdsetup and virsh migrate --p2p by ssh over one kept connection a node; no look, no guard",
        "seed": "demote, disconnect both, connect with two primaries, polls of 1 s and 2 s, and back",
    }
    beyond = each(lambda one: one.dual_beyond_copy)
    return all(
        [
            show("lab_move_ratio_to_hand", ratios("hand", lambda one: one.total), "", goal=1.0, higher=False, **detail),
            show("lab_move_ratio_to_seed_way", ratios("seed", lambda one: one.total), "", goal=0.6, higher=False),
            show(
                "lab_dual_primary_beyond_copy_ratio_to_hand",
                ratios("hand", lambda one: one.dual_beyond_copy),
                "",
                goal=0.7,
                higher=False,
                **beyond,
            ),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
