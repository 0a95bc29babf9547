"""A move on the terminal: live where there is one, plain lines elsewhere. Values come in, text goes out.

Long, because each kind of thing that people are told of has its lines here, and all of them their words from here.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, Protocol, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lvmigrate.audit import Audit
from lvmigrate.cleanup import CleanupPlan
from lvmigrate.convergence import Firing, Then
from lvmigrate.errors import Finding, LeftBehind, LvmigrateError, OutcomeUnknown, Refused
from lvmigrate.forecast import Forecast
from lvmigrate.journal import OK, Entry, Story
from lvmigrate.page import outcome, when
from lvmigrate.plan import Plan
from lvmigrate.progress import MemoryProgress, StepProgress, SyncProgress, VerifyProgress
from lvmigrate.report import CleanupReport, Report
from lvmigrate.status import GuestOnNode, NodeStatus
from lvmigrate.timeline import timeline

_MIB: Final = 1024 * 1024
#: How often plain output speaks during one step, in seconds (the seed's feedback interval).
_FEEDBACK_S: Final = 10.0


class Display(AbstractContextManager["Display"], Protocol):
    """What shows a move while it goes on. Its methods are called from the move's thread."""

    def plan(self, plan: Plan) -> None:
        """The checks have passed."""

    def progress(self, progress: StepProgress) -> None:
        """Something changed."""


def seconds(value: float) -> str:
    """A duration for people: ``43 ms``, ``1.8 s``, ``12 min 5 s``."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:  # noqa: PLR2004 -- up to two minutes, seconds are read most easily
        return f"{value:.1f} s"
    return f"{value // 60:.0f} min {value % 60:.0f} s"


def size(value: float) -> str:
    """A size in bytes for people, in MiB."""
    return f"{value / _MIB:.1f} MiB"


def memory_words(memory: MemoryProgress) -> str:
    """One line about the copy of memory."""
    throttle = f", the guest is slowed down by {memory.throttle_percent} %" if memory.throttle_percent else ""
    eta = f", about {seconds(memory.eta_s)} left" if memory.eta_s is not None and memory.remaining else ""
    return (
        f"{memory.percent:.0f} %, {size(memory.remaining)} of {size(memory.total)} to go,"
        f" {size(memory.rate)}/s, pass {memory.iteration}{eta}{throttle}"
    )


def sync_words(sync: SyncProgress) -> str:
    """One line about the resynchronisation of the disks."""
    percent = "" if sync.percent is None else f"{sync.percent:.0f} %, "
    rate = "" if sync.rate_kib_s is None else f" at {size(round(sync.rate_kib_s * 1024))}/s"
    eta = "" if sync.eta_s is None else f", about {seconds(sync.eta_s)} more"
    stall = "" if sync.stall is None else f"; stands still for {seconds(sync.stalled_s)}: {sync.stall.value}"
    waiting = "; ".join(sync.waiting_for) or "events"
    return f"{percent}{size(sync.out_of_sync_kib * 1024)} to go{rate}{eta}{stall}; waiting for: {waiting}"


def verify_words(verify: VerifyProgress) -> str:
    """One line about the online verify of the disks."""
    percent = "" if verify.percent is None else f"{verify.percent:.0f} % of "
    return f"{percent}{', '.join(verify.volumes)}: {size(verify.out_of_sync_kib * 1024)} differ so far"


def _title(plan: Plan) -> str:
    return f"{plan.instance}: {plan.source} -> {plan.target}, {plan.mode.value}"


class LiveDisplay:
    """The list of steps with a bar, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._plan: Plan | None = None
        self._now: StepProgress | None = None
        self._heard = time.monotonic()
        self._began: dict[int, float] = {}
        self._live = Live(console=console, refresh_per_second=8, get_renderable=self._draw)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.get_renderable = lambda: self._draw(ended=True, failed=kind is not None)  # type: ignore[method-assign]
        with contextlib.suppress(OSError, ValueError):  # a terminal that went away must not hide the outcome
            self._live.__exit__(kind, error, traceback)

    def plan(self, plan: Plan) -> None:
        """The checks have passed."""
        self._plan = plan

    def progress(self, progress: StepProgress) -> None:
        """Something changed."""
        self._now, self._heard = progress, time.monotonic()
        self._began.setdefault(progress.number, progress.elapsed_s)

    def _draw(self, *, ended: bool = False, failed: bool = False) -> Group | Text:
        plan, now = self._plan, self._now
        if plan is None:
            return Text("" if ended else "looking at both nodes ...", style="dim")
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(width=7)
        table.add_column()
        table.add_column(justify="right")
        current = 0 if now is None else now.number
        for number, (name, sentence) in enumerate(plan.steps, 1):
            here = number == current
            done = number < current or (here and ended and not failed)
            mark, style = (
                ("✓", "green") if done else ("✗", "red") if here and failed else ("●", "cyan") if here else ("·", "dim")
            )
            took = self._took(number)
            table.add_row(Text(mark, style=style), Text(name, style=style), Text(sentence, style=style), took)
            if here and not ended and now is not None:
                for line in self._below(now):
                    table.add_row("", "", line, "")
        return Group(Text(_title(plan), style="bold"), table)

    def _took(self, number: int) -> str:
        """How long a step took, or has taken so far."""
        began, after = self._began.get(number), self._began.get(number + 1)
        if began is None or self._now is None:
            return ""
        return seconds((self._now.elapsed_s + time.monotonic() - self._heard if after is None else after) - began)

    @staticmethod
    def _below(now: StepProgress) -> Iterator[Text | ProgressBar]:
        if now.memory is not None:
            yield ProgressBar(total=100, completed=now.memory.percent, width=40)
            yield Text(memory_words(now.memory))
        if now.sync is not None:
            if now.sync.percent is not None:
                yield ProgressBar(total=100, completed=now.sync.percent, width=40)
            yield Text(sync_words(now.sync))
        if now.verify is not None:
            if now.verify.percent is not None:
                yield ProgressBar(total=100, completed=now.verify.percent, width=40)
            yield Text(verify_words(now.verify))


def _how_far(progress: StepProgress) -> str:
    if progress.memory is not None:
        return memory_words(progress.memory)
    if progress.sync is not None:
        return sync_words(progress.sync)
    return "" if progress.verify is None else verify_words(progress.verify)


class PlainDisplay:
    """A line per step, and one every ten seconds within a step."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._step = ""
        self._spoke = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Every line was flushed as it was said."""

    def plan(self, plan: Plan) -> None:
        """The checks have passed."""
        self._say(_title(plan))

    def progress(self, progress: StepProgress) -> None:
        """Something changed."""
        head = f"{progress.elapsed_s:7.1f} s  {progress.number}/{progress.steps} {progress.step}"
        if progress.step != self._step:
            self._step, self._spoke = progress.step, progress.elapsed_s
            self._say(f"{head}: {progress.sentence}")
        elif progress.elapsed_s - self._spoke >= _FEEDBACK_S and (words := _how_far(progress)):
            self._spoke = progress.elapsed_s
            self._say(f"{head}: {words}")

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # as above
            print(line, file=self._stream, flush=True)


class NoDisplay:
    """Shows nothing: the result alone is wanted."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to end."""

    def plan(self, plan: Plan) -> None:
        """Nothing."""

    def progress(self, progress: StepProgress) -> None:
        """Nothing."""


def display(*, json: bool) -> Display:
    """The display that fits: none for JSON, a live one on a terminal, else plain lines (both on standard error)."""
    if json:
        return NoDisplay()
    console = Console(stderr=True)
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(sys.stderr)


def report_lines(report: Report) -> Iterator[str]:
    """A report for people."""
    state = "runs" if report.running else "waits paused, as before,"
    yield f"{report.instance} {state} on {report.target} (from {report.source}, {report.mode})"
    rows = (
        ("total", seconds(report.seconds)),
        ("downtime", f"{seconds(report.downtime_s)} (source seen stopped until target seen running)"),
        ("dual-primary", f"{seconds(report.dual_primary_s)} (allowed for {seconds(report.two_primaries_allowed_s)})"),
        ("memory", f"{size(report.memory_bytes)} sent in {report.iterations} passes"),
        *(("rule", _firing_words(firing)) for firing in report.fired),
        ("steps", ", ".join(f"{step.name} {seconds(step.seconds)}" for step in report.steps)),
    )
    if report.target_because:
        yield f"  {'target':<13} {report.target}: {report.target_because}"
    for name, value in rows:
        yield f"  {name:<13} {value}"
    if report.forecast is not None:
        error = report.forecast.error_percent(report.copy_s)
        told = "no end without help" if report.forecast.seconds is None else seconds(report.forecast.seconds)
        off = "" if error is None else f", {error:.0f} % off"
        yield f"  {'forecast':<13} {told}; it took {seconds(report.copy_s)}{off}"
    for one in report.verified:
        yield f"  {'compared':<13} {one}; {seconds(one.seconds)}"
    if report.throttle_percent:
        yield f"  {'throttle':<13} the guest was slowed down by up to {report.throttle_percent} %"
    for warning in report.warnings:
        yield from finding_lines(warning, mark="warning ")


def _forecast_lines(told: Forecast) -> Iterator[str]:
    """A forecast, for people."""
    expected = (
        "it never gets there by itself"
        if told.seconds is None or told.downtime_s is None
        else f"about {seconds(told.seconds)} in {told.passes} passes, downtime about {seconds(told.downtime_s)}"
    )
    yield f"  forecast      {expected}"
    yield (
        f"                {size(told.memory_bytes)}, dirtied at {size(told.dirty_rate)}/s, sent at"
        f" {size(told.link_rate)}/s ({told.link_from})"
    )
    yield f"                advised: --policy {told.advised}: {told.why}"


def _firing_words(firing: Firing) -> str:
    """A rule that fired, for people."""
    limit_s = firing.downtime_limit_s
    to = "" if limit_s is None or firing.then is Then.PAUSE else f" to {seconds(limit_s)}"
    return f"{firing.policy} {firing.rule} at {seconds(firing.at_s)}: {firing.then.value}{to}: {firing.why}"


def finding_lines(finding: Finding, *, mark: str = "") -> Iterator[str]:
    """One finding for people."""
    yield f"  {mark}{finding.code.value}: {finding.sentence}"
    yield f"      next: {finding.hint}"


def plan_lines(plan: Plan) -> Iterator[str]:
    """What a move would do, for people."""
    yield f"{_title(plan)}: nothing stands against it"
    if plan.target_because:
        yield f"  target        {plan.target}: {plan.target_because}"
    yield f"  guest         {plan.domain.state.value}, {plan.domain.memory_kib // 1024} MiB, {plan.domain.vcpus} CPUs"
    for resource in plan.resources:
        volumes = ", ".join(f"{resource.name}/{number}" for number in resource.volumes)
        promotes = "explicitly" if resource.promotes else "by itself"
        if resource.forced:
            yield f"  disks         {volumes}: old on {plan.target}, which is promoted by force"
        else:
            yield f"  disks         {volumes}: in step or on the way; {plan.target} is promoted {promotes}"
    if plan.forecast is not None:
        yield from _forecast_lines(plan.forecast)
    for number, (name, sentence) in enumerate(plan.steps, 1):
        yield f"  step {number}        {name}: {sentence}"
    for warning in plan.warnings:
        yield from finding_lines(warning, mark="warning ")


def cleanup_plan_lines(plan: CleanupPlan) -> Iterator[str]:
    """What a cleanup sees, which rows that is, what it would do, for people."""
    scene = plan.scene
    known = "by its token" if scene.errand else "as it looks: no token tells"
    yield f"{plan.instance}: {scene.source} -> {scene.target} ({known})"
    for node, sight in scene.sights.items():
        yield f"  {node:<13} {sight.value}"
    for name, disk in scene.disks.items():
        roles = f"{scene.source} {_role(disk.home_primary)}, {scene.target} {_role(disk.away_primary)}"
        allowed = "two primaries allowed" if disk.two_primaries else "two primaries forbidden"
        yield f"  {name:<13} {roles}, {disk.link.value}, {allowed}"
    for node in scene.nodes:
        traces = scene.corners[node].traces
        held, guard = traces.token(scene.uuid), traces.guard(scene.uuid)
        if held is not None:
            left = f"{held.left_s:.0f} s left" if held.alive else f"ran out {-held.left_s:.0f} s ago"
            yield f"  {node:<13} token of {held.holder}, {left}"
        if guard is not None:
            says = f": {guard.says}" if guard.says else ""
            yield f"  {node:<13} guard {'at work' if guard.alive else 'that does not run any more'}{says}"
    yield f"  the guest     {plan.ruling.why}: {plan.ruling.action.value}"
    for name, what, why in plan.closing:
        yield f"  {name:<13} {why}: {what.value}"
    if plan.acts:
        yield "  to do:"
        yield from (f"    - {act}" for act in plan.acts)
    else:
        yield "  to do:        nothing"


def _role(primary: bool | None) -> str:  # noqa: FBT001 -- three values
    return "unknown" if primary is None else "Primary" if primary else "Secondary"


def cleanup_report_lines(report: CleanupReport) -> Iterator[str]:
    """What a cleanup did, for people."""
    state = "runs" if report.running else "does not run" if report.node is None else "waits paused"
    where = f" on {report.node}, and nowhere else" if report.node else " anywhere"
    yield f"{report.instance} {state}{where}; nothing is left open ({seconds(report.seconds)})"
    for act in report.acts or ("nothing was left to do",):
        yield f"  - {act}"
    for warning in report.warnings:
        yield from finding_lines(warning, mark="warning ")


def audit_lines(audit: Audit) -> Iterator[str]:
    """What leaked, for people."""
    for held in audit.under_way:
        yield f"under way: {held.instance} ({held.holder}, seen on {held.node})"
    for error in audit.silent:
        yield from error_lines(error)
    if not audit.findings:
        yield "nothing is left behind" + (" on the nodes that answered" if audit.silent else "")
    for note in audit.notes:
        yield f"note {note.code}: {note.sentence}"
    for finding in audit.findings:
        yield from finding_lines(finding)


def error_lines(error: LvmigrateError) -> Iterator[str]:
    """An error for people: its sentence, its code, the next thing to do."""
    if isinstance(error, Refused):
        yield f"refused: nothing was changed ({error.instance})"
        for finding in error.findings:
            yield from finding_lines(finding)
        return
    yield f"{error.code.value}: {error.sentence}"
    facts = (
        error.leftovers if isinstance(error, LeftBehind) else error.known if isinstance(error, OutcomeUnknown) else ()
    )
    for fact in facts:
        yield f"      seen: {fact}"
    if error.detail and error.detail not in error.hint:
        yield f"      said: {' '.join(error.detail.split())}"
    yield f"      next: {error.hint}"


def status_table(nodes: tuple[NodeStatus, ...]) -> Table:
    """What runs where, for people."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("guest", "node", "state", "disks", "replication", "token"):
        table.add_column(title, overflow="fold")
    for node in nodes:
        for guest in node.guests:
            domain = guest.domain
            state = domain.state.value + (f" ({domain.reason})" if domain.state.value == "paused" else "")
            disks = "\n".join(f"{r.name} {r.role.value}" for r in guest.resources)
            table.add_row(domain.name, node.node, state, disks, _replication(guest), guest.holder or "")
        if node.trouble is not None:
            table.add_row("", node.node, Text(node.trouble.sentence, style="red"), "", "", "")
        elif not node.guests:
            table.add_row("", node.node, Text("no guests", style="dim"), "", "", "")
    return table


def history_table(entries: tuple[Entry, ...]) -> Table:
    """The journal's newest errands, for people."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("id", "begun", "guest", "what", "outcome"):
        table.add_column(title, overflow="fold", no_wrap=title == "id")
    for entry in entries:
        what = f"{entry.tasklet} {entry.source} -> {entry.target}"
        style = "green" if entry.outcome == OK else "yellow" if entry.outcome is None else "red"
        table.add_row(entry.id, when(entry), entry.instance, what, Text(outcome(entry), style=style))
    return table


def story_lines(story: Story) -> Iterator[str]:
    """Everything the journal knows of one errand, for people."""
    entry, line = story.entry, timeline(story)
    yield f"{entry.instance}: {entry.tasklet} {entry.source} -> {entry.target}"
    yield f"  {outcome(entry)}"
    if story.result is not None and story.result.get("hint"):
        yield f"      next: {story.result['hint']}"
    yield f"  {entry.id}, begun {when(entry)} by {entry.holder}"
    for name, spans in (("steps", line.steps), ("windows", line.windows)):
        for place, span in enumerate(spans):
            note = f": {span.error}" if span.error else " (no end was written)" if span.open else ""
            head = "" if place else name
            yield f"  {head:<9} {span.begin_s:9.3f} s  {span.name} {seconds(span.seconds)}{note}"
    for tick in line.ticks:
        yield f"  {tick.said_by:<9} {tick.at_s:9.3f} s  {tick.what}"


def _replication(guest: GuestOnNode) -> str:
    lines = []
    for resource in guest.resources:
        doubts = [str(doubt) for peer in resource.connections for doubt in resource.doubts(peer.name)]
        lines.append("; ".join(doubts) if doubts else "in step" if resource.connections else "no connection")
    return "\n".join(lines)
