"""Everything that a move may be asked for, with real daemons and real QEMUs."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lvmigrate import convergence
from lvmigrate.cluster import Cluster
from lvmigrate.errors import Code, Refused
from lvmigrate.plan import Compression, Options
from lvmigrate.progress import StepProgress
from tests.pair.certificates import Authority
from tests.pair.cluster import Description
from tests.pair.guest import CALM, SLOW_MIB_S
from tests.pair.host import CERTIFICATES, Host, wait_until
from tests.pair.pair import Pair

pytestmark = pytest.mark.long


@pytest.fixture
def description(pair: Pair) -> Description:
    return Description.of(pair)


@pytest.fixture
def cluster(description: Description) -> Iterator[Cluster]:
    cluster, _ = description.cluster()
    with cluster:
        yield cluster


@pytest.mark.parametrize(
    "changes",
    [
        {"connections": 4},
        {"connections": 2, "compression": Compression.ZLIB, "compression_level": 3},
        {"connections": 2, "compression": Compression.ZSTD, "compression_level": 3},
        {"compression": Compression.XBZRLE, "auto_converge": True, "throttle_initial": 30, "throttle_increment": 15},
        {"bandwidth_mib_s": 100, "policy": convergence.PATIENT, "downtime_limit_s": 1.0},
    ],
    ids=["connections", "zlib", "zstd", "xbzrle and auto-converge", "bandwidth and downtime"],
)
def test_an_option_is_taken_by_libvirt(pair: Pair, cluster: Cluster, changes: dict[str, Any]) -> None:
    guest = pair.guest("web1", on=pair.one, load=CALM)
    report = cluster.migrate(guest.name, target="node2", options=Options(**changes))
    assert report.running
    pair.whole(guest, on=pair.two)


def test_memory_goes_where_the_configuration_says(pair: Pair, description: Description) -> None:
    nodes = {
        name: dataclasses.replace(node, listen_address=node.migration_address, migration_ports=(50000, 50001))
        for name, node in description.nodes.items()
    }
    guest = pair.guest("web1", on=pair.one)
    listening: list[str] = []

    def look(progress: StepProgress) -> None:
        if progress.memory is not None and not listening:
            listening.extend(pair.two.run("ss -Htn state established | awk '{print $3}'").split())
            pair.hurry(guest, on=pair.one)

    cluster, _ = dataclasses.replace(description, nodes=nodes).cluster()
    with cluster:
        options = Options(bandwidth_mib_s=SLOW_MIB_S, poll_s=0.1)
        cluster.migrate(guest.name, target="node2", options=options, on_progress=look)
    assert "10.77.0.2:50000" in listening
    pair.whole(guest, on=pair.two)


def test_progress_is_told_at_each_pass_and_at_the_interval(pair: Pair, cluster: Cluster) -> None:
    guest = pair.guest("web1", on=pair.one)
    cancel = threading.Event()
    seen: list[tuple[float, int, float]] = []

    def look(progress: StepProgress) -> None:
        if progress.memory is not None:
            seen.append((progress.elapsed_s, progress.memory.iteration, progress.memory.percent))
            if progress.memory.iteration >= 3:
                cancel.set()

    # The first job of the guest's QEMU is cancelled; the passes of the second are counted from 1 all the same.
    for interval_s in (0.2, 100.0):
        seen.clear()
        cancel.clear()
        options = Options(bandwidth_mib_s=SLOW_MIB_S, poll_s=interval_s, policy=convergence.PATIENT)
        with ThreadPoolExecutor(max_workers=1) as pool:
            pool.submit(
                cluster.migrate, guest.name, target="node2", options=options, on_progress=look, cancel=cancel
            ).exception(60)
        passes = [iteration for _, iteration, _ in seen]
        assert passes == sorted(passes)
        assert passes[0] in (0, 1)
        assert {2, 3} <= set(passes)  # by events alone, if the interval is long
        percents = [percent for _, _, percent in seen]
        assert percents == sorted(percents)
        assert percents[-1] <= 99
        assert interval_s > 1 or len(seen) >= 8
        pair.whole(guest, on=pair.one)


# ---- encrypted ----


def plain_text_packets(host: Host) -> int:
    """How many packets with the guest's own text in them the host has sent to ports of migrations, so far."""
    listed = host.run("iptables -nvxL OUTPUT | grep STRING")
    found = re.match(r"\s*(\d+)", listed)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("connections", [None, 2], ids=["one connection", "two"])
def test_nobody_reads_encrypted_memory(
    pair: Pair,
    cluster: Cluster,
    tmp_path: Path,
    connections: int | None,
    tls: bool,  # noqa: FBT001
) -> None:
    authority = Authority(tmp_path / "authority")
    for host in pair.hosts:
        authority.equip(host)
    guest = pair.guest("web1", on=pair.one, load=CALM)
    # Its command line, which stands in its memory.
    pair.one.run("iptables -I OUTPUT -p tcp --dport 49152:49215 -m string --algo bm --string 'record_ms=20' -j ACCEPT")
    cluster.migrate(guest.name, target="node2", options=Options(tls=tls, connections=connections))
    assert (plain_text_packets(pair.one) == 0) is tls
    pair.whole(guest, on=pair.two)


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        ("wrong name", Code.TLS_NAME),
        ("name only, memory goes to the address", Code.TLS_NAME),
        ("expired", Code.TLS_EXPIRED),
        ("another authority", Code.TLS_ISSUER),
        ("none", Code.TLS_MISSING),
    ],
)
def test_certificates_that_would_fail_are_refused_before_anything_starts(
    pair: Pair, cluster: Cluster, tmp_path: Path, trouble: str, code: Code
) -> None:
    authority = Authority(tmp_path / "authority")
    authority.equip(pair.one)
    match trouble:
        case "wrong name":
            authority.equip(pair.two, names=["DNS:other.example"])
        case "name only, memory goes to the address":
            authority.equip(pair.two, names=["DNS:node2"])
        case "expired":
            authority.equip(pair.two, expired=True)
        case "another authority":
            Authority(tmp_path / "another").equip(pair.two)
    guest = pair.guest("web1", on=pair.one, load=CALM)
    with pytest.raises(Refused) as caught:
        cluster.migrate(guest.name, target="node2", options=Options(tls=True))
    assert {finding.code for finding in caught.value.findings} == {code}
    assert CERTIFICATES in caught.value.findings[0].hint or code is Code.TLS_NAME or code is Code.TLS_EXPIRED
    pair.whole(guest, on=pair.one)


def test_a_name_of_the_configuration_stands_for_the_address(
    pair: Pair, description: Description, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "authority")
    nodes = {name: dataclasses.replace(node, tls_name=name) for name, node in description.nodes.items()}
    with ExitStack() as stack:
        cluster = stack.enter_context(dataclasses.replace(description, nodes=nodes).cluster()[0])
        for host in pair.hosts:
            authority.equip(host, names=[f"DNS:{host.name}"])
        guest = pair.guest("web1", on=pair.one, load=CALM)
        cluster.migrate(guest.name, target="node2", options=Options(tls=True))
        pair.whole(guest, on=pair.two)
    wait_until(lambda: not pair.two.run("ls /run/lvmigrate 2>/dev/null", check=False).strip(), "nothing is left")
