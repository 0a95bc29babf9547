"""What the lab's tests share beside their fixtures."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vagrant.labkit import audit
from vagrant.labkit.guests import Guest
from vagrant.labkit.lab import NODES, Lab, other
from vagrant.labkit.witness import Witness

LVMIGRATE = Path(sys.executable).parent / "lvmigrate"
T = TypeVar("T")
_AUDIT = threading.Lock()


def side_by_side(*work: Callable[[], T]) -> list[T]:
    """Do it all at the same time, and wait for all of it: most of the lab's time is spent waiting.

    What each returned, in order. One that fails does not end the others; every failure is told.
    """
    with ThreadPoolExecutor(len(work)) as pool:
        futures = [pool.submit(one) for one in work]
    failures = [error for future in futures if (error := future.exception()) is not None]
    if failures:
        raise failures[0] if len(failures) == 1 else BaseExceptionGroup("side by side", failures)
    return [future.result() for future in futures]


def acquaint(lab: Lab) -> None:
    """Have each node's libvirt reach the other's once: on an emulated node the first time is slow."""
    for node in NODES:
        lab.run(node, f"virsh -q -c qemu+ssh://root@{other(node)}/system hostname")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Running:
    """A guest that runs, with what hears it and what was set on its resource before anything moved."""

    lab: Lab
    guest: Guest
    witness: Witness
    #: Where it was started.
    home: str
    before: dict[str, str]

    def whole_on(self, node: str) -> None:
        """Every audit and every record holds, with the guest on ``node``."""
        # With words of their own: pytest explains the assertions of tests and of conftest.py only.
        faults = self.heard_faults()
        # One at a time: the audit looks for processes that were left behind, and another one's would be some.
        with _AUDIT:
            faults += audit.violations(self.lab, self.guest, node, self.before)
        assert not faults, "; ".join(faults)

    def heard_faults(self) -> list[str]:
        """What the guest's memory, looked at once more, and its records on both nodes say against it."""
        heard = self.witness.memory_verified()
        return [*([f"bad pages: {heard}"] if heard.bad else []), *self.witness.faults()]
