"""The examples in the documentation do what they say."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import structlog

from lvmigrate import cluster, simulator
from lvmigrate.simulator import calls, faults
from tests.unit.fakes import World
from tests.unit.test_drain_cli import InMemory


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is logged is no part of an example."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("module", [simulator, calls, faults], ids=lambda module: module.__name__)
def test_of_a_module(module: ModuleType) -> None:
    found = doctest.testmod(importlib.import_module(module.__name__))
    assert found.attempted > 0
    assert found.failed == 0


def test_of_the_page_about_the_simulator() -> None:
    found = doctest.testfile(str(Path("docs/simulator.md").resolve()), module_relative=False)
    assert found.attempted > 10
    assert found.failed == 0


def test_of_the_page_about_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World()
    monkeypatch.setattr(cluster.Cluster, "open", lambda _path=None: InMemory(world, tmp_path))
    found = doctest.testfile(str(Path("docs/python.md").resolve()), module_relative=False)
    assert found.attempted > 20
    assert found.failed == 0
    assert world.running() == ["node1"]
    assert list(world.violations()) == []
