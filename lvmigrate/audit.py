"""What leaked: everything on the nodes that no move under way accounts for. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from lvmigrate.domain import Domain, DomainState, JobKind
from lvmigrate.errors import Code, Finding, LvmigrateError
from lvmigrate.own_names import own_name
from lvmigrate.protocols import Hypervisor, Storage
from lvmigrate.replication import Resource, Role
from lvmigrate.tasklet import Context
from lvmigrate.together import outcomes_of
from lvmigrate.token import Held, Traces


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One node's word."""

    node: str
    domains: tuple[Domain, ...]
    traces: Traces
    resources: Mapping[str, Resource]
    two_primaries: frozenset[str]
    #: Those of them that the node's configuration allows for good.
    for_good: frozenset[str]
    #: The resources that something has open here.
    held: frozenset[str]
    #: The resources under each guest's disks, by the guest's UUID.
    used: Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The whole cluster's leftovers."""

    findings: tuple[Finding, ...]
    #: What is as it is by somebody's will, and dangerous all the same.
    notes: tuple[Finding, ...]
    #: Moves and cleanups under way: their tokens live, so what they opened is theirs.
    under_way: tuple[Held, ...]
    #: Nodes that gave no answer: what is there is not known.
    silent: tuple[LvmigrateError, ...]


def audit(context: Context) -> Audit:
    """Look at every node. A silent one is part of the answer."""
    return judged(looks(context))


def looks(context: Context) -> tuple[Seen | LvmigrateError, ...]:
    """Every node's word, or why there is none, in the order of the nodes.

    They are not of one moment: a guest that moves in between is seen on both.  So what is on two nodes is looked at
    once more.
    """
    calls = [partial(look, context.hypervisor, context.storage, node) for node in context.nodes]
    outcomes = outcomes_of(calls)
    twice = any(finding.code in (Code.INSTANCE_TWICE, Code.DUAL_PRIMARY) for finding in judged(outcomes).findings)
    return outcomes_of(calls) if twice else outcomes


def judged(outcomes: Sequence[Seen | LvmigrateError]) -> Audit:
    """What each node's word, or its silence, adds up to. Pure."""
    seen = tuple(outcome for outcome in outcomes if isinstance(outcome, Seen))
    living = {held.uuid: held for node in seen for held in node.traces.tokens if held.alive}
    return Audit(
        findings=tuple(findings(seen, frozenset(living))),
        notes=tuple(_notes(seen)),
        under_way=tuple(living.values()),
        silent=tuple(outcome for outcome in outcomes if isinstance(outcome, LvmigrateError)),
    )


def findings(nodes: tuple[Seen, ...], living: frozenset[str]) -> Iterator[Finding]:
    """Every leftover, most dangerous first. Pure. ``living``: the guests that somebody works on now."""
    busy = {name for node in nodes for uuid in living for name in node.used.get(uuid, ())}
    yield from _guests(nodes, living)
    yield from _roles(nodes, busy)
    for node in nodes:
        yield from _options(node, busy)
    for node in nodes:
        yield from _marks(node, living)


def _guests(nodes: tuple[Seen, ...], living: frozenset[str]) -> Iterator[Finding]:
    active: dict[str, list[Domain]] = {}
    for domain in (d for node in nodes for d in node.domains if d.state.active):
        active.setdefault(domain.uuid, []).append(domain)
    for copies in active.values():
        first = copies[0]
        moving = any(copy.job is not JobKind.NONE for copy in copies)
        if len(copies) > 1 and not moving and first.uuid not in living:
            where = " and ".join(f"{copy.node} ({copy.state.value})" for copy in copies)
            yield Finding(
                code=Code.INSTANCE_TWICE,
                sentence=f"{first.name} has a live copy on {where}.",
                hint=_cleanup(first.name),
            )
    yield from _tombs(nodes)
    for node in nodes:
        for domain in node.domains:
            left = node.traces.token(domain.uuid)
            if domain.state is DomainState.PAUSED and left is not None and not left.alive:
                yield Finding(
                    code=Code.INSTANCE_STATE,
                    sentence=f"{domain.name} waits paused on {node.node} ({domain.reason}): a move was not finished.",
                    hint=_cleanup(domain.name),
                )
            elsewhere = [copy.node for copy in active.get(domain.uuid, ()) if copy.node != node.node]
            if domain.autostart and not domain.state.active and elsewhere and domain.uuid not in living:
                yield Finding(
                    code=Code.AUTOSTART_ELSEWHERE,
                    sentence=f"{node.node} would start {domain.name} when it boots, which runs on {elsewhere[0]}.",
                    hint=f"{_cleanup(domain.name)} Or: `virsh autostart --disable {domain.name}` on {node.node}.",
                )


def _tombs(nodes: tuple[Seen, ...]) -> Iterator[Finding]:
    """What came back with a node that a guest was failed over from without that node's word."""
    known = {node.node: {domain.uuid for domain in node.domains} for node in nodes}
    for node in nodes:
        for domain in node.domains:
            if domain.left_on not in (None, node.node) and domain.uuid in known.get(domain.left_on or "", ()):
                yield Finding(
                    code=Code.LEFT_BEHIND,
                    sentence=f"{domain.left_on} is back and knows {domain.name}, which was started on {node.node} while"
                    f" {domain.left_on} was off.",
                    hint=_cleanup(domain.name),
                )


def _roles(nodes: tuple[Seen, ...], busy: set[str]) -> Iterator[Finding]:
    primaries: dict[str, list[Seen]] = {}
    for node in nodes:
        for resource in node.resources.values():
            if resource.role is Role.PRIMARY and resource.name not in busy:
                primaries.setdefault(resource.name, []).append(node)
    for name, where in sorted(primaries.items()):
        if len(where) > 1:
            yield Finding(
                code=Code.DUAL_PRIMARY,
                sentence=f"{name} is Primary on {' and '.join(node.node for node in where)}.",
                hint=_of(nodes, name),
            )
        for node in where:
            if name not in node.held:
                yield Finding(
                    code=Code.PRIMARY_UNUSED,
                    sentence=f"{name} is Primary on {node.node}, and nothing has it open there.",
                    hint=_of(nodes, name),
                )


def _options(node: Seen, busy: set[str]) -> Iterator[Finding]:
    for name in sorted(node.two_primaries - node.for_good - busy):
        yield Finding(
            code=Code.TWO_PRIMARIES_ON,
            sentence=f"Two primaries are allowed for {name} on {node.node}.",
            hint=_of((node,), name),
        )


def _notes(nodes: tuple[Seen, ...]) -> Iterator[Finding]:
    for name in sorted({name for node in nodes for name in node.for_good}):
        where = " and ".join(node.node for node in nodes if name in node.for_good)
        yield Finding(
            code=Code.TWO_PRIMARIES_FOR_GOOD,
            sentence=f"The configuration of {where} allows two primaries for {name} at any time.",
            hint="It is left so. To end it: take allow-two-primaries out, then `drbdadm adjust` on both nodes.",
        )


def _marks(node: Seen, living: frozenset[str]) -> Iterator[Finding]:
    for guard in node.traces.guards:
        if not guard.alive:
            yield Finding(
                code=Code.GUARD_LOST,
                sentence=f"The guard of {guard.instance} on {node.node} does not run any more.",
                hint=_cleanup(guard.instance),
            )
        elif guard.uuid not in living:
            says = f": {guard.says}" if guard.says else ""
            yield Finding(
                code=Code.LEFT_BEHIND,
                sentence=f"The guard of {guard.instance} on {node.node} is at work{says}.",
                hint=f"It goes on by itself. {_cleanup(guard.instance)}",
            )
    for held in node.traces.tokens:
        if not held.alive and held.uuid not in living:
            yield Finding(
                code=Code.LEFT_BEHIND,
                sentence=f"A token of {held.instance} on {node.node} ran out {-held.left_s:.0f} s ago ({held.holder}).",
                hint=_cleanup(held.instance),
            )


def _cleanup(instance: str) -> str:
    return f"`lvmigrate cleanup {instance}` says what follows (--dry-run), and does it."


def _of(nodes: tuple[Seen, ...], name: str) -> str:
    """The cleanup of the guest that uses the resource, where there is one."""
    for node in nodes:
        for domain in node.domains:
            if name in node.used.get(domain.uuid, ()):
                return _cleanup(domain.name)
    here = nodes[0].node
    return f"No guest uses it: look with `drbdsetup status {own_name(name, here)}` on {here}."


def look(hypervisor: Hypervisor, storage: Storage, node: str) -> Seen:
    """Ask one node for everything that an audit needs. Raises `NodeUnreachable` and `CommandFailed`."""
    # The jobs are asked for one by one, and only where a guest is active.
    domains = tuple(
        (hypervisor.domain(node, domain.uuid) or domain) if domain.state.active else domain
        for domain in hypervisor.domains(node)
    )
    places = storage.locate(node, {disk.source for domain in domains for disk in domain.layers if disk.source})
    resources = storage.observe(node)
    two_primaries = storage.two_primaries(node)
    used = {
        domain.uuid: frozenset(places[d.source].resource for d in domain.layers if d.source and d.source in places)
        for domain in domains
    }
    return Seen(
        node=node,
        domains=domains,
        traces=storage.traces(node),
        resources=resources,
        two_primaries=two_primaries,
        for_good=storage.surroundings(node, sorted(two_primaries)).two_primaries_for_good,
        held=frozenset(opener.resource for opener in storage.openers(node, sorted(resources))),
        used=used,
    )
