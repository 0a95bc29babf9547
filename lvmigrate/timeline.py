"""What the journal tells of one errand, laid out over time: bars, lanes, lines and ticks. Values; no text is made here.

All times are seconds since the errand began.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from lvmigrate.journal import Kind, Row, Story

#: The windows that two marks bound, and how people call them.
_WINDOWS: Final = (
    ("downtime", "source stopped", "target runs"),
    ("two primaries allowed", "two primaries allowed", "two primaries forbidden"),
)
#: The outcomes after which the guest may still stand. After every other failure it goes on where it was: a copy that
#: ended and did not arrive was no downtime.
_MAY_STAND: Final = frozenset({None, "OUTCOME_UNKNOWN", "GUEST_LOST", "TOKEN_LOST"})
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that lasted. ``open``: no end was written."""

    name: str
    begin_s: float
    end_s: float
    open: bool = False
    #: What went wrong in it; empty: nothing.
    error: str = ""

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self.end_s - self.begin_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One thing that is always in some state: a role, a connection, a disk."""

    name: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One figure over time, as (seconds, value) pairs."""

    name: str
    unit: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Something that happened at one moment."""

    at_s: float
    #: ``libvirt``, ``drbd`` or ``lvmigrate``.
    said_by: str
    what: str
    error: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The whole errand."""

    seconds: float
    steps: tuple[Span, ...]
    #: Downtime, two primaries allowed, dual-primary: each only if it was.
    windows: tuple[Span, ...]
    memory: tuple[Line, ...]
    rates: tuple[Line, ...]
    sync: tuple[Line, ...]
    lanes: tuple[Lane, ...]
    ticks: tuple[Tick, ...]


def timeline(story: Story) -> Timeline:
    """Lay one errand out. Pure."""
    last = max((row.at_s for row in story.rows), default=0.0)
    end = last if story.entry.seconds is None else max(story.entry.seconds, last)
    disks = [row for row in story.rows if row.kind is Kind.DISK]
    memory = [row for row in story.rows if row.kind is Kind.MEMORY]
    return Timeline(
        seconds=end,
        steps=tuple(_steps(story.rows, end)),
        windows=tuple(sorted((*_windows(story, end), *_dual(disks, end)), key=lambda span: span.begin_s)),
        memory=_lines(memory, (("memory left", "MiB", "remaining", _MIB),)),
        rates=_lines(memory, (("sent", "MiB/s", "rate", _MIB), ("dirtied", "MiB/s", "dirty_rate", _MIB))),
        sync=_lines(
            [row for row in story.rows if row.kind is Kind.SYNC], (("disks behind", "MiB", "out_of_sync_kib", 1024),)
        ),
        lanes=tuple(_lanes(disks, end)),
        ticks=tuple(_ticks(story.rows)),
    )


def _steps(rows: Iterable[Row], end: float) -> Iterator[Span]:
    begun: dict[str, float] = {}
    for row in rows:
        if row.kind is Kind.STEP:
            begun[row.name] = row.at_s
        elif row.kind is Kind.STEP_END and row.name in begun:
            begin = begun.pop(row.name)
            yield Span(name=row.name, begin_s=begin, end_s=row.at_s, error=str(row.data.get("error", "")))
    for name, begin in begun.items():
        yield Span(name=name, begin_s=begin, end_s=end, open=True)


def _windows(story: Story, end: float) -> Iterator[Span]:
    marks = {row.name: row.at_s for row in story.rows if row.kind is Kind.MARK}
    for name, begin, close in _WINDOWS:
        if name == "downtime" and close not in marks and story.entry.outcome not in _MAY_STAND:
            continue
        if begin in marks:
            ended = max(marks.get(close, end), marks[begin])
            yield Span(name=name, begin_s=marks[begin], end_s=ended, open=close not in marks)


def _dual(rows: Iterable[Row], end: float) -> Iterator[Span]:
    """While two nodes were Primary for one resource."""
    primary: dict[str, set[str]] = {}
    since: dict[str, float] = {}
    for row in rows:
        name, node = str(row.data["name"]), str(row.data["node"])
        there = primary.setdefault(name, set())
        (there.add if row.data["role"] == "Primary" else there.discard)(node)
        if len(there) > 1:
            since.setdefault(name, row.at_s)
        elif name in since:
            yield Span(name=f"{name} dual-primary", begin_s=since.pop(name), end_s=row.at_s)
    for name, begin in since.items():
        yield Span(name=f"{name} dual-primary", begin_s=begin, end_s=end, open=True)


def _lanes(rows: list[Row], end: float) -> Iterator[Lane]:
    keys = sorted({row.name for row in rows})
    for state, of in (("role", _role), ("connection", _connection), ("disk", _disk)):
        for key in keys:
            changes = [(row.at_s, of(row.data)) for row in rows if row.name == key]
            yield Lane(name=f"{key}: {state}", spans=tuple(_spans(changes, end)))


def _spans(changes: list[tuple[float, str]], end: float) -> Iterator[Span]:
    begin, now = changes[0]
    for at_s, state in changes[1:]:
        if state != now:
            yield Span(name=now, begin_s=begin, end_s=at_s)
            begin, now = at_s, state
    yield Span(name=now, begin_s=begin, end_s=end)


def _role(data: Any) -> str:  # noqa: ANN401 -- JSON
    return str(data["role"])


def _connection(data: Any) -> str:  # noqa: ANN401 -- JSON
    """The connection's state, and how far it is from Established."""
    words = []
    for link in data["connections"]:
        replication = sorted({volume["replication"] for volume in link["volumes"]})
        words.append("/".join(replication) if link["state"] == "Connected" and replication else link["state"])
    return ", ".join(words) or "none"


def _disk(data: Any) -> str:  # noqa: ANN401 -- JSON
    return "/".join(sorted({volume["disk"] for volume in data["volumes"]})) or "none"


def _lines(rows: list[Row], wanted: tuple[tuple[str, str, str, int], ...]) -> tuple[Line, ...]:
    return tuple(
        Line(name=name, unit=unit, points=tuple((row.at_s, float(row.data[key]) / scale) for row in rows))
        for name, unit, key, scale in wanted
        if rows
    )


def _ticks(rows: Iterable[Row]) -> Iterator[Tick]:
    for row in rows:
        if row.kind is Kind.MOMENT:
            yield Tick(at_s=row.at_s, said_by=str(row.data.get("said_by", "lvmigrate")), what=row.name)
        elif row.kind in (Kind.ACT, Kind.ACT_END):
            error = str(row.data.get("error", ""))
            about = " ".join(str(word) for word in row.data.get("about", ()))
            state = "..." if row.kind is Kind.ACT else f"failed: {error}" if error else "done"
            what = f"{row.name.replace('_', ' ')} on {row.data.get('node', '?')}{' ' if about else ''}{about}: {state}"
            yield Tick(at_s=row.at_s, said_by="lvmigrate", what=what, error=bool(error))
