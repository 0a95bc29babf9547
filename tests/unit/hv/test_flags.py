"""Options as libvirt's flags and parameters: what is asked for, and what is never passed."""

from __future__ import annotations

import dataclasses

import libvirt
import pytest
from hypothesis import given

from hv import flags
from hv.ports import Ports
from lvmigrate.domain import DomainState
from lvmigrate.errors import Code, CommandFailed
from lvmigrate.node import Node
from lvmigrate.plan import Compression, Mode, Options, Switch
from tests.unit.fakes import guest, node_of
from tests.unit.test_options import OPTIONS

NEVER = (
    libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_NON_SHARED_DISK
    | libvirt.VIR_MIGRATE_NON_SHARED_INC
    | libvirt.VIR_MIGRATE_UNSAFE
    | libvirt.VIR_MIGRATE_TUNNELLED
    | libvirt.VIR_MIGRATE_OFFLINE
)
RUNNING, PAUSED = guest("node1"), guest("node1", state=DomainState.PAUSED)


@given(OPTIONS)
def test_what_holds_for_every_combination(options: Options) -> None:
    for domain in (RUNNING, PAUSED):
        for switch in Switch:
            chosen = dataclasses.replace(options, switch=switch)
            found = flags.flags(domain, chosen)
            assert not found & NEVER
            assert found & libvirt.VIR_MIGRATE_PEER2PEER
            assert bool(found & libvirt.VIR_MIGRATE_LIVE) is (options.mode is not Mode.NON_LIVE)
            # libvirt refuses the two together; without the first, and asked to be strict, it must arrive paused.
            post_copy, paused = found & libvirt.VIR_MIGRATE_POSTCOPY, found & libvirt.VIR_MIGRATE_PAUSED
            assert not (post_copy and paused)
            assert bool(paused) is (not post_copy and switch is Switch.STRICT)
            assert not (domain is PAUSED and post_copy)
            assert None not in flags.parameters(domain, chosen, node_of("node2"), None).values()


def test_everything_that_can_be_asked_for_together() -> None:
    options = Options(
        bandwidth_mib_s=100,
        auto_converge=True,
        throttle_initial=30,
        throttle_increment=15,
        compression=Compression.ZSTD,
        compression_level=7,
        connections=4,
        tls=True,
    )
    peer = dataclasses.replace(
        node_of("node2"), migration_address="fe80::1", listen_address="::", tls_name="node2.example"
    )
    assert flags.parameters(RUNNING, options, peer, 49160) == {
        "migrate_uri": "tcp://[fe80::1]:49160",
        "listen_address": "::",
        "bandwidth": 100,
        "auto_converge.initial": 30,
        "auto_converge.increment": 15,
        "compression": "zstd",
        "compression.zstd.level": 7,
        "parallel.connections": 4,
        "tls.destination": "node2.example",
    }
    wanted = (
        libvirt.VIR_MIGRATE_AUTO_CONVERGE
        | libvirt.VIR_MIGRATE_COMPRESSED
        | libvirt.VIR_MIGRATE_PARALLEL
        | libvirt.VIR_MIGRATE_TLS
    )
    assert flags.flags(RUNNING, options) & wanted == wanted


def test_the_bandwidth_of_a_post_copy() -> None:
    options = Options(mode=Mode.POST_COPY, bandwidth_mib_s=5, postcopy_bandwidth_mib_s=50)
    assert flags.parameters(RUNNING, options, node_of("node2"), None) == {
        "migrate_uri": "tcp://node2",
        "bandwidth": 5,
        "bandwidth.postcopy": 50,
    }


def test_ports() -> None:
    ports, anywhere = Ports(), node_of("node2")
    ranged = dataclasses.replace(anywhere, migration_ports=(1000, 1002))
    assert ranged.spare_port == 1002
    with ports.taken(anywhere) as none:
        assert none is None
    with ports.taken(ranged) as first, ports.taken(ranged) as second:
        assert (first, second) == (1000, 1001)
        with pytest.raises(CommandFailed, match="one of the ports 1000-1002") as caught, ports.taken(ranged):
            raise AssertionError("a port outside of the range, or the one that is kept free")
        assert caught.value.code is Code.PORTS_TAKEN
    with ports.taken(ranged) as again:
        assert again == 1000
    with ports.taken(ranged) as other:
        assert other == 1001  # not the one that was used last: a port lingers after its connection
    alone = dataclasses.replace(anywhere, name="node3", migration_ports=(1000, 1000))
    with ports.taken(alone) as only:
        assert (only, alone.spare_port) == (1000, None)


def test_a_node_is_called_as_its_certificate_says() -> None:
    node: Node = node_of("node2")
    assert node.certified_name == "node2"
    assert dataclasses.replace(node, tls_name="n2").certified_name == "n2"
