"""Starting, ending and defining guests, over libvirt's own test driver: its real XML, its real metadata."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hv import LibvirtHypervisor
from lvmigrate.domain import DomainState
from lvmigrate.node import Node

#: The test driver's own guest.
UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"


@pytest.fixture
def hypervisor() -> Iterator[LibvirtHypervisor]:
    uri = "test:///default"
    node = Node(name="a", ssh=None, libvirt_uri=uri, peer_uri=uri, migration_address="a")
    made = LibvirtHypervisor({"a": node})
    yield made
    made.close()


def state(hypervisor: LibvirtHypervisor) -> DomainState:
    domain = hypervisor.domain("a", UUID)
    assert domain is not None
    return domain.state


def test_down_up_and_off(hypervisor: LibvirtHypervisor) -> None:
    assert state(hypervisor) is DomainState.RUNNING
    hypervisor.start("a", UUID)  # nothing: it runs
    hypervisor.shut_down("a", UUID)
    assert state(hypervisor) is DomainState.OFF
    hypervisor.start("a", UUID)
    assert state(hypervisor) is DomainState.RUNNING
    hypervisor.power_off("a", UUID)
    hypervisor.power_off("a", UUID)  # nothing: it is off
    assert state(hypervisor) is DomainState.OFF


def test_a_definition_with_a_tombstone_and_without(hypervisor: LibvirtHypervisor) -> None:
    hypervisor.power_off("a", UUID)
    text = hypervisor.definition("a", UUID)
    assert text is not None
    hypervisor.define("a", text, left_on="node-1.example")
    domain = hypervisor.domain("a", UUID)
    assert domain is not None
    assert (domain.left_on, domain.persistent, domain.autostart) == ("node-1.example", True, False)
    again = hypervisor.definition("a", UUID)
    assert again is not None
    # It goes with the definition, and while the guest runs.
    hypervisor.start("a", UUID)
    running = hypervisor.domain("a", UUID)
    assert running is not None
    assert running.left_on == "node-1.example"
    hypervisor.power_off("a", UUID)
    hypervisor.define("a", again)
    cleared = hypervisor.domain("a", UUID)
    assert cleared is not None
    assert cleared.left_on is None


def test_what_is_not_there_has_no_definition(hypervisor: LibvirtHypervisor) -> None:
    hypervisor.power_off("a", "00000000-0000-0000-0000-000000000001")
    assert hypervisor.definition("a", "00000000-0000-0000-0000-000000000001") is None
