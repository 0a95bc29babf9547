"""A guest with a balloon, whose target has too little room for it, by this test's own figure of what is free."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

import pytest

from lvmigrate.cluster import Cluster
from lvmigrate.domain import Host as HostSeen
from lvmigrate.errors import Code, MoveAborted, Refused
from lvmigrate.plan import Options
from lvmigrate.progress import StepProgress
from tests.pair.cluster import Description
from tests.pair.guest import BUSY, CALM, SLOW_MIB_S
from tests.pair.host import Host, wait_until
from tests.pair.pair import Pair

pytestmark = pytest.mark.long

MIB = 1024
ALL_KIB = 32 * MIB
ROOM_KIB = 20 * MIB
ALLOWED = Options(allow_runtime_changes=True, bandwidth_mib_s=SLOW_MIB_S, poll_s=0.1)


@pytest.fixture
def cluster(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    cluster, hypervisor = Description.of(pair).cluster()
    ask = hypervisor.host

    def host(node: str) -> HostSeen:
        """As it is, but for the room on the target: for less than the guest has, and for its QEMU."""
        free_kib = ROOM_KIB + 64 * MIB + ALL_KIB // 512
        return dataclasses.replace(ask(node), free_memory_kib=free_kib) if node == "node2" else ask(node)

    monkeypatch.setattr(hypervisor, "host", host)
    with cluster:
        yield cluster


def with_balloon(xml: str) -> str:
    return xml.replace("<memballoon model='none'/>", "<memballoon model='virtio'/>")


def has_kib(host: Host) -> int:
    line = next(li for li in host.virsh("dominfo", "web1").splitlines() if li.startswith("Used memory"))
    return int(line.split()[2])


def has_all(host: Host) -> None:
    wait_until(lambda: has_kib(host) == ALL_KIB, lambda: f"{has_kib(host)} KiB on {host.name}")


def test_it_shrinks_to_fit_and_grows_again(pair: Pair, cluster: Cluster) -> None:
    guest = pair.guest("web1", on=pair.one, load=CALM, change=with_balloon)
    seen: list[int] = []

    def look(progress: StepProgress) -> None:
        if progress.memory is not None and not seen:
            seen.append(has_kib(pair.one))
            pair.hurry(guest, on=pair.one)

    report = cluster.migrate("web1", target="node2", options=ALLOWED, on_progress=look)
    assert Code.MEMORY_SHRINKS in [warning.code for warning in report.warnings]
    assert seen
    assert seen[0] <= ROOM_KIB
    has_all(pair.two)
    pair.whole(guest, on=pair.two)


def test_an_abort_gives_it_back(pair: Pair, cluster: Cluster) -> None:
    guest = pair.guest("web1", on=pair.one, load=BUSY, change=with_balloon)
    cancel = threading.Event()

    def look(progress: StepProgress) -> None:
        if progress.memory is not None:
            cancel.set()

    with pytest.raises(MoveAborted):
        cluster.migrate("web1", target="node2", options=ALLOWED, on_progress=look, cancel=cancel)
    has_all(pair.one)
    pair.whole(guest, on=pair.one)


def test_a_guest_without_a_balloon_is_refused(pair: Pair, cluster: Cluster) -> None:
    pair.guest("web1", on=pair.one, load=CALM)
    with pytest.raises(Refused) as caught:
        cluster.check("web1", target="node2", options=ALLOWED)
    assert [finding.code for finding in caught.value.findings] == [Code.MEMORY_SHORT]
