"""What can go wrong, and where: at one call of a controller, between two calls, or in one phase of a migration."""

from __future__ import annotations

import enum
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Self

from lvmigrate.domain import DomainState
from lvmigrate.simulator.calls import Call, Kind, Place
from lvmigrate.simulator.controller import Controller
from lvmigrate.simulator.guests import Guest
from lvmigrate.simulator.host import Job, Phase
from lvmigrate.simulator.truth import DRBD, LIBVIRT, Truth

_SHORT_S: Final = 5.0
_LONG_S: Final = 300.0
_OFF_S: Final = 60.0
_MOMENT: Final = re.compile(r"(?P<phase>[a-z]+)#(?P<occurrence>\d+)")


class Happening(enum.Enum):
    """What can happen between two calls, or in a phase of a migration."""

    DRBD_CUT_SHORT = "DRBD's link is cut for 5 s"
    DRBD_CUT_LONG = "DRBD's link is cut for 300 s"
    LIBVIRT_CUT_SHORT = "libvirt's link is cut for 5 s"
    LIBVIRT_CUT_LONG = "libvirt's link is cut for 300 s"
    BOTH_CUT_SHORT = "both links are cut for 5 s"
    BOTH_CUT_LONG = "both links are cut for 300 s"
    SOURCE_WAY_CUT_SHORT = "the controller cannot reach the source for 5 s"
    SOURCE_WAY_CUT_LONG = "the controller cannot reach the source for 300 s"
    TARGET_WAY_CUT_SHORT = "the controller cannot reach the target for 5 s"
    TARGET_WAY_CUT_LONG = "the controller cannot reach the target for 300 s"
    SOURCE_POWER_CUT = "the source loses its power for 60 s"
    TARGET_POWER_CUT = "the target loses its power for 60 s"
    SOURCE_DAEMON_KILLED = "the source's libvirtd is killed, and back 5 s later"
    TARGET_DAEMON_KILLED = "the target's libvirtd is killed, and back 5 s later"
    SOURCE_QEMU_KILLED = "the guest's QEMU on the source is killed"
    TARGET_QEMU_KILLED = "the guest's QEMU on the target is killed"
    SOURCE_GUARD_KILLED = "the guard on the source is killed"
    TARGET_GUARD_KILLED = "the guard on the target is killed"
    ABORTED = "somebody asks to stop"
    SUSPENDED = "somebody pauses the guest where it runs"
    RESUMED = "somebody lets the guest run that stood where it is"
    SOURCE_RESOURCE_DOWN = "somebody brings the guest's resource down on the source, where nothing has it open"
    TARGET_RESOURCE_DOWN = "somebody brings the guest's resource down on the target, where nothing has it open"
    SOURCE_COMES_BACK = "the source's power is switched on"
    CONTROLLER_KILLED = "the controller is killed"
    CONTROLLER_STOPPED = "the controller is stopped, and woken late"


_NOT_BETWEEN: Final = frozenset(
    {Happening.CONTROLLER_KILLED, Happening.CONTROLLER_STOPPED, Happening.SOURCE_COMES_BACK}
)
#: What a campaign puts before every call; killing and stopping the controller is done to the calls themselves, and only
#: a node that was off comes back.
BETWEEN: Final = tuple(happening for happening in Happening if happening not in _NOT_BETWEEN)

What = Kind | Happening
#: How something happens: to a world, a guest of it, and a controller.
Act = Callable[[Truth, Guest, Controller], None]


class Moment(NamedTuple):
    """The entry of a phase of a migration: the how-manieth of its kind.

    >>> str(Moment.parse("finished#1"))
    'finished#1'
    """

    phase: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.phase}#{self.occurrence}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The moment that ``text`` names. Raises `ValueError`."""
        match = _MOMENT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} names no phase")
        return cls(Phase(match["phase"]).value, int(match["occurrence"]))


Where = Place | Moment


def where(text: str) -> Where:
    """The call or the phase that ``text`` names. Raises `ValueError`."""
    return Place.parse(text) if "@" in text else Moment.parse(text)


class Faults:
    """What was put where, for one run. Each happens once, when its place is reached."""

    def __init__(self, world: Truth, controllers: Mapping[str, Controller]) -> None:
        self._world = world
        self._controllers = controllers
        self._plan: defaultdict[Where, list[What]] = defaultdict(list)
        self._counts: Counter[Phase] = Counter()
        #: Every phase that was entered, in order.
        self.moments: list[Moment] = []
        #: What was reached, in order.
        self.hit: list[tuple[Where, What]] = []
        #: Called with every migration that enters a phase.
        self.watchers: list[Callable[[Job], None]] = []

    def add(self, place: Where | str, what: What) -> None:
        """Put a fault at a call, or have something happen before it, or in a phase."""
        at = where(place) if isinstance(place, str) else place
        if isinstance(at, Moment) and isinstance(what, Kind):
            raise ValueError(f"{what.name} happens to a call")  # noqa: TRY004 -- of the two together
        self._plan[at].append(what)

    def before(self, call: Call) -> Kind | None:
        """A call is about to be made: have happen what comes before it; the fault that it meets."""
        met: Kind | None = None
        if not self._plan:
            return None
        for what in self._plan.pop(call.place, ()):
            self.hit.append((call.place, what))
            if isinstance(what, Kind):
                self._world.tell(f"{call.place}: {what.value}")
                met = what
            else:
                self.happen(what, call.place.controller)
        return met

    def phase(self, migration: Job) -> None:
        """A migration has entered a phase."""
        self._counts[migration.phase] += 1
        moment = Moment(migration.phase.value, self._counts[migration.phase])
        self.moments.append(moment)
        for what in self._plan.pop(moment, ()):
            self.hit.append((moment, what))
            if isinstance(what, Happening):
                self.happen(what)
        for watcher in self.watchers:
            watcher(migration)

    def happen(self, what: Happening, controller: str = "", guest: Guest | None = None) -> None:
        """Have it happen now: to ``guest`` (the first if not given), its home and the other node; to a controller.

        If no controller is named, it is the youngest that lives.
        """
        of = guest or next(iter(self._world.guests.values()))
        living = [name for name, each in self._controllers.items() if not each.dead] or list(self._controllers)
        actor = self._controllers[controller or living[-1]]
        self._world.tell(what.value)
        with self._world.acting("a fault"):
            _ACTS[what](self._world, of, actor)


def _ends(guest: Guest) -> tuple[str, str]:
    """Home, and the node at the other end."""
    return guest.home, guest.resources[0].peer(guest.home).node


def _cut(seconds: float, *links: str) -> Act:
    def act(world: Truth, guest: Guest, _actor: Controller) -> None:
        for link in links:
            world.cut(link, *_ends(guest), seconds)

    return act


def _way_cut(end: int, seconds: float) -> Act:
    return lambda _world, guest, actor: actor.cut_way(_ends(guest)[end], seconds)


def _on(end: int, act: Callable[[Truth, str, Guest], None]) -> Act:
    return lambda world, guest, _actor: act(world, _ends(guest)[end], guest)


def _suspend(world: Truth, guest: Guest, _actor: Controller) -> None:
    for node in world.running(guest)[:1]:
        guest.paused_by_operator = True
        with world.acting("operator"):
            world.suspend(node, guest.uuid)


def _resume(world: Truth, guest: Guest, _actor: Controller) -> None:
    """Only a guest that is moved while it stands, whose owner knows nothing of the move."""
    here = world.hosts[guest.home].copies.get(guest.uuid)
    if guest.ran or here is None or (here.state, here.reason) != (DomainState.PAUSED, "user"):
        return
    guest.ran = True
    job = world.job_of(guest)
    if job is not None:
        job.resumed()
    with world.acting("operator"):
        world.run(here, "unpaused")
        world.emit(guest.home, guest.uuid, "resumed unpaused")


def _down(world: Truth, node: str, guest: Guest) -> None:
    if world.hosts[node].powered:
        for resource in guest.resources:
            resource.bring_down(node)


def _power_cut(world: Truth, node: str, _guest: Guest) -> None:
    world.power_cut(node, _OFF_S)


def _kill_daemon(world: Truth, node: str, _guest: Guest) -> None:
    world.kill_daemon(node)


_SOURCE: Final = 0
_TARGET: Final = 1
_ACTS: Final[Mapping[Happening, Act]] = {
    Happening.DRBD_CUT_SHORT: _cut(_SHORT_S, DRBD),
    Happening.DRBD_CUT_LONG: _cut(_LONG_S, DRBD),
    Happening.LIBVIRT_CUT_SHORT: _cut(_SHORT_S, LIBVIRT),
    Happening.LIBVIRT_CUT_LONG: _cut(_LONG_S, LIBVIRT),
    Happening.BOTH_CUT_SHORT: _cut(_SHORT_S, DRBD, LIBVIRT),
    Happening.BOTH_CUT_LONG: _cut(_LONG_S, DRBD, LIBVIRT),
    Happening.SOURCE_WAY_CUT_SHORT: _way_cut(_SOURCE, _SHORT_S),
    Happening.SOURCE_WAY_CUT_LONG: _way_cut(_SOURCE, _LONG_S),
    Happening.TARGET_WAY_CUT_SHORT: _way_cut(_TARGET, _SHORT_S),
    Happening.TARGET_WAY_CUT_LONG: _way_cut(_TARGET, _LONG_S),
    Happening.SOURCE_POWER_CUT: _on(_SOURCE, _power_cut),
    Happening.TARGET_POWER_CUT: _on(_TARGET, _power_cut),
    Happening.SOURCE_DAEMON_KILLED: _on(_SOURCE, _kill_daemon),
    Happening.TARGET_DAEMON_KILLED: _on(_TARGET, _kill_daemon),
    Happening.SOURCE_QEMU_KILLED: _on(_SOURCE, Truth.kill_qemu),
    Happening.TARGET_QEMU_KILLED: _on(_TARGET, Truth.kill_qemu),
    Happening.SOURCE_GUARD_KILLED: _on(_SOURCE, Truth.kill_guard),
    Happening.TARGET_GUARD_KILLED: _on(_TARGET, Truth.kill_guard),
    Happening.SOURCE_COMES_BACK: _on(_SOURCE, lambda world, node, _guest: world.power_on(node)),
    Happening.ABORTED: lambda _world, _guest, actor: actor.cancel.set(),
    Happening.SUSPENDED: _suspend,
    Happening.RESUMED: _resume,
    Happening.SOURCE_RESOURCE_DOWN: _on(_SOURCE, _down),
    Happening.TARGET_RESOURCE_DOWN: _on(_TARGET, _down),
    Happening.CONTROLLER_KILLED: lambda _world, _guest, actor: actor.kill(),
    Happening.CONTROLLER_STOPPED: lambda _world, _guest, actor: actor.stop(),
}
