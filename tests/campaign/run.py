"""One case, from its beginning to its judgement: what was promised, what is so, and whether a cleanup leads back."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from lvmigrate.cleanup import CleanupInstance
from lvmigrate.drain import DrainNodes
from lvmigrate.drain_report import DrainReport
from lvmigrate.errors import (
    Code,
    ExitCode,
    GuestLost,
    LeftBehind,
    LvmigrateError,
    MoveAborted,
    MoveFailed,
    OutcomeUnknown,
    Refused,
    TokenLost,
)
from lvmigrate.manner import Manner
from lvmigrate.plan import Switch
from lvmigrate.replication import ConnectionState
from lvmigrate.report import CleanupReport
from lvmigrate.simulator import (
    Breach,
    Call,
    ControllerKilled,
    Guest,
    Happening,
    KernelRefused,
    Kind,
    Moment,
    Violation,
    World,
    Wrong,
    audit,
)
from lvmigrate.simulator.faults import What
from lvmigrate.simulator.guests import Copy, Definition
from lvmigrate.simulator.records import includes
from lvmigrate.tasklet import Context
from tests.campaign import stage
from tests.campaign.cases import Case, Dead, Then, faults_of

#: Long enough for every lease to run out and every guard to act.
_GUARDS_S: Final = 150.0
#: Long enough for every boot, every late call and every resynchronisation.
_HEALED_S: Final = 200.0
_AGAIN_S: Final = 45.0
#: How often somebody looks whether a controller is stopped.
_LOOK_S: Final = 5.0
_CLEANUPS: Final = 4
_SOURCE: Final = stage.SOURCE
_NAME: Final = stage.NAME
#: What a fault can still do after the last look, so that no promise covers it.
_PASSING: Final = frozenset({Wrong.NODE, Wrong.APART})
#: What guards are there for.
_GUARDED: Final = frozenset({Wrong.TWO_PRIMARIES, Wrong.UNUSED, Wrong.ROLES, Wrong.STATE, Wrong.COPIES, Wrong.GUARD})
#: What is so when the guest has died a moment ago.
_OF_THE_DEAD: Final = frozenset({Wrong.UNUSED, Wrong.ROLES, Wrong.COPIES})
#: Which resource was that of a transient guest that is gone, nobody knows; the audit shows it.
_OF_THE_UNKNOWN: Final = frozenset({Wrong.UNUSED, Wrong.ROLES, Wrong.APART})
#: What a node that is off keeps until it is back, and is cleaned up.
_OF_A_DEAD_NODE: Final = frozenset({Wrong.DEFINITION, Wrong.AUTOSTART})
#: After these nobody knows that the survivor's definition was new: a node without power forgets its token, and a guest
#: that was moved, and died, is started where it came from by that node's own boot.
_FORGETTING: Final = frozenset({Happening.TARGET_POWER_CUT, Happening.TARGET_QEMU_KILLED})
_OF_THE_CONTROLLER: Final = frozenset(
    {
        Kind.KILLED_BEFORE,
        Kind.KILLED_AFTER,
        Happening.CONTROLLER_KILLED,
    }
)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a case amounts to."""

    case: Case
    #: How the tasklet under test ended: the name of a class.
    ended: str = ""
    #: Promises that were broken, in words.
    violations: list[str] = field(default_factory=list)
    #: Why the guest is held for a person, if the world's truth justifies that.
    held: str = ""
    #: What the fast switch does not promise to keep from happening.
    accepted: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    #: What the end told a person to look at.
    told: frozenset[Wrong] = frozenset()
    #: Whether every fault was met.
    met: bool = True
    story: list[tuple[float, str]] = field(default_factory=list)


def run(case: Case) -> Outcome:
    """Play it."""
    outcome = Outcome(case=case)
    with stage.world_of(case) as world:
        if case.scenario.taken_over:
            _take_over(case, world, outcome)
        for place, what in (*case.scenario.given, *case.faults):
            world.faults.add(place, what)
        guest = stage.guest_of(case, world)
        _play(case, world, guest, outcome)
        outcome.met = len(world.faults.hit) == len(case.scenario.given) + len(case.faults)
        outcome.story = world.story
    return outcome


def singles_of(base: Case) -> Iterator[Case]:
    """The base itself, then the same with every single fault at every call that it makes of itself."""
    straight = run(base)
    yield base
    for fault in faults_of(straight.calls, straight.moments, base.scenario):
        yield base.with_fault(*fault)


def _play(case: Case, world: World, guest: Guest, outcome: Outcome) -> None:
    marks = _Marks()
    end = _tasklet_under_test(case, world, outcome, marks)
    outcome.calls = list(world.calls)
    outcome.moments = list(world.faults.moments)
    outcome.ended = type(end).__name__
    if isinstance(end, TokenLost) and "autostart" in end.hint:
        outcome.told = frozenset({Wrong.AUTOSTART})
    if case.scenario.dead is Dead.NO_DEFINITION and any(what in _FORGETTING for _, what in case.faults):
        outcome.told = frozenset({Wrong.DEFINITION})
    if len(everything_wrong(case)) > 1 and Happening.RESUMED in everything_wrong(case):
        # Who dies, or is cut off, before it has told the nodes of that takes the knowledge with it.
        outcome.told |= frozenset({Wrong.STATE})
    # What a dead controller leaves is no promise; all others are.
    _judge_promise(end, world, guest, outcome, marks)
    outcome.violations += stage.broken(case, end, world)
    world.timeline.advance(_GUARDS_S)
    # A failover opens nothing, and has no guard: what a dead one leaves is a cleanup's.
    fails_over = case.scenario.failover or case.scenario.fallback
    if isinstance(end, ControllerKilled) and _only_the_controller(case) and not fails_over:
        _judge_guards(world, outcome)
    world.heal()
    world.timeline.advance(_HEALED_S)
    clean_up(world, guest, outcome)
    for violation in world.violations:
        accept = _accepted(case, violation, world.violations)
        (outcome.accepted if accept else outcome.violations).append(str(violation))


def everything_wrong(case: Case) -> list[What]:
    """The faults of the scenario and those of the case."""
    return [what for _, what in (*case.scenario.given, *case.faults)]


@dataclass(slots=True)
class _Marks:
    """What was on the nodes before a cleanup under test began; ``None`` where a move was."""

    before: frozenset[str] | None = None


def _tokens(world: World) -> frozenset[str]:
    return frozenset(file.token.id for host in world.hosts.values() for file in host.tokens.values())


def _tasklet_under_test(case: Case, world: World, outcome: Outcome, marks: _Marks) -> Any:
    context = world.controller("c1")
    if case.scenario.drain:
        return _ended(lambda: _drain(case, context), outcome)
    move = stage.tasklet_of(case, context)

    def migrate() -> Any:
        move.check_prereq()
        return move.exec()

    end = _ended(migrate, outcome)
    after = case.scenario.cleanup_after_s
    if after is None:
        return end
    world.timeline.advance(after)
    marks.before = _tokens(world)
    return cleanup(world, "c2", outcome, abort=case.scenario.abort)


def _drain(case: Case, context: Context) -> DrainReport:
    tasklet = DrainNodes(context, [_SOURCE], Manner(options=lambda _domain: case.variant.options))
    tasklet.check_prereq()
    return tasklet.exec()


def _take_over(case: Case, world: World, outcome: Outcome) -> None:
    """Once the controller is stopped, another one cleans up beside it; when it wakes, the guest is not its own."""
    of = world.controllers.get(case.scenario.controller)
    if of is None or not of.stopped:
        world.timeline.after(_LOOK_S, lambda: _take_over(case, world, outcome))
        return
    cleanup(world, "rival", outcome)
    if case.scenario.then is Then.SHUT_DOWN:
        stage.shut_down(world)
    elif case.scenario.then is Then.MOVED:
        _ended(lambda: stage.moved_by_a_third(case, world), outcome)


def cleanup(world: World, controller: str, outcome: Outcome, *, abort: bool = False) -> Any:
    """What a cleanup of that controller ends with: its report, or what it raises."""

    def clean() -> Any:
        tasklet = CleanupInstance(world.controller(controller), _NAME, abort=abort)
        tasklet.check_prereq()
        return tasklet.exec()

    return _ended(clean, outcome)


def _ended(work: Callable[[], Any], outcome: Outcome) -> Any:
    """The report or the error with which it ended; a defect is a violation."""
    try:
        return work()
    except LvmigrateError as error:
        if error.code is Code.INTERNAL:
            outcome.violations.append(f"a defect: {error}")
        return error
    except ControllerKilled as killed:
        return killed
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is a finding
        where = traceback.extract_tb(error.__traceback__)[-1]
        outcome.violations.append(f"a defect: {error!r} ({where.filename}:{where.lineno})")
        return error


def _judge_promise(end: Any, world: World, guest: Guest, outcome: Outcome, marks: _Marks) -> None:
    """What each end says must be so at once."""
    if isinstance(end, MoveAborted) and marks.before is not None:
        # A cleanup that was asked to stop says that it has done nothing.
        strange = [token for token in _tokens(world) - marks.before if not token.startswith("over-")]
        outcome.violations += [f"{type(end).__name__}, but a token of its own is left" for _ in strange]
        return
    if isinstance(end, (ControllerKilled, OutcomeUnknown, LeftBehind, GuestLost)):
        return
    if isinstance(end, LvmigrateError) and not isinstance(end, MoveFailed):
        return
    if isinstance(end, DrainReport):
        named = [*(moved.uuid for moved in end.moved), *(stayed.uuid for stayed in end.stayed)]
        if len(named) + len(end.not_begun) + len(end.off) != 1:
            outcome.violations.append(f"the drain tells of {len(named)} guests, where there is one")
        if end.exit_code not in (ExitCode.OK, ExitCode.FAILED, ExitCode.ABORTED):
            return  # its finding says what is not known, or left
    if outcome.case.scenario.then is Then.MOVED:
        return  # whatever is open now is the third one's
    passing = _PASSING | (_OF_THE_DEAD if guest.ended_by and guest.ended_at_s >= _looked_s(world) else set())
    if outcome.case.scenario.dead is not None:
        passing |= _OF_A_DEAD_NODE
    found = [finding for finding in audit(world) if finding.wrong not in passing | outcome.told]
    outcome.violations += [f"{type(end).__name__}, but {finding}" for finding in found]
    away = [copy.node for copy in world.copies(guest) if copy.node != _SOURCE]
    if isinstance(end, MoveFailed) and away:
        outcome.violations.append(f"{type(end).__name__}, but a copy on {away[0]}")


def _looked_s(world: World) -> float:
    """When both nodes were last asked for the guest: what became of it later, no end can tell."""
    looks = {call.place.node: call.at_s for call in world.calls if call.place.method == "domain"}
    return min(looks.values(), default=0.0)


def _only_the_controller(case: Case) -> bool:
    return all(what in _OF_THE_CONTROLLER for what in everything_wrong(case))


def _judge_guards(world: World, outcome: Outcome) -> None:
    """A controller died and nothing else is wrong: the guards alone lead to one running copy and nothing open."""
    outcome.violations += [f"after the guards: {f}" for f in audit(world) if f.wrong in _GUARDED]


def clean_up(world: World, guest: Guest, outcome: Outcome, *, first: int = 3) -> None:
    """With everything mended: a cleanup from another controller leads back, unless a person has to decide."""
    for attempt in range(_CLEANUPS):
        end = cleanup(world, f"c{first + attempt}", outcome)
        wrong = list(audit(world))
        if isinstance(end, (OutcomeUnknown, LeftBehind)) and (why := _person(world, guest)) is not None:
            outcome.held = why
            if not _mended(world, guest, why):
                return
        elif _gone(end, guest) and {finding.wrong for finding in wrong} <= _passing_of(end):
            return
        elif not isinstance(end, LvmigrateError):
            break
        world.timeline.advance(_AGAIN_S)
    world.timeline.advance(_AGAIN_S)
    wrong = list(audit(world))
    if _two_ran(world) and isinstance(end, CleanupReport) and any(w.code is Code.INSTANCE_STATE for w in end.warnings):
        outcome.held = "two copies have run; the one that is left was suspended"
        wrong = [finding for finding in wrong if finding.wrong is not Wrong.STATE]
    if isinstance(end, LvmigrateError) and not (isinstance(end, GuestLost) and guest.ended_by):
        outcome.violations.append(f"cleanup: {type(end).__name__}: {end}")
    outcome.violations += [f"after the cleanup: {finding}" for finding in wrong if finding.wrong not in outcome.told]


def _gone(end: Any, guest: Guest) -> bool:
    """Whether it is said that the guest is gone, which it is: of a transient one nothing is left to be known."""
    unknown = not guest.persistent and isinstance(end, Refused) and end.code is Code.INSTANCE_UNKNOWN
    return bool(guest.ended_by) and (isinstance(end, GuestLost) or unknown)


def _passing_of(end: Any) -> frozenset[Wrong]:
    return _OF_THE_UNKNOWN if isinstance(end, Refused) else frozenset()


def _person(world: World, guest: Guest) -> str | None:
    """Why a person has to decide, by the world's truth; ``None``: nobody should have to."""
    copies = world.copies(guest)
    for resource in guest.resources:
        ends = list(resource.ends.values())
        if any(end.state is ConnectionState.STANDALONE for end in ends) and all(end.alone for end in ends):
            return "split-brain: both ends have a generation of their own"
    if len(copies) == 1 and not copies[0].runs and guest.ran:
        copy = copies[0]
        for disk in guest.disks:
            if disk.resource.content(copy.node, disk.volume) is not copy.memory[disk]:
                return "the copy that waits has a disk that lacks its writes"
        if copy.older:
            return "the copy that waits is older than one that ran on"
        sent_from = world.migrations[-1].source if world.migrations else guest.home
        source = world.hosts[sent_from].definitions.get(guest.uuid)
        if copy.node != sent_from and source is not None and source.off != "migrated":
            return f"nobody can say that the source's copy was handed over before it ended ({source.off})"
    if len(copies) > 1 and not any(copy.runs for copy in copies) and (_two_ran(world) or guest.paused_by_operator):
        return "two copies stand, and both may have run"
    return None


def _two_ran(world: World) -> bool:
    return any(violation.breach is Breach.TWO_RUNNING for violation in world.violations)


def _mended(world: World, guest: Guest, why: str) -> bool:
    """Do what a person would who reads the hint, if the hint is clear; whether it is."""
    copies = world.copies(guest)
    if len(copies) > 1:
        return False
    with world.acting("a person"):
        if copies and why.startswith(("the copy that waits", "split-brain")) and not _worth_it(guest, copies[0]):
            newest = _newest(guest)
            if copies[0].node == newest:
                return False
            world.end_copy(copies[0], reason="destroyed")
            return _connect_again(world, guest, newest) and _started(world, guest, newest)
        if why.startswith("split-brain"):
            return _connect_again(world, guest, copies[0].node if copies else _newest(guest))
        if why.startswith("nobody can say"):
            world.resume(copies[0].node, guest.uuid)  # the guest's log at the source told
            return True
    return False


def _worth_it(guest: Guest, copy: Copy) -> bool:
    """Whether the copy that waits has the disk that belongs to its memory, and is not older than one that ran."""
    return not copy.older and all(
        disk.resource.content(copy.node, disk.volume) is copy.memory[disk] for disk in guest.disks
    )


def _newest(guest: Guest) -> str:
    """The node that has every acknowledged write; its home, where that does not tell them apart."""
    nodes = [guest.home, *(resource.peer(guest.home).node for resource in guest.resources[:1])]
    whole = [
        node
        for node in nodes
        if all(includes(disk.resource.ends[node].heads[disk.volume], guest.latest[disk]) for disk in guest.disks)
    ]
    return whole[0] if whole else guest.home


def _started(world: World, guest: Guest, node: str) -> bool:
    """``virsh start`` there, as soon as its disks are in step; its definition comes with it."""
    world.timeline.advance(_AGAIN_S)
    if guest.persistent and guest.uuid not in world.hosts[node].definitions:
        for host in world.hosts.values():
            host.definitions.pop(guest.uuid, None)
        for place in guest.defined_on if node == guest.home else (node,):
            here = guest.autostart and place == node
            world.hosts[place].definitions[guest.uuid] = Definition(guest=guest, autostart=here)
    try:
        for resource in guest.resources:
            if not resource.auto_promote:
                resource.promote(node)
        world.start(guest, node)
    except KernelRefused:
        return False
    guest.ended_by = ""
    return True


def _connect_again(world: World, guest: Guest, home: str) -> bool:
    """``drbdadm disconnect`` and ``connect`` on both, with ``--discard-my-data`` where the guest is not.

    Nothing where they are connected.
    """
    for resource in guest.resources:
        away = resource.peer(home)
        if away.holds:
            return False
        if resource.connected:
            continue
        for end in resource.ends.values():
            resource.disconnect(end.node)
        resource.demote(away.node)
        for end in resource.ends.values():
            resource.set_options(end.node, two_primaries=False, protocol=resource.configured)
        resource.reconnect(away.node, discard=True)
        resource.reconnect(home)
    return True


def _accepted(case: Case, violation: Violation, every: list[Violation]) -> bool:
    """Whether the fast switch does not promise to keep this from happening.

    libvirt itself did it, or it follows from what libvirt did.  With one thing wrong, as a lost reply, it promises; but
    of the target's daemon that dies before it has answered, the source's hears at once (README says so).
    """
    wrong = everything_wrong(case)
    if case.variant.switch is not Switch.FAST or (len(wrong) < 2 and wrong != [Happening.TARGET_DAEMON_KILLED]):
        return False
    first = next((v for v in every if v.breach in (Breach.TWO_RUNNING, Breach.STALE, Breach.FOREIGN)), None)
    return first is not None and first.by.startswith("libvirt on") and violation.at_s >= first.at_s
