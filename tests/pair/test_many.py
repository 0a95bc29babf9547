"""Many calls to one node at once, and guests there that do not answer: nobody else may suffer from either."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hv import LibvirtHypervisor
from hv.lines import AT_ONCE
from lvmigrate.domain import DomainState, JobKind
from lvmigrate.errors import LvmigrateError
from lvmigrate.plan import Options
from tests.pair.guest import BUSY, CALM, SLOW_MIB_S
from tests.pair.host import Host, wait_until
from tests.pair.pair import Pair

#: How soon the daemon closes a client's connection that it hears nothing of, in seconds and times.
_INTERVAL_S, _COUNT = 1, 2


def test_more_copies_than_a_connection_carries(pair: Pair, hypervisor: LibvirtHypervisor) -> None:
    """With five calls on one connection the daemon hears no more of it, and closes it: all five would fail."""
    source = pair.one
    source.kill_daemon()
    with (source.folder / "etc/libvirtd.conf").open("a") as file:
        file.write(f"keepalive_interval = {_INTERVAL_S}\nkeepalive_count = {_COUNT}\n")
    source.restart_daemon()
    guests = [pair.guest(f"web{number}", on=source, load=BUSY) for number in range(AT_ONCE + 2)]
    copies = []
    for guest in guests:
        domain = hypervisor.domain(source.name, guest.uuid)
        assert domain is not None
        copies.append(hypervisor.copy_memory(domain, "node2", Options(bandwidth_mib_s=SLOW_MIB_S)))
    wait_until(lambda: all(copy.progress() is not None for copy in copies), "all copies are under way")
    until = time.monotonic() + 3 * _INTERVAL_S * (_COUNT + 1)
    while time.monotonic() < until:
        assert [copy.wait(0.05) for copy in copies] == [None] * len(copies)
        assert hypervisor.domain(source.name, guests[0].uuid) is not None
    for guest in guests:
        pair.hurry(guest, on=source)
    for copy in copies:
        wait_until(lambda copy=copy: copy.wait(1.0) is not None, "the copy has ended")  # type: ignore[misc]
        end = copy.wait(0)
        assert end is not None
        assert end.ok, end


def test_a_guest_that_does_not_answer_hides_no_other(pair: Pair, hypervisor: LibvirtHypervisor) -> None:
    """Its QEMU stands still, and somebody waits for it: who asks libvirt for its XML waits 30 s for nothing."""
    well, stuck, passing = (pair.guest(f"web{number}", on=pair.one, load=CALM) for number in range(3))
    pair.one.virsh("undefine", passing.uuid)
    hypervisor.suspend("node1", passing.uuid)
    with standing(pair.one, stuck.name), standing(pair.one, passing.name):
        for call, uuid in ((hypervisor.suspend, stuck.uuid), (hypervisor.resume, passing.uuid)):
            threading.Thread(target=attempted, args=(call, uuid), daemon=True).start()
        wait_until(lambda: occupied(pair.one, stuck.uuid) and occupied(pair.one, passing.uuid), "both are waited for")
        found = {domain.uuid: domain for domain in hypervisor.domains("node1")}
        assert found.keys() == {well.uuid, stuck.uuid, passing.uuid}
        looks = [(found[guest.uuid].state, found[guest.uuid].job) for guest in (well, stuck, passing)]
        assert looks == [
            (DomainState.RUNNING, JobKind.NONE),
            (DomainState.RUNNING, JobKind.OTHER),
            (DomainState.PAUSED, JobKind.OTHER),
        ]
        assert [found[guest.uuid].persistent for guest in (well, stuck, passing)] == [True, True, False]
        # What keeps others from its disk and its memory is known of it all the same.
        for guest in (stuck, passing):
            here = found[guest.uuid]
            assert [disk.source for disk in here.disks] == [guest.disk.path]
            assert here.memory_kib == found[well.uuid].memory_kib
    wait_until(lambda: looked(hypervisor, stuck.uuid) == (DomainState.PAUSED, JobKind.NONE), "it answers again")


def attempted(call: Callable[[str, str], None], uuid: str) -> None:
    with contextlib.suppress(LvmigrateError):
        call("node1", uuid)


def looked(hypervisor: LibvirtHypervisor, uuid: str) -> tuple[DomainState, JobKind]:
    (found,) = (domain for domain in hypervisor.domains("node1") if domain.uuid == uuid)
    return found.state, found.job


def occupied(host: Host, uuid: str) -> bool:
    said = re.fullmatch(r"occupied \(([\d.]+)s\)", host.virsh("domcontrol", uuid))
    return said is not None and float(said[1]) > 10.5


@contextmanager
def standing(host: Host, guest: str) -> Iterator[None]:
    """In the context, the guest's QEMU stands still."""
    (pid,) = host.qemus(guest)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
