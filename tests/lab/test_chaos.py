"""`make chaos`: the bare commands meet both disasters, lvmigrate meets none; and what is interrupted leaves nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from vagrant.chaos.stage import GUEST, SOURCE
from vagrant.labkit import guests
from vagrant.labkit.lab import Lab

pytestmark = pytest.mark.long
CHAOS = (sys.executable, "-m", "vagrant.chaos")


@pytest.fixture(autouse=True)
def tidy(lab: Lab) -> Iterator[None]:
    """Whatever became of it, the lab is as the other tests want it."""
    yield
    assert guests.where(lab, GUEST) == {"node1": "", "node2": ""}
    seen = lab.both(
        f"iptables-save | grep lvmigrate-lab; ls /run/lvmigrate 2>/dev/null; drbdadm dstate {GUEST.resource}"
    )
    assert set(seen.values()) == {"UpToDate/UpToDate\n"}


def test_both_disasters(lab: Lab) -> None:
    done = subprocess.run([*CHAOS, "--json"], capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    halves = {(half["disaster"], half["who"]): half for half in told["halves"]}
    assert {key: half["copies"] for key, half in halves.items()} == {
        (1, "bare"): 2,
        (1, "lvmigrate"): 1,
        (2, "bare"): 1,
        (2, "lvmigrate"): 1,
    }
    for (_, who), half in halves.items():
        assert half["as_promised"], half
        assert (half["records_lost"] == 0) == (who == "lvmigrate"), half
        assert any(fact["command"] == "virsh -q list" for fact in half["facts"])
    assert "\033[" not in done.stderr, "colour is for terminals"


def test_an_interruption_leaves_the_lab_in_order(lab: Lab) -> None:
    """In the middle of a fault, with a copy under way."""
    with subprocess.Popen(
        [*CHAOS, "--only", "2"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as play:
        assert play.stdout is not None
        for line in play.stdout:
            if line.startswith("!!"):
                break
        assert "lvmigrate-lab" in lab.run(SOURCE, "iptables-save")
        play.send_signal(signal.SIGINT)
        rest, _ = play.communicate(timeout=300)
    assert play.returncode == 130, rest
    assert "Traceback" not in rest
    assert "the lab is in order" in rest
