"""What every `lvmigrate.protocols.Hypervisor` does: the same tests for the simulator and for two real libvirt daemons.

A test module derives a class from `HypervisorContract` and gives it a fixture ``stage``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

import pytest

from lvmigrate.decision import handed_over
from lvmigrate.domain import Domain, DomainState, JobKind
from lvmigrate.errors import CommandFailed
from lvmigrate.plan import Options, Switch
from lvmigrate.protocols import CopyEnd, Hypervisor, MemoryCopy

SOURCE, TARGET = "node1", "node2"
#: How long anything may take; a daemon gives its peer up after a few seconds here.
PATIENCE_S = 60.0
Look = tuple[DomainState, str, JobKind]
STOPPED: Look = (DomainState.OFF, "migrated", JobKind.NONE)
WAITS: Look = (DomainState.PAUSED, "user", JobKind.NONE)


class Stage(Protocol):
    """Two nodes and a persistent guest that runs on the first."""

    hv: Hypervisor
    uuid: str
    #: For a copy that does not end before `hurry`.
    strict: Options
    fast: Options

    def now(self) -> float:
        """Its clock."""

    def sleep(self, seconds: float) -> None:
        """Let time pass."""

    def hurry(self) -> None:
        """Let the copy under way come to its end."""

    def lose_the_last_reply(self) -> None:
        """From now on the source does not hear what the target says in the last phase."""

    def kill_qemu(self, node: str) -> None:
        """Kill the guest's process there."""


class RealTime:
    """The clock of a stage whose nodes are real."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def look(stage: Stage, node: str) -> Look | None:
    domain = stage.hv.domain(node, stage.uuid)
    return None if domain is None else (domain.state, domain.reason, domain.job)


def until(stage: Stage, holds: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline = stage.now() + PATIENCE_S
    while not holds():
        assert stage.now() < deadline, what()
        stage.sleep(0.1)


def sees(stage: Stage, node: str, wanted: Look | None) -> None:
    until(stage, lambda: look(stage, node) == wanted, lambda: f"{node}: {look(stage, node)}, not {wanted}")


def gone(stage: Stage, node: str) -> bool:
    domain = stage.hv.domain(node, stage.uuid)
    return domain is None or domain.state is DomainState.OFF


def source(stage: Stage) -> Domain:
    domain = stage.hv.domain(SOURCE, stage.uuid)
    assert domain is not None
    return domain


def begun(stage: Stage, options: Options) -> MemoryCopy:
    """A copy under way."""
    copy = stage.hv.copy_memory(source(stage), TARGET, options)
    until(stage, lambda: copy.progress() is not None or copy.wait(0) is not None, lambda: "no copy is under way")
    assert copy.wait(0) is None
    return copy


def ended(copy: MemoryCopy) -> CopyEnd:
    # It comes back sooner, too, whenever a pass over the memory has begun.
    for _ in range(round(PATIENCE_S) * 4):
        if (end := copy.wait(1.0)) is not None:
            return end
    raise AssertionError("the copy does not end")


class HypervisorContract:
    def test_it_arrives_paused_and_the_source_says_that_it_was_handed_over(self, stage: Stage) -> None:
        assert handed_over(source(stage)) is None
        copy = begun(stage, stage.strict)
        assert source(stage).job is JobKind.OUTGOING
        stage.hurry()
        assert ended(copy).ok
        sees(stage, SOURCE, STOPPED)
        sees(stage, TARGET, WAITS)
        assert handed_over(source(stage)) is True
        stage.hv.resume(TARGET, stage.uuid)
        arrived = stage.hv.domain(TARGET, stage.uuid)
        assert arrived is not None
        assert (arrived.state, arrived.persistent, arrived.autostart) == (DomainState.RUNNING, True, False)
        # The definitions are the caller's.
        assert source(stage).persistent
        stage.hv.undefine(SOURCE, stage.uuid)
        stage.hv.undefine(SOURCE, stage.uuid)
        assert stage.hv.domain(SOURCE, stage.uuid) is None

    def test_the_fast_switch_starts_it_on_the_target(self, stage: Stage) -> None:
        copy = begun(stage, stage.fast)
        stage.hurry()
        assert ended(copy).ok
        sees(stage, TARGET, (DomainState.RUNNING, "migrated", JobKind.NONE))
        sees(stage, SOURCE, STOPPED)

    @pytest.mark.parametrize("switch", list(Switch))
    def test_one_that_was_paused_arrives_paused(self, stage: Stage, switch: Switch) -> None:
        stage.hv.suspend(SOURCE, stage.uuid)
        copy = stage.hv.copy_memory(source(stage), TARGET, stage.fast if switch is Switch.FAST else stage.strict)
        assert ended(copy).ok
        sees(stage, TARGET, WAITS)
        assert gone(stage, SOURCE)

    def test_aborted_it_goes_on_at_the_source_alone(self, stage: Stage) -> None:
        copy = begun(stage, stage.strict)
        copy.abort()
        copy.abort()
        assert not ended(copy).ok
        until(stage, lambda: gone(stage, TARGET), lambda: look(stage, TARGET))
        here = source(stage)
        assert (here.state, here.job) == (DomainState.RUNNING, JobKind.NONE)

    def test_a_job_is_adopted_to_its_end(self, stage: Stage) -> None:
        begun(stage, stage.strict)
        adopted = stage.hv.adopt(SOURCE, stage.uuid)
        assert adopted.wait(0.2) is None
        stage.hurry()
        assert ended(adopted).ok
        sees(stage, TARGET, WAITS)

    def test_an_adopted_job_is_aborted(self, stage: Stage) -> None:
        begun(stage, stage.strict)
        adopted = stage.hv.adopt(SOURCE, stage.uuid)
        adopted.abort()
        assert not ended(adopted).ok
        assert source(stage).state is DomainState.RUNNING

    def test_no_job_is_an_end_and_aborting_it_is_nothing(self, stage: Stage) -> None:
        adopted = stage.hv.adopt(SOURCE, stage.uuid)
        adopted.abort()
        stage.hv.abort_job(SOURCE, stage.uuid)
        assert not ended(adopted).ok
        assert source(stage).state is DomainState.RUNNING

    def test_a_lost_reply_lets_the_source_run_on_beside_a_copy_that_waits(self, stage: Stage) -> None:
        copy = begun(stage, stage.strict)
        stage.lose_the_last_reply()
        stage.hurry()
        assert not ended(copy).ok
        sees(stage, TARGET, WAITS)
        sees(stage, SOURCE, (DomainState.RUNNING, "migration canceled", JobKind.NONE))
        # It runs on, and ends: the copy that waits is the older one, and the source's word tells.
        stage.kill_qemu(SOURCE)
        until(stage, lambda: gone(stage, SOURCE), lambda: look(stage, SOURCE))
        assert handed_over(source(stage)) is False
        stage.hv.discard(TARGET, stage.uuid)
        stage.hv.discard(TARGET, stage.uuid)
        assert gone(stage, TARGET)

    @pytest.mark.parametrize("node", [SOURCE, TARGET])
    def test_a_process_that_dies_ends_the_copy(self, stage: Stage, node: str) -> None:
        copy = begun(stage, stage.strict)
        stage.kill_qemu(node)
        assert not ended(copy).ok
        until(stage, lambda: gone(stage, TARGET), lambda: look(stage, TARGET))
        if node == TARGET:
            assert source(stage).state is DomainState.RUNNING
        else:
            until(stage, lambda: gone(stage, SOURCE), lambda: look(stage, SOURCE))
            assert handed_over(source(stage)) is False

    def test_what_it_refuses(self, stage: Stage) -> None:
        refused: list[tuple[Callable[[str, str], None], str]] = [
            (stage.hv.discard, SOURCE),
            (stage.hv.undefine, SOURCE),
            (stage.hv.resume, TARGET),
            (stage.hv.suspend, TARGET),
        ]
        for act, node in refused:
            with pytest.raises(CommandFailed):
                act(node, stage.uuid)
        here = source(stage)
        assert (here.state, here.persistent) == (DomainState.RUNNING, True)
        assert stage.hv.domain(TARGET, stage.uuid) is None

    def test_acts_are_idempotent_and_seen(self, stage: Stage) -> None:
        for on in (True, True, False, False):
            stage.hv.set_autostart(SOURCE, stage.uuid, on=on)
            assert source(stage).autostart is on
        for state, act in ((DomainState.PAUSED, stage.hv.suspend), (DomainState.RUNNING, stage.hv.resume)):
            act(SOURCE, stage.uuid)
            act(SOURCE, stage.uuid)
            assert source(stage).state is state

    def test_the_source_s_events_come_in_their_order(self, stage: Stage) -> None:
        heard: list[tuple[str, str]] = []
        with ExitStack() as stack:
            stack.enter_context(stage.hv.on_change(stage.uuid, lambda node, event: heard.append((node, event))))
            assert look(stage, TARGET) is None  # events come from nodes that were spoken to
            copy = begun(stage, stage.strict)
            stage.hurry()
            assert ended(copy).ok
            until(stage, lambda: (SOURCE, "stopped migrated") in heard, lambda: heard)
        of_source = [event for node, event in heard if node == SOURCE]
        assert of_source.index("suspended migrated") < of_source.index("stopped migrated")
        assert (TARGET, "started migrated") in heard
