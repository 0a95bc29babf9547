"""One look at every node: which guests are to leave, where each of them could go, and what somebody has left undone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from lvmigrate import balloon, checks, occasion
from lvmigrate.assignment import Room, Stay, Traveller
from lvmigrate.domain import Domain
from lvmigrate.errors import Code, Finding, LvmigrateError, Refused
from lvmigrate.node import Node
from lvmigrate.node_states import Gone
from lvmigrate.plan import Options
from lvmigrate.replication import ReplicationState, Resource
from lvmigrate.target import Look, against_policy, lacks, look_at
from lvmigrate.tasklet import Context
from lvmigrate.together import outcomes_of
from lvmigrate.token import GuardSeen, Held, Traces

_SYNCING: Final = frozenset(ReplicationState) - {ReplicationState.OFF, ReplicationState.ESTABLISHED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A move of a guest that somebody is at, or has left: only a cleanup tells which, and ends it."""

    uuid: str
    name: str
    source: str
    target: str
    memory_kib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be known of a fleet."""

    #: The nodes that guests are to leave.
    sources: frozenset[str]
    #: Where they may go.
    targets: frozenset[str]
    #: Which of the guests that are active there are to leave.
    leaves: Callable[[Domain], bool]
    #: What holds for one of them.
    options: Callable[[Domain], Options]
    #: The node, or nodes, for whose sake all this is: what is unfinished there is to be finished.
    about: frozenset[str]
    #: How long to measure what each guest dirties, in seconds; 0: not at all.
    forecast_s: int = 0
    #: Leave out, rather than name, those that have no copy of their disks on any of the targets.
    if_replicated: bool = False
    #: By UUID: guests that are expected, whoever has them by now: one that may be where nobody answers is named.
    away: Mapping[str, Gone] = field(default_factory=dict)
    #: By UUID: nodes where a guest is not to go.
    not_to: Mapping[str, Collection[str]] = field(default_factory=dict)
    #: The guests that are not to be looked at: they are under way, or done with.
    leave_alone: Collection[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The answer."""

    rooms: tuple[Room, ...]
    travellers: tuple[Traveller, ...]
    #: Guests that can go nowhere, whatever room there is.
    stays: tuple[Stay, ...]
    unfinished: tuple[Unfinished, ...]
    #: Guests that are defined on the nodes this is about, and are off.
    off: tuple[Domain, ...]
    #: By UUID: the node that a guest is active on, of all guests on the nodes that answered.
    whereabouts: Mapping[str, str]
    #: The nodes that gave no answer.
    silent: Mapping[str, LvmigrateError]
    #: By UUID: the guests that are to leave.
    domains: Mapping[str, Domain]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Census:
    """Who is on one node, and what moves have left there."""

    domains: tuple[Domain, ...]
    traces: Traces


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What one node says of the guests' disks, and whether any of its copies is being brought up to date."""

    look: Look
    resyncs: bool


def observe(context: Context, question: Question) -> Fleet:
    """Ask every node that is in use, side by side; nothing is changed.

    A target that is silent takes nobody.  Raises `Refused` when a node that this is about gives no answer.
    """
    asked = tuple(
        name
        for name, node in context.nodes.items()
        if node.offline is None or name in question.sources | question.about
    )
    census = dict(zip(asked, outcomes_of([partial(_census, context, node) for node in asked]), strict=True))
    silent = {node: word for node, word in census.items() if isinstance(word, LvmigrateError)}
    for node in sorted(question.about & silent.keys()):
        raise _silent(node, silent[node])
    known = {node: word for node, word in census.items() if isinstance(word, _Census)}
    unfinished = tuple(_unfinished(known, question))
    busy = {left.uuid for left in unfinished} | set(question.leave_alone)
    leavers = {
        domain.uuid: domain
        for node in sorted(question.sources & known.keys())
        for domain in known[node].domains
        if domain.state.active and domain.uuid not in busy and question.leaves(domain)
    }
    paths = frozenset(d.source for guest in leavers.values() for d in checks.replicated_disks(guest) if d.source)
    views = dict(zip(known, outcomes_of([partial(_view, context, node, paths) for node in known]), strict=True))
    silent |= {node: word for node, word in views.items() if isinstance(word, LvmigrateError)}
    for node in sorted(question.about & silent.keys()):
        raise _silent(node, silent[node])
    seen = {node: word for node, word in views.items() if isinstance(word, _View)}
    travellers, stays = [], list(_unseen(context.nodes, known, silent, question))
    for domain in leavers.values():
        able, reasons = _able(context.nodes, seen, silent, domain, question)
        if able is None and question.if_replicated and all(f.code is Code.REPLICA_MISSING for f in reasons):
            continue
        if able is None:
            stays.append(_stay(domain, reasons))
        else:
            travellers.append(able)
    if question.forecast_s:
        travellers = _measured(context, travellers, question.forecast_s)
    return Fleet(
        rooms=tuple(_room(context.nodes[node], view) for node, view in seen.items()),
        travellers=tuple(travellers),
        stays=tuple(stays),
        unfinished=unfinished,
        off=tuple(d for node in sorted(question.about) for d in known[node].domains if not d.state.active),
        whereabouts={d.uuid: node for node, word in known.items() for d in word.domains if d.state.active},
        silent=silent,
        domains=leavers,
    )


def _census(context: Context, node: str) -> _Census:
    return _Census(domains=context.hypervisor.domains(node), traces=context.storage.traces(node))


def _view(context: Context, node: str, paths: frozenset[str]) -> _View:
    everything = context.storage.observe(node)
    return _View(look=look_at(context, node, paths), resyncs=any(map(_resyncs, everything.values())))


def _resyncs(resource: Resource) -> bool:
    return any(volume.replication in _SYNCING for peer in resource.connections for volume in peer.volumes)


def _silent(node: str, error: LvmigrateError) -> Refused:
    return Refused(
        node,
        [
            Finding(
                code=error.code,
                sentence=error.sentence,
                hint=f"{error.hint} If {node} is dead, its guests are started elsewhere one by one: `lvmigrate"
                " failover`.",
            )
        ],
    )


def _room(node: Node, view: _View) -> Room:
    look = view.look
    return Room(
        node=node.name,
        free_kib=look.host.free_memory_kib,
        link_mib_s=node.link_mib_s,
        resyncs=view.resyncs,
        vcpus=sum(guest.vcpus for guest in look.domains if guest.state.active),
        cpus=look.host.cpus,
    )


def _unfinished(known: Mapping[str, _Census], question: Question) -> Iterator[Unfinished]:
    """Every guest with a token or a guard that has to do with the nodes in question."""
    marks: dict[str, list[Held | GuardSeen]] = {}
    for census in known.values():
        here: tuple[Held | GuardSeen, ...] = (*census.traces.tokens, *census.traces.guards)
        for mark in here:
            marks.setdefault(mark.uuid, []).append(mark)
    for uuid, left in sorted(marks.items()):
        if uuid in question.leave_alone:
            continue
        errand = next((mark.errand for mark in left if isinstance(mark, Held) and mark.errand is not None), None)
        ends = {mark.node for mark in left} if errand is None else {errand.source, errand.target}
        if not ends & question.about:
            continue
        copies = [(node, d) for node, census in known.items() for d in census.domains if d.uuid == uuid]
        active = [(node, domain) for node, domain in copies if domain.state.active]
        source = errand.source if errand is not None else next((node for node, _ in active), min(ends))
        target = (
            errand.target if errand is not None else next((node for node in sorted(ends) if node != source), source)
        )
        yield Unfinished(
            uuid=uuid,
            name=left[0].instance,
            source=source,
            target=target,
            memory_kib=max((balloon.current(domain) for _, domain in active), default=0),
        )


def _unseen(
    nodes: Mapping[str, Node],
    known: Mapping[str, _Census],
    silent: Mapping[str, LvmigrateError],
    question: Question,
) -> Iterator[Stay]:
    """Guests that are expected and that may be on a node that was not asked, or gave no answer."""
    domains = [domain for census in known.values() for domain in census.domains]
    done = {domain.uuid for domain in domains if domain.state.active} | set(question.leave_alone)
    defined = {domain.uuid for domain in domains}
    away = [node for node in nodes if node not in known]
    for uuid, gone in sorted(question.away.items(), key=lambda item: item[1].name):
        # Where it was sent to, or, if that one answers and has nothing of it, anywhere else.
        where = [gone.target] if gone.target in away else [] if uuid in defined else away
        if uuid in done or not where:
            continue
        words = " and ".join(f"{node} {'gives no answer' if node in silent else nodes[node].closed}" for node in where)
        unanswered = next((silent[node].code for node in where if node in silent), Code.NODE_OFFLINE)
        finding = Finding(
            code=unanswered,
            sentence=f"{gone.name} was sent to {gone.target}, and is on no node that answers; {words}.",
            hint=f"Once {' and '.join(where)} can be asked, the same again: {gone.name} is remembered until then.",
        )
        yield Stay(uuid=uuid, name=gone.name, source=gone.target, finding=finding)


def _of(view: _View, domain: Domain) -> Look:
    """What a node says of this guest's disks alone."""
    paths = {disk.source for disk in domain.layers}
    places = {path: place for path, place in view.look.places.items() if path in paths}
    names = {place.resource for place in places.values()}
    resources = {name: resource for name, resource in view.look.resources.items() if name in names}
    return replace(view.look, places=places, resources=resources)


def _able(
    nodes: Mapping[str, Node],
    seen: Mapping[str, _View],
    silent: Mapping[str, LvmigrateError],
    domain: Domain,
    question: Question,
) -> tuple[Traveller | None, list[Finding]]:
    """The guest with the nodes that can take it; or why there is none, a finding for each node."""
    here = seen.get(domain.node)
    if here is None:
        error = silent[domain.node]
        return None, [Finding(code=error.code, sentence=error.sentence, hint=error.hint)]
    source = _of(here, domain)
    options = question.options(domain)
    sizes = occasion.sizes(source.places, source.resources)
    good: list[str] = []
    doubtful: list[str] = []
    against: list[Finding] = []
    for name in sorted(question.targets - {domain.node}):
        node, view = nodes[name], seen.get(name)
        look = None if view is None else _of(view, domain)
        word = silent.get(name)
        if node.closed is not None:
            code = Code.NODE_DRAINED if node.offline is None else Code.NODE_OFFLINE
            against.append(_finding(code, f"{name} {node.closed}"))
        elif word is not None or look is None:
            code = Code.NODE_UNREACHABLE if word is None else word.code
            against.append(_finding(code, f"{name} gives no answer"))
        elif missing := lacks(look, source, domain):
            against.append(_finding(Code.REPLICA_MISSING, f"{name} {missing[0]}"))
        elif words := against_policy(node.policy, domain, sizes, options):
            against.append(_finding(Code.IPOLICY, f"{name} {words[0]}"))
        elif name in question.not_to.get(domain.uuid, ()):
            against.append(_finding(Code.NO_TARGET, f"{name} was tried"))
        elif all(resource.in_step_with(domain.node) for resource in look.resources.values()):
            good.append(name)
        else:
            doubtful.append(name)
    if not good and not doubtful:
        return None, against
    memory = balloon.current(domain)
    traveller = Traveller(
        uuid=domain.uuid,
        name=domain.name,
        source=domain.node,
        memory_kib=memory,
        resident_kib=memory,
        peers=tuple(good),
        last_resort=tuple(doubtful),
        vcpus=domain.vcpus,
        downtime_limit_s=options.downtime_limit_s,
    )
    return traveller, []


def _finding(code: Code, sentence: str) -> Finding:
    return Finding(code=code, sentence=sentence, hint="")


def _stay(domain: Domain, against: list[Finding]) -> Stay:
    """One sentence of all that is against every node; its code, where it is the same for all that have its disks."""
    codes = {finding.code for finding in against}
    # That most nodes have no copy of a guest's disks goes without saying, as long as one has.
    telling = codes - {Code.REPLICA_MISSING} or codes
    said = [finding for finding in against if finding.code in telling]
    words = "; ".join(finding.sentence for finding in said) or "there is no node that it may go to"
    if telling == {Code.REPLICA_MISSING} and len(said) > 1:
        words = f"no other node has a copy of all its disks ({words})"
    return Stay(
        uuid=domain.uuid,
        name=domain.name,
        source=domain.node,
        finding=Finding(
            code=next(iter(telling)) if len(telling) == 1 else Code.NO_TARGET,
            sentence=f"{domain.name} can go nowhere: {words}.",
            hint=f"Mend that; `lvmigrate check {domain.name} --to NODE` says all that is against one node.",
        ),
    )


def _measured(context: Context, travellers: list[Traveller], seconds: int) -> list[Traveller]:
    """The same with what each does to its memory; one that could not be measured is taken as it is."""
    found = outcomes_of([partial(context.hypervisor.activity, t.source, t.uuid, seconds) for t in travellers])
    return [
        guest
        if isinstance(activity, LvmigrateError)
        else replace(guest, resident_kib=activity.resident_bytes >> 10, dirty_rate=activity.dirty_rate)
        for guest, activity in zip(travellers, found, strict=True)
    ]
