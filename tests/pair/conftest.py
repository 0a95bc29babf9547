"""Two real libvirt daemons on this machine (`tests.pair.pair`); run by ``make test-pair``, as root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hv import LibvirtHypervisor
from tests.pair.pair import Pair


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a pair leaves for the next."""
    return tmp_path_factory.mktemp("pair")


@pytest.fixture
def pair(cache: Path) -> Iterator[Pair]:
    """A new pair for each test: a fault of one test is never met by another."""
    with Pair(cache=cache) as pair:
        yield pair
        pair.remember()


@pytest.fixture
def hypervisor(pair: Pair) -> Iterator[LibvirtHypervisor]:
    hypervisor = LibvirtHypervisor({host.name: host.node for host in pair.hosts})
    yield hypervisor
    hypervisor.close()
