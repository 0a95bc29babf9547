"""Two real libvirt daemons on this machine (`tests.pair.pair`); run by ``make test-pair``, as root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hv import LibvirtHypervisor
from tests.pair.bench import Bench
from tests.pair.guest import BUSY
from tests.pair.pair import Pair


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a pair leaves for the next."""
    return tmp_path_factory.mktemp("pair")


@pytest.fixture
def keepalive() -> tuple[int, int]:
    """How long the daemons wait for each other: seconds, and how often. Short, as many tests wait for it."""
    return 2, 2


@pytest.fixture
def pair(cache: Path, keepalive: tuple[int, int]) -> Iterator[Pair]:
    """A new pair for each test: a fault of one test is never met by another."""
    with Pair(cache=cache, keepalive=keepalive) as pair:
        yield pair
        pair.remember()


@pytest.fixture
def hypervisor(pair: Pair) -> Iterator[LibvirtHypervisor]:
    hypervisor = LibvirtHypervisor({host.name: host.node for host in pair.hosts})
    yield hypervisor
    hypervisor.close()


@pytest.fixture
def bench(pair: Pair, hypervisor: LibvirtHypervisor) -> Bench:
    return Bench(pair=pair, hv=hypervisor, guest=pair.guest("web1", on=pair.one, load=BUSY))
