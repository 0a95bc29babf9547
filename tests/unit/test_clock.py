"""The clock that deadlines are counted by."""

from __future__ import annotations

import subprocess
import sys

_DAY_S = 86_400
_AHEAD = "import time; from lvmigrate.clock import Clock; print(Clock().now() - time.monotonic())"


def test_the_time_in_which_the_machine_was_suspended_has_passed() -> None:
    """In a namespace where that was a day; the lease on a node is over by then, whatever was about to be done."""
    suspended = ["unshare", "--user", "--map-root-user", "--time", "--boottime", str(_DAY_S), "--fork"]
    done = subprocess.run(
        [*suspended, sys.executable, "-c", _AHEAD], capture_output=True, text=True, timeout=60, check=True
    )
    assert float(done.stdout) >= _DAY_S - 1
