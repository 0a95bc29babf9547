"""Work that asks nodes: whoever only looks holds up nobody else, and nothing is waited for for ever."""

from __future__ import annotations

import asyncio
import threading

import pytest

from lvmigrate.errors import Code
from lvmigrate.service.access import Subject
from lvmigrate.service.problem import NotDone, status_of
from lvmigrate.service.settings import Role
from lvmigrate.service.slow import Slow
from tests.service.support import wait_for

LOOKS = Subject("token:nagios", Role.LOOK)
LOOKS_TOO = Subject("token:other", Role.LOOK)
MOVES = Subject("user:root", Role.FORCE)


async def until(begun: list[int], number: int) -> None:
    await asyncio.to_thread(wait_for, lambda: len(begun) >= number)


def test_whoever_only_looks_holds_up_nobody_else() -> None:
    go = threading.Event()
    begun: list[int] = []

    def hang() -> str:
        begun.append(1)
        assert go.wait(60)
        return "ended"

    async def run() -> None:
        slow = Slow()
        try:
            first = [asyncio.ensure_future(slow.run(LOOKS, hang)) for _ in range(20)]
            await until(begun, 4)
            # Another who looks comes to their turn beside them.
            others = [asyncio.ensure_future(slow.run(LOOKS_TOO, hang)) for _ in range(20)]
            await until(begun, 8)
            # And with all the threads of those who look taken, whoever may more is answered.
            async with asyncio.timeout(30):
                assert await slow.run(MOVES, lambda: "at once") == "at once"
            assert len(begun) == 8
        finally:
            go.set()
        assert set(await asyncio.gather(*first, *others)) == {"ended"}
        assert len(begun) == 40

    asyncio.run(run())


def test_who_does_not_come_to_their_turn_is_told() -> None:
    go = threading.Event()
    begun: list[int] = []

    def hang() -> None:
        begun.append(1)
        assert go.wait(60)

    async def run() -> None:
        slow = Slow(turn_s=0.05)
        try:
            under_way = [asyncio.ensure_future(slow.run(LOOKS, hang)) for _ in range(4)]
            await until(begun, 4)
            with pytest.raises(NotDone) as told:
                await slow.run(LOOKS, lambda: None)
            assert (told.value.code, status_of(told.value)) == (Code.SERVICE_BUSY, 503)
        finally:
            go.set()
        await asyncio.gather(*under_way)
        assert await slow.run(LOOKS, lambda: 1) == 1

    asyncio.run(run())


def test_what_does_not_end_is_not_waited_for_and_counts_until_it_ends() -> None:
    go = threading.Event()

    async def run() -> None:
        slow = Slow(turn_s=0.05, answer_s=0.1)
        try:
            late = [slow.run(LOOKS, lambda: go.wait(60)) for _ in range(4)]
            codes = [error.code for error in await asyncio.gather(*late, return_exceptions=True)]  # type: ignore[union-attr]
            assert codes == [Code.SERVICE_BUSY] * 4
            with pytest.raises(NotDone, match="turn"):
                await slow.run(LOOKS, lambda: None)
        finally:
            go.set()
        slow = Slow()
        assert await slow.run(LOOKS, lambda: 1) == 1

    asyncio.run(run())


def test_what_it_raises_is_raised() -> None:
    def fail() -> None:
        raise ValueError("of its own")

    async def run() -> None:
        slow = Slow()
        for _ in range(20):
            with pytest.raises(ValueError, match="of its own"):
                await slow.run(LOOKS, fail)

    asyncio.run(run())
