"""A rehearsal on two real libvirt daemons: memory really arrives, and the guest has never been away."""

from __future__ import annotations

import dataclasses

import pytest

from lvmigrate.errors import LvmigrateError
from lvmigrate.plan import Options
from tests.pair.cluster import Description
from tests.pair.guest import BUSY, CALM, Load
from tests.pair.pair import Pair


@pytest.mark.parametrize("load", [BUSY, CALM], ids=["busy", "calm"])
def test_there_and_back_and_then_for_real(pair: Pair, load: Load) -> None:
    guest = pair.guest("web1", on=pair.one, load=load)
    cluster, _ = Description.of(pair).cluster()
    try:
        told = cluster.rehearse(guest.name, target="node2")
        assert told.memory_bytes > 0
        assert any(clause.startswith("QEMU on node2 started") for clause in told.proven)
        pair.whole(guest, on=pair.one)
        assert pair.states(guest)["node2"] == "-"
        found = cluster.audit()
        assert (found.findings, found.silent, found.under_way) == ((), (), ())
        report = cluster.migrate(guest.name, target="node2", options=Options())
        assert report.target == "node2"
        pair.whole(guest, on=pair.two)
    finally:
        cluster.close()


def test_what_only_the_target_knows_is_found(pair: Pair) -> None:
    """Its QEMU cannot listen on its address for memory: no check before tells, the rehearsal does."""
    guest = pair.guest("web1", on=pair.one)
    described = Description.of(pair)
    cluster, hypervisor = described.cluster()
    try:
        nodes = dict(described.nodes)
        nodes["node2"] = dataclasses.replace(nodes["node2"], listen_address="10.99.99.99")
        hypervisor._nodes = nodes
        with pytest.raises(LvmigrateError):
            cluster.rehearse(guest.name, target="node2")
        pair.whole(guest, on=pair.one)
        assert pair.states(guest)["node2"] == "-"
    finally:
        cluster.close()
