"""A drain's plan for a large fleet: ``python -m tests.bench.fleet``, run by ``make bench-fleet``.

A thousand nodes, twenty thousand guests, every one of which is to leave one half of the nodes for the other.  It is
measured from what the nodes say, which is in memory here, to the plan: a drain's whole way but for the asking.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

from tests.bench.figure import show
from tests.fleet import Landscape

_RUNS = 5


def main() -> int:
    """Measure, print, and tell whether all goals hold: 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="one plan in this process; prints what it took")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--guests", type=int, default=20_000)
    asked = parser.parse_args()
    if asked.once:
        print(json.dumps(once(asked.nodes, asked.guests)))
        return 0
    holds = True
    curve = []
    for share in (8, 4, 2, 1):  # how it grows
        words = [sys.executable, "-m", "tests.bench.fleet", "--once"]
        size = (asked.nodes // share, asked.guests // share)
        words += ["--nodes", str(size[0]), "--guests", str(size[1])]
        runs = [json.loads(subprocess.check_output(words, text=True)) for _ in range(_RUNS if share == 1 else 1)]
        curve.append({"nodes": size[0], "guests": size[1], "seconds": min(run["seconds"] for run in runs)})
    slowest = max(runs, key=lambda run: float(run["seconds"]))
    detail = {key: slowest[key] for key in ("nodes", "guests", "moves", "stays", "forecast_s")}
    detail |= {
        "runs": len(runs),
        "of": "the slowest run",
        "includes": "what every node says looked through, for each guest; assignment and schedule",
    }
    holds &= show("plan_seconds_1000_nodes", slowest["seconds"], "s", goal=2.0, higher=False, **detail, growth=curve)
    rss = max(float(run["rss_mib"]) for run in runs)
    holds &= show(
        "plan_rss_mib",
        rss,
        "MiB",
        goal=300.0,
        higher=False,
        includes="a new process: the interpreter, the generated fleet and its plan, at the highest",
    )
    return 0 if holds else 1


def once(nodes: int, guests: int) -> dict[str, float]:
    """Plan one fleet."""
    import resource  # noqa: PLC0415 -- only here

    from lvmigrate import fleet  # noqa: PLC0415 -- what it takes to import is part of the memory
    from lvmigrate.together import in_turn  # noqa: PLC0415
    from lvmigrate.traffic import Limits, plan  # noqa: PLC0415

    landscape = Landscape.of(nodes, guests, seed=1)
    in_turn.set(True)  # no call waits for anything here
    limits = Limits(at_once=4 * nodes)
    begin = time.perf_counter()
    seen = fleet.observe(landscape.context, landscape.question)
    made = plan(seen.left(), seen.travellers, limits)
    took = time.perf_counter() - begin
    assert len(made.legs) + len(made.stays) == guests
    return {
        "nodes": nodes,
        "guests": guests,
        "moves": len(made.legs),
        "stays": len(made.stays),
        "forecast_s": round(made.seconds),
        "seconds": took,
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    sys.exit(main())
