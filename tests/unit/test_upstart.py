"""Starting a guest from its disks, and seeing that it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lvmigrate.domain import DomainState
from lvmigrate.errors import Code, CommandFailed, LvmigrateError, MoveFailed, OutcomeUnknown, TokenLost
from lvmigrate.token import Token
from lvmigrate.upstart import Upstart
from tests.unit.fakes import UUID, FakeHypervisor, FakeStorage, World, guest, unreachable

TOKEN = Token(uuid=UUID, instance="web1", id="ours", holder="a test", lease_s=30, errand=None)


def off() -> World:
    return World(domains={"node2": guest("node2", state=DomainState.OFF)}, tokens={"node2": TOKEN})


def upstart(world: World, *, confirm: Callable[[], None] = lambda: None, **given: Any) -> Upstart:
    values: dict[str, Any] = {"promotes": {"r0": True}} | given
    return Upstart(
        hypervisor=FakeHypervisor(world),
        storage=FakeStorage(world),
        instance="web1",
        uuid=UUID,
        node="node2",
        token=lambda: TOKEN,
        confirm=confirm,
        clock=world.context().clock,
        **values,
    )


def failing(detail: str) -> Callable[[], None]:
    def fail() -> None:
        raise CommandFailed(
            "node2", "Starting the guest", status=1, hint="Look.", detail=detail, code=Code.HYPERVISOR_FAILED
        )

    return fail


def test_a_guest_that_somebody_else_took_over_is_not_started() -> None:
    world = off()

    def lost() -> None:
        raise TokenLost("It is not ours.", hint="Look.")

    with pytest.raises(TokenLost):
        upstart(world, confirm=lost).start()
    assert ("start", "node2") not in world.calls


def test_one_that_runs_and_goes_on_is_started() -> None:
    world = off()
    upstart(world).start()
    assert world.running() == ["node2"]
    assert world.calls.count(("domain", "node2")) == 2


def test_one_that_dies_a_moment_later_is_not_started() -> None:
    """It was seen running right after the start, and 0.2 s later it had ended."""
    world = off()
    begin = world.time

    def dies() -> None:
        if world.time - begin > 0.2:
            world.set("node2", state=DomainState.OFF)

    world.faults["domain", "node2"] = dies
    with pytest.raises(MoveFailed) as caught:
        upstart(world).start()
    assert caught.value.code is Code.START_FAILED
    assert "/var/log/libvirt/qemu/web1.log" in caught.value.hint


@pytest.mark.parametrize(
    ("detail", "hint"),
    [
        ("", "See /var/log/libvirt/qemu/web1.log there."),
        ("Look.", "See /var/log/libvirt/qemu/web1.log there."),
        ("Could not open '/dev/drbd7'", "libvirt says: Could not open '/dev/drbd7'"),
    ],
)
def test_why_it_does_not_start_is_what_libvirt_says(detail: str, hint: str) -> None:
    world = off()
    world.faults["start", "node2"] = failing(detail)
    with pytest.raises(MoveFailed) as caught:
        upstart(world).start()
    assert (caught.value.code, caught.value.hint) == (Code.START_FAILED, hint)
    cause = caught.value.__cause__
    assert isinstance(cause, CommandFailed)
    assert caught.value.detail == (detail or str(cause))


def test_an_error_is_no_proof_that_it_does_not_run() -> None:
    world = off()
    world.late_faults["start", "node2"] = failing("the reply was lost")
    upstart(world).start()
    assert world.running() == ["node2"]


def test_where_nobody_says_whether_it_runs_nothing_is_said_to_have_failed() -> None:
    world = off()
    begin = world.time
    world.faults["domain", "node2"] = unreachable("node2")
    with pytest.raises(OutcomeUnknown):
        upstart(world).start()
    assert 90 < world.time - begin < 100  # so long it was asked


def test_an_answer_that_comes_late_counts() -> None:
    world = off()
    begin = world.time

    def late() -> None:
        if world.time - begin < 60:
            unreachable("node2")()

    world.faults["domain", "node2"] = late
    upstart(world).start()
    assert world.running() == ["node2"]


def test_what_promotes_by_itself_is_left_to_it_and_what_is_old_is_forced() -> None:
    told: list[tuple[str, str]] = []

    class Storage(FakeStorage):
        def promote(self, node: str, name: str, token: Token, *, beside: str | None = None) -> None:
            told.append(("promote", name))

        def promote_by_force(self, node: str, name: str, token: Token) -> None:
            told.append(("promote_by_force", name))

    world = off()
    made = upstart(world, promotes={"a": True, "b": False, "c": True, "d": False}, forced=frozenset({"c", "d"}))
    object.__setattr__(made, "storage", Storage(world))
    made.promote()
    assert told == [("promote", "b"), ("promote_by_force", "c"), ("promote_by_force", "d")]


def test_a_promotion_that_is_refused_starts_nothing() -> None:
    world = off()
    world.roles["node1"] = world.roles["node2"]
    world.faults["promote", "node2"] = failing("no")
    with pytest.raises(LvmigrateError):
        upstart(world, promotes={"r0": False}).promote()
    assert ("start", "node2") not in world.calls
