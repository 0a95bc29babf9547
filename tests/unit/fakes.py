"""Two nodes in memory, as far as the core's own tests need them: a guest, its resource, and whatever goes wrong."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from hv import xml
from hv.needs import needs
from lvmigrate.certificates import Certificates
from lvmigrate.clock import Clock
from lvmigrate.domain import Activity, Domain, DomainDisk, DomainState, Host, JobKind
from lvmigrate.errors import Code, CommandFailed, DeviceHeld, NodeUnreachable, TokenLost
from lvmigrate.node import Node
from lvmigrate.plan import Options
from lvmigrate.premises import Match, Needs, Offer, Premises, Wanted
from lvmigrate.progress import MemoryProgress
from lvmigrate.protocols import CopyEnd
from lvmigrate.replication import (
    OLD,
    Connection,
    ConnectionOptions,
    ConnectionState,
    DiskState,
    Lineage,
    Opener,
    OtherHand,
    PeerVolume,
    Place,
    Reach,
    ReplicationState,
    Resource,
    Role,
    Surroundings,
    VerifyEnd,
    Volume,
)
from lvmigrate.tasklet import Context
from lvmigrate.token import Guarded, GuardSeen, Held, Token, Traces
from lvmigrate.vitals import Vitals

NODES = ("node1", "node2")
NEEDS = Needs(emulator="/usr/bin/qemu", arch="x86_64", machine="pc-i440fx-10.0", virt_type="kvm")
OFFER = Offer(node="node2", numa_nodes=frozenset({0}), cpus=frozenset({0, 1}))
PREMISES = {
    node: Premises(node=node, peer=Match.YES, memory=Match.YES, after_drbd={"libvirtd.service": True}) for node in NODES
}
VITALS = {
    node: Vitals(node=node, clock_s=0.0, clock_error_s=0.1, module="9.3.3", after_drbd={"libvirtd.service": True})
    for node in NODES
}
UUID = "8f4b1f6e-5a8c-4a0e-9d0c-7a1d0c3b0009"
PATH = "/dev/drbd7"


def other(node: str) -> str:
    return NODES[1 - NODES.index(node)]


@dataclass
class World:
    """The truth. ``faults[(method, node)]`` is called before the act (``before``) or after it."""

    resource: str = "r0"
    #: node -> the domain there.
    domains: dict[str, Domain] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=lambda: {"node1": Role.PRIMARY, "node2": Role.SECONDARY})
    disks: dict[str, DiskState] = field(default_factory=lambda: dict.fromkeys(NODES, DiskState.UP_TO_DATE))
    connected: bool = True
    replication: ReplicationState = ReplicationState.ESTABLISHED
    two_primaries: bool = False
    #: They are by the configuration too.
    for_good: bool = False
    hands: tuple[OtherHand, ...] = ()
    versions: dict[str, str] = field(default_factory=lambda: dict.fromkeys(NODES, "9.3.3"))
    #: Connections to other nodes than the two.
    third: tuple[Connection, ...] = ()
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NODES, 100))
    protocol: str | None = None
    auto_promote: bool = False
    tokens: dict[str, Token] = field(default_factory=dict)
    #: node -> what its guard was told.
    guards: dict[str, tuple[Guarded, ...]] = field(default_factory=dict)
    #: Nodes whose guard was killed; what it was told is still there.
    killed_guards: set[str] = field(default_factory=set)
    #: node -> whether its guard was told to let a guest run that arrived and waits.
    orders: dict[str, bool] = field(default_factory=dict)
    #: What is called with libvirt's events.
    listener: Callable[[str, str], None] = lambda _node, _event: None
    #: How long the tokens last that are there; below 0: they ran out.
    left_s: float = 30.0
    #: Why no guard can be armed.
    guard_trouble: str | None = None
    keepalive_s: float = 30.0
    #: Nodes whose shutdown is held back.
    inhibited: list[str] = field(default_factory=list)
    #: node -> what it says for a report of a defect.
    evidence: dict[str, dict[str, str]] = field(default_factory=lambda: {node: {} for node in NODES})
    vitals: dict[str, Vitals] = field(default_factory=lambda: dict(VITALS))
    certificates: dict[str, Certificates] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    #: By node: what the kernel says is available.
    available_kib: dict[str, int] = field(default_factory=dict)
    needs: Needs = NEEDS
    #: What the guest does not give back, whatever it is told.
    keeps_kib: int = 0
    offer: Offer = OFFER
    premises: dict[str, Premises] = field(default_factory=lambda: dict(PREMISES))
    #: Grows with each write that a peer does not get.
    generation: int = 1
    lineages: dict[str, Lineage] = field(default_factory=lambda: dict.fromkeys(NODES, Lineage(current="A", earlier=())))
    #: A connection that is lost: not even looked for.
    standalone: bool = False
    #: node -> where its disks lead that are not replicated.
    reached: dict[str, Reach] = field(default_factory=dict)
    openers: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NODES, 0))
    mounted_on: str = ""
    #: A process that is no guest has the disk open there, beside the guest's.
    intruder_on: str = ""
    replicated: bool = True
    shared_with: Domain | None = None
    #: How the call that copies memory ends; may change the world.
    ending: Callable[[World], CopyEnd] = field(default=lambda world: world.arrive())
    faults: dict[tuple[str, str], Callable[[], None]] = field(default_factory=dict)
    late_faults: dict[tuple[str, str], Callable[[], None]] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    time: float = 1000.0
    abort_asked: bool = False
    #: What the events have told of breaks.
    broke: list[str] = field(default_factory=list)
    #: What was attached to the guest's definition alone.
    disks_to_come: tuple[DomainDisk, ...] = ()
    #: The events of node2 do not come.
    unwatched: bool = False
    #: libvirt does not abort its job.
    stubborn: bool = False
    #: How often the copy is asked whether it has ended before it has, and what happens each time.
    looks: int = 2
    on_look: Callable[[int], None] = lambda _left: None
    #: What the copy's statistics say, by the looks that are left.
    progress: Callable[[int], MemoryProgress | None] = lambda _left: None
    #: Every downtime limit that was set during the copy.
    downtime_limits: list[float] = field(default_factory=list)
    post_copied: bool = False
    #: What is called with the kernels' changes.
    told: Callable[[str], None] = lambda _sentence: None
    #: How often whoever waits for the copy was woken.
    woken: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.domains = self.domains or {"node1": guest("node1")}

    @contextmanager
    def call(self, method: str, node: str) -> Iterator[None]:
        with self.lock:
            self.calls.append((method, node))
        if fault := self.faults.get((method, node)):
            fault()
        yield
        if fault := self.late_faults.get((method, node)):
            fault()

    def set(self, node: str, **changes: Any) -> None:
        self.domains[node] = dataclasses.replace(self.domains[node], **changes)

    def arrive(self, state: DomainState = DomainState.PAUSED) -> CopyEnd:
        """The guest has gone over, as libvirt does it with PAUSED and PERSIST_DEST."""
        here, there = self.where(), other(self.where())
        self.domains[there] = dataclasses.replace(
            self.domains[here], node=there, state=state, autostart=False, reason="user", job=JobKind.NONE
        )
        self.set(here, state=DomainState.OFF, reason="migrated")
        self.openers[here], self.openers[there] = 0, 1
        return CopyEnd(ok=True)

    def lost_a_write(self) -> None:
        """The source wrote while the link was cut; it is back."""
        self.broke.append("node1: Connecting for a moment")
        self.generation += 1

    def where(self) -> str:
        return next(node for node, domain in self.domains.items() if domain.state.active)

    def running(self) -> list[str]:
        return [node for node, domain in self.domains.items() if domain.state is DomainState.RUNNING]

    def violations(self) -> Iterator[str]:
        """What must hold whenever nothing moves and the outcome is known."""
        running = self.running()
        if len(running) != 1:
            yield f"running on {running}"
        if [node for node, role in self.roles.items() if role is Role.PRIMARY] != running:
            yield f"roles {self.roles}, running on {running}"
        if self.two_primaries:
            yield "two primaries allowed"
        if self.tokens:
            yield f"tokens on {list(self.tokens)}"
        if self.guards:
            yield f"guards on {list(self.guards)}"
        if any(domain.state is DomainState.PAUSED for domain in self.domains.values()):
            yield "paused"
        if len(self.domains) != 1:
            yield f"defined on {list(self.domains)}"

    def context(self, **changes: Any) -> Context:
        def sleep(seconds: float) -> None:
            self.time += seconds

        @contextmanager
        def every(_seconds: float, _call: Callable[[], None], _name: str) -> Iterator[None]:
            yield

        return Context(
            nodes={name: node_of(name) for name in NODES},
            hypervisor=FakeHypervisor(self),
            storage=FakeStorage(self),
            clock=Clock(now=lambda: self.time, sleep=sleep, every=every),
            **changes,
        )


def node_of(name: str) -> Node:
    return Node(
        name=name,
        ssh=name,
        libvirt_uri=f"qemu+ssh://{name}/system",
        peer_uri=f"qemu+ssh://{name}/system",
        migration_address=name,
    )


def guest(node: str, **changes: Any) -> Domain:
    disk = DomainDisk(target="vda", source=PATH, kind="block", device="disk", read_only=False, cache="none")
    values: dict[str, Any] = {
        "node": node,
        "name": "web1",
        "uuid": UUID,
        "state": DomainState.RUNNING,
        "reason": "",
        "job": JobKind.NONE,
        "persistent": True,
        "autostart": True,
        "virt_type": "kvm",
        "memory_kib": 1024,
        "vcpus": 1,
        "disks": (disk,),
    }
    return Domain(**values | changes)


def unreachable(node: str) -> Callable[[], None]:
    def fault() -> None:
        raise NodeUnreachable(node, "made for the test", hint="none")

    return fault


def refusing(node: str) -> Callable[[], None]:
    def fault() -> None:
        raise CommandFailed(node, "What the test asked", status=1, hint="none", code=Code.STORAGE_FAILED)

    return fault


@dataclass
class FakeCopy:
    world: World
    ends: Callable[[], CopyEnd]
    looks: int
    end: CopyEnd | None = None

    def progress(self) -> MemoryProgress | None:
        return self.world.progress(self.looks)

    def abort(self) -> None:
        self.world.abort_asked = True
        self.looks = self.looks if self.world.stubborn else 0
        self.world.on_look(0)

    def limit_downtime(self, seconds: float) -> None:
        self.world.downtime_limits.append(seconds)

    def wake(self) -> None:
        self.world.woken += 1

    def start_post_copy(self) -> None:
        with self.world.call("start_post_copy", "node1"):
            self.world.post_copied = True

    def wait(self, timeout_s: float, *, cancel: threading.Event | None = None) -> CopyEnd | None:
        if self.looks > 0:
            self.looks -= 1
            self.world.on_look(self.looks)
            self.world.time += timeout_s
            return None
        if self.end is None:
            aborted = CopyEnd(ok=False, detail="operation aborted")
            self.end = aborted if self.world.abort_asked else self.ends()
        return self.end


@dataclass
class FakeHypervisor:
    world: World

    def domain(self, node: str, name: str) -> Domain | None:
        with self.world.call("domain", node):
            found = self.world.domains.get(node)
            return found if found is not None and name in (found.name, found.uuid) else None

    def domains(self, node: str) -> tuple[Domain, ...]:
        with self.world.call("domains", node):
            found = [domain for domain in (self.world.domains.get(node), self.world.shared_with) if domain]
            return tuple(domain for domain in found if domain.node == node)

    def host(self, node: str) -> Host:
        with self.world.call("host", node):
            usual = Host(node=node, free_memory_kib=1 << 20, libvirt_version=(11, 3, 0), qemu_version=(10, 0, 0))
            return self.world.hosts.get(node, usual)

    def needs(self, node: str, uuid: str) -> Needs:
        with self.world.call("needs", node):
            return self.world.needs

    def needs_described(self, text: str) -> Needs:
        return self.world.needs if text == "a definition" else needs(text)

    def offer(self, node: str, needs: Needs) -> Offer:
        with self.world.call("offer", node):
            return self.world.offer

    def activity(self, node: str, uuid: str, seconds: int, *, cancel: threading.Event) -> Activity:
        with self.world.call("activity", node):
            return Activity(resident_bytes=100 << 20, dirty_rate=1 << 20)

    def copy_memory(self, domain: Domain, target: str, options: Options) -> FakeCopy:
        with self.world.call("copy_memory", domain.node):
            return FakeCopy(self.world, lambda: self.world.ending(self.world), self.world.looks)

    def resume_post_copy(self, domain: Domain, target: str, options: Options) -> FakeCopy:
        with self.world.call("resume_post_copy", domain.node):
            return FakeCopy(self.world, lambda: self.world.ending(self.world), 0)

    def adopt(self, node: str, uuid: str) -> FakeCopy:
        with self.world.call("adopt", node):
            return FakeCopy(self.world, lambda: self.world.ending(self.world), self.world.looks)

    def abort_job(self, node: str, uuid: str) -> None:
        with self.world.call("abort_job", node):
            if self.world.domains[node].job is JobKind.OUTGOING and not self.world.stubborn:
                self.world.set(node, job=JobKind.NONE)

    def resume(self, node: str, uuid: str) -> None:
        with self.world.call("resume", node):
            assert self.world.domains[node].state in (DomainState.PAUSED, DomainState.RUNNING), "only what is there"
            self.world.set(node, state=DomainState.RUNNING, reason="unpaused")

    def set_memory(self, node: str, uuid: str, kib: int) -> None:
        with self.world.call("set_memory", node):
            assert self.world.domains[node].state.active
            self.world.set(node, current_kib=max(kib, self.world.keeps_kib))

    def suspend(self, node: str, uuid: str) -> None:
        with self.world.call("suspend", node):
            self.world.set(node, state=DomainState.PAUSED, reason="user")

    def discard(self, node: str, uuid: str) -> None:
        with self.world.call("discard", node):
            assert self.world.domains[node].state is DomainState.PAUSED, "a running copy must never be ended"
            self.world.set(node, state=DomainState.OFF)
            self.world.openers[node] = 0

    def undefine(self, node: str, uuid: str) -> None:
        with self.world.call("undefine", node):
            if node in self.world.domains:
                assert not self.world.domains[node].state.active
                del self.world.domains[node]

    def start(self, node: str, uuid: str) -> None:
        with self.world.call("start", node):
            self.world.set(node, state=DomainState.RUNNING)
            self.world.openers[node] = 1

    def shut_down(self, node: str, uuid: str) -> None:
        with self.world.call("shut_down", node):
            self.world.set(node, state=DomainState.OFF)
            self.world.openers[node] = 0

    def power_off(self, node: str, uuid: str) -> None:
        with self.world.call("power_off", node):
            self.world.set(node, state=DomainState.OFF)
            self.world.openers[node] = 0

    def definition(self, node: str, uuid: str) -> str | None:
        with self.world.call("definition", node):
            return "a definition" if node in self.world.domains else None

    def described(self, node: str, text: str) -> Domain:
        if text == "a definition":
            return guest(node, state=DomainState.OFF, disks=guest(node).disks + self.world.disks_to_come)
        return xml.described(node, text)

    def define(self, node: str, text: str, *, left_on: str | None = None) -> None:
        with self.world.call("define", node):
            self.world.domains.setdefault(node, guest(node, state=DomainState.OFF, autostart=False))
            self.world.set(node, left_on=left_on)

    def set_autostart(self, node: str, uuid: str, *, on: bool) -> None:
        with self.world.call("set_autostart", node):
            self.world.set(node, autostart=on)

    @contextmanager
    def on_change(self, uuid: str, call: Callable[[str, str], None]) -> Iterator[None]:
        self.world.listener = call
        yield

    def close(self) -> None:
        pass


@dataclass
class FakeWatch:
    world: World
    storage: FakeStorage

    def resource(self, node: str, name: str) -> Resource | None:
        return None if self.world.unwatched and node == "node2" else self.storage.seen(node)

    def wait(self, holds: Callable[[], bool], timeout_s: float, *, cancel: threading.Event | None = None) -> bool:
        if holds():
            return True
        self.world.time += timeout_s
        return holds()

    def breaks(self) -> tuple[str, ...]:
        return tuple(self.world.broke)

    def gaps(self) -> tuple[str, ...]:
        return ("node2 is not watched: made for the test",) if self.world.unwatched else ()

    def forgive(self) -> None:
        self.world.broke.clear()

    def dual_primary_s(self) -> float:
        return 0.0


@dataclass
class FakeStorage:
    world: World

    def seen(self, node: str) -> Resource:
        world, peer = self.world, other(node)
        volumes = PeerVolume(
            number=0,
            replication=world.replication if world.connected else ReplicationState.OFF,
            disk=world.disks[peer] if world.connected else DiskState.UNKNOWN,
        )
        connection = Connection(
            name=peer,
            peer_node_id=NODES.index(peer),
            state=ConnectionState.CONNECTED
            if world.connected
            else ConnectionState.STANDALONE
            if world.standalone
            else ConnectionState.CONNECTING,
            peer_role=world.roles[peer] if world.connected else Role.UNKNOWN,
            congested=False,
            volumes=(volumes,),
        )
        return Resource(
            node=node,
            name=world.resource,
            role=world.roles[node],
            suspended="no",
            volumes=(Volume(number=0, minor=7, disk=world.disks[node], quorum=True, size_kib=world.sizes[node]),),
            connections=(connection, *world.third),
        )

    def locate(self, node: str, paths: Collection[str]) -> Mapping[str, Place]:
        with self.world.call("locate", node):
            place = Place(resource=self.world.resource, volume=0)
            return {path: place for path in paths if path == PATH and self.world.replicated}

    def shared(self, node: str, paths: Collection[str]) -> Mapping[str, Reach]:
        return {path: self.world.reached[node] for path in paths if node in self.world.reached}

    def generations(self, node: str, names: Collection[str]) -> Mapping[str, str]:
        with self.world.call("generations", node):
            return {f"{name}/0": str(self.world.generation) for name in names}

    def lineages(self, node: str, peer: str, names: Collection[str]) -> Mapping[str, Lineage]:
        if not names:
            return {}
        with self.world.call("lineages", node):
            return {f"{name}/0": self.world.lineages[node] for name in names}

    def begin_verify(self, node: str, name: str, volume: int, peer: str, guest: str) -> None:
        raise AssertionError("the simulator does that")

    def verify_ends(self, node: str, name: str, peer: str) -> Mapping[int, VerifyEnd]:
        raise AssertionError("the simulator does that")

    def two_primaries(self, node: str) -> frozenset[str]:
        with self.world.call("two_primaries", node):
            return frozenset({self.world.resource} if self.world.two_primaries else ())

    def surroundings(self, node: str, names: Collection[str]) -> Surroundings:
        with self.world.call("surroundings", node):
            return Surroundings(
                version=self.world.versions[node],
                two_primaries_for_good=frozenset(names if self.world.for_good else ()),
                other_hands=self.world.hands,
            )

    def observe(self, node: str, names: Collection[str] | None = None) -> Mapping[str, Resource]:
        with self.world.call("observe", node):
            return {
                name: self.seen(node)
                for name in ((self.world.resource,) if names is None else names)
                if name == self.world.resource
            }

    @contextmanager
    def watch(
        self, nodes: Sequence[str], names: Collection[str], *, on_change: Callable[[str], None] | None = None
    ) -> Iterator[FakeWatch]:
        with self.world.call("watch", nodes[0]):
            self.world.told = on_change or self.world.told
        yield FakeWatch(self.world, self)

    def options(self, node: str, name: str, peer: str) -> ConnectionOptions:
        with self.world.call("options", node):
            return self._options()

    def _options(self) -> ConnectionOptions:
        return ConnectionOptions(
            allow_two_primaries=self.world.two_primaries,
            protocol=self.world.protocol,
            auto_promote=self.world.auto_promote,
        )

    def _need(self, node: str, token: Token) -> None:
        ours = self.world.tokens.get(node)
        if ours is None or ours.id != token.id:
            raise TokenLost(f"The token on {node} is not ours.", hint="none")

    def allow_two_primaries(self, node: str, name: str, peer: str, token: Token) -> ConnectionOptions:
        with self.world.call("allow_two_primaries", node):
            self._need(node, token)
            self.world.two_primaries, self.world.protocol = True, "C"
        return self._options()

    def restore_options(
        self, node: str, name: str, peer: str, options: ConnectionOptions, token: Token
    ) -> ConnectionOptions:
        with self.world.call("restore_options", node):
            self._need(node, token)
            assert list(self.world.roles.values()).count(Role.PRIMARY) < 2, "the kernel refuses (164)"
            assert self.world.connected, "turning it off during a cut ends in StandAlone"
            self.world.two_primaries, self.world.protocol = options.allow_two_primaries, options.protocol
        return self._options()

    def reconnect(self, node: str, name: str, peer: str, options: ConnectionOptions, token: Token) -> None:
        with self.world.call("reconnect", node):
            self._need(node, token)
            self.world.connected = True

    def promote(self, node: str, name: str, token: Token, *, beside: str | None = None) -> None:
        with self.world.call("promote", node):
            self._need(node, token)
            assert beside is None or self.world.connected
            assert self.world.two_primaries or self.world.roles[other(node)] is not Role.PRIMARY
            self.world.roles[node] = Role.PRIMARY

    def promote_by_force(self, node: str, name: str, token: Token) -> None:
        with self.world.call("promote_by_force", node):
            self._need(node, token)
            assert not self.world.connected
            assert self.world.disks[node] in OLD
            self.world.roles[node] = Role.PRIMARY
            self.world.disks[node] = DiskState.UP_TO_DATE

    def demote(self, node: str, name: str, token: Token) -> None:
        with self.world.call("demote", node):
            self._need(node, token)
            domain = self.world.domains.get(node)
            if domain is not None and domain.state.active:
                raise DeviceHeld(node, "Demoting", status=11, hint="none", code=Code.DEVICE_HELD)
            self.world.roles[node] = Role.SECONDARY

    def openers(self, node: str, names: Collection[str]) -> tuple[Opener, ...]:
        with self.world.call("openers", node):
            held = Opener(resource=self.world.resource, volume=0, what="a test (pid 1)", process=True)
            mount = Opener(resource=self.world.resource, volume=0, what="mounted on /srv", process=False)
            qemu = Opener(resource=self.world.resource, volume=0, what="qemu (pid 7)", process=True, guest="web1")
            intruder = Opener(resource=self.world.resource, volume=0, what="dd (pid 8)", process=True)
            return (
                *(held,) * self.world.openers[node],
                *(mount,) * (self.world.mounted_on == node),
                *(qemu, intruder) * (self.world.intruder_on == node),
            )

    def _held(self, node: str) -> Held:
        token = self.world.tokens[node]
        return Held(
            node=node,
            uuid=token.uuid,
            instance=token.instance,
            id=token.id,
            holder=token.holder,
            left_s=self.world.left_s,
            errand=token.errand,
        )

    def take_token(
        self, node: str, token: Token, *, replaces: str | None = None, known: str | None = None
    ) -> Held | None:
        with self.world.call("take_token", node):
            there = self.world.tokens.get(node)
            if there is not None and there.id not in (token.id, replaces):
                unknown = known is not None and there.id not in (known, f"over-{known}")
                if self.world.left_s > 0 or unknown:
                    return self._held(node)
            self.world.tokens[node] = token
            return None

    def renew_token(self, node: str, token: Token) -> None:
        with self.world.call("renew_token", node):
            self._need(node, token)
            if token.guarded and node not in self.world.guards:
                raise CommandFailed(node, "Renewing", status=98, hint="none", code=Code.GUARD_LOST)
            self.world.tokens[node] = token

    def drop_token(self, node: str, token: Token) -> None:
        with self.world.call("drop_token", node):
            if node in self.world.tokens and self.world.tokens[node].id == token.id:
                del self.world.tokens[node]

    def guard_trouble(self, node: str) -> str | None:
        with self.world.call("guard_trouble", node):
            return self.world.guard_trouble

    def arm_guard(self, node: str, token: Token, guarded: Sequence[Guarded], *, resume: bool) -> None:
        with self.world.call("arm_guard", node):
            self._need(node, token)
            self.world.guards[node] = tuple(guarded)
            self.world.orders[node] = resume and token.errand is not None and token.errand.ran
            self.world.killed_guards.discard(node)

    def disarm_guard(self, node: str, token: Token) -> None:
        with self.world.call("disarm_guard", node):
            self._need(node, token)
            self.world.guards.pop(node, None)

    def traces(self, node: str) -> Traces:
        with self.world.call("traces", node):
            return Traces(
                node=node,
                tokens=(self._held(node),) if node in self.world.tokens else (),
                guards=tuple(
                    GuardSeen(
                        node=at,
                        uuid=UUID,
                        instance="web1",
                        alive=at not in self.world.killed_guards,
                        guarded=guarded,
                        resume=False,
                        says="",
                    )
                    for at, guarded in self.world.guards.items()
                    if at == node
                ),
            )

    def certificates(self, node: str) -> Certificates:
        return self.world.certificates.get(node) or Certificates(node=node, folder="/tls", names=frozenset({node}))

    def premises(self, node: str, wanted: Wanted) -> Premises:
        with self.world.call("premises", node):
            return self.world.premises[node]

    def available_kib(self, node: str) -> int | None:
        with self.world.call("available_kib", node):
            return self.world.available_kib.get(node)

    def vitals(self, node: str, programs: Collection[str]) -> Vitals:
        with self.world.call("vitals", node):
            return self.world.vitals[node]

    def evidence(self, node: str, instance: str) -> Mapping[str, str]:
        with self.world.call("evidence", node):
            return self.world.evidence[node]

    @contextmanager
    def inhibit(self, node: str, _token: Token) -> Iterator[None]:
        self.world.inhibited.append(node)
        yield
        self.world.inhibited.remove(node)

    def keepalive_s(self, node: str) -> float:
        with self.world.call("keepalive_s", node):
            return self.world.keepalive_s

    def close(self) -> None:
        pass


class Renewing:
    """A clock's ``every``: what it is told to call, and what has come to pass, ``began`` and ``ended``."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.seconds = 0.0
        self._calls: list[Callable[[], None]] = []
        self._under_way = 0

    @contextmanager
    def every(self, seconds: float, call: Callable[[], None], _name: str) -> Iterator[None]:
        if not self._under_way:
            self.story.append("began")
            self._calls.clear()
        self.seconds = seconds
        self._calls.append(call)
        self._under_way += 1
        yield
        self._under_way -= 1
        if not self._under_way:
            self.story.append("ended")

    def call(self) -> None:
        """Its time has come."""
        for call in self._calls:
            call()

    def of(self, context: Context) -> Context:
        """The context with this in its clock."""
        return replace(context, clock=replace(context.clock, every=self.every))
