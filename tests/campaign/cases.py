"""What a campaign tries: a variant of the world, a scenario that leads up to a tasklet, and faults at its calls."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

from lvmigrate.plan import Options, Switch
from lvmigrate.simulator import Call, Happening, Kind, Settings, Version
from lvmigrate.simulator.calls import OF_ACTS, OF_COPIES, OF_LOOKS, OF_WAITS
from lvmigrate.simulator.faults import BETWEEN, Moment, What, Where, where

#: Waiting is no remote call; what can happen to it is told apart.
_WAITS: Final = frozenset({"wait", "adopted.wait", "watch.wait"})
#: A loop that makes no more rounds than this is taken as it is.
_ROUNDS: Final = 4
_STOPS: Final = frozenset({Kind.STOPPED_BEFORE, Kind.STOPPED_AFTER})
_IN_PHASES: Final = (*BETWEEN, Happening.CONTROLLER_KILLED, Happening.CONTROLLER_STOPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What kind of world it is. ``str()`` names it, as in ``9-auto/fast/running``."""

    version: Version
    auto_promote: bool = False
    switch: Switch = Switch.STRICT
    running: bool = True
    #: A QEMU that receives memory opens its disks for reading first (older libvirt).
    reads_first: bool = False
    #: Each node calls the guest's resource by a name of its own.
    named: bool = False

    def __str__(self) -> str:
        drbd = self.version.value + ("-auto" if self.auto_promote else "") + ("-ro" if self.reads_first else "")
        drbd += "-named" if self.named else ""
        return f"{drbd}/{self.switch.value}/{'running' if self.running else 'paused'}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The variant that ``text`` names. Raises `ValueError`."""
        drbd, switch, state = text.split("/")
        version, *marks = drbd.split("-")
        return cls(
            version=Version(version),
            auto_promote="auto" in marks,
            reads_first="ro" in marks,
            named="named" in marks,
            switch=Switch(switch),
            running=state == "running",
        )

    @property
    def settings(self) -> Settings:
        """As the simulator wants it."""
        return Settings(version=self.version, auto_promote=self.auto_promote, incoming_writes=not self.reads_first)

    @property
    def called(self) -> Mapping[str, str] | None:
        """What each node calls the guest's resource, if not as the guest."""
        return {"node1": "r1", "node2": "r9"} if self.named else None

    @property
    def options(self) -> Options:
        """As the tasklet wants it."""
        return Options(switch=self.switch)


VARIANTS: Final = tuple(
    Variant.parse(text)
    for text in (
        "9-auto/strict/running",
        "9/strict/running",
        "8.4/strict/running",
        "9-auto-ro/strict/running",
        "9-auto/strict/paused",
        "8.4/strict/paused",
        "9-auto/fast/running",
        "8.4/fast/running",
        "9-named/strict/running",
    )
)


#: Those in which every fault is tried; in each of the others every so-manieth, another one in each.
MAIN: Final = tuple(
    Variant.parse(text) for text in ("9-auto/strict/running", "8.4/strict/running", "9-auto/fast/running")
)


class Hooks(enum.Enum):
    """What the operator's hooks do."""

    REFUSE = "a pre hook refuses"
    HANG = "a pre hook hangs"
    FAIL_AFTER = "the pre hook is content, a post hook fails"


class Then(enum.Enum):
    """What happens to a guest that was taken over."""

    SHUT_DOWN = "its owner shuts it down"
    MOVED = "a third controller moves it, which takes long"


class Dead(enum.Enum):
    """What the survivor of a dead node has."""

    ALL = "a definition, and a disk that was in step"
    NO_DEFINITION = "no definition: the one that was kept is used"
    OLD_DISK = "a disk that is old: what it lacks is given up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What leads up to the tasklet under test, which controller ``c1`` (a move) or ``c2`` (a cleanup) runs."""

    name: str
    #: Faults that belong to the scenario, so that the tasklet takes another way than the straight one.
    given: tuple[tuple[str, What], ...] = ()
    #: The tasklet under test is a cleanup, after c1's move has ended so many seconds ago; else it is the move.
    cleanup_after_s: float | None = None
    abort: bool = False
    #: The tasklet under test, or the one that a cleanup comes after, is a failover, not a live move.
    failover: bool = False
    #: How long a copy of memory takes: longer than any lease and any asking again, or not.
    copy_s: float = 2.0
    #: As soon as the controller under test is stopped, another one cleans up; then the first one wakes.
    taken_over: bool = False
    #: The target has room for less than the guest has, and the guest may give some back (if it runs).
    cramped: bool = False
    #: The node that the guest leaves keeps its definition.
    keeps_definition: bool = False
    #: DRBD compares the disks afterwards.
    verifies: bool = False
    #: It cannot move while it runs, and a failover in its place is allowed.
    fallback: bool = False
    #: A third node, to which the guest's disks are not replicated (in the simulator a resource has two nodes).
    third_node: bool = False
    #: What the operator's hooks do; `None`: there are none.
    hooks: Hooks | None = None
    #: The failover is from a node that lost its power; the operator says so.
    dead: Dead | None = None
    #: The tasklet under test is a drain of the guest's node.
    drain: bool = False
    #: Nowhere defined.
    transient: bool = False
    #: After the other one's cleanup, and before the first one wakes.
    then: Then | None = None

    @property
    def controller(self) -> str:
        """Whose calls the faults are put at."""
        return "c1" if self.cleanup_after_s is None else "c2"


SCENARIOS: Final = (
    Scenario(name="migrate"),
    Scenario(name="migrate-aborted", given=(("transfer#1", Happening.ABORTED),)),
    Scenario(name="migrate-drbd-cut", given=(("transfer#1", Happening.DRBD_CUT_SHORT),)),
    Scenario(name="migrate-target-qemu-dies", given=(("transfer#1", Happening.TARGET_QEMU_KILLED),)),
    Scenario(name="migrate-reply-lost", given=(("finished#1", Happening.LIBVIRT_CUT_LONG),)),
    Scenario(name="migrate-source-daemon-dies", given=(("suspended#1", Happening.SOURCE_DAEMON_KILLED),)),
    Scenario(name="failover", failover=True),
    Scenario(
        name="cleanup-in-failover",
        given=(("c1.start@node2#1", Kind.KILLED_BEFORE),),
        cleanup_after_s=1.0,
        failover=True,
    ),
    Scenario(name="cleanup-before-copy", given=(("c1.copy_memory@node1#1", Kind.KILLED_BEFORE),), cleanup_after_s=1.0),
    Scenario(name="cleanup-in-copy", given=(("transfer#1", Happening.CONTROLLER_KILLED),), cleanup_after_s=0.1),
    Scenario(
        name="cleanup-in-copy-aborting",
        given=(("transfer#1", Happening.CONTROLLER_KILLED),),
        cleanup_after_s=0.1,
        abort=True,
    ),
    Scenario(name="cleanup-after-copy", given=(("ended#1", Happening.CONTROLLER_KILLED),), cleanup_after_s=1.0),
    Scenario(name="cleanup-much-later", given=(("ended#1", Happening.CONTROLLER_KILLED),), cleanup_after_s=200.0),
    Scenario(name="cleanup-before-close", given=(("c1.demote@node1#1", Kind.KILLED_BEFORE),), cleanup_after_s=1.0),
    Scenario(name="cleanup-before-undefine", given=(("c1.undefine@node1#1", Kind.KILLED_BEFORE),), cleanup_after_s=1.0),
    Scenario(
        name="cleanup-reply-lost",
        given=(("finished#1", Happening.CONTROLLER_KILLED), ("finished#1", Happening.LIBVIRT_CUT_LONG)),
        cleanup_after_s=60.0,
    ),
    Scenario(name="migrate-shrinking", cramped=True),
    Scenario(
        name="cleanup-of-a-shrunk-guest",
        given=(("c1.copy_memory@node1#1", Kind.KILLED_BEFORE),),
        cleanup_after_s=1.0,
        cramped=True,
    ),
    Scenario(name="migrate-keeping-definition", keeps_definition=True),
    Scenario(
        name="cleanup-keeping-definition",
        given=(("ended#1", Happening.CONTROLLER_KILLED),),
        cleanup_after_s=1.0,
        keeps_definition=True,
    ),
    Scenario(name="failover-keeping-definition", failover=True, keeps_definition=True),
    Scenario(name="migrate-verifying", verifies=True),
    Scenario(name="failover-verifying", failover=True, verifies=True),
    Scenario(name="migrate-falling-back", fallback=True),
    Scenario(name="migrate-with-three-nodes", third_node=True),
    Scenario(name="migrate-hook-refuses", hooks=Hooks.REFUSE),
    Scenario(name="migrate-hook-hangs", hooks=Hooks.HANG),
    Scenario(name="migrate-post-hook-fails", hooks=Hooks.FAIL_AFTER),
    Scenario(name="failover-of-a-dead-node", failover=True, dead=Dead.ALL),
    Scenario(name="failover-with-a-kept-definition", failover=True, dead=Dead.NO_DEFINITION),
    Scenario(name="failover-ignoring-consistency", failover=True, dead=Dead.OLD_DISK),
    Scenario(name="drain", drain=True),
    Scenario(name="migrate-long", copy_s=100.0),
    Scenario(name="migrate-taken-over", taken_over=True),
    Scenario(
        name="cleanup-in-long-copy",
        given=(("transfer#1", Happening.CONTROLLER_KILLED),),
        cleanup_after_s=0.1,
        copy_s=100.0,
    ),
    Scenario(
        name="cleanup-in-long-copy-aborting",
        given=(("transfer#1", Happening.CONTROLLER_KILLED),),
        cleanup_after_s=0.1,
        copy_s=100.0,
        abort=True,
    ),
    Scenario(name="migrate-taken-over-and-shut-down", taken_over=True, then=Then.SHUT_DOWN),
    Scenario(name="migrate-taken-over-and-moved", taken_over=True, then=Then.MOVED, copy_s=300.0),
    Scenario(name="migrate-transient", transient=True),
    Scenario(
        name="cleanup-transient",
        given=(("transfer#1", Happening.CONTROLLER_KILLED),),
        cleanup_after_s=60.0,
        transient=True,
    ),
    Scenario(
        name="cleanup-taken-over",
        given=(("ended#1", Happening.CONTROLLER_KILLED),),
        cleanup_after_s=1.0,
        taken_over=True,
    ),
)


def scenario(name: str) -> Scenario:
    """The one of that name. Raises `ValueError`."""
    found = next((each for each in SCENARIOS if each.name == name), None)
    if found is None:
        raise ValueError(f"there is no scenario {name}")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run. ``str()`` is what ``--case`` takes."""

    variant: Variant
    scenario: Scenario
    faults: tuple[tuple[Where, What], ...] = ()

    def __str__(self) -> str:
        faults = "".join(f" {place}={what.name}" for place, what in self.faults)
        return f"{self.scenario.name} {self.variant}{faults}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The case that ``text`` names. Raises `ValueError`."""
        name, variant, *faults = text.split()
        return cls(
            variant=Variant.parse(variant),
            scenario=scenario(name),
            faults=tuple(_fault(fault) for fault in faults),
        )

    def with_fault(self, place: Where, what: What) -> Case:
        """The same with one more fault."""
        return replace(self, faults=(*self.faults, (place, what)))


def _fault(text: str) -> tuple[Where, What]:
    place, _, name = text.rpartition("=")
    return where(place), Kind[name] if name in Kind.__members__ else Happening[name]


def faults_of(calls: list[Call], phases: list[Moment], scenario: Scenario) -> Iterator[tuple[Where, What]]:
    """Everything that can be put at the calls of a run, and between them, and in its phases."""
    stops = scenario.taken_over
    for call in distinct([call for call in calls if call.place.controller == scenario.controller]):
        kinds = tuple(kind for kind in kinds_of(call) if not stops or kind in _STOPS)
        back = () if scenario.dead is None else (Happening.SOURCE_COMES_BACK,)
        yield from ((call.place, what) for what in (kinds if stops else (*kinds, *BETWEEN, *back)))
    for moment in phases:
        yield from ((moment, what) for what in ((Happening.CONTROLLER_STOPPED,) if stops else _IN_PHASES))


def distinct(calls: Sequence[Call]) -> list[Call]:
    """The calls without those that a loop repeats while it waits: two rounds are kept, then a middle one and the last.

    A round is up to four calls; what comes between the kept ones differs by the time alone.
    """
    names = [(call.place.method, call.place.node) for call in calls]
    kept: list[Call] = []
    here = 0
    while here < len(calls):
        length, rounds = max(((n, _rounds(names, here, n)) for n in range(1, 5)), key=lambda found: found[1])
        if rounds <= _ROUNDS:
            length, rounds = 1, 1
        of_them = sorted({0, 1, rounds // 2, rounds - 1} & set(range(rounds)))
        kept += [calls[here + length * each + n] for each in of_them for n in range(length)]
        here += length * rounds
    return kept


def _rounds(names: Sequence[tuple[str, str]], begin: int, length: int) -> int:
    """How often the ``length`` calls from ``begin`` on follow each other."""
    first, rounds = names[begin : begin + length], 1
    while names[begin + rounds * length : begin + (rounds + 1) * length] == first:
        rounds += 1
    return rounds


def kinds_of(call: Call) -> tuple[Kind, ...]:
    """What can happen to a call."""
    if call.place.method in _WAITS:
        return OF_WAITS if call.place.method == "wait" else OF_WAITS[1:]
    if call.place.method == "copy_memory":
        return OF_COPIES
    return OF_ACTS if call.acts else OF_LOOKS
