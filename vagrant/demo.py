"""The demonstration: a guest on a DRBD disk goes from node1 to node2 and back while it runs, and proves that it did.

Run it by ``make demo``.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vagrant.labkit import audit, guests
from vagrant.labkit.lab import NODES, Lab
from vagrant.labkit.witness import Witness

LVMIGRATE: Final = Path(sys.executable).parent / "lvmigrate"
GUEST: Final = guests.WEB1


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say what is done and how long it took."""
    print(f"== {what} ...", flush=True)
    begin = time.monotonic()
    yield
    print(f"== {what}: {time.monotonic() - begin:.1f} s", flush=True)


def lvmigrate(lab: Lab, *words: str) -> None:
    """Run the command as an operator would."""
    print(f"\n$ lvmigrate {' '.join(words)}", flush=True)
    subprocess.run([LVMIGRATE, words[0], "--config", lab.config, *words[1:]], check=True)
    print(flush=True)


def main() -> int:
    """Run it; 0 when every proof holds."""
    with Lab.open() as lab:
        return demonstrate(lab)


def demonstrate(lab: Lab) -> int:
    """Move the guest there and back, and print the proof."""
    begin = time.monotonic()
    faults: list[str] = []
    lines: list[str] = []
    print(f"DRBD {lab.drbd_version()} on {' and '.join(NODES)}; configuration {lab.config}")
    with Witness(lab, GUEST) as witness:
        with timed(f"starting {GUEST.name} on {NODES[0]}, its disk on DRBD resource {GUEST.resource}"):
            guests.make(lab, GUEST, NODES[0])
            first = witness.alive()
        before = audit.settings(lab, GUEST)
        lvmigrate(lab, "status")
        for target in (NODES[1], NODES[0]):
            mark = witness.listener.mark()
            lvmigrate(lab, "migrate", GUEST.name, "--to", target)
            witness.alive()
            gap = witness.listener.longest_gap(mark)
            with timed("the guest verifies its memory, page by page; its records are read from both nodes' disks"):
                witness.memory_verified()
                faults += witness.faults()
                faults += audit.violations(lab, GUEST, target, before)
            lines.append(f"to {target}: longest silence between two records {gap * 1000:.0f} ms")
        last = witness.alive()
        verdict = witness.verdict(NODES[0])
    guests.remove(lab, GUEST)
    print("\nThe proof")
    print(f"  ran on        one run of the guest, records {first.n} to {last.n}, never started anew")
    print(
        f"  lost writes   {len(verdict.missing)} missing, {len(verdict.torn)} torn; on {NODES[0]}: {verdict.sentence}"
    )
    print(f"  memory        {last.passes} passes over it, {last.bad} bad pages")
    for line in lines:
        print(f"  downtime      {line} (heard from outside)")
    if last.run != first.run:
        faults.append("the guest was started anew")
    for fault in faults:
        print(f"  FAULT         {fault}")
    print(
        f"  audits        {'FAULTS, see above' if faults else 'one running copy, single-primary, nothing left behind'}"
    )
    print(f"\ndemo: {time.monotonic() - begin:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
