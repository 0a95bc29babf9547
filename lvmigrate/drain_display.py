"""Many moves on the terminal: one live table of all that are under way, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lvmigrate.display import finding_lines, memory_words, seconds, sync_words, verify_words
from lvmigrate.drain_report import DrainReport, Moved, Nobody, Stayed
from lvmigrate.node_states import NodeState, State
from lvmigrate.progress import StepProgress
from lvmigrate.traffic import Departure, Schedule


def schedule_lines(schedule: Schedule) -> Iterator[str]:
    """A plan for people."""
    for stay in schedule.stays:
        yield f"{stay.name} cannot go:"
        yield from finding_lines(stay.finding)
    if not schedule.legs:
        yield "nobody is to move"
        return
    yield f"{_guests(len(schedule.legs))}, about {seconds(schedule.seconds)}; nothing was changed"
    for leg in schedule.legs:
        gone = leg.departure
        doubt = "" if gone.converges else "; it dirties memory as fast as that, and may not come to an end without help"
        yield (
            f"  {leg.begin_s:7.0f} s  {gone.name}: {gone.source} -> {gone.target}, {gone.memory_kib // 1024} MiB at"
            f" {gone.bandwidth_mib_s} MiB/s, about {seconds(gone.seconds)}{doubt}"
        )


def report_lines(report: DrainReport) -> Iterator[str]:
    """What became of everybody, for people."""
    nodes = ", ".join(report.nodes)
    left = len(report.stayed) + len(report.not_begun)
    done = "is empty" if report.what == "drain" and not left else "is done" if not left else "is not done"
    verb = nodes if done == "is empty" else f"the {report.what} of {nodes}"
    yield (
        f"{verb} {done}: {len(report.moved)} moved, {left} not ({seconds(report.seconds)}; told before:"
        f" {seconds(report.forecast_s)})"
    )
    for moved in report.moved:
        if moved.warnings:
            yield f"{moved.name}, on {moved.target} now:"
        for warning in moved.warnings:
            yield from finding_lines(warning, mark="warning ")
    for stayed in report.stayed:
        yield f"{stayed.name}, on {stayed.source} before:"
        yield from finding_lines(stayed.finding)
    if report.not_begun:
        yield f"  not begun     {', '.join(report.not_begun)}"
    if report.off:
        yield f"  off           {', '.join(report.off)} (defined on {nodes}, and left there)"


def states_lines(nodes: dict[str, tuple[str, NodeState | None]]) -> Iterator[str]:
    """Every node: whether guests may come, and who is away, for people."""
    for name, (closed, known) in nodes.items():
        by_command = "" if known is None or known.state is State.ONLINE else ", by command on this machine"
        yield f"{name:<13} {f'{closed}{by_command}' if closed else 'online'}"
        for gone in () if known is None else known.gone.values():
            yield f"{'':<13} {gone.name} was sent to {gone.target}"


def _guests(number: int) -> str:
    return "1 guest" if number == 1 else f"{number} guests"


def _begun_words(departure: Departure) -> str:
    return f"{departure.name}: {departure.source} -> {departure.target}, with {departure.bandwidth_mib_s} MiB/s"


def _moved_words(moved: Moved) -> str:
    stood = f", stood still for {seconds(moved.downtime_s)}" if moved.downtime_s else ""
    return f"{moved.name}: on {moved.target} ({moved.how}, {seconds(moved.seconds)}{stood})"


def _stays_words(stayed: Stayed, *, again: bool) -> str:
    return f"{stayed.name}: {'not yet' if again else 'stays'}: {stayed.finding.code}: {stayed.finding.sentence}"


class PlainDrain:
    """A line for each thing that happens."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._print = say
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Every line was flushed as it was said."""

    def planned(self, schedule: Schedule) -> None:
        """How many, and how long."""
        self._say(f"{_guests(len(schedule.legs))} to move, about {seconds(schedule.seconds)}")

    def begun(self, departure: Departure) -> None:
        """A guest sets out."""
        self._say(_begun_words(departure))

    def progress(self, progress: StepProgress) -> None:
        """Too much for lines."""

    def moved(self, moved: Moved) -> None:
        """It has arrived."""
        self._say(_moved_words(moved))

    def stays(self, stayed: Stayed, *, again: bool) -> None:
        """At once, with its code and the next thing to do."""
        self._say(_stays_words(stayed, again=again))
        if not again:
            self._say(f"    next: {stayed.finding.hint}")

    def says(self, sentence: str) -> None:
        """Anything else."""
        self._say(sentence)

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a reader that went away must not end the drain
            self._print(f"{time.monotonic() - self._began:7.1f} s  {line}")


class LiveDrain:
    """A table of all that are under way, redrawn in place; what is over stands above it."""

    def __init__(self, console: Console) -> None:
        # What is printed while the table is shown stands above it.
        self._lines = PlainDrain(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
        self._lock = threading.Lock()
        self._schedule: Schedule | None = None
        self._under_way: dict[str, tuple[Departure, StepProgress | None]] = {}
        self._counts = {"moved": 0, "stay": 0}
        self._began = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._draw)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that went away must not hide the outcome
            self._live.__exit__(kind, error, traceback)

    def planned(self, schedule: Schedule) -> None:
        """How many, and how long."""
        self._schedule = schedule
        self._lines.planned(schedule)

    def begun(self, departure: Departure) -> None:
        """One more line of the table."""
        with self._lock:
            self._under_way[departure.name] = (departure, None)

    def progress(self, progress: StepProgress) -> None:
        """Something changed."""
        with self._lock:
            known = self._under_way.get(progress.instance)
            if known is not None:
                self._under_way[progress.instance] = (known[0], progress)

    def moved(self, moved: Moved) -> None:
        """From the table to the lines above it."""
        self._over(moved.name, "moved")
        self._lines.moved(moved)

    def stays(self, stayed: Stayed, *, again: bool) -> None:
        """The same."""
        self._over(stayed.name, None if again else "stay")
        self._lines.stays(stayed, again=again)

    def says(self, sentence: str) -> None:
        """Anything else."""
        self._lines.says(sentence)

    def _over(self, name: str, count: str | None) -> None:
        with self._lock:
            self._under_way.pop(name, None)
            if count is not None:
                self._counts[count] += 1

    def _draw(self) -> Group | Text:
        with self._lock:
            under_way, counts = dict(self._under_way), dict(self._counts)
        if self._schedule is None:
            return Text("looking at every node, and checking every move ...", style="dim")
        table = Table.grid(padding=(0, 1))
        for _ in range(3):
            table.add_column()
        table.add_column(width=20)
        table.add_column()
        for departure, now in under_way.values():
            way = f"{departure.source} -> {departure.target}"
            bar: ProgressBar | str = ""
            words = ""
            if now is not None and now.memory is not None:
                bar, words = ProgressBar(total=100, completed=now.memory.percent, width=20), memory_words(now.memory)
            elif now is not None and now.sync is not None:
                words = sync_words(now.sync)
            elif now is not None and now.verify is not None:
                words = verify_words(now.verify)
            step = "looking" if now is None else f"{now.number}/{now.steps} {now.step}"
            table.add_row(Text(departure.name, style="cyan"), way, step, bar, words)
        left = max(0.0, self._schedule.seconds - (time.monotonic() - self._began))
        head = f"{counts['moved']} moved, {len(under_way)} under way, {counts['stay']} stay"
        return Group(table, Text(f"{head}; about {seconds(left)} left", style="bold"))


class NoDrain(Nobody):
    """Shows nothing: the result alone is wanted."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to end."""


def drain_display(*, json: bool) -> PlainDrain | LiveDrain | NoDrain:
    """None for JSON, a live one on a terminal, else plain lines (both on standard error)."""
    if json:
        return NoDrain()
    console = Console(stderr=True)
    return (
        LiveDrain(console) if console.is_terminal else PlainDrain(lambda line: print(line, file=sys.stderr, flush=True))
    )
