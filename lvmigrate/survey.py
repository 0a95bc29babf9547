"""Looking at everything a move depends on, and changing nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from lvmigrate import room
from lvmigrate.certificates import Certificates
from lvmigrate.domain import Domain, Host
from lvmigrate.errors import Finding, LvmigrateError, NodeUnreachable, Refused, UsageError
from lvmigrate.node import Node
from lvmigrate.plan import Options
from lvmigrate.premises import Needs, Offer, Premises, Wanted, tpm_state
from lvmigrate.protocols import Hypervisor, Storage
from lvmigrate.replication import (
    ConnectionOptions,
    ConnectionState,
    Lineage,
    Opener,
    Place,
    Reach,
    Resource,
    Surroundings,
)
from lvmigrate.together import outcomes_of, together
from lvmigrate.token import Traces


@dataclass(frozen=True, slots=True, kw_only=True)
class Sightings:
    """What each node says of one guest."""

    instance: str
    #: Per node: the guest, ``None`` (answered: not known there), or why the node gave no answer.
    by_node: Mapping[str, Domain | NodeUnreachable | None]

    @property
    def domains(self) -> tuple[Domain, ...]:
        """Every node's view of it."""
        return tuple(d for d in self.by_node.values() if isinstance(d, Domain))

    @property
    def active(self) -> tuple[Domain, ...]:
        """Where a process of it exists."""
        return tuple(d for d in self.domains if d.state.active)

    @property
    def silent(self) -> tuple[NodeUnreachable, ...]:
        """The nodes that gave no answer."""
        return tuple(d for d in self.by_node.values() if isinstance(d, NodeUnreachable))


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two nodes of a move."""

    node: str
    host: Host
    #: This node's own view of the guest (on the target usually none).
    domain: Domain | None
    #: Every other guest there.
    others: tuple[Domain, ...]
    #: The device path of each disk of the guest that leads to DRBD here.
    places: Mapping[str, Place]
    #: The device path of each disk of other guests that leads to DRBD here.
    places_of_others: Mapping[str, Place]
    #: By name: what the kernel says of each of the guest's resources.
    resources: Mapping[str, Resource]
    #: By name: what is set on the connection to the other side.
    options: Mapping[str, ConnectionOptions]
    openers: tuple[Opener, ...]
    surroundings: Surroundings
    #: By ``RESOURCE/NUMBER``: where the data come from, of the resources that are not connected.
    lineages: Mapping[str, Lineage]
    #: The paths of the guest's disks that lead to storage which other nodes can reach too.
    shared: Mapping[str, Reach]
    #: What lvmigrate has left here.
    traces: Traces
    #: Why no guard can be armed here.
    guard_trouble: str | None
    #: How long libvirt here waits for a peer that does not answer, in seconds.
    keepalive_s: float
    #: What memory is encrypted with here, if that was asked for.
    certificates: Certificates | None

    def minors(self, name: str) -> tuple[int, ...]:
        """The minor numbers of all devices that the resource has here."""
        resource = self.resources.get(name)
        return () if resource is None else tuple(volume.minor for volume in resource.volumes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Both nodes of a move, observed side by side."""

    domain: Domain
    source: Side
    target: Side
    #: What the target's certificate is to name.
    called: str
    #: How the source's libvirt reaches the target's.
    peer_uri: str
    options: Options
    needs: Needs
    #: What the target's libvirt has of that, and what was found on the two nodes beside.
    offer: Offer
    here: Premises
    there: Premises

    @property
    def nodes(self) -> tuple[str, str]:
        """The names of source and target."""
        return self.source.node, self.target.node

    @property
    def tokens(self) -> Mapping[str, str]:
        """By node: the id of the guest's token there, run out or not."""
        held = {side.node: side.traces.token(self.domain.uuid) for side in (self.source, self.target)}
        return {node: token.id for node, token in held.items() if token is not None}


def find(hypervisor: Hypervisor, nodes: tuple[str, ...], instance: str) -> Sightings:
    """Ask every node for the guest, side by side. Never raises for a node that gives no answer."""
    outcomes = outcomes_of([partial(hypervisor.domain, node, instance) for node in nodes])
    by_node: dict[str, Domain | NodeUnreachable | None] = {}
    for node, outcome in zip(nodes, outcomes, strict=True):
        if isinstance(outcome, Domain | NodeUnreachable) or outcome is None:
            by_node[node] = outcome
        else:
            raise outcome
    return Sightings(instance=instance, by_node=by_node)


def one_guest(name: str, domains: Iterable[Domain]) -> None:
    """Raise `UsageError` where these are several guests, which have the name in common and nothing else."""
    nodes: dict[str, list[str]] = {}
    for domain in domains:
        nodes.setdefault(domain.uuid, []).append(domain.node)
    if len(nodes) > 1:
        each = " and ".join(f"{uuid} on {', '.join(where)}" for uuid, where in sorted(nodes.items()))
        raise UsageError(
            f"There are {len(nodes)} guests of the name {name}: {each}.",
            hint="Say which one is meant, by its UUID in place of the name.",
        )


def survey(hypervisor: Hypervisor, storage: Storage, domain: Domain, target: Node, options: Options) -> Survey:
    """Observe both nodes of a move. Raises `Refused` when one of them gives no answer, or answers with an error."""
    (needs,) = outcomes_of([partial(hypervisor.needs, domain.node, domain.uuid)])
    if isinstance(needs, LvmigrateError):
        raise _refused(domain, [needs])
    media = frozenset(disk.source for disk in domain.disks if disk.source and disk.device in ("cdrom", "floppy"))
    calls: list[Callable[[], Side | Premises | Offer]] = [
        partial(_side, hypervisor, storage, domain, domain.node, target.name, options),
        partial(_side, hypervisor, storage, domain, target.name, domain.node, options),
        partial(storage.premises, domain.node, _wanted_here(domain, target)),
        partial(storage.premises, target.name, _wanted_there(domain, needs, media)),
        partial(hypervisor.offer, target.name, needs),
    ]
    source, there, premises_here, premises_there, offer = outcomes_of(calls)
    if (
        isinstance(source, Side)
        and isinstance(there, Side)
        and isinstance(premises_here, Premises)
        and isinstance(premises_there, Premises)
        and isinstance(offer, Offer)
    ):
        return Survey(
            domain=domain,
            source=source,
            target=there,
            called=target.certified_name,
            peer_uri=target.peer_uri,
            options=options,
            needs=needs,
            offer=offer,
            here=premises_here,
            there=premises_there,
        )
    outcomes = (source, there, premises_here, premises_there, offer)
    raise _refused(domain, [outcome for outcome in outcomes if isinstance(outcome, LvmigrateError)])


def _refused(domain: Domain, errors: Sequence[LvmigrateError]) -> Refused:
    """Every reason once: a node that is silent is so to each that asks it."""
    findings = [Finding(code=error.code, sentence=error.sentence, hint=error.hint) for error in errors]
    return Refused(domain.name, list(dict.fromkeys(findings)))


def _wanted_here(domain: Domain, target: Node) -> Wanted:
    return Wanted(instance=domain.name, peer=target.name, knock=True, autostart=False)


def _wanted_there(domain: Domain, needs: Needs, media: frozenset[str]) -> Wanted:
    firmware = frozenset(filter(None, [*needs.firmware, needs.nvram, needs.nvram_template]))
    state = frozenset([tpm_state(domain.uuid)] if needs.tpm == "emulator" else ())
    return Wanted(
        instance=domain.name,
        peer=domain.node,
        knock=False,
        autostart=domain.autostart,
        paths=media | firmware | state,
        interfaces=needs.interfaces,
        programs=needs.programs,
    )


def _apart(resource: Resource, peer: str) -> bool:
    """Whether the two are not connected: of two that have parted, one may still look for the other."""
    connection = resource.towards(peer)
    return connection is None or connection.state is not ConnectionState.CONNECTED


def _side(hypervisor: Hypervisor, storage: Storage, domain: Domain, node: str, peer: str, options: Options) -> Side:
    all_here = hypervisor.domains(node)
    others = tuple(d for d in all_here if d.uuid != domain.uuid)
    own = {disk.source for disk in domain.layers if disk.source}
    foreign = {disk.source for other in others for disk in other.layers if disk.source}
    places = storage.locate(node, own | foreign)
    names = sorted({place.resource for path, place in places.items() if path in own})
    resources = storage.observe(node, names)
    reached = sorted(name for name, resource in resources.items() if resource.towards(peer) is not None)
    apart = [name for name, resource in resources.items() if _apart(resource, peer)]
    set_there = together([partial(storage.options, node, name, peer) for name in reached])
    return Side(
        node=node,
        host=room.host(hypervisor, storage, node),
        domain=hypervisor.domain(node, domain.uuid),
        others=others,
        places={path: place for path, place in places.items() if path in own},
        places_of_others={path: place for path, place in places.items() if path in foreign},
        resources=resources,
        options=dict(zip(reached, set_there, strict=True)),
        openers=storage.openers(node, resources.keys()),
        lineages=storage.lineages(node, peer, apart),
        surroundings=storage.surroundings(node, resources.keys()),
        shared=storage.shared(node, own),
        traces=storage.traces(node),
        guard_trouble=storage.guard_trouble(node),
        keepalive_s=storage.keepalive_s(node),
        certificates=storage.certificates(node) if options.tls else None,
    )
