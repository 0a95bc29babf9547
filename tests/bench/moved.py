"""Moves by the real steps and the real storage adapter, between two nodes whose kernels are played.

Only libvirt is a stand-in within this process: what it says of guests is the fakes' word (tests/unit/fakes.py), but a
copy of memory is followed by the real `hv.copy.LibvirtCopy`, with a domain whose job ends when it is told.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import libvirt

from hv.copy import LibvirtCopy
from lvmigrate import acts
from lvmigrate.clock import Clock
from lvmigrate.domain import Domain, DomainDisk
from lvmigrate.errors import Code, MoveFailed
from lvmigrate.journal import NO_JOURNAL, Opening, Record, keep
from lvmigrate.move import STEPS, Move
from lvmigrate.plan import Mode, Options, Plan, ResourcePlan
from lvmigrate.replication import ConnectionOptions
from lvmigrate.report import Report
from lvmigrate.sqlite_journal import SqliteJournal
from lvmigrate.tasklet import Context, described
from lvmigrate.token import Errand
from storage import DrbdStorage
from tests.bench.played import NODES, Played, PlayedShell
from tests.unit.fakes import UUID, FakeHypervisor, World, guest, node_of

#: Long, so that no renewal comes in between.
_LEASE_S: Final = 600.0
#: How long a copy takes that nothing disturbs; one that waits for a cut ends by being aborted.
_COPY_S: Final = 0.02
_NEVER_S: Final = 30.0


@dataclass
class Job:
    """libvirt's domain, as far as a copy needs it, and when it was asked for that and to end it."""

    aborted: threading.Event = field(default_factory=threading.Event)
    began_at: float = 0.0
    aborted_at: float = 0.0

    def abortJob(self) -> None:  # noqa: N802 -- libvirt's name
        if not self.aborted.is_set():
            self.aborted_at = time.monotonic()
            self.aborted.set()

    def jobStats(self) -> dict[str, Any]:  # noqa: N802 -- libvirt's name
        return {"type": 1, "memory_total": 1 << 30, "memory_processed": 1 << 20, "memory_remaining": 1 << 29}

    def run(self, world: World, seconds: float) -> None:
        if self.aborted.wait(seconds):
            raise libvirt.libvirtError("operation aborted")
        world.arrive()


@dataclass
class _Libvirt(FakeHypervisor):
    copy_s: float = _COPY_S
    job: Job = field(default_factory=Job)

    def copy_memory(self, domain: Domain, target: str, options: Options) -> Any:
        self.job.began_at = time.monotonic()
        return LibvirtCopy(domain.node, lambda: nullcontext(self.job), lambda job: job.run(self.world, self.copy_s))


class Mover:
    """Moves one guest with so many resources of so many volumes each from node1 to node2, again and again."""

    def __init__(self, played: Played, *, resources: int, volumes: int, journal: Path | None = None) -> None:
        self._nodes = {name: node_of(name) for name in NODES}
        here = {name: replace(node_of(name), ssh=None) for name in NODES}
        self.storage = DrbdStorage(here, shell=PlayedShell(played.path))
        self._journal = NO_JOURNAL if journal is None else SqliteJournal(journal)
        self._resources = resources
        self._volumes = volumes

    def move(self, *, cut: bool = False) -> tuple[Report | MoveFailed, Job]:
        """One move, and what libvirt was called for; with ``cut``, one that fails because of it."""
        options = ConnectionOptions(allow_two_primaries=False, protocol=None, auto_promote=False)
        disks = tuple(
            DomainDisk(
                target=f"vd{r}-{v}", source=f"/dev/drbd{r * self._volumes + v}", kind="block", device="disk",
                read_only=False, cache="none",
            )
            for r in range(self._resources)
            for v in range(self._volumes)
        )  # fmt: skip
        domain = guest("node1", disks=disks, autostart=False)
        world = World(domains={"node1": domain})
        hypervisor = _Libvirt(world, copy_s=_NEVER_S if cut else _COPY_S)
        errand = Errand(source="node1", target="node2", ran=True, autostart=False, target_had_definition=False)
        plan = Plan(
            instance="web1",
            domain=domain,
            source="node1",
            target="node2",
            target_had_definition=False,
            mode=Mode.LIVE,
            resources=tuple(
                ResourcePlan(name=f"r{n}", volumes=tuple(range(self._volumes)), options=(options, options))
                for n in range(self._resources)
            ),
            errand=errand,
            steps=described(STEPS),
            warnings=(),
        )
        context = Context(
            nodes=self._nodes,
            hypervisor=hypervisor,
            storage=self.storage,
            lease_s=_LEASE_S,
            # What is waited for by the clock alone (whether the guest still lives) says nothing here.
            clock=Clock(sleep=lambda seconds: time.sleep(min(seconds, 0.005))),
        )

        def move(record: Record) -> Report:
            with ExitStack() as stack:
                return Move(acts.recorded(context, record), plan, Options(), stack, record=record).run()

        opening = Opening(
            tasklet="migrate", instance="web1", uuid=UUID, source="node1", target="node2", holder="bench", plan={}
        )
        try:
            return keep(self._journal, opening, move, now=context.clock.now), hypervisor.job
        except MoveFailed as error:
            if not cut or error.code is not Code.REPLICATION_BROKE:
                raise
            return error, hypervisor.job

    def close(self) -> None:
        """End what runs."""
        self.storage.close()
