"""What the journal tells of one errand, laid out over time: bars, lanes, lines and ticks. Values; no text is made here.

All times are seconds since the errand began.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lvmigrate.convergence import Then
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
#: As `lvmigrate.steering` notes a rule that fires.
_NOTED: Final = re.compile(r"policy (?P<policy>.+), rule (?P<rule>\d+): (?P<then>[a-z-]+)\b.*", re.DOTALL)


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
class Rule:
    """A rule of the convergence policy that fired."""

    at_s: float
    #: What it did, in a word or two.
    name: str
    #: Which rule, and why.
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What was told before the move, against what came. Times in seconds; ``None``: not told, or not known."""

    #: From the beginning of the copy until the guest ran on the target.
    seconds: float | None
    downtime_s: float | None
    passes: int | None
    took_s: float | None
    stood_s: float | None
    passed: int | None
    #: Where the forecast's end lies on the axis.
    end_s: float | None
    #: The policy that was advised, and the one that was in force.
    advised: str
    policy: str

    @property
    def error_percent(self) -> float | None:
        """By how many percent of the outcome the time was wrong."""
        if self.seconds is None or not self.took_s:
            return None
        return 100.0 * abs(self.seconds - self.took_s) / self.took_s


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
    rules: tuple[Rule, ...] = ()
    #: ``None``: no forecast was asked for, or none could be had.
    told: Told | None = None


def timeline(story: Story) -> Timeline:
    """Lay one errand out. Pure."""
    last = max((row.at_s for row in story.rows), default=0.0)
    end = last if story.entry.seconds is None else max(story.entry.seconds, last)
    disks = [row for row in story.rows if row.kind is Kind.DISK]
    memory = [row for row in story.rows if row.kind is Kind.MEMORY]
    marks = _marks(story)
    told = _told(story, marks)
    return Timeline(
        # A forecast that told more than came is shown as far as it went, within reason.
        seconds=max(end, min(told.end_s, 2 * end)) if told is not None and told.end_s is not None else end,
        steps=tuple(_steps(story.rows, end)),
        windows=tuple(sorted((*_windows(story, end), *_dual(disks, end)), key=lambda span: span.begin_s)),
        memory=_lines(memory, (("memory left", "MiB", "remaining", _MIB),)),
        rates=_lines(memory, (("sent", "MiB/s", "rate", _MIB), ("dirtied", "MiB/s", "dirty_rate", _MIB))),
        sync=_lines(
            [row for row in story.rows if row.kind is Kind.SYNC], (("disks behind", "MiB", "out_of_sync_kib", 1024),)
        ),
        lanes=tuple(_lanes(disks, end)),
        ticks=tuple(_ticks(story.rows)),
        rules=tuple(_rules(story)),
        told=told,
    )


def _marks(story: Story) -> dict[str, float]:
    return {row.name: row.at_s for row in story.rows if row.kind is Kind.MARK}


def _told(story: Story, marks: Mapping[str, float]) -> Told | None:
    result = story.result or {}
    forecast = story.plan.get("forecast")
    if not forecast:
        return None
    began, arrived = marks.get("copy began"), marks.get("target runs")
    seconds = forecast.get("seconds")
    took_s = None if began is None or arrived is None else result.get("copy_s") or arrived - began
    return Told(
        seconds=seconds,
        downtime_s=forecast.get("downtime_s"),
        passes=forecast.get("passes"),
        took_s=took_s,
        stood_s=None if took_s is None else result.get("downtime_s"),
        passed=result.get("iterations"),
        end_s=None if began is None or seconds is None else began + seconds,
        advised=str(forecast.get("advised", "")),
        policy=str(result.get("policy", "")),
    )


def _rules(story: Story) -> Iterator[Rule]:
    """As they were noted when they fired, by this axis; the report tells what they set."""
    noted = [
        (row, found)
        for row in story.rows
        if row.kind is Kind.MOMENT and (found := _NOTED.fullmatch(row.name)) is not None
    ]
    fired = (story.result or {}).get("fired", ())
    limits = [one.get("downtime_limit_s") for one in fired] if len(fired) == len(noted) else [None] * len(noted)
    for (row, found), limit in zip(noted, limits, strict=True):
        raised = limit is not None and found["then"] == Then.RAISE_DOWNTIME.value
        yield Rule(at_s=row.at_s, name=f"{found['then']} to {limit:.3g} s" if raised else found["then"], why=row.name)


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
    marks = _marks(story)
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
