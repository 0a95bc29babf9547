"""Many who follow everything that a service does: ``python -m tests.bench.watchers SOCKET HOW_MANY SECONDS``.

All in one process, which does as little as can be: it takes the chunks apart, reads each event's data as JSON, and
notes when it had done so, by CLOCK_MONOTONIC.  At the end it writes all of it to standard output, as pairs of doubles:
the number of an event, and when one of them had it.
"""

from __future__ import annotations

import array
import asyncio
import sys
import time
from typing import Final

import msgspec

_REQUEST: Final = b"GET /v1/events HTTP/1.1\r\nHost: lvmigrate\r\nAccept: text/event-stream\r\n\r\n"


class Watcher(asyncio.Protocol):
    """One of them."""

    def __init__(self, seen: array.array[float], follows: asyncio.Event, lost: asyncio.Event) -> None:
        self._seen = seen
        self._follows = follows
        self._lost = lost
        self._raw = b""
        self._text = b""
        self._in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(_REQUEST)

    def data_received(self, data: bytes) -> None:
        self._raw += data
        if not self._in_body:
            head, end, rest = self._raw.partition(b"\r\n\r\n")
            if not end:
                return
            assert head.startswith(b"HTTP/1.1 200"), head
            self._in_body, self._raw = True, rest
            self._follows.set()
        while True:
            size, end, rest = self._raw.partition(b"\r\n")
            length = int(size, 16) if end else 0
            if not end or len(rest) < length + 2:
                break
            self._text += rest[:length]
            self._raw = rest[length + 2 :]
        *events, self._text = self._text.replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            self._take(event)

    def _take(self, event: bytes) -> None:
        number = 0
        for line in event.split(b"\n"):
            if line.startswith(b"id: "):
                number = int(line.rpartition(b"-")[2])
            elif line.startswith(b"data: "):
                msgspec.json.decode(line[6:])
        if number:  # else: a sign of life
            self._seen.extend((number, time.monotonic()))

    def connection_lost(self, error: Exception | None) -> None:
        self._lost.set()


async def watch(socket: str, how_many: int, seconds: float) -> array.array[float]:
    """What all of them have seen; ends also when one of them has lost its connection."""
    seen = array.array("d")
    loop, lost = asyncio.get_running_loop(), asyncio.Event()
    transports = []
    for _ in range(how_many):  # one after the other: only what follows is measured
        follows = asyncio.Event()
        transport, _made = await loop.create_unix_connection(lambda f=follows: Watcher(seen, f, lost), socket)  # type: ignore[misc]
        transports.append(transport)
        await asyncio.wait_for(follows.wait(), 60)
    print("all follow", file=sys.stderr, flush=True)
    try:
        await asyncio.wait_for(lost.wait(), seconds)
    except TimeoutError:
        lost.clear()
    assert not lost.is_set(), "the service has ended a stream"
    for transport in transports:
        transport.close()
    return seen


if __name__ == "__main__":
    sys.stdout.buffer.write(asyncio.run(watch(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))).tobytes())
