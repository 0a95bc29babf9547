"""The doctor on two real libvirt daemons: what it says of the pair, and of one whose daemon does not answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from lvmigrate.cluster import Cluster
from lvmigrate.errors import Code, ExitCode
from tests.pair.cluster import Description
from tests.pair.pair import Pair

#: What a daemon needs for the doctor to have nothing against it.
patient = pytest.mark.parametrize("keepalive", [(5, 4)], ids=["keepalive 20 s"])


@pytest.fixture
def cluster(pair: Pair) -> Iterator[Cluster]:
    made, _ = Description.of(pair).cluster()
    yield made
    made.close()


def said(cluster: Cluster) -> list[tuple[Code, str]]:
    """Code and sentence of what is complained of, without what this machine itself may lack."""
    complaints = [complaint.finding for complaint in cluster.doctor().complaints]
    return [(found.code, found.sentence) for found in complaints if found.code is not Code.PROGRAM_MISSING]


def test_a_pair_and_its_short_keepalive(pair: Pair, cluster: Cluster) -> None:
    guest = pair.guest("web1", on=pair.one)
    found = cluster.doctor()
    assert (found.nodes, found.silent, found.under_way) == (("node1", "node2"), (), ())
    # They see one clock, and run one libvirt and one QEMU.
    assert [(code, sentence.split(" gives up")[0]) for code, sentence in said(cluster)] == [
        (Code.KEEPALIVE_SHORT, "libvirt on node1"),
        (Code.KEEPALIVE_SHORT, "libvirt on node2"),
    ]
    pair.whole(guest, on=pair.one)


@patient
def test_a_disk_that_the_host_caches(pair: Pair, cluster: Cluster) -> None:
    def change(xml: str) -> str:
        assert "cache='none'" in xml
        return xml.replace("cache='none'", "cache='writeback'")

    pair.guest("web1", on=pair.one, change=change)
    ((code, sentence),) = said(cluster)
    assert (code, sentence.split(":")[0]) == (
        Code.DISK_CACHED,
        "node1 caches disk vda of web1 (cache='writeback')",
    )
    assert cluster.doctor().exit_code is ExitCode.REFUSED


@patient
def test_a_peer_that_is_not_reached(pair: Pair) -> None:
    described = Description.of(pair)
    wrong = dataclasses.replace(described.nodes["node2"], peer_uri="qemu+tcp://10.77.0.2:1/system")
    cluster, _ = dataclasses.replace(described, nodes={**described.nodes, "node2": wrong}).cluster()
    try:
        ((code, sentence),) = said(cluster)
        assert code is Code.PEER_UNREACHABLE
        assert sentence.startswith("libvirt on node1 cannot connect to node2's (")
        assert "Connection refused" in sentence
    finally:
        cluster.close()


@patient
def test_a_daemon_that_is_gone(pair: Pair, cluster: Cluster) -> None:
    guest = pair.guest("web1", on=pair.one)
    pair.two.kill_daemon()
    found = cluster.doctor()
    assert (found.nodes, found.silent, found.exit_code) == (("node1",), ("node2",), ExitCode.UNREACHABLE)
    assert [complaint.finding.code for complaint in found.complaints][:1] == [Code.NODE_UNREACHABLE]
    pair.two.restart_daemon()
    assert cluster.doctor().silent == ()
    pair.whole(guest, on=pair.one)


def test_what_a_report_of_a_defect_needs(pair: Pair, cluster: Cluster) -> None:
    guest = pair.guest("web1", on=pair.one)
    for name in ("node1", "node2"):
        found = cluster._storage.evidence(name, guest.name)
        assert ("qemu-system-x86_64" in found.get("qemu", "")) is (name == "node1")
