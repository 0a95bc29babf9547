"""What a scenario makes of the world and of the tasklet under test, before any fault; and what it alone promises."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Final

from lvmigrate.errors import Code, Refused
from lvmigrate.failover import FailoverInstance, FailoverOptions
from lvmigrate.migrate import MigrateInstance
from lvmigrate.plan import Switch
from lvmigrate.report import Report
from lvmigrate.simulator import Guest, World
from lvmigrate.simulator.host import Job, Phase
from lvmigrate.tasklet import Context
from tests.campaign.cases import Case, Dead, Hooks

SOURCE: Final = "node1"
TARGET: Final = "node2"
NAME: Final = "web1"
#: For how long the guest writes to the one disk alone, and for how long its node is off.
_ALONE_S: Final = 30.0
_OFF_S: Final = 60.0
_SHUTS_DOWN_S: Final = 30.0
#: A keepalive that is too short for a fast switch, which is what keeps a guest from moving while it runs.
_SHORT_S: Final = 10.0
#: Real time, as hooks are real programs: as long as one that hangs is waited for, and one that does not may take.
_HANGS_S: Final = 0.05
_HOOK_S: Final = 30.0


def world_of(case: Case) -> World:
    """The world, empty."""
    scenario, settings = case.scenario, replace(case.variant.settings, copy_s=case.scenario.copy_s)
    if scenario.fallback:
        settings = replace(settings, keepalive_s=_SHORT_S)
    return World(nodes=(SOURCE, TARGET, "node3") if scenario.third_node else (SOURCE, TARGET), settings=settings)


def guest_of(case: Case, world: World) -> Guest:
    """The guest, at the moment at which the tasklet begins."""
    dead = case.scenario.dead
    guest = world.add_guest(
        NAME,
        SOURCE,
        peer=TARGET,
        running=case.variant.running,
        persistent=not case.scenario.transient,
        called=case.variant.called,
        defined_on_peer=dead in (Dead.ALL, Dead.OLD_DISK),
        # A node that has the newer data starts its guest when it is back, unless a person keeps it from that.
        autostart=dead is not Dead.OLD_DISK,
    )
    guest.keeps_definition = case.scenario.keeps_definition
    if case.scenario.cramped and case.variant.running:
        world.hosts[TARGET].free_memory_kib = guest.memory_kib * 2 // 3 + 64 * 1024 + guest.memory_kib // 512
    world.timeline.advance(1.0)
    if dead is Dead.OLD_DISK:
        guest.old_copy_on = TARGET
        for resource in guest.resources:
            resource.outdate(TARGET)
        world.timeline.advance(_ALONE_S)
    if dead is not None:
        with world.acting("a fault"):
            world.power_cut(SOURCE)
        world.timeline.advance(_OFF_S)
    return guest


def tasklet_of(case: Case, context: Context) -> MigrateInstance | FailoverInstance:
    """What is tried."""
    scenario = case.scenario
    if scenario.hooks is not None:
        hangs = scenario.hooks is Hooks.HANG
        context = replace(
            context, hooks=_hooks(scenario.hooks, os.getpid()), hook_timeout_s=_HANGS_S if hangs else _HOOK_S
        )
    if scenario.dead is not None:
        return FailoverInstance(
            replace(context, definitions=_kept(context, case)),
            NAME,
            target=TARGET,
            options=FailoverOptions(
                is_off=SOURCE,
                ignore_consistency=scenario.dead is Dead.OLD_DISK,
                definition="kept" if scenario.dead is Dead.NO_DEFINITION else None,
            ),
        )
    options = replace(
        case.variant.options,
        allow_runtime_changes=scenario.cramped,
        keep_definition=scenario.keeps_definition,
        verify_disks=scenario.verifies,
    )
    if scenario.failover:
        return FailoverInstance(context, NAME, options=FailoverOptions.of(options))
    if scenario.fallback:
        options = replace(options, switch=Switch.FAST, allow_failover=True)
    return MigrateInstance(context, NAME, options=options)


def shut_down(world: World) -> None:
    """Its owner shuts the guest down, wherever it runs."""
    (guest,) = world.guests.values()
    for node in world.running(guest):
        with world.acting("its owner"):
            world.shut_down(node, guest.uuid)
            guest.ended_by = "its owner"
            guest.ended_at_s = world.now
    world.timeline.advance(_SHUTS_DOWN_S)


def moved_by_a_third(case: Case, world: World) -> Report:
    """Another move of the guest, whose copy is under way when it returns: its controller is killed in the middle."""
    third = world.controller("third")

    def kill(job: Job) -> None:
        if job.phase is Phase.TRANSFER:
            world.faults.watchers.remove(kill)
            world.controllers["third"].kill()

    move = MigrateInstance(third, NAME, options=case.variant.options)
    move.check_prereq()
    world.faults.watchers.append(kill)
    try:
        return move.exec()
    finally:
        if kill in world.faults.watchers:
            world.faults.watchers.remove(kill)


def broken(case: Case, end: Any, world: World) -> Iterator[str]:
    """What the scenario promises, and was not kept, in words."""
    scenario = case.scenario
    if scenario.hooks in (Hooks.REFUSE, Hooks.HANG):
        yield from _refused(case, end, world)
    if isinstance(end, Report):
        warned = {warning.code for warning in end.warnings}
        if scenario.fallback and (end.mode != "failover" or Code.FAILOVER_INSTEAD not in warned or world.migrations):
            yield f"it was to fall back, and the report says {end.mode}, {warned}"
        if scenario.hooks is Hooks.FAIL_AFTER and Code.HOOK_FAILED not in warned:
            yield "a post hook failed, and nobody says so"
        if scenario.dead is not None and warned != _WARNED[scenario.dead]:
            yield f"the report of a failover from a dead node warns of {warned}"


#: What the report of a failover from a dead node says, each time.
_WARNED: Final = {
    Dead.ALL: frozenset({Code.COPY_CUT_OFF}),
    Dead.NO_DEFINITION: frozenset({Code.COPY_CUT_OFF, Code.DEFINITION_KEPT}),
    Dead.OLD_DISK: frozenset({Code.COPY_OLD}),
}


def _refused(case: Case, end: Any, world: World) -> Iterator[str]:
    if isinstance(end, Report):
        yield "a hook refused, and it was moved"
    if acts := [str(call.place) for call in world.calls if call.acts]:
        yield f"a hook refused, and something was done: {acts[0]}"
    if not case.faults and not (isinstance(end, Refused) and end.code is Code.HOOK_FAILED):
        yield f"a hook refused, and it is said: {end}"


@functools.cache
def _directory(_process: int) -> Path:
    """Of this process, and gone with it: one of a pool ends without what ``atexit`` and garbage collection do."""
    made = Path(tempfile.mkdtemp(prefix="campaign-"))
    Finalize(None, shutil.rmtree, args=(made,), exitpriority=0)
    return made


@functools.cache
def _hooks(kind: Hooks, process: int) -> Path:
    """Hooks that do so, in a directory of their own."""
    does = {Hooks.REFUSE: "exit 1", Hooks.HANG: "exec sleep 1000", Hooks.FAIL_AFTER: "exit 0"}[kind]
    made = _directory(process) / kind.name
    for phase, line in (("pre", does), ("post", "exit 1")):
        hook = made / f"instance-migrate-{phase}.d" / "10-hook"
        hook.parent.mkdir(parents=True)
        hook.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        hook.chmod(0o755)
    return made


def _kept(context: Context, case: Case) -> Path | None:
    """Where the definition of the guest's last move is kept: it is the same in every world."""
    if case.scenario.dead is not Dead.NO_DEFINITION:
        return None
    made = _directory(os.getpid()) / "definitions"
    if not made.exists():
        world = world_of(case)
        guest = world.add_guest(NAME, SOURCE, peer=TARGET)
        with world:
            text = world.controller("nobody").hypervisor.definition(SOURCE, guest.uuid)
        made.mkdir()
        (made / f"{guest.uuid}.xml").write_text(str(text), encoding="utf-8")
    return made
