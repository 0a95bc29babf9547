"""How much memory a node has for another guest."""

from __future__ import annotations

import pytest

from lvmigrate import room
from lvmigrate.errors import Code, Refused
from lvmigrate.migrate import MigrateInstance
from tests.unit.fakes import World


@pytest.mark.parametrize(("available", "free"), [(1 << 19, 1 << 19), (1 << 21, 1 << 20), (None, 1 << 20)])
def test_the_smaller_word_counts(available: int | None, free: int) -> None:
    """libvirt counts as free what guests share and what lies in tmpfs; the kernel does not."""
    context = World(available_kib={} if available is None else {"node2": available}).context()
    assert context.hypervisor.host("node2").free_memory_kib == 1 << 20
    assert room.host(context.hypervisor, context.storage, "node2").free_memory_kib == free


def test_a_node_that_is_full_of_memory_that_guests_share_takes_no_guest() -> None:
    with pytest.raises(Refused) as caught:
        MigrateInstance(World(available_kib={"node2": 1}).context(), "web1").check_prereq()
    assert [finding.code for finding in caught.value.findings] == [Code.MEMORY_SHORT]
