"""One look at every node: which guests are to leave, where each of them could go, and what somebody has left undone.

What is asked of a node, and what is looked at for a guest, grows with what they have, not with the fleet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from typing import Final, TypeVar

from lvmigrate import balloon, checks, occasion, room
from lvmigrate.assignment import Room, Stay, Traveller
from lvmigrate.census import Census, Guests, Unfinished
from lvmigrate.domain import Domain, Host
from lvmigrate.errors import Code, Finding, LvmigrateError, Refused
from lvmigrate.ipolicy import NO_POLICY
from lvmigrate.node import Node
from lvmigrate.node_states import Gone
from lvmigrate.plan import Options
from lvmigrate.replication import Place, ReplicationState
from lvmigrate.target import Look, against_policy, lacks
from lvmigrate.tasklet import Context
from lvmigrate.together import outcomes_of

T = TypeVar("T")

#: Of so many nodes a sentence tells what is against each.
_SAID: Final = 8


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
    #: Every move that brings a node memory which may not be there yet, whoever is at it; the unfinished ones too.
    arrivals: tuple[Unfinished, ...]
    #: Guests that are defined on the nodes this is about, and are off.
    off: tuple[Domain, ...]
    #: By UUID: the node that a guest is active on, of all guests on the nodes that answered.
    whereabouts: Mapping[str, str]
    #: The nodes that gave no answer.
    silent: Mapping[str, LvmigrateError]
    #: By UUID: the guests that are to leave.
    domains: Mapping[str, Domain]

    def left(self, *, but: Collection[str] = ()) -> list[Room]:
        """The rooms without what is still to come there; the guests in ``but`` are left to the caller."""
        coming: Counter[str] = Counter()
        for arrival in self.arrivals:
            if arrival.uuid not in but:
                coming[arrival.target] += arrival.memory_kib
        return [replace(room, free_kib=room.free_kib - coming[room.node]) for room in self.rooms]


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What one node has for others' guests: of their disks those that may be there."""

    host: Host
    places: Mapping[str, Place]
    shared: frozenset[str]


def observe(context: Context, question: Question) -> Fleet:
    """Ask every node that is in use, side by side; nothing is changed.

    A target that is silent takes nobody.  Raises `Refused` when a node that this is about gives no answer.
    """
    answers = _Answers(question.about)
    silent = answers.silent
    named = question.sources | question.about
    asked = [name for name, node in context.nodes.items() if node.offline is None or name in named]
    known = answers.of({node: partial(_census, context, node) for node in asked})
    guests = Guests(known)
    unfinished = tuple(guests.unfinished(question.about, question.leave_alone))
    busy = {left.uuid for left in unfinished} | set(question.leave_alone)
    leavers = {
        domain.uuid: domain
        for node in sorted(question.sources & known.keys())
        for domain in known[node].domains
        if domain.state.active and domain.uuid not in busy and question.leaves(domain)
    }
    disks = {uuid: _paths(guest) for uuid, guest in leavers.items()}
    paths: dict[str, set[str]] = {}
    for guest in leavers.values():
        paths.setdefault(guest.node, set()).update(disks[guest.uuid])
    homes = answers.of({node: partial(context.storage.locate, node, frozenset(mine)) for node, mine in paths.items()})
    leads, unplaced = _led(paths, homes)
    views = answers.of(
        {
            node: partial(
                _view,
                context,
                node,
                frozenset(path for name in census.resources for path in leads.get(name, ())),
                unplaced,
                takes=node in question.targets,
            )
            for node, census in known.items()
            if node not in silent
        }
    )
    choice = _Choice(context.nodes, known, homes, views, silent, question)
    unasked = {
        name: (silent[name].code, "gives no answer") if name in silent else (Code.NODE_OFFLINE, node.closed or "")
        for name, node in context.nodes.items()
        if name not in known
    }
    expected = {uuid: gone for uuid, gone in question.away.items() if uuid not in busy}
    travellers, stays = [], list(guests.missing(expected, question.targets, unasked))
    for domain in leavers.values():
        found = choice.of(domain, disks[domain.uuid])
        if isinstance(found, Traveller):
            travellers.append(found)
        elif found is not None:
            stays.append(found)
    if question.forecast_s:
        travellers = _measured(context, travellers, question.forecast_s)
    arrivals = {(left.uuid, left.target): left for left in (*guests.arrivals(), *unfinished)}
    return Fleet(
        rooms=tuple(_room(context.nodes[node], known[node], view) for node, view in views.items()),
        travellers=tuple(travellers),
        stays=tuple(stays),
        unfinished=unfinished,
        arrivals=tuple(arrivals.values()),
        off=tuple(d for node in sorted(question.about) for d in known[node].domains if not d.state.active),
        whereabouts=guests.whereabouts,
        silent=silent,
        domains=leavers,
    )


class _Answers:
    """What nodes said that were asked side by side, and who was silent. A silent one of ``needed`` is refused."""

    def __init__(self, needed: frozenset[str]) -> None:
        self._needed = needed
        self.silent: dict[str, LvmigrateError] = {}

    def of(self, calls: Mapping[str, Callable[[], T]]) -> dict[str, T]:
        """By node. Raises `Refused`."""
        answers = {}
        for node, word in zip(calls, outcomes_of(list(calls.values())), strict=True):
            if isinstance(word, LvmigrateError):
                self.silent[node] = word
            else:
                answers[node] = word
        for node in sorted(self._needed & self.silent.keys()):
            raise _silent(node, self.silent[node])
        return answers


def _led(
    paths: Mapping[str, set[str]], homes: Mapping[str, Mapping[str, Place]]
) -> tuple[Mapping[str, list[str]], frozenset[str]]:
    """By resource: the paths that lead to it on the nodes the guests are on; and those that lead to none."""
    leads: dict[str, list[str]] = {}
    unplaced: set[str] = set()
    for node, places in homes.items():
        unplaced |= paths[node] - places.keys()
        for path, place in places.items():
            leads.setdefault(place.resource, []).append(path)
    return leads, frozenset(unplaced)


def _census(context: Context, node: str) -> Census:
    return Census(
        domains=context.hypervisor.domains(node),
        traces=context.storage.traces(node),
        resources=context.storage.observe(node),
    )


def _view(context: Context, node: str, paths: frozenset[str], unplaced: frozenset[str], *, takes: bool) -> _View:
    return _View(
        host=room.host(context.hypervisor, context.storage, node),
        places=context.storage.locate(node, paths) if takes and paths else {},
        shared=frozenset(context.storage.shared(node, unplaced)) if takes and unplaced else frozenset(),
    )


def _paths(domain: Domain) -> frozenset[str]:
    """Its disks' paths, as far as a node must have them."""
    return frozenset(disk.source for disk in checks.replicated_disks(domain) if disk.source and not disk.network)


def _resyncs(census: Census) -> bool:
    return any(
        volume.replication is not ReplicationState.ESTABLISHED and volume.replication is not ReplicationState.OFF
        for resource in census.resources.values()
        for peer in resource.connections
        for volume in peer.volumes
    )


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


def _room(node: Node, census: Census, view: _View) -> Room:
    return Room(
        node=node.name,
        free_kib=view.host.free_memory_kib,
        link_mib_s=node.link_mib_s,
        resyncs=_resyncs(census),
        vcpus=sum(guest.vcpus for guest in census.domains if guest.state.active),
        cpus=view.host.cpus,
    )


class _Choice:
    """Where each guest can go. What holds for all guests is found once."""

    def __init__(
        self,
        nodes: Mapping[str, Node],
        known: Mapping[str, Census],
        homes: Mapping[str, Mapping[str, Place]],
        views: Mapping[str, _View],
        silent: Mapping[str, LvmigrateError],
        question: Question,
    ) -> None:
        self._nodes = nodes
        self._known = known
        self._homes = homes
        self._views = views
        self._silent = silent
        self._question = question
        #: By node: why nobody goes there.
        self._barred: dict[str, Finding] = {}
        #: Those that may be gone to, and by path who of them has it.
        self._open: list[str] = []
        self._having: dict[str, list[str]] = {}
        for name in sorted(question.targets):
            node = nodes[name]
            if node.closed is not None:
                code = Code.NODE_DRAINED if node.offline is None else Code.NODE_OFFLINE
                self._barred[name] = _finding(code, f"{name} {node.closed}")
            elif name not in views:
                code = silent[name].code if name in silent else Code.NODE_UNREACHABLE
                self._barred[name] = _finding(code, f"{name} gives no answer")
            else:
                self._open.append(name)
                for path in {*views[name].places, *views[name].shared}:
                    self._having.setdefault(path, []).append(name)
        self._bounded = any(nodes[name].policy != NO_POLICY for name in self._open)
        self._barred_codes = {finding.code for finding in self._barred.values()}

    def of(self, domain: Domain, paths: frozenset[str]) -> Traveller | Stay | None:
        """The guest with the nodes that can take it; or why there is none; or nothing, where it is not asked for.

        ``paths``: those of its disks that a node must have.
        """
        if domain.node not in self._views:
            error = self._silent[domain.node]
            return _stay(domain, _finding(error.code, error.sentence.rstrip(".")))
        source = self._look(domain.node, self._homes[domain.node], paths)
        options = self._question.options(domain)
        sizes = occasion.sizes(source.places, source.resources) if self._bounded else {}
        not_to = self._question.not_to.get(domain.uuid, ())
        good: list[str] = []
        doubtful: list[str] = []
        against: dict[str, Finding] = {}
        # A node without one of its disks is none; where it needs none of a node, each may be.
        for name in self._having.get(min(paths), ()) if paths else self._open:
            if name == domain.node:
                continue
            look = self._look(name, self._views[name].places, paths)
            if lacks(look, source, domain):
                continue
            if words := against_policy(self._nodes[name].policy, domain, sizes, options):
                against[name] = _finding(Code.IPOLICY, f"{name} {words[0]}")
            elif name in not_to:
                against[name] = _finding(Code.NO_TARGET, f"{name} was tried")
            elif all(resource.in_step_with(domain.node) for resource in look.resources.values()):
                good.append(name)
            else:
                doubtful.append(name)
        if not good and not doubtful:
            return self._nowhere(domain, source, paths, against)
        return Traveller(
            uuid=domain.uuid,
            name=domain.name,
            source=domain.node,
            memory_kib=balloon.needed_kib(domain),
            resident_kib=balloon.current(domain),
            peers=tuple(good),
            last_resort=tuple(doubtful),
            vcpus=domain.vcpus,
            downtime_limit_s=options.downtime_limit_s,
        )

    def _look(self, node: str, places: Mapping[str, Place], paths: frozenset[str]) -> Look:
        """What a node says of one guest's disks alone."""
        view, resources = self._views[node], self._known[node].resources
        mine = {path: places[path] for path in paths if path in places}
        return Look(
            host=view.host,
            domains=(),
            places=mine,
            resources={p.resource: resources[p.resource] for p in mine.values() if p.resource in resources},
            shared=paths & view.shared,
        )

    def _nowhere(
        self, domain: Domain, source: Look, paths: frozenset[str], against: Mapping[str, Finding]
    ) -> Stay | None:
        """All that is against every node as one sentence."""
        if against or self._barred:
            # That other nodes have no copy of a guest's disks goes without saying, as long as one has.
            codes = {finding.code for finding in against.values()} | self._barred_codes
            some = dict(islice(chain(against.items(), self._barred.items()), _SAID))
            said = "; ".join(some[node].sentence for node in sorted(some))
            words = _and_more(said, len(against) + len(self._barred))
            # What its own moves have come to there, only where nothing else is said.
            telling = codes - {Code.NO_TARGET} or codes
            code = next(iter(telling)) if len(telling) == 1 else Code.NO_TARGET
        elif self._question.if_replicated:
            return None
        elif self._open:
            code = Code.REPLICA_MISSING
            looks = {name: self._look(name, self._views[name].places, paths) for name in self._open[:_SAID]}
            said = "; ".join(f"{name} {''.join(lacks(look, source, domain))}" for name, look in looks.items())
            words = _and_more(said, len(self._open))
            words = words if len(looks) == 1 else f"no other node has a copy of all its disks ({words})"
        else:
            code, words = Code.NO_TARGET, "there is no node that it may go to"
        return _stay(domain, _finding(code, words))


def _and_more(said: str, count: int) -> str:
    return said if count <= _SAID else f"{said}; and {count - _SAID} more"


def _finding(code: Code, sentence: str) -> Finding:
    return Finding(code=code, sentence=sentence, hint="")


def _stay(domain: Domain, why: Finding) -> Stay:
    return Stay(
        uuid=domain.uuid,
        name=domain.name,
        source=domain.node,
        finding=Finding(
            code=why.code,
            sentence=f"{domain.name} can go nowhere: {why.sentence}.",
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
