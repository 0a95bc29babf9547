"""The log of events, by itself: what is told, what is resumed, what is not kept any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from lvmigrate.service.events import Hub, News


async def some(stream: AsyncIterator[bytes], number: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while len(found) < number:
        try:
            frame = await asyncio.wait_for(anext(stream), 10)
        except StopAsyncIteration:
            break
        for event in frame.decode().removesuffix("\n\n").split("\n\n"):
            lines = dict(line.split(": ", 1) for line in event.splitlines())
            found.append({"id": lines["id"], "kind": lines["event"], "value": json.loads(lines["data"])})
    return found


def nothing() -> Iterator[News]:
    return iter(())


def test_who_was_away_is_told_what_happened_since() -> None:
    async def run() -> None:
        hub = Hub()
        hub.run_in(asyncio.get_running_loop())
        stream = hub.stream(None, nothing)
        task = asyncio.ensure_future(some(stream, 3))
        await asyncio.sleep(0.05)
        assert hub.followers == 1
        for number in range(3):
            hub.publish("a", "n", number)
        told = await task
        assert [event["value"] for event in told] == [0, 1, 2]
        await stream.aclose()  # type: ignore[attr-defined]
        assert hub.followers == 0
        for number in range(3, 6):
            hub.publish("b" if number == 4 else "a", "n", number)
        again = await some(hub.stream(told[1]["id"], nothing), 4)
        assert [event["value"] for event in again] == [2, 3, 4, 5]
        of_one = await some(hub.stream(told[1]["id"], nothing, job="b"), 1)
        assert [event["value"] for event in of_one] == [4]

    asyncio.run(run())


def test_who_was_away_too_long_is_told_how_it_stands() -> None:
    async def run() -> None:
        hub = Hub(kept=5)
        hub.run_in(asyncio.get_running_loop())
        hub.publish("a", "n", 0)
        first = hub.position
        for number in range(1, 20):
            hub.publish("a", "n", number)
        stream = hub.stream(first, lambda: iter([News("a", "job", "as it stands")]))
        (now,) = await some(stream, 1)
        assert now["value"] == "as it stands"
        hub.publish("a", "n", 20)
        (later,) = await some(stream, 1)
        assert later["value"] == 20

    asyncio.run(run())


def test_who_is_too_slow_is_told_how_it_stands_and_nothing_grows() -> None:
    async def run() -> None:
        hub = Hub(kept=10)
        hub.run_in(asyncio.get_running_loop())
        stream = hub.stream(hub.position, lambda: iter([News("a", "job", "stands")]))
        hub.publish("a", "n", 0)
        assert [e["value"] for e in await some(stream, 1)] == [0]
        for number in range(1000):
            hub.publish("a", "n", number)
        assert [e["value"] for e in await some(stream, 1)] == ["stands"]
        assert len(hub._log) == 10

    asyncio.run(run())


def test_what_is_kept_is_bounded_by_bytes_too_and_so_is_a_piece() -> None:
    async def run() -> None:
        hub = Hub(kept_bytes=3_000_000)
        hub.run_in(asyncio.get_running_loop())
        first = hub.position
        for number in range(12):
            hub.publish("a", "n", f"{number}" * 400_000)
            assert sum(len(event.frame) for event in hub._log) <= 3_000_000
        assert await some(hub.stream(first, lambda: iter([News("a", "job", "stands")])), 1) != []
        kept = [event.number for event in hub._log]
        assert 1 < len(kept) < 12
        behind = hub.stream(f"{hub._epoch}-{kept[0]}", nothing)
        pieces = [await anext(behind) for _ in range(2)]
        assert all(len(piece) < 1_200_000 for piece in pieces)
        # What is longer than all that may be kept is told all the same.
        last = hub.position
        hub.publish("a", "n", "x" * 4_000_000)
        (told,) = await some(hub.stream(last, nothing), 1)
        assert len(told["value"]) == 4_000_000

    asyncio.run(run())


def test_a_stream_ends_once_it_may_not_be_followed_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(*, told: bool) -> None:
        hub, may = Hub(), True
        hub.run_in(asyncio.get_running_loop())
        stream = hub.stream(hub.position, nothing, may=lambda: may)
        rest = asyncio.ensure_future(some(stream, 9))
        hub.publish("a", "n", 0)
        await asyncio.sleep(0.05)
        may = False
        if told:
            hub.publish("a", "n", "secret")
            hub.look_again()
        assert [event["value"] for event in await asyncio.wait_for(rest, 10)] == [0]
        assert hub.followers == 0

    asyncio.run(run(told=True))
    monkeypatch.setattr("lvmigrate.service.events._LOOK_S", 0.02)  # a day on which a token expires tells nobody
    asyncio.run(run(told=False))


def test_a_stream_ends_with_its_job_and_with_the_hub() -> None:
    async def run() -> None:
        hub = Hub()
        hub.run_in(asyncio.get_running_loop())
        start = hub.position
        hub.publish("a", "job", "over", last=True)
        hub.publish("b", "job", "goes on")
        assert len(await some(hub.stream(start, nothing, job="a"), 9)) == 1
        rest = asyncio.ensure_future(some(hub.stream(start, nothing), 9))
        await asyncio.sleep(0.05)
        hub.close()
        assert len(await rest) == 2

    asyncio.run(run())


def test_who_is_behind_gets_all_that_is_due_in_one_piece() -> None:
    async def run() -> None:
        hub = Hub()
        hub.run_in(asyncio.get_running_loop())
        start = hub.position
        for number in range(120):
            hub.publish("b" if number % 2 else "a", "n", number, last=number == 99)
        frames = [frame async for frame in hub.stream(start, nothing, job="b")]
        assert [frame.count(b"data: ") for frame in frames] == [50]
        assert frames[0].endswith(b"data: 99\n\n")

    asyncio.run(run())


def test_many_follow_at_once() -> None:
    async def run() -> None:
        hub = Hub()
        hub.run_in(asyncio.get_running_loop())
        start = hub.position
        tasks = [asyncio.ensure_future(some(hub.stream(start, nothing), 100)) for _ in range(50)]
        await asyncio.sleep(0)

        def publish() -> None:
            for number in range(100):
                hub.publish("a", "n", number)

        await asyncio.to_thread(publish)
        for told in await asyncio.gather(*tasks):
            assert [event["value"] for event in told] == list(range(100))

    asyncio.run(run())
