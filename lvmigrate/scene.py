"""Everything that is seen of one guest and of what a move may have left around it; one look, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from lvmigrate import checks, whereabouts
from lvmigrate.decision import (
    Action,
    Disk,
    DiskRow,
    Ruling,
    Sight,
    closing,
    decide,
    handed_over,
    link_of,
    primary,
    sight_of,
)
from lvmigrate.domain import Domain
from lvmigrate.errors import Code, Finding, LvmigrateError, NodeUnreachable, Refused
from lvmigrate.protocols import Storage
from lvmigrate.replication import ConnectionOptions, Place, Resource, Role
from lvmigrate.survey import Sightings, find, one_guest
from lvmigrate.tasklet import Context
from lvmigrate.together import outcomes_of, together
from lvmigrate.token import Errand, GuardSeen, Held, Traces

#: Where the guest is to live, for each ruling that says so.
_AT_SOURCE: Final = frozenset(
    {Action.STAYED, Action.DISCARD_TARGET, Action.DISCARD_AND_RESUME, Action.RESUME_SOURCE, Action.NOWHERE}
)
_AT_TARGET: Final = frozenset({Action.SWITCH, Action.ARRIVED, Action.DISCARD_SOURCE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Corner:
    """What one node says, apart from the guest itself."""

    node: str
    traces: Traces
    #: The device path of each disk of the guest that leads to DRBD here.
    places: Mapping[str, Place]
    #: The guest's resources.
    resources: Mapping[str, Resource]
    #: All resources with a connection on which two primaries are allowed.
    two_primaries: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One guest, and the two nodes that it may be between."""

    name: str
    uuid: str
    source: str
    target: str
    #: What the move set out to do; ``None``: no token tells, so source and target are only how they look.
    errand: Errand | None
    domains: Mapping[str, Domain]
    corners: Mapping[str, Corner]
    disks: Mapping[str, Disk]
    #: By resource: what is to be restored at source and target.
    options: Mapping[str, tuple[ConnectionOptions, ConnectionOptions]]

    @property
    def nodes(self) -> tuple[str, str]:
        """Source and target."""
        return self.source, self.target

    @property
    def sights(self) -> Mapping[str, Sight]:
        """Each node's word about its copy."""
        return {node: sight_of(self.domains.get(node)) for node in self.nodes}

    @property
    def ran(self) -> bool | None:
        """Whether the guest's CPUs ran when the move began; ``None``: nobody knows."""
        return None if self.errand is None else self.errand.ran

    @property
    def handed_over(self) -> bool:
        """Whether the move itself has noted that the source's copy ended because it was handed over."""
        return self.errand is not None and self.errand.handed_over

    @property
    def persistent(self) -> bool:
        """Whether the guest is defined anywhere."""
        return any(domain.persistent for domain in self.domains.values())

    @property
    def home(self) -> str | None:
        """The only node with a copy of the guest, if there is exactly one."""
        there = [node for node, sight in self.sights.items() if sight is not Sight.GONE]
        return there[0] if len(there) == 1 else None

    @property
    def token_nodes(self) -> tuple[str, ...]:
        """Where a token of this guest is, run out or not."""
        return tuple(node for node in self.nodes if self.corners[node].traces.token(self.uuid) is not None)

    @property
    def guarded_nodes(self) -> tuple[str, ...]:
        """Where a guard of this guest is."""
        return tuple(node for node in self.nodes if self.corners[node].traces.guard(self.uuid) is not None)

    @property
    def came_back(self) -> tuple[str, str] | None:
        """A node that is back and has the guest's definition only, and the one it runs on since: by its tombstone."""
        home = self.home
        domain = None if home is None else self.domains.get(home)
        if home is None or domain is None or domain.left_on in (None, home) or domain.left_on not in self.domains:
            return None
        return str(domain.left_on), home

    def buried(self, home: str | None) -> tuple[str, ...]:
        """Where a tombstone names the node that the guest is on: it was not started away from there, or is back."""
        return tuple(node for node, domain in self.domains.items() if home is not None and domain.left_on == home)

    @property
    def shut_down_for_a_failover(self) -> bool:
        """Whether the guest is off because a failover has shut it down, and was not finished.

        It forgets the source's definition only when the guest was seen running on the target.
        """
        off = self.errand is not None and self.errand.failover and self.ruling().action is Action.NOWHERE
        return off and self.source in self.domains

    def other(self, node: str) -> str:
        """The other one of the two nodes."""
        return self.target if node == self.source else self.source

    def ruling(self) -> Ruling:
        """What follows for the guest."""
        over = True if self.handed_over else handed_over(self.domains.get(self.source))
        return decide(
            self.sights[self.source], self.sights[self.target], ran=self.ran, last_chance=False, handed_over=over
        )

    def closings(self) -> Mapping[str, DiskRow]:
        """What follows for each resource; nothing while it is not known where the guest is to live."""
        action = self.ruling().action
        if action in _AT_SOURCE:
            return {name: closing(disk) for name, disk in self.disks.items()}
        if action in _AT_TARGET:
            return {name: closing(_turned(disk)) for name, disk in self.disks.items()}
        return {}

    def stray_definitions(self) -> list[str]:
        """What is to be done about definitions, in sentences."""
        if (came_back := self.came_back) is not None:
            return [f"forget the definition on {came_back[0]}, which was off when it was started on {came_back[1]}"]
        buried = [f"take the tombstone of {self.home} off the definition on {node}" for node in self.buried(self.home)]
        return buried if self.errand is None else [*buried, *self._strays_of_the_errand(self.errand)]

    def _strays_of_the_errand(self, errand: Errand) -> list[str]:
        action = self.ruling().action
        at_source, at_target = self.domains.get(errand.source), self.domains.get(errand.target)
        if action in _AT_TARGET and at_source is not None and at_target is not None and at_target.persistent:
            if not errand.keep_definition:
                return [f"forget the definition on {errand.source}"]
            return [f"keep {errand.source} from starting it when it boots"] if at_source.autostart else []
        if action in _AT_SOURCE and at_source and at_target and not errand.target_had_definition:
            return [f"forget the definition on {errand.target}"]
        return []

    def warnings(self, *, ran: bool | None) -> tuple[Finding, ...]:
        """What the operator should know after everything was done. ``ran``: as `ran`, before the token was removed."""
        return tuple(self._warnings(ran=ran))

    def _warnings(self, *, ran: bool | None) -> Iterator[Finding]:
        for node, sight in self.sights.items():
            if sight is Sight.WAITS and ran is None:
                yield Finding(
                    code=Code.INSTANCE_STATE,
                    sentence=f"{self.name} waits paused on {node}; nothing says that a move has paused it.",
                    hint=f"If it is to run: `virsh resume {self.name}` on {node}; no other node has a copy.",
                )
            elif sight is Sight.WAITS and ran:
                yield Finding(
                    code=Code.INSTANCE_STATE,
                    sentence=f"{self.name} waits paused on {node}; it ran when its move began, and was paused since.",
                    hint=f"By whom it was: then `virsh resume {self.name}` on {node}, no other node has a copy. By a"
                    " cleanup that saw two copies run: its disk may have the writes of both; check it, or start anew.",
                )


def observe(context: Context, instance: str) -> Scene:
    """Look at every node. Raises `Refused` (no answer, or nobody knows it) or `UsageError` (several have that name)."""
    nodes = tuple(context.nodes)
    sightings = find(context.hypervisor, nodes, instance)
    traces = outcomes_of([partial(context.storage.traces, node) for node in nodes])
    silent = [
        *sightings.silent,
        *(error for error in traces if isinstance(error, LvmigrateError) and not _named(error, sightings)),
    ]
    if silent:
        words = [Finding(code=error.code, sentence=error.sentence, hint=error.hint) for error in silent]
        raise Refused(instance, [*words, *whereabouts.waits_alone(sightings)])
    by_node = {seen.node: seen for seen in traces if isinstance(seen, Traces)}
    one_guest(instance, sightings.domains)
    uuid, name = _identity(sightings, by_node)
    domains = {domain.node: domain for domain in sightings.domains}
    errand = _errand(by_node, uuid, nodes)
    disks = {disk.source for domain in domains.values() for disk in checks.replicated_disks(domain) if disk.source}
    ordered = _ordered(by_node, uuid)
    try:
        corners = {
            c.node: c for c in together([partial(_corner, context.storage, by_node[n], disks, ordered) for n in nodes])
        }
        source, target = _pair(instance, domains, corners, uuid, errand)
        _same_places(instance, corners[source], corners[target])
        resources = _concerned(corners[source], corners[target], ordered, moved=errand is not None)
        return Scene(
            name=name,
            uuid=uuid,
            source=source,
            target=target,
            errand=errand,
            domains=domains,
            corners=corners,
            disks={r: _disk_of(context.storage, r, (corners[source], corners[target])) for r in resources},
            options={r: _options(context.storage, corners, uuid, r, (source, target)) for r in resources},
        )
    except NodeUnreachable as error:
        raise Refused(instance, [Finding(code=error.code, sentence=error.sentence, hint=error.hint)]) from error


def disk(storage: Storage, name: str, home: str, away: str) -> Disk:
    """One resource as both kernels describe it now. What gives no answer is unknown."""
    nodes = (home, away)
    seen = outcomes_of([partial(storage.observe, node, (name,)) for node in nodes])
    here, there = (None if isinstance(answer, LvmigrateError) else answer.get(name) for answer in seen)
    return _disk(storage, name, nodes, (here, there), [partial(storage.two_primaries, node) for node in nodes])


def _disk_of(storage: Storage, name: str, corners: tuple[Corner, Corner]) -> Disk:
    """The same, as far as these know it already."""
    home, away = corners
    ends = (home.resources.get(name), away.resources.get(name))
    return _disk(storage, name, (home.node, away.node), ends, [lambda: home.two_primaries, lambda: away.two_primaries])


def _disk(
    storage: Storage,
    name: str,
    nodes: tuple[str, str],
    ends: tuple[Resource | None, Resource | None],
    two_primaries: Sequence[Callable[[], frozenset[str]]],
) -> Disk:
    open_by = outcomes_of([partial(storage.openers, node, (name,)) for node in nodes])
    held = [None if isinstance(answer, LvmigrateError) else bool(answer) for answer in open_by]
    allowed = outcomes_of(
        [partial(_allowed, storage, node, name, where) for node, where in zip(nodes, two_primaries, strict=True)]
    )
    known = [answer for answer in allowed if not isinstance(answer, LvmigrateError)]
    return Disk(
        home_primary=primary(ends[0]),
        away_primary=primary(ends[1]),
        home_held=held[0],
        away_held=held[1],
        link=link_of(ends, nodes),
        two_primaries=any(known) if len(known) == len(nodes) else None,
    )


def _allowed(storage: Storage, node: str, name: str, where: Callable[[], frozenset[str]]) -> bool:
    """Whether two primaries are allowed there, and not by the configuration, for good: that is left as it is."""
    return name in where() and name not in storage.surroundings(node, (name,)).two_primaries_for_good


def _turned(seen: Disk) -> Disk:
    return Disk(
        home_primary=seen.away_primary,
        away_primary=seen.home_primary,
        home_held=seen.away_held,
        away_held=seen.home_held,
        link=seen.link,
        two_primaries=seen.two_primaries,
    )


def _named(error: LvmigrateError, sightings: Sightings) -> bool:
    return isinstance(error, NodeUnreachable) and any(silent.node == error.node for silent in sightings.silent)


def _identity(sightings: Sightings, traces: Mapping[str, Traces]) -> tuple[str, str]:
    """UUID and name, by the nodes' libvirt or else by what a token says."""
    for domain in (*sightings.active, *sightings.domains):
        return domain.uuid, domain.name
    for seen in traces.values():
        marks: tuple[Held | GuardSeen, ...] = (*seen.tokens, *seen.guards)
        for mark in marks:
            if sightings.instance in (mark.instance, mark.uuid):
                return mark.uuid, mark.instance
    raise Refused(
        sightings.instance,
        [
            Finding(
                code=Code.INSTANCE_UNKNOWN,
                sentence=f"No node knows a guest called {sightings.instance}.",
                hint="`lvmigrate status` lists the guests of all nodes.",
            )
        ],
    )


def _errand(traces: Mapping[str, Traces], uuid: str, nodes: tuple[str, ...]) -> Errand | None:
    """What the youngest token says."""
    held = [token for seen in traces.values() if (token := seen.token(uuid)) is not None]
    for token in sorted(held, key=lambda token: token.left_s, reverse=True):
        if token.errand is not None and {token.errand.source, token.errand.target} <= set(nodes):
            return token.errand
    return None


def _ordered(traces: Mapping[str, Traces], uuid: str) -> set[str]:
    """The resources that guards of the guest are to close: known even where no libvirt knows the guest any more."""
    guards = [guard for seen in traces.values() if (guard := seen.guard(uuid)) is not None]
    return {order.resource for guard in guards for order in guard.guarded}


def _concerned(source: Corner, target: Corner, ordered: set[str], *, moved: bool) -> list[str]:
    """The resources about which something is to be known at both ends.

    One that is not up at one end is among them if a move may have opened it: nothing can be told of its copy there, so
    nothing may be done that relies on it.
    """
    both = source.resources.keys() & target.resources.keys()
    either = source.resources.keys() | target.resources.keys()
    opened = either if moved else either & (source.two_primaries | target.two_primaries)
    return sorted(both | opened | ordered)


def _corner(storage: Storage, traces: Traces, paths: set[str], ordered: set[str]) -> Corner:
    places = storage.locate(traces.node, paths)
    names = sorted({place.resource for place in places.values()} | ordered)
    return Corner(
        node=traces.node,
        traces=traces,
        places=places,
        resources=storage.observe(traces.node, names),
        two_primaries=storage.two_primaries(traces.node) if names else frozenset(),
    )


def _same_places(instance: str, here: Corner, there: Corner) -> None:
    """Refuse where a disk is another volume on the other node: nothing could be told of the two copies of either."""
    apart = [
        checks.elsewhere(path, (here.node, place), (there.node, there.places[path]))
        for path, place in sorted(here.places.items())
        if path in there.places and there.places[path] != place
    ]
    if apart:
        raise Refused(instance, apart)


def _pair(
    instance: str, domains: Mapping[str, Domain], corners: Mapping[str, Corner], uuid: str, errand: Errand | None
) -> tuple[str, str]:
    """Source and target: as the token says, else as libvirt's job says, else the likeliest two."""
    active = [node for node, domain in domains.items() if domain.state.active]
    if len(active) > 2 or len(corners) < 2:  # noqa: PLR2004 -- a move has two ends
        raise Refused(
            instance,
            [
                Finding(
                    code=Code.INSTANCE_TWICE if len(active) > 1 else Code.TARGET_AMBIGUOUS,
                    sentence=f"{instance} has copies on {', '.join(active) or 'no node'}; a move has two ends.",
                    hint=f"Look with `virsh domstate --reason {instance}` on each node.",
                )
            ],
        )
    if errand is not None and set(active) <= {errand.source, errand.target}:
        return errand.source, errand.target

    # Where the guest is not known, its paths may lead to another guest's disks.
    own = {name for node in domains for name in corners[node].resources}

    def likely(node: str) -> tuple[bool, ...]:
        corner, sight = corners[node], sight_of(domains.get(node))
        resources = [resource for name, resource in corner.resources.items() if name in own]
        return (
            sight in (Sight.LEAVING, Sight.HANDING_OVER),
            sight is Sight.RUNS,
            node in active,
            any(resource.role is Role.PRIMARY for resource in resources),
            corner.traces.guard(uuid) is not None or corner.traces.token(uuid) is not None,
            any(resource.name in corner.two_primaries for resource in resources),
            bool(resources),
            node in domains,
        )

    first, second, *_ = sorted(corners, key=likely, reverse=True)
    return first, second


def _options(
    storage: Storage, corners: Mapping[str, Corner], uuid: str, name: str, nodes: tuple[str, str]
) -> tuple[ConnectionOptions, ConnectionOptions]:
    """What to restore: what a guard was told, else what is there without two primaries."""
    for node in nodes:
        guard = corners[node].traces.guard(uuid)
        for order in guard.guarded if guard is not None else ():
            if order.resource == name:
                return order.options, order.options
    for_good = any(
        name in storage.surroundings(node, (name,)).two_primaries_for_good
        for node in nodes
        if name in corners[node].two_primaries
    )
    found = outcomes_of(
        [partial(storage.options, node, name, peer) for node, peer in zip(nodes, reversed(nodes), strict=True)]
    )
    # DRBD 8.4 has no options of a connection that is StandAlone.
    source, target = (
        ConnectionOptions(allow_two_primaries=for_good, protocol=None)
        if isinstance(now, LvmigrateError)
        else ConnectionOptions(allow_two_primaries=for_good, protocol=now.protocol, auto_promote=now.auto_promote)
        for now in found
    )
    return source, target
