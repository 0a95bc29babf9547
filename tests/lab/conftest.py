"""Two real nodes with real DRBD and real libvirt, brought up by ``vagrant/lab up``; run by ``make test-lab``."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.lab import package
from tests.lab.support import LVMIGRATE, Outcome, Running, acquaint, side_by_side
from vagrant.labkit import audit, guests
from vagrant.labkit.guests import DB1, LOCAL1, WEB1, Guest
from vagrant.labkit.lab import NODES, Lab
from vagrant.labkit.witness import Witness


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with Lab.open() as lab:
        lab.both("true")  # a lab that is not up fails here, and nothing is skipped
        acquaint(lab)
        yield lab
        for guest in (WEB1, DB1, LOCAL1):
            guests.remove(lab, guest)


@pytest.fixture(scope="session")
def cluster_file(lab: Lab) -> Path:
    return lab.config


@pytest.fixture(scope="session")
def packaged(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[package.Packaged]:
    """The Debian package on a node; it takes minutes."""
    with package.installed(lab, tmp_path_factory.mktemp("package")) as made:
        yield made


@pytest.fixture
def lvmigrate(cluster_file: Path) -> Callable[..., Outcome]:
    """The installed command, run to its end."""

    def run(*words: str, config: Path = cluster_file) -> Outcome:
        done = subprocess.run(
            [LVMIGRATE, words[0], "--config", config, *words[1:]],
            capture_output=True,
            text=True,
            timeout=400,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def running(lab: Lab) -> Iterator[Callable[..., Running]]:
    """Start a guest, on node1 unless another is named; it is gone without a trace after the test."""
    made: list[tuple[Guest, Witness]] = []

    def make(guest: Guest, node: str = NODES[0]) -> Running:
        witness = Witness(lab, guest)
        witness.__enter__()
        made.append((guest, witness))
        guests.make(lab, guest, node)
        witness.alive()
        return Running(lab, guest, witness, node, audit.settings(lab, guest))

    yield make

    def unmake(guest: Guest, witness: Witness) -> None:
        witness.__exit__(None, None, None)
        guests.remove(lab, guest)

    if made:
        side_by_side(*(partial(unmake, guest, witness) for guest, witness in made))
