"""The target of a move: the nodes that have the guest's disks, what speaks against each, and the best of them.

`choose` is pure: policy first (closed nodes and those whose policy does not take the guest are out), then what is free
of memory, then load.  What is decided is said in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from lvmigrate import balloon, checks, iallocator, occasion, room
from lvmigrate.domain import Domain, Host
from lvmigrate.errors import Code, Finding, LvmigrateError, Refused
from lvmigrate.ipolicy import NO_POLICY, InstancePolicy
from lvmigrate.node import Node
from lvmigrate.replication import DiskState, Place, Resource
from lvmigrate.survey import Survey
from lvmigrate.tasklet import Context
from lvmigrate.together import outcomes_of

#: What is free on two nodes counts as equal where it differs by less than this share of the more.
_EQUAL: Final = 0.1


class Wishes(Protocol):
    """What the caller's options say about the target."""

    @property
    def ignore_ipolicy(self) -> bool:
        """Whether policies are not asked."""

    @property
    def iallocator(self) -> str | None:
        """The program that chooses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One node that the guest might go to, as it was observed."""

    node: str
    free_kib: int = 0
    #: Of the guests that run there, and of the node; 0: not known.
    vcpus: int = 0
    cpus: int = 0
    #: Clauses: why it is out; why only if there is no better.
    out: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def load(self) -> float:
        """Guests' CPUs for each of the node's."""
        return self.vcpus / (self.cpus or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A node, and why it is this one: a clause."""

    node: str
    why: str


def choose(candidates: Sequence[Candidate], needed_kib: int) -> Choice | None:
    """The best node; ``None``: all are out.

    One with a doubt is taken only where all have one: its check then says what is the matter.
    """
    fit = [candidate for candidate in candidates if not candidate.out]
    sound = [candidate for candidate in fit if not candidate.doubts] or fit
    if not sound:
        return None
    most = max(candidate.free_kib for candidate in sound)
    roomy = [c for c in sound if c.free_kib >= most * (1 - _EQUAL)]
    best = min(roomy, key=lambda c: (c.load, -c.free_kib, c.node))
    left_mib = max(0, best.free_kib - needed_kib) // 1024
    if len(roomy) > 1:
        loads = ", ".join(f"{c.node} {c.load:.2g}" for c in sorted(roomy, key=lambda c: (c.load, c.node)))
        why = f"about as much memory is free as anywhere ({left_mib} MiB after the move), and its CPUs are the least in"
        why += f" use (guests' CPUs for each of the node's: {loads})"
    elif len(sound) > 1:
        frees = ", ".join(f"{c.node} {c.free_kib // 1024}" for c in sorted(sound, key=lambda c: -c.free_kib))
        why = f"most memory is free there (MiB: {frees}; {left_mib} after the move)"
    else:
        why = "no other node can take it"
    against = [
        f"{c.node} {'; '.join((*c.out, *c.doubts))}" for c in candidates if c.node != best.node if c not in sound
    ]
    return Choice(node=best.node, why=why + "".join(f"; {words}" for words in against))


def chosen(context: Context, domain: Domain, wanted: str | None, wishes: Wishes) -> Choice:
    """The target: ``wanted``, or the only other node, or the best one. Raises `Refused`."""
    others = [node for node in context.nodes.values() if node.name != domain.node]
    names = ", ".join(node.name for node in others)
    if wanted == domain.node:
        raise _refused(
            domain,
            Code.TARGET_IS_SOURCE,
            f"{domain.name} runs on {domain.node} already.",
            f"Choose another target: {names or 'the configuration names no other node'}.",
        )
    if wanted is not None:
        others = [context.nodes[wanted]]
    elif not others:
        raise _refused(
            domain,
            Code.NO_TARGET,
            f"{domain.name} can go nowhere: the configuration names no other node.",
            "Name one in the configuration.",
        )
    if len(others) == 1:
        _open(domain, others[0])
        return Choice(node=others[0].name, why="")
    candidates, landscape = _looked(context, domain, others, wishes)
    fitting = [candidate.node for candidate in candidates if not candidate.out]
    if fitting and wishes.iallocator is not None:
        answer = iallocator.ask(wishes.iallocator, domain, landscape, fitting, cancel=context.cancel)
        return Choice(node=answer, why=f"{wishes.iallocator} chose it")
    best = choose(candidates, balloon.current(domain))
    if best is None:
        words = "; ".join(f"{candidate.node} {', '.join(candidate.out)}" for candidate in candidates)
        raise _refused(
            domain,
            Code.NO_TARGET,
            f"No node can take {domain.name}: {words}.",
            "Mend one of these, or name the target with --to to see all that speaks against it.",
        )
    return best


def _refused(domain: Domain, code: Code, sentence: str, hint: str) -> Refused:
    return Refused(domain.name, [Finding(code=code, sentence=sentence, hint=hint)])


def _open(domain: Domain, node: Node) -> None:
    if node.closed is not None:
        key = "drained" if node.offline is None else "offline"
        raise _refused(
            domain,
            Code.NODE_DRAINED if node.offline is None else Code.NODE_OFFLINE,
            f"{node.name} {node.closed}: {domain.name} may not go there.",
            f"Choose another target; or open it: `lvmigrate node {node.name} --online`, and no `{key}` in"
            f" [nodes.{node.name}] of the configuration.",
        )


def policy(seen: Survey, node: Node, *, ignored: bool) -> tuple[Finding, ...]:
    """The guest against its target's policy: a reason to refuse, or, if it is ignored, a warning."""
    sizes = occasion.sizes(seen.source.places, seen.source.resources)
    return tuple(
        Finding(
            code=Code.IPOLICY,
            sentence=f"{seen.domain.name} has {words}, which the policy of {node.name} does not take.",
            hint="It is ignored, as asked."
            if ignored
            else f"Choose another target, change [ipolicy] for {node.name}, or move it all the same with"
            " --ignore-ipolicy.",
        )
        for words in node.policy.objections(seen.domain, sizes)
    )


# ---- looking


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one node says."""

    host: Host
    domains: tuple[Domain, ...]
    places: Mapping[str, Place]
    resources: Mapping[str, Resource]
    shared: frozenset[str]


def look_at(context: Context, node: str, paths: frozenset[str]) -> Look:
    """What a node says of itself, and of the disks with these paths."""
    places = context.storage.locate(node, paths)
    return Look(
        host=room.host(context.hypervisor, context.storage, node),
        domains=context.hypervisor.domains(node),
        places=places,
        resources=context.storage.observe(node, sorted({place.resource for place in places.values()})),
        shared=frozenset(context.storage.shared(node, paths)),
    )


def _looked(
    context: Context, domain: Domain, others: Sequence[Node], wishes: Wishes
) -> tuple[tuple[Candidate, ...], tuple[iallocator.NodeView, ...]]:
    """Every other node as a candidate, and every node as an allocator is told of it."""
    paths = frozenset(disk.source for disk in checks.replicated_disks(domain) if disk.source)
    here = context.nodes[domain.node]
    asked = [here, *(node for node in others if node.offline is None)]
    outcomes = outcomes_of([partial(look_at, context, node.name, paths) for node in asked])
    looks = dict(zip((node.name for node in asked), outcomes, strict=True))
    source = looks[here.name]
    if isinstance(source, LvmigrateError):
        raise Refused(domain.name, [Finding(code=source.code, sentence=source.sentence, hint=source.hint)])
    sizes = occasion.sizes(source.places, source.resources)
    candidates, views = [], []
    for node in (here, *others):
        look = looks.get(node.name)
        if node is not here:
            candidates.append(_candidate(node, look, source, domain, sizes, wishes))
        known = look if isinstance(look, Look) else None
        views.append(
            iallocator.NodeView(
                node=node,
                host=None if known is None else known.host,
                guests=() if known is None else tuple(d for d in known.domains if d.state.active),
            )
        )
    return tuple(candidates), tuple(views)


def _candidate(
    node: Node,
    look: Look | LvmigrateError | None,
    source: Look,
    domain: Domain,
    sizes: Mapping[str, int],
    wishes: Wishes,
) -> Candidate:
    out = [] if node.closed is None else [node.closed]
    if isinstance(look, LvmigrateError):
        out.append(f"gives no answer ({look.sentence.rstrip('.')})")
    if not isinstance(look, Look):
        return Candidate(node=node.name, out=tuple(out))
    out += lacks(look, source, domain)
    out += against_policy(node.policy, domain, sizes, wishes)
    doubts = [
        "has a copy of its disks that is not in step"
        for resource in look.resources.values()
        if not resource.in_step_with(domain.node)
    ][:1]
    if look.host.free_memory_kib < balloon.needed_kib(domain):
        doubts.append(f"has {look.host.free_memory_kib // 1024} MiB of memory free")
    return Candidate(
        node=node.name,
        free_kib=look.host.free_memory_kib,
        vcpus=sum(guest.vcpus for guest in look.domains if guest.state.active),
        cpus=look.host.cpus,
        out=tuple(out),
        doubts=tuple(doubts),
    )


def against_policy(bounds: InstancePolicy, domain: Domain, sizes: Mapping[str, int], wishes: Wishes) -> list[str]:
    """What a node's policy has against the guest, a clause each."""
    if wishes.ignore_ipolicy or bounds == NO_POLICY:
        return []
    return [f"takes no guest with {words}" for words in bounds.objections(domain, sizes)]


def lacks(look: Look, source: Look, domain: Domain) -> list[str]:
    """Disks of the guest that have no copy there, or one without a disk of its own."""
    missing = []
    for disk in checks.replicated_disks(domain):
        path = disk.source or ""
        place = source.places.get(path)
        if place is None:
            reached = disk.network or path in look.shared
        else:
            resource = look.resources.get(place.resource)
            copies = [] if resource is None else [v for v in resource.volumes if v.number == place.volume]
            reached = look.places.get(path) == place and any(v.disk is not DiskState.DISKLESS for v in copies)
        if not reached:
            missing.append(disk.target)
    return [f"has no copy of {', '.join(missing)}"] if missing else []
