"""What a guard does: every combination of what it can see, against what it must never do and what it is there for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from lvmigrate.guard import Act, Copy, Link, decide

LINKS = [
    Link(
        primary=primary,
        held=held,
        connected=connected,
        peer_secondary=peer_secondary,
        in_step=in_step,
        unbroken=unbroken,
        changed=changed,
    )
    for primary, held, connected, peer_secondary, in_step, unbroken, changed in itertools.product(
        (False, True), repeat=7
    )
]
#: One that is at rest, so that all hangs on the other one.
IDLE = Link(primary=False, held=False, connected=True, peer_secondary=True, in_step=True, unbroken=True, changed=False)


def every() -> Iterator[tuple[Copy, Link, bool, Act, int | None]]:
    """Each combination without a living token, and what is done then."""
    for copy, link, resume in itertools.product(Copy, LINKS, (False, True)):
        act, about = decide(copy, [link], alive=False, resume=resume)
        assert about == (0 if act in (Act.DEMOTE, Act.RESTORE) else None)
        yield copy, link, resume, act, about


def test_as_long_as_the_token_lives_it_does_nothing() -> None:
    for copy, link, resume in itertools.product(Copy, LINKS, (False, True)):
        assert decide(copy, [link], alive=True, resume=resume) == (Act.SLEEP, None)


def test_while_libvirt_is_busy_or_silent_it_waits() -> None:
    assert {act for copy, _, _, act, _ in every() if copy in (Copy.BUSY, Copy.UNKNOWN)} == {Act.WAIT}


def test_it_takes_a_device_from_nobody_and_gives_up_every_one_that_nobody_uses() -> None:
    for copy, link, _, act, _ in every():
        unused = copy in (Copy.LEFT, Copy.NONE) and link.primary and not link.held
        assert (act is Act.DEMOTE) is unused


def test_two_primaries_are_forbidden_only_while_connected_to_a_secondary_and_beside_no_guest_that_waits() -> None:
    for copy, link, resume, act, _ in every():
        if copy in (Copy.BUSY, Copy.UNKNOWN) or act is Act.DEMOTE:
            continue
        # Where the guest is gone and this node is Secondary, the peer is where it went.
        settled = link.peer_secondary or (copy is Copy.LEFT and not link.primary)
        waits = copy is Copy.WAITS and resume
        assert (act is Act.RESTORE) is (link.changed and link.connected and settled and not waits)


def test_a_guest_that_waits_is_let_run_on_order_and_on_proof_alone() -> None:
    for copy, link, resume, act, _ in every():
        whole = link.primary and link.connected and link.peer_secondary and link.in_step and link.unbroken
        assert (act is Act.RESUME) is (copy is Copy.WAITS and resume and whole and not link.changed)


def test_it_ends_when_nothing_is_left_to_do() -> None:
    for copy, link, resume, act, _ in every():
        if copy in (Copy.BUSY, Copy.UNKNOWN) or (copy is Copy.WAITS and resume):
            assert act is not Act.DISARM
        elif act is not Act.DEMOTE:
            used = link.held or not link.primary
            assert (act is Act.DISARM) is (used and not link.changed)


def test_one_disk_that_is_not_whole_keeps_the_guest_waiting_and_one_that_is_open_keeps_the_guard() -> None:
    whole = Link(
        primary=True, held=True, connected=True, peer_secondary=True, in_step=True, unbroken=True, changed=False
    )
    assert decide(Copy.WAITS, [whole, whole], alive=False, resume=True) == (Act.RESUME, None)
    for link in LINKS:
        if link not in (whole, Link(**{name: name != "changed" for name in Link.__slots__} | {"held": False})):
            assert decide(Copy.WAITS, [whole, link], alive=False, resume=True) == (Act.WAIT, None)
        alone, _ = decide(Copy.LIVES, [link], alive=False, resume=False)
        beside, about = decide(Copy.LIVES, [IDLE, link], alive=False, resume=False)
        assert beside is alone
        assert about == (1 if beside is Act.RESTORE else None)


def test_without_a_disk_there_is_nothing_to_do() -> None:
    assert decide(Copy.LIVES, [], alive=False, resume=False) == (Act.DISARM, None)
