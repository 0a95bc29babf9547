"""Cases of the campaign that have broken a promise once: each was a defect, of the product or of what judges it."""

from __future__ import annotations

import pytest

from tests.campaign.cases import Case
from tests.campaign.run import run

CASES = [
    # An older copy was let run on a newer disk: nobody had said that the source's was handed over.
    "cleanup-after-copy 9/strict/running c2.disarm_guard@node1#1=TARGET_QEMU_KILLED",
    # One of two that have parted looks for the other: its node was started anew.
    "migrate-drbd-cut 8.4/strict/running c1.renew_token@node1#2=SOURCE_POWER_CUT",
    "migrate-drbd-cut 8.4/strict/running c1.renew_token@node1#2=TARGET_POWER_CUT",
    # The guest had been started on the target, and died with it: its definition was gone at the source.
    "failover 9-auto/strict/running c1.undefine@node1#1=TARGET_POWER_CUT",
    "failover 9/strict/running c1.undefine@node1#1=TARGET_POWER_CUT",
    # One refused look at the disks, and the guest that a failover had shut down stayed off for good.
    "cleanup-in-failover 9-auto/strict/running c2.observe@node1#5=REFUSED_BEFORE",
    "cleanup-in-failover 9/strict/running c2.observe@node2#5=REFUSED_BEFORE",
    # A failover from a dead node took the survivor's autostart, which was off, for that of the source.
    "failover-of-a-dead-node 9-auto/strict/running c1.take_token@node2#1=KILLED_AFTER",
    "failover-with-a-kept-definition 9-auto/strict/running c1.domains@node1#2=KILLED_BEFORE",
    # A start without an answer was taken for one that had failed, was undone, and came late.
    "failover-of-a-dead-node 9-auto/strict/running c1.start@node2#1=LATE",
    "failover-ignoring-consistency 9-auto/strict/running c1.start@node2#1=LATE",
    # The tombstone stayed for good where the guest was on the node that it names.
    "failover-of-a-dead-node 9-auto/strict/running c1.define@node2#1=KILLED_AFTER",
    "failover-with-a-kept-definition 9-auto/strict/running c1.renew_token@node2#5=TARGET_POWER_CUT",
    # The new definition could not be taken away again, and the token that says that it was new was dropped.
    "failover-with-a-kept-definition 9-auto/strict/running c1.observe@node2#4=TARGET_DAEMON_KILLED",
    # A resource that was down on one node was left out of all that is looked at, and its stale copy was let run.
    "cleanup-transient 9-auto/strict/running transfer#1=DRBD_CUT_LONG c2.domain@node1#1=SOURCE_RESOURCE_DOWN",
    "cleanup-transient 8.4/strict/running transfer#1=DRBD_CUT_LONG c2.domain@node1#1=SOURCE_RESOURCE_DOWN",
    # Of a guest that no libvirt knew any more nothing was closed, and the guards that would have were disarmed.
    "cleanup-transient 9-auto/strict/running transfer#1=DRBD_CUT_SHORT c2.domain@node1#1=TARGET_QEMU_KILLED",
    # A controller that woke late took a token that was gone, and undid what others had finished.
    "migrate-taken-over-and-shut-down 9-auto/strict/running transfer#1=CONTROLLER_STOPPED",
    # One that woke late ended the copy of somebody else's move.
    "migrate-taken-over-and-moved 9-auto/strict/running c1.copy_memory@node1#1=STOPPED_BEFORE",
    # One that woke late after its checks took the place of a move that was not finished, and with it its record.
    "migrate-taken-over-and-moved 9-auto/strict/running c1.guard_trouble@node2#1=STOPPED_BEFORE",
    # The plan of a move was made with a resource that had been brought down while it was looked at.
    "migrate 9-auto/strict/running c1.options@node1#1=TARGET_RESOURCE_DOWN",
    # No answer about a guest that a failover had shut down was taken for one that had stayed.
    "failover 9-auto/strict/running c1.watch.wait@#2=SOURCE_POWER_CUT",
    # A drain forgot that a move was left behind when the cleanup after it was refused.
    "drain 9-auto-ro/strict/running c1.restore_options@node2#1=REFUSED_BEFORE c1.two_primaries@node2#1=REFUSED_BEFORE",
    # The truth's own: a guest that was let run in mid-copy made the copy that was arriving an older one for good.
    "cleanup-in-copy-aborting 9-auto/strict/paused c2.openers@node2#2=TARGET_QEMU_KILLED c2.traces@node1#2=RESUMED",
]


@pytest.mark.parametrize("case", CASES)
def test_it_breaks_no_promise_any_more(case: str) -> None:
    outcome = run(Case.parse(case))
    assert outcome.met
    assert outcome.violations == []
