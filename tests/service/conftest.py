"""An application in this very process, over a cluster in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from lvmigrate.cluster import Cluster
from lvmigrate.config import Config, Limits
from lvmigrate.plan import Options
from lvmigrate.service.access import Peer, new_token
from lvmigrate.service.app import App
from lvmigrate.service.events import Hub
from lvmigrate.service.jobs import Jobs
from lvmigrate.service.ledger import Ledger
from lvmigrate.service.metrics import Metrics
from lvmigrate.service.routes import Service
from lvmigrate.service.settings import Role, Settings, Stop, TokenEntry
from lvmigrate.sqlite_journal import SqliteJournal
from lvmigrate.tasklet import Context
from tests.unit.fakes import NODES, World, node_of

#: By role: a token that has it.
TOKENS = {role: new_token() for role in Role}
ADDRESS = Peer(address="192.0.2.7:4711")


class InMemory(Cluster):
    """Two nodes and a guest, with a directory of their own."""

    def __init__(self, world: World, directory: Path) -> None:
        configuration = Config(
            path=directory / "cluster.toml",
            nodes={name: node_of(name) for name in NODES},
            ssh_config=None,
            defaults=Options(),
            limits=Limits(),
            journal=directory / "journal.sqlite",
        )
        context = world.context()
        super().__init__(
            configuration, context.hypervisor, context.storage, SqliteJournal(directory / "journal.sqlite")
        )
        self._world = world

    def _context(self, cancel: threading.Event, on_progress: Any, post_copy: Any = None) -> Context:
        given = {"on_progress": on_progress, "post_copy": post_copy}
        known = {key: value for key, value in given.items() if value is not None}
        return replace(
            self._world.context(cancel=cancel, **known), nodes=self._nodes_or_none_open(), journal=self._journal
        )


class From:
    """Puts somebody at the other end."""

    def __init__(self, app: App, peer: Peer) -> None:
        self._app = app
        self._peer = peer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, "state": {"peer": self._peer}}, receive, send)


@dataclass
class Bench:
    """All of it."""

    world: World
    app: App
    jobs: Jobs
    ledger: Ledger
    hub: Hub
    metrics: Metrics
    cluster: Cluster

    def client(self, role: Role | None = Role.FORCE, peer: Peer = ADDRESS) -> TestClient:
        """Somebody with a token of that role; ``None``: with none."""
        headers = {} if role is None else {"Authorization": f"Bearer {TOKENS[role][0]}"}
        return TestClient(From(self.app, peer), headers=headers, raise_server_exceptions=False)


@pytest.fixture
def settings() -> Settings:
    tokens = {f"with-{role.value}": TokenEntry(sha256=digest, role=role) for role, (_, digest) in TOKENS.items()}
    return Settings(tokens=tokens, requests_per_minute=1_000_000)


@pytest.fixture
def open_bench(tmp_path: Path) -> Iterator[Callable[[Settings], Bench]]:
    made: list[Bench] = []

    def build(settings: Settings) -> Bench:
        world = World()
        cluster = InMemory(world, tmp_path)
        ledger = Ledger(tmp_path / "journal.sqlite")
        ledger._file.execute("PRAGMA synchronous = OFF")  # no test cuts the power
        hub, metrics = Hub(), Metrics()
        jobs = Jobs(cluster, ledger, hub, metrics, settings, tmp_path / "service")
        jobs.start()
        app = App(Service(cluster=cluster, jobs=jobs, ledger=ledger, hub=hub), hub, metrics, settings)
        made.append(Bench(world, app, jobs, ledger, hub, metrics, cluster))
        return made[-1]

    yield build
    for each in made:
        each.jobs.stop(Stop.ABORT, 10.0)
        each.ledger.close()


@pytest.fixture
def bench(open_bench: Callable[[Settings], Bench], settings: Settings) -> Bench:
    return open_bench(settings)
