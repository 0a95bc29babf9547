"""What the lab's tests share beside their fixtures."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vagrant.labkit import audit
from vagrant.labkit.guests import Guest
from vagrant.labkit.lab import Lab
from vagrant.labkit.witness import Witness

LVMIGRATE = Path(sys.executable).parent / "lvmigrate"


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
    before: dict[str, str]

    def whole_on(self, node: str) -> None:
        """Every audit and every record holds, with the guest on ``node``."""
        # With words of their own: pytest explains the assertions of tests and of conftest.py only.
        heard = self.witness.memory_verified()
        assert heard.bad == 0, heard
        faults = self.witness.faults() + list(audit.violations(self.lab, self.guest, node, self.before))
        assert not faults, "; ".join(faults)
