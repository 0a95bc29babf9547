"""What a move leaves behind: the definition as it was, many guests at once, a forecast that was about right."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from lvmigrate.cluster import Cluster
from lvmigrate.convergence import PATIENT
from lvmigrate.errors import Code
from lvmigrate.plan import Options
from tests.pair.cluster import Description
from tests.pair.guest import CALM, Load
from tests.pair.host import Host
from tests.pair.pair import Pair

pytestmark = pytest.mark.long


@pytest.fixture
def cluster(pair: Pair) -> Iterator[Cluster]:
    # Long leases: twenty moves at once on a busy machine are slow, not dead.
    cluster, _ = dataclasses.replace(Description.of(pair), lease_s=60.0, call_timeout_s=60.0).cluster()
    with cluster:
        yield cluster


def definition(host: Host, name: str) -> tuple[str, bool]:
    """The persistent XML, and whether it has autostart."""
    text = host.virsh("dumpxml", "--inactive", "--security-info", name)
    autostart = any(line.split() == ["Autostart:", "enable"] for line in host.virsh("dominfo", name).splitlines())
    return text, autostart


VARIABLES = "/run/fw/web1.vars"
_FIRMWARE = (
    f"<loader readonly='yes' type='pflash'>/run/fw/code</loader><nvram template='/run/fw/template'>{VARIABLES}</nvram>"
)


def firmware(host: Host, letter: str) -> None:
    """A firmware, and a template of its variables that is full of ``letter``."""
    template = f"head -c 128K /dev/zero | tr '\\0' {letter} >/run/fw/template"
    host.run(f"mkdir -p /run/fw && cp /usr/share/seabios/bios-256k.bin /run/fw/code && {template}")


def test_the_definition_is_the_same_before_and_after(pair: Pair, cluster: Cluster) -> None:
    one, two = pair.hosts
    firmware(one, "A")
    firmware(two, "B")
    guest = pair.guest("web1", on=one, load=CALM, change=lambda xml: xml.replace("</type>", f"</type>{_FIRMWARE}"))
    one.virsh("autostart", guest.name)
    one.virsh("desc", guest.name, "--config", "--live", "--title", "the web's first")
    one.virsh("desc", guest.name, "--config", "--live", "what it is for")
    named = ("--uri", "urn:example", "--key", "e", "--set", "<owner name='me'/>")
    one.virsh("metadata", guest.name, "--config", "--live", *named)
    one.virsh("setmaxmem", guest.name, "49152", "--config")  # what only the next start would see
    before = definition(one, guest.name)
    assert before[1]
    assert "49152" in before[0]
    cluster.migrate(guest.name, target="node2")
    assert definition(two, guest.name) == before
    assert set(two.run(f"cat {VARIABLES}")) == {"A"}, "the firmware's variables did not come along"
    pair.whole(guest, on=two)
    assert pair.states(guest)["node1"] == "-"
    cluster.migrate(guest.name, target="node1")
    assert definition(one, guest.name) == before
    assert pair.states(guest)["node2"] == "-"
    pair.whole(guest, on=one)


def test_a_definition_that_is_kept_starts_nothing(pair: Pair, cluster: Cluster) -> None:
    guest = pair.guest("web1", on=pair.one, load=CALM)
    one, two = pair.hosts
    one.virsh("autostart", guest.name)
    text, _ = definition(one, guest.name)
    keeping = Options(keep_definition=True)
    cluster.migrate(guest.name, target="node2", options=keeping)
    assert pair.states(guest)["node1"] == "shut off (migrated)"
    assert definition(one, guest.name) == (text, False)
    assert definition(two, guest.name) == (text, True)
    two.virsh("desc", guest.name, "--config", "--title", "changed meanwhile")
    changed, _ = definition(two, guest.name)
    cluster.migrate(guest.name, target="node1", options=keeping)
    assert pair.states(guest)["node2"] == "shut off (migrated)"
    assert definition(one, guest.name) == (changed, True)
    assert definition(two, guest.name) == (changed, False)
    cluster.migrate(guest.name, target="node2")
    assert pair.states(guest)["node1"] == "-"
    pair.whole(guest, on=two)


def test_twenty_guests_at_once_there_and_back(pair: Pair, cluster: Cluster) -> None:
    light = Load(mib=1, rate=20, record_ms=200)
    guests = [pair.guest(f"web{number}", on=pair.one, load=light) for number in range(20)]
    with ThreadPoolExecutor(max_workers=len(guests)) as pool:
        for host in (pair.two, pair.one):
            moves = [pool.submit(cluster.migrate, guest.name, target=host.name) for guest in guests]
            assert {move.result().target for move in moves} == {host.name}
            list(pool.map(partial(pair.whole, on=host), guests))  # each waits for two passes over its memory
    assert cluster.audit().findings == ()


def test_a_forecast_is_set_against_the_outcome(pair: Pair, cluster: Cluster) -> None:
    guest = pair.guest("web1", on=pair.one, load=Load(mib=20, rate=512))
    guest.memory_verified()  # every page was written
    options = Options(bandwidth_mib_s=8, forecast_s=2, policy=PATIENT)
    report = cluster.migrate(guest.name, target="node2", options=options)
    told = report.forecast
    assert told is not None
    assert told.link_rate == 8 << 20
    assert 0 < told.dirty_rate < 8 << 20
    assert told.seconds is not None
    print(f"forecast {told.seconds:.1f} s, outcome {report.copy_s:.1f} s, error {told.error_percent(report.copy_s)} %")
    assert report.copy_s > 1
    pair.whole(guest, on=pair.two)


def test_a_load_that_no_link_carries_is_told_before(pair: Pair, cluster: Cluster) -> None:
    guest = pair.guest("web1", on=pair.one, load=Load(mib=20, rate=8000))
    options = Options(bandwidth_mib_s=4, forecast_s=2)
    plan = cluster.check(guest.name, target="node2", options=options)
    assert plan.forecast is not None
    assert (plan.forecast.seconds, plan.forecast.advised) == (None, "post-copy")
    unlimited = cluster.check(guest.name, target="node2", options=dataclasses.replace(options, bandwidth_mib_s=None))
    assert [warning.code for warning in unlimited.warnings] == [Code.UNGUARDED, Code.NO_FORECAST]
    pair.whole(guest, on=pair.one)
