#!/usr/bin/env python3
"""What the test guest (guest.c) wrote and announced, and whether all of it is there.

`check` judges the images of one guest's disks, `Listener` hears the guest's serial port, and

    records.py check IMAGE... [--name NAME] [--run RUN] [--at-least N] [--json]

does the former from a shell: it prints one sentence and exits with 0 (all is there), 1 (not) or 2 (wrong usage). The
formats of a record and of a serial line are described in guest.c.
"""

import argparse
import contextlib
import dataclasses
import json
import mmap
import selectors
import socket
import struct
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview | mmap.mmap

SECTOR: Final = 512
MAGIC: Final = b"lvmgrec\x1a"
VERSION: Final = 1
NO_PAGE: Final = 0xFFFF_FFFF

#: How many numbers a verdict names before it only counts them.
SHOWN: Final = 16

#: The whole of a record: the fields of `Record` in order, with two words that are zero, the payload and the checksum.
LAYOUT: Final = struct.Struct("<8s4H5Q8IQ32s380sI")
#: What a scan looks at in every sector: magic, run, number.
GLANCE: Final = struct.Struct("<8s8xQQ480x")
CHECKSUM: Final = struct.Struct("<I")
CHECKED_BYTES: Final = SECTOR - CHECKSUM.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record, as it is in one sector of one disk."""

    disk: int
    disks: int
    #: When the run began, in seconds since 1970; a later run is always larger.
    run: int
    #: Number of the record in its run, from 0.
    n: int
    #: The guest's own clock since its start. It stands still while the machine is stopped.
    clock_ms: int
    pages_verified: int
    bad_pages: int
    #: Passes over the memory that are complete, which is the number of the one under way.
    passes: int
    first_bad_page: int | None
    first_bad_pass: int
    #: Requests that a disk answered with an error and that were repeated.
    io_errors: int
    record_ms: int
    mib: int
    rate: int
    #: The disk's size as the guest sees it: record n is at sector n modulo this.
    sectors: int
    name: str
    payload: bytes


def is_whole(sector: Buffer) -> bool:
    """Whether these 512 bytes are a record of this format that is not torn."""
    view = memoryview(sector)
    return (
        bytes(view[: len(MAGIC)]) == MAGIC
        and zlib.crc32(view[:CHECKED_BYTES]) == CHECKSUM.unpack_from(view, CHECKED_BYTES)[0]
        and int.from_bytes(view[8:10], "little") == VERSION
    )


def parse(sector: Buffer) -> Record | None:
    """The record in these 512 bytes, or None when they hold none that is whole."""
    if memoryview(sector).nbytes != SECTOR or not is_whole(sector):
        return None
    (
        _magic, _version, disk, disks, _zero, run, n, clock_ms, verified, bad, passes, first_bad_page, first_bad_pass,
        io_errors, record_ms, mib, rate, _zero2, sectors, name, payload, _crc,
    ) = LAYOUT.unpack(sector)  # fmt: skip
    return Record(
        disk=disk,
        disks=disks,
        run=run,
        n=n,
        clock_ms=clock_ms,
        pages_verified=verified,
        bad_pages=bad,
        passes=passes,
        first_bad_page=None if first_bad_page == NO_PAGE else first_bad_page,
        first_bad_pass=first_bad_pass,
        io_errors=io_errors,
        record_ms=record_ms,
        mib=mib,
        rate=rate,
        sectors=sectors,
        name=name.rstrip(b"\0").decode("utf-8", "replace"),
        payload=payload,
    )


def build(record: Record) -> bytes:
    """The sector that holds this record: the inverse of `parse`."""
    r = record
    page = NO_PAGE if r.first_bad_page is None else r.first_bad_page
    sector = bytearray(
        LAYOUT.pack(
            MAGIC, VERSION, r.disk, r.disks, 0, r.run, r.n, r.clock_ms, r.pages_verified, r.bad_pages, r.passes, page,
            r.first_bad_pass, r.io_errors, r.record_ms, r.mib, r.rate, 0, r.sectors, r.name.encode(), r.payload, 0,
        )
    )  # fmt: skip
    CHECKSUM.pack_into(sector, CHECKED_BYTES, zlib.crc32(sector[:CHECKED_BYTES]))
    return bytes(sector)


# ---- the disks ----


@dataclass(frozen=True, slots=True)
class At:
    """A record's number, and the disk it belongs on."""

    disk: int
    n: int

    def __str__(self) -> str:
        return f"{self.n} on disk {self.disk}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the disks of one guest hold of its newest run. `ok` if nothing is wrong, that is if `faults` is empty."""

    ok: bool
    name: str | None
    #: None: no record was found at all.
    run: int | None
    #: The oldest record that must be there, and the newest that is there on every disk; -1: none.
    first: int
    last: int
    #: Records that are not where they should be; no more than SHOWN of them, `missing_count` of them in all.
    missing: tuple[At, ...]
    missing_count: int
    #: Records that are there in part; no more than SHOWN of them, `torn_count` of them in all.
    torn: tuple[At, ...]
    torn_count: int
    #: A torn record right behind the newest: it was being written when the disk was read or the guest ended. No fault.
    in_flight: tuple[At, ...]
    #: Records heard to be acknowledged that are newer than the newest on the disks.
    lost_acknowledged: int
    bad_pages: int
    #: Passes over the memory that were complete at the newest record.
    passes: int
    io_errors: int
    #: Between two consecutive records, by the guest's own clock.
    longest_gap_ms: int
    #: What is wrong, a phrase each.
    faults: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if self.run is None:
            return "; ".join(self.faults) + "."
        text = f"guest {self.name}, run {self.run}, records {self.first} to {self.last}: "
        if self.ok:
            text += f"all whole, no bad page ({_counted(self.passes, 'pass', 'passes')} over the memory)"
        else:
            text += "; ".join(self.faults)
        text += f", longest gap {self.longest_gap_ms} ms"
        if self.io_errors:
            text += f", {_counted(self.io_errors, 'disk error', 'disk errors')} overcome"
        if self.in_flight:
            text += f" (being written: {_listed(self.in_flight, len(self.in_flight))})"
        return text + "."


class _Disk:
    """One disk's image, seen as a ring of sectors."""

    def __init__(self, index: int, image: Buffer) -> None:
        self.index = index
        view = memoryview(image).cast("B")
        self.sectors = len(view) // SECTOR
        self._view = view[: self.sectors * SECTOR]
        #: Where each run has left something that looks like a record: run -> (position, number).
        self.runs: dict[int, list[tuple[int, int]]] = {}
        for position, (magic, run, n) in enumerate(GLANCE.iter_unpack(self._view)):
            if magic == MAGIC:
                self.runs.setdefault(run, []).append((position, n))

    def sector(self, position: int) -> memoryview:
        return self._view[position * SECTOR : (position + 1) * SECTOR]

    def record(self, position: int) -> Record | None:
        return parse(self.sector(position)) if position < self.sectors else None

    def looks_like_record(self, position: int) -> bool:
        return position < self.sectors and bytes(self.sector(position)[: len(MAGIC)]) == MAGIC

    def newest_of(self, run: int) -> Record | None:
        """The whole record of this run with the highest number. A torn one may pretend any number: it is no record."""
        for position, _ in sorted(self.runs.get(run, ()), key=lambda found: -found[1]):
            if record := self.record(position):
                return record
        return None


class _Ring:
    """The newest run on one disk: fills in what is missing, torn and in flight, and follows the guest's clock."""

    def __init__(self, disk: _Disk, run: int) -> None:
        self.disk = disk
        self.run = run
        self.newest = disk.newest_of(run)
        self.missing: list[At] = []
        self.torn: list[At] = []
        self.in_flight: list[At] = []
        self.faults: list[str] = []
        self.longest_gap_ms = 0
        self.first = 0
        self.last = -1
        if self.newest:
            self.last = self.newest.n
            self.first = max(0, self.newest.n - self.newest.sectors + 1)
            self._examine(self.newest)

    def _examine(self, newest: Record) -> None:
        if newest.sectors > self.disk.sectors:
            self.faults.append(
                f"the image of disk {self.disk.index} has {self.disk.sectors} sectors of the {newest.sectors} that the "
                "guest saw"
            )
        if newest.disk != self.disk.index:
            self.faults.append(f"disk {newest.disk} was given as disk {self.disk.index}")
        previous: int | None = None
        for n in range(self.first, self.last + 1):
            clock = self._clock_of(n, newest)
            if clock is not None and previous is not None:
                self._follow_clock(n, clock - previous)
            previous = clock
        self._look_behind(newest)

    def _clock_of(self, n: int, newest: Record) -> int | None:
        """The guest's time in record n; None, with a note of what is wrong, if it is not there whole."""
        position = n % newest.sectors
        if not self.disk.looks_like_record(position):
            self.missing.append(At(self.disk.index, n))
            return None
        sector = self.disk.sector(position)
        if not is_whole(sector):
            # The next record takes the place of the oldest, once the ring is full.
            if n == self.last + 1 - newest.sectors:
                self.in_flight.append(At(self.disk.index, self.last + 1))
            else:
                self.torn.append(At(self.disk.index, n))
            return None
        run, found, clock = struct.unpack_from("<3Q", sector, 16)
        if (run, found) != (self.run, n):
            self.missing.append(At(self.disk.index, n))
            return None
        return int(clock)

    def _follow_clock(self, n: int, passed: int) -> None:
        if passed < 0:
            self.faults.append(
                f"the guest's clock went back by {-passed} ms before record {n} on disk {self.disk.index}"
            )
        self.longest_gap_ms = max(self.longest_gap_ms, passed)

    def _look_behind(self, newest: Record) -> None:
        """What lies behind the newest record: older runs, or a record in flight, or something that must not be."""
        after = (self.last + 1) % newest.sectors
        ring_is_full = self.last + 1 >= newest.sectors
        if not ring_is_full and self.disk.looks_like_record(after) and not is_whole(self.disk.sector(after)):
            self.in_flight.append(At(self.disk.index, self.last + 1))
        for position, n in self.disk.runs.get(self.run, ()):
            if n % newest.sectors != position or n > self.last + 1:
                if self.disk.record(position):
                    self.faults.append(f"record {n} is out of its place at sector {position} of disk {self.disk.index}")
                elif n > self.last + 1 and n % newest.sectors == position:
                    self.torn.append(At(self.disk.index, n))


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _newest_run(disks: Sequence[_Disk]) -> int | None:
    """The newest run of which any disk has a whole record."""
    for run in sorted({run for disk in disks for run in disk.runs}, reverse=True):
        if any(disk.newest_of(run) for disk in disks):
            return run
    return None


def _listed(places: Sequence[At], count: int) -> str:
    shown = ", ".join(str(place) for place in places[:SHOWN])
    return f"{shown} and {count - SHOWN} more" if count > SHOWN else shown


def _order_faults(rings: Sequence[_Ring]) -> Iterator[str]:
    """A record goes to the next disk when this one has acknowledged it: a disk is level with the next, or one ahead."""
    for ring, behind in pairwise(rings):
        if not 0 <= ring.last - behind.last <= 1:
            yield (
                f"disk {ring.disk.index} ends with record {ring.last} and disk {behind.disk.index} with {behind.last}: "
                "out of order"
            )


def _guest_faults(record: Record, *, disks: int, name: str | None) -> Iterator[str]:
    """What the newest record itself says against the guest."""
    if name is not None and record.name != name:
        yield f"the records are of guest {record.name}, not of {name}"
    if record.disks != disks:
        yield f"the guest had {_counted(record.disks, 'disk', 'disks')}, not {disks}"
    if record.bad_pages:
        pages = _counted(record.bad_pages, "bad page", "bad pages")
        yield f"{pages} of memory, the first of them page {record.first_bad_page} in pass {record.first_bad_pass}"


def check(
    disks: Sequence[Buffer],
    *,
    name: str | None = None,
    run: int | None = None,
    at_least: int | None = None,
    running: bool = False,
) -> Verdict:
    """Judge the images of all disks of one guest, in the guest's order. Only its newest run counts.

    `at_least` is the newest record that was heard to be acknowledged, `run` its run. The images must be of one moment
    (the guest stopped, or a snapshot), unless `running` says that they were read one after the other from a running
    guest: then the order between the disks is not judged.
    """
    images = [_Disk(index, image) for index, image in enumerate(disks)]
    newest_run = _newest_run(images)
    if newest_run is None:
        return _nothing_found(at_least)
    rings = [_Ring(image, newest_run) for image in images]
    newest = max((ring.newest for ring in rings if ring.newest), key=lambda record: record.n)
    last = min(ring.last for ring in rings)
    missing = [place for ring in rings for place in ring.missing]
    torn = [place for ring in rings for place in ring.torn]
    lost = 0 if at_least is None else max(0, at_least - last)

    faults: list[str] = []
    if run is not None and run != newest_run:
        faults.append(f"the newest run is not {run}, the one that was heard")
    if lost:
        records = _counted(lost, "acknowledged record", "acknowledged records")
        faults.append(f"{records} lost ({at_least} was announced)")
    if missing:
        faults.append(f"missing: {_listed(missing, len(missing))}")
    if torn:
        faults.append(f"torn: {_listed(torn, len(torn))}")
    faults += (fault for ring in rings for fault in ring.faults)
    faults += _guest_faults(newest, disks=len(images), name=name)
    if last < 0:
        faults.append("a disk holds no record of this run")
    if not running:
        faults += _order_faults(rings)
    return Verdict(
        ok=not faults,
        name=newest.name,
        run=newest_run,
        first=max(ring.first for ring in rings),
        last=last,
        missing=tuple(missing[:SHOWN]),
        missing_count=len(missing),
        torn=tuple(torn[:SHOWN]),
        torn_count=len(torn),
        in_flight=tuple(place for ring in rings for place in ring.in_flight),
        lost_acknowledged=lost,
        bad_pages=newest.bad_pages,
        passes=newest.passes,
        io_errors=newest.io_errors,
        longest_gap_ms=max(ring.longest_gap_ms for ring in rings),
        faults=tuple(faults),
    )


def _nothing_found(at_least: int | None) -> Verdict:
    return Verdict(
        ok=False,
        name=None,
        run=None,
        first=-1,
        last=-1,
        missing=(),
        missing_count=0,
        torn=(),
        torn_count=0,
        in_flight=(),
        lost_acknowledged=0 if at_least is None else at_least + 1,
        bad_pages=0,
        passes=0,
        io_errors=0,
        longest_gap_ms=0,
        faults=("no record was found",),
    )


# ---- the serial port ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A record that the guest announced: every disk had acknowledged it."""

    #: time.monotonic() when the end of the line arrived.
    at: float
    #: Address and port of the QEMU it came from.
    sender: tuple[str, int]
    run: int
    n: int
    #: Passes over the memory that were complete.
    passes: int
    bad: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """Any other line of the guest: B (started), S (shut down), E (in trouble)."""

    at: float
    sender: tuple[str, int]
    text: str


def sum_of(text: bytes) -> int:
    """The sum that ends a serial line, over what is before its last blank."""
    return sum(text) & 0xFF


def parse_line(line: bytes, *, at: float, sender: tuple[str, int]) -> Heard | Said | None:
    """What a line says; None if it was mutilated on the way."""
    text, _, digits = line.rpartition(b" ")
    try:
        if len(digits) != 2 or int(digits, 16) != sum_of(text):  # noqa: PLR2004 - two digits are a byte
            return None
        kind, _, rest = text.decode("ascii").partition(" ")
        if kind == "R":
            run, n, passes, bad = (int(field) for field in rest.split(" "))
            return Heard(at=at, sender=sender, run=run, n=n, passes=passes, bad=bad)
    except ValueError:
        return None
    return Said(at=at, sender=sender, text=f"{kind} {rest}") if kind in {"B", "S", "E"} else None


def verified_since(before: Heard) -> Callable[[Heard], bool]:
    """For `Listener.wait_for`: every page was verified after `before`, or a bad one was found.

    The pass that was under way then proves only the pages that it still had to visit: the one after it must be over.
    """
    return lambda now: (now.run, now.passes) >= (before.run, before.passes + 2) or now.bad > before.bad


class Listener:
    """Hears one guest's serial port, wherever the guest runs: give it to QEMU as `udp:ADDRESS:PORT`.

    QEMU sends each byte in a datagram of its own. The source and the target of a migration each send a stream of bytes;
    the line that the switch cuts in two is lost, and with it one announcement.

    Keep it open for as long as any QEMU sends to it. A closed port is answered with ICMP errors, and these can stop a
    whole QEMU for good (seen with 10.0.2 and 10.0.13): its main loop wakes up for the error, the sending thread takes
    it first, and the main loop waits in recvmsg for a datagram that never comes. Where the listener may end before the
    guest, let the host of the QEMU drop them: `iptables -A INPUT -p icmp --icmp-type port-unreachable -j DROP`.
    """

    #: Announcements that are kept: over an hour at the default rate.
    KEPT: Final = 200_000
    _RECEIVE_BYTES: Final = 8 << 20
    #: After a datagram, let more come before the next look: a wake-up for each byte would cost more than the guest.
    _GATHER: Final = 0.001
    _LONGEST_LINE: Final = 256

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        """Take the address (port 0: a free one) at once, so that nothing is missed; listening begins with `with`."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._RECEIVE_BYTES)
            with contextlib.suppress(PermissionError):
                # Beyond net.core.rmem_max: a datagram of one byte takes most of a KiB of the buffer.
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, self._RECEIVE_BYTES)
            self._socket.bind((address, port))
            self._socket.settimeout(0)
        except BaseException:
            self._socket.close()
            raise
        self._streams: dict[tuple[str, int], bytearray] = {}
        self._news = threading.Condition()
        self._heard: deque[Heard] = deque(maxlen=self.KEPT)
        self._said: list[Said] = []
        self._last: Heard | None = None
        self._numbers: set[int] = set()
        self._twice: list[Heard] = []
        self._mutilated = 0
        self._closing = False
        self._thread = threading.Thread(target=self._listen, name=f"serial of {self.port}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening; what was heard stays."""
        self._closing = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()

    @property
    def address(self) -> str:
        """The address it listens on."""
        return str(self._socket.getsockname()[0])

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._socket.getsockname()[1])

    @property
    def last(self) -> Heard | None:
        """The newest record that was announced, of the newest run."""
        with self._news:
            return self._last

    @property
    def said(self) -> tuple[Said, ...]:
        """The guest's other lines."""
        with self._news:
            return tuple(self._said)

    @property
    def twice(self) -> tuple[Heard, ...]:
        """Second announcements of a number in the newest run: two copies of the guest have run."""
        with self._news:
            return tuple(self._twice)

    @property
    def mutilated(self) -> int:
        """Lines that were cut or had lost a byte; one for each migration is as it should be."""
        with self._news:
            return self._mutilated

    @staticmethod
    def mark() -> float:
        """A point in time for `since` and `longest_gap`."""
        return time.monotonic()

    def since(self, mark: float) -> tuple[Heard, ...]:
        """The announcements that arrived after the mark."""
        with self._news:
            return tuple(self._after(mark))

    def _after(self, mark: float) -> list[Heard]:
        found: list[Heard] = []
        for heard in reversed(self._heard):
            if heard.at <= mark:
                break
            found.append(heard)
        return found[::-1]

    def longest_gap(self, since: float, until: float | None = None) -> float:
        """The longest silence in seconds that ended or lasted after `since` and began before `until` (default: now).

        The guest's downtime as seen from outside, plus the time of a record. A silence that still lasts at `until`
        counts: a guest that never came back has a long one.
        """
        end = time.monotonic() if until is None else until
        with self._news:
            before = next((heard.at for heard in reversed(self._heard) if heard.at <= since), since)
            arrivals = [heard.at for heard in self._after(since) if heard.at <= end]
        points = [before, *arrivals, end]
        return max(later - earlier for earlier, later in pairwise(points))

    def wait_for(self, predicate: Callable[[Heard], bool], deadline: float) -> Heard:
        """Wait until the newest announcement fulfils the predicate, and return it.

        `deadline` is a time.monotonic() time; TimeoutError after it says what was heard last.
        """
        with self._news:
            while self._last is None or not predicate(self._last):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(self._silence())
                self._news.wait(left)
            return self._last

    def _silence(self) -> str:
        text = f"the guest on port {self.port} did not get there in time; last heard: {self._last}"
        return f"{text}; it said: {self._said[-1].text}" if self._said else text

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            while not self._closing:
                if selector.select(timeout=0.1):
                    time.sleep(self._GATHER)
                    self._take_all()

    def _take_all(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._take(*self._socket.recvfrom(65536))

    def _take(self, data: bytes, sender: tuple[str, int]) -> None:
        stream = self._streams.setdefault(sender, bytearray())
        stream += data
        if b"\n" not in data:
            if len(stream) > self._LONGEST_LINE:
                stream.clear()
            return
        *lines, rest = stream.split(b"\n")
        self._streams[sender] = bytearray(rest)
        now = time.monotonic()
        with self._news:
            for line in lines:
                self._note(parse_line(bytes(line), at=now, sender=sender))
            self._news.notify_all()

    def _note(self, line: Heard | Said | None) -> None:
        if line is None:
            self._mutilated += 1
        elif isinstance(line, Said):
            self._said.append(line)
        else:
            self._note_record(line)

    def _note_record(self, heard: Heard) -> None:
        self._heard.append(heard)
        if self._last is None or heard.run > self._last.run:
            self._numbers.clear()
            self._twice.clear()
        elif heard.run < self._last.run:
            return
        if heard.n in self._numbers:
            self._twice.append(heard)
        self._numbers.add(heard.n)
        if self._last is None or (heard.run, heard.n) > (self._last.run, self._last.n):
            self._last = heard


#: Linux's SO_RCVBUFFORCE, which the socket module does not name.
_SO_RCVBUFFORCE: Final = 33


# ---- the command ----


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Judge what the test guest left on its disks.")
    command = parser.add_subparsers(required=True).add_parser("check", help="judge the images of one guest's disks")
    command.add_argument("image", nargs="+", type=Path, help="all its disks, in the guest's order")
    command.add_argument("--name", help="the guest's name, to be compared with the records'")
    command.add_argument("--run", type=int, help="the run that was heard")
    command.add_argument("--at-least", type=int, metavar="N", help="the newest record that was announced")
    command.add_argument("--running", action="store_true", help="the images were read from a running guest")
    command.add_argument("--json", action="store_true", help="print the whole verdict as JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    given = _arguments(arguments)
    try:
        images = [image.read_bytes() for image in given.image]
    except OSError as error:
        print(f"records: {error}", file=sys.stderr)
        return 2
    verdict = check(images, name=given.name, run=given.run, at_least=given.at_least, running=given.running)
    if given.json:
        print(json.dumps({**dataclasses.asdict(verdict), "sentence": verdict.sentence}))
    else:
        print(verdict.sentence)
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main())
