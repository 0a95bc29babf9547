"""`--verify-disks`: DRBD compares both copies after the move; what differs is told, and mended as the hint says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lvmigrate import ExitCode
from tests.lab.support import Outcome, Running
from vagrant.labkit.guests import WEB1, Guest
from vagrant.labkit.lab import NODES, Lab

HOME, AWAY = NODES
_DIFFERS = "drbdsetup events2 --now --statistics web1 | grep -o 'out-of-sync:[0-9]*'"


@contextmanager
def quick(lab: Lab) -> Iterator[None]:
    """8.4 yields to a guest that writes until it does 250 KiB a second (c-min-rate): minutes for 64 MiB."""
    if lab.drbd_version().startswith("8."):
        lab.both("drbdsetup disk-options 0 --c-plan-ahead=0 --resync-rate=40M --c-min-rate=0")
    try:
        yield
    finally:
        lab.both("drbdadm adjust web1")


def test_what_differs_is_found_and_mended_as_the_hint_says(
    running: Callable[[Guest], Running], lvmigrate: Callable[..., Outcome], lab: Lab
) -> None:
    it = running(WEB1)
    with quick(lab):
        moved = lvmigrate("migrate", "web1", "--to", AWAY, "--verify-disks", "--json")
    assert moved.code == ExitCode.OK, moved.out + moved.err
    (same,) = moved.json["verified"]
    assert (same["resource"], same["volume"], same["out_of_sync_kib"], same["because"]) == ("web1", 0, 0, "")
    assert same["seconds"] > 0
    it.whole_on(AWAY)

    # Beneath DRBD, at the end of the copy that the guest is about to leave, where it has nothing.
    last = int(lab.run(AWAY, "blockdev --getsize64 /dev/drbd0")) // 4096 - 1
    lab.run(AWAY, f"dd if=/dev/urandom of={WEB1.backing[0]} bs=4096 seek={last} count=1 conv=notrunc oflag=direct")
    with quick(lab):
        moved = lvmigrate("migrate", "web1", "--to", HOME, "--verify-disks")
    assert moved.code == ExitCode.OK, moved.out + moved.err
    assert "compare: have DRBD compare both copies of every disk" in moved.err
    assert "web1/0 differs in 4 KiB" in moved.out
    assert "warning DISKS_DIFFER: 4 KiB of web1/0 differ between node1 and node2" in moved.out
    assert set(lab.run(HOME, _DIFFERS).split()) == {"out-of-sync:4"}
    report = lvmigrate("report", "last")
    assert "web1/0 differs in 4 KiB" in report.out, report.out

    if lab.drbd_version().startswith("8."):
        lab.run(AWAY, "drbdadm disconnect web1; drbdadm connect web1")
    else:
        shown = lab.run(HOME, "drbdsetup show web1")
        number = shown.partition("_peer_node_id")[2].split(";")[0].strip()
        lab.run(HOME, f"drbdsetup invalidate-remote web1 {number} 0 --reset-bitmap=no")
    lab.run(
        HOME,
        f'for i in $(seq 300); do [ "$({_DIFFERS})" = out-of-sync:0 ] && drbdadm dstate web1'
        " | grep -qx UpToDate/UpToDate && exit; sleep 0.2; done; exit 1",
    )
    end = [
        lab.read(node, f"dd if={WEB1.backing[0]} bs=4096 skip={last} count=1 iflag=direct status=none")
        for node in NODES
    ]
    assert end[0] == end[1]
    it.whole_on(HOME)
