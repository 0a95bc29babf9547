"""One errand as one self-contained HTML page: no script, nothing fetched, readable in light and in dark.

The only place that draws; whoever shows an errand in a browser calls `page`, or `picture` for the drawing alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from typing import Final

from lvmigrate.journal import OK, Entry, Story
from lvmigrate.timeline import Lane, Line, Rule, Span, Tick, Timeline, timeline

#: In the drawing's own units.
_WIDTH: Final = 1080
_LEFT: Final = 190
_RIGHT: Final = 24
_ROW: Final = 22
_PANEL: Final = 96
_GAP: Final = 12
#: What lasts shorter than can be drawn is drawn this wide.
_LEAST: Final = 2.0
#: No line is drawn with more points than this.
_MOST_POINTS: Final = 1200
_GOOD: Final = frozenset({"Primary", "Established", "UpToDate", "Connected"})
_CALM: Final = frozenset({"Secondary"})

_STYLE: Final = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1b2430; --dim: #5b6776; --line: #d5dce4; --panel: #f5f7fa;
  --a: #2563b8; --b: #c2570c; --good: #2e7d51; --calm: #a9c3dd; --bad: #c02d3a; --step: #5a6fb0; --warn: #d9930d; }
@media (prefers-color-scheme: dark) { :root { --page: #12171e; --ink: #e4e9f0; --dim: #94a1b2; --line: #303a47;
  --panel: #1a212b; --a: #6ba6f0; --b: #f0954f; --good: #4fae7c; --calm: #41597a; --bad: #ef6b75; --step: #7d92d8;
  --warn: #e8b04a; } }
body { margin: 0 auto; max-width: 1120px; padding: 24px 20px 60px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; margin: 0 0 2px; } h2 { font-size: 16px; margin: 28px 0 6px; }
p { margin: 4px 0; } .dim { color: var(--dim); } .bad { color: var(--bad); } .good { color: var(--good); }
svg { width: 100%; height: auto; display: block; margin-top: 16px; }
svg text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: var(--ink); } svg text.dim { fill: var(--dim); }
svg text.on { fill: var(--page); } svg text.on-calm { fill: var(--ink); } svg text.on-warn { fill: #1b2430; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: 3px 12px 3px 0; vertical-align: top;
  border-bottom: 1px solid var(--line); } th.n { text-align: right; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
"""


def page(story: Story) -> str:
    """The whole page."""
    entry, line = story.entry, timeline(story)
    title = f"{entry.instance}: {entry.tasklet} {entry.source} to {entry.target}"
    return "\n".join(
        (
            "<!DOCTYPE html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *_head(story),
            picture(line),
            *_forecast(line),
            *_rules(line),
            *_steps(line),
            *_moments(line),
            "</body></html>\n",
        )
    )


def picture(line: Timeline) -> str:
    """The drawing alone, as an ``<svg>`` element; its colours are the page's."""
    drawing = _Drawing(line.seconds)
    drawing.bars("steps", line.steps, "step")
    for name in dict.fromkeys(window.name for window in line.windows):
        kind = "bad" if name == "downtime" else "warn"
        drawing.bars(name, tuple(window for window in line.windows if window.name == name), kind)
    told = line.told
    if told is not None and told.end_s is not None and told.seconds is not None:
        begin_s = told.end_s - told.seconds
        drawing.bars("forecast", (Span(name="forecast", begin_s=begin_s, end_s=told.end_s),), "calm")
        if told.took_s is not None:
            drawing.bars("it took", (Span(name="it took", begin_s=begin_s, end_s=begin_s + told.took_s),), "a")
    if line.rules:
        drawing.rules(line.rules)
    for lines in (line.memory, line.rates, line.sync):
        if lines:
            drawing.panel(lines)
    for lane in line.lanes:
        drawing.lane(lane)
    for said_by in dict.fromkeys(("lvmigrate", "libvirt", "drbd", *(tick.said_by for tick in line.ticks))):
        if ticks := [tick for tick in line.ticks if tick.said_by == said_by]:
            drawing.ticks(f"{said_by} says", ticks)
    return drawing.svg()


def when(entry: Entry) -> str:
    """When it began, in UTC."""
    return datetime.fromtimestamp(entry.began, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def outcome(entry: Entry) -> str:
    """How it ended, in a few words."""
    if entry.outcome is None:
        return "no end was written: it is under way, or its controller died"
    took = f"after {entry.seconds or 0:.1f} s"
    return f"done {took}" if entry.outcome == OK else f"{entry.outcome} {took}: {entry.sentence}"


def _head(story: Story) -> Iterator[str]:
    entry = story.entry
    kind = "good" if entry.outcome == OK else "bad"
    yield f'<p class="{kind}">{escape(outcome(entry))}</p>'
    if story.result is not None and story.result.get("hint"):
        yield f"<p>Next: {escape(str(story.result['hint']))}</p>"
    yield f'<p class="dim">{escape(entry.id)}, begun {when(entry)} by {escape(entry.holder)}</p>'


def _forecast(line: Timeline) -> Iterator[str]:
    told = line.told
    if told is None:
        return

    def cell(value: float | None, unit: str, *, digits: int = 2) -> str:
        return f'<td class="n">{"" if value is None else f"{value:.{digits}f}{unit}"}</td>'

    yield '<h2>Forecast against outcome</h2><table><tr><th></th><th class="n">Told</th><th class="n">Came</th></tr>'
    if told.seconds is None:
        yield f'<tr><td>copy</td><td class="n">no end without help</td>{cell(told.took_s, " s")}</tr>'
    else:
        yield f"<tr><td>copy, until it runs on the target</td>{cell(told.seconds, ' s')}{cell(told.took_s, ' s')}</tr>"
    yield f"<tr><td>downtime</td>{cell(told.downtime_s, ' s')}{cell(told.stood_s, ' s')}</tr>"
    yield f"<tr><td>passes</td>{cell(told.passes, '', digits=0)}{cell(told.passed, '', digits=0)}</tr>"
    yield (
        f'<tr><td>policy (advised, in force)</td><td class="n">{escape(told.advised)}</td>'
        f'<td class="n">{escape(told.policy)}</td></tr></table>'
    )
    if told.error_percent is not None:
        yield f'<p class="dim">The forecast was {told.error_percent:.0f} % off.</p>'


def _rules(line: Timeline) -> Iterator[str]:
    if not line.rules:
        return
    yield "<h2>Convergence rules that fired</h2><table><tr><th>At</th><th>Then</th><th>Why</th></tr>"
    for rule in line.rules:
        yield (f'<tr><td class="n">{rule.at_s:.3f} s</td><td>{escape(rule.name)}</td><td>{escape(rule.why)}</td></tr>')
    yield "</table>"


def _steps(line: Timeline) -> Iterator[str]:
    yield "<h2>Steps and windows</h2><table><tr><th>What</th><th>From</th><th>Lasted</th><th></th></tr>"
    for span in (*line.steps, *line.windows):
        note = span.error or ("no end was written" if span.open else "")
        yield (
            f'<tr><td>{escape(span.name)}</td><td class="n">{span.begin_s:.3f} s</td>'
            f'<td class="n">{span.seconds:.3f} s</td><td class="bad">{escape(note)}</td></tr>'
        )
    yield "</table>"


def _moments(line: Timeline) -> Iterator[str]:
    yield "<h2>Everything, in order</h2><table><tr><th>At</th><th>Said by</th><th>What</th></tr>"
    for tick in line.ticks:
        kind = ' class="bad"' if tick.error else ""
        yield (
            f'<tr><td class="n">{tick.at_s:.3f} s</td><td>{escape(tick.said_by)}</td>'
            f"<td{kind}>{escape(tick.what)}</td></tr>"
        )
    yield "</table>"


class _Drawing:
    """Rows from top to bottom over one time axis."""

    def __init__(self, seconds: float) -> None:
        self._seconds = max(seconds, 0.001)
        self._y = 0.0
        self._parts: list[str] = []
        #: Where rules fired, and from where down that is shown.
        self._poles: list[float] = []
        self._top = 0.0

    def bars(self, name: str, spans: tuple[Span, ...], kind: str) -> None:
        """One row of bars."""
        self._name(name)
        for span in spans:
            self._bar(span, "bad" if span.error else kind, written=kind == "step")
        self._y += _ROW

    def lane(self, lane: Lane) -> None:
        """One row that is always in some state."""
        self._name(lane.name)
        for span in lane.spans:
            kind = "good" if span.name in _GOOD else "calm" if span.name in _CALM else "bad"
            self._bar(span, kind, written=True)
        self._y += _ROW

    def ticks(self, name: str, ticks: list[Tick]) -> None:
        """One row of moments."""
        self._name(name)
        for tick in ticks:
            colour = "bad" if tick.error else "a"
            self._parts.append(
                f'<rect x="{self._x(tick.at_s) - 1:.1f}" y="{self._y + 4:.1f}" width="2" height="{_ROW - 8}"'
                f' fill="var(--{colour})"><title>{tick.at_s:.3f} s: {escape(tick.what)}</title></rect>'
            )
        self._y += _ROW

    def rules(self, rules: tuple[Rule, ...]) -> None:
        """One row of flags, whose poles go down through everything that is drawn below."""
        self._name("rules that fired")
        places = [self._x(rule.at_s) for rule in rules]
        for rule, x, after in zip(rules, places, [*places[1:], float(_WIDTH)], strict=True):
            self._parts.append(
                f'<circle cx="{x:.1f}" cy="{self._y + _ROW / 2:.1f}" r="4" fill="var(--warn)">'
                f"<title>{rule.at_s:.3f} s: {escape(rule.name)}: {escape(rule.why)}</title></circle>"
            )
            if x + 14 + 6.6 * len(rule.name) < after:  # else the table below names it
                self._parts.append(f'<text x="{x + 7:.1f}" y="{self._y + 15:.1f}">{escape(rule.name)}</text>')
        self._poles += places
        self._top = self._y + _ROW / 2
        self._y += _ROW

    def panel(self, lines: tuple[Line, ...]) -> None:
        """A chart with a scale of its own."""
        most = max((value for line in lines for _, value in line.points), default=0.0) or 1.0
        self._y += _GAP / 2
        top, height = self._y, _PANEL - _GAP
        right = _WIDTH - _RIGHT
        self._parts.append(
            f'<rect x="{_LEFT}" y="{top:.1f}" width="{right - _LEFT}" height="{height}" fill="var(--panel)"/>'
        )
        for place, (line, colour) in enumerate(zip(lines, ("a", "b"), strict=False)):
            self._parts.append(
                f'<text x="{_LEFT - 8}" y="{top + 34 + 17 * place:.1f}" text-anchor="end"'
                f' style="fill: var(--{colour})">{escape(line.name)}</text>'
            )
            stride = math.ceil(len(line.points) / _MOST_POINTS) or 1
            kept = [*line.points[::stride], line.points[-1]]
            points = " ".join(f"{self._x(at):.1f},{top + height * (1 - value / most):.1f}" for at, value in kept)
            self._parts.append(f'<polyline points="{points}" fill="none" stroke="var(--{colour})" stroke-width="1.8"/>')
        self._parts.append(
            f'<text class="dim" x="{_LEFT - 8}" y="{top + 11:.1f}" text-anchor="end">{most:.4g} {lines[0].unit}</text>'
            f'<text class="dim" x="{_LEFT - 8}" y="{top + height:.1f}" text-anchor="end">0</text>'
        )
        self._y += _PANEL

    def svg(self) -> str:
        """Everything drawn so far, over the axis."""
        bottom = self._y + 6
        axis = []
        for at in _round_times(self._seconds):
            x = self._x(at)
            axis.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom:.1f}" stroke="var(--line)"/>'
                f'<text class="dim" x="{x:.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{at:g} s</text>'
            )
        poles = [
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{self._top:.1f}" y2="{bottom:.1f}" stroke="var(--warn)"'
            ' stroke-dasharray="4 3"/>'
            for x in self._poles
        ]
        return (
            f'<svg viewBox="0 0 {_WIDTH} {bottom + 22:.0f}" role="img"'
            ' aria-label="What happened, on one time axis; the tables below tell the same.">'
            + "".join(axis)
            + "".join(self._parts)
            + "".join(poles)
            + "</svg>"
        )

    def _x(self, at_s: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(at_s / self._seconds, 0.0), 1.0)

    def _name(self, name: str) -> None:
        self._parts.append(
            f'<text x="{_LEFT - 8}" y="{self._y + 15:.1f}" text-anchor="end">{escape(_short(name, 28))}</text>'
        )

    def _bar(self, span: Span, kind: str, *, written: bool) -> None:
        x = self._x(span.begin_s)
        width = max(_LEAST, self._x(span.end_s) - x - 0.6)
        tail = ", no end was written" if span.open else ""
        words = f"{span.name}: {span.begin_s:.3f} s to {span.end_s:.3f} s ({span.seconds:.3f} s{tail}) {span.error}"
        edge = ' stroke="var(--bad)" stroke-dasharray="3 2"' if span.open else ""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{self._y + 3:.1f}" width="{width:.1f}" height="{_ROW - 6}" rx="2"'
            f' fill="var(--{kind})"{edge}><title>{escape(words.strip())}</title></rect>'
        )
        fits = int((width - 6) / 6.6)
        label = span.name if written else f"{span.seconds:.3f} s"
        if fits >= len(label):
            on = f"on-{kind}" if kind in ("calm", "warn") else "on"
            self._parts.append(f'<text class="{on}" x="{x + 4:.1f}" y="{self._y + 15:.1f}">{escape(label)}</text>')


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _round_times(seconds: float) -> Iterator[float]:
    """About eight round times from 0 to ``seconds``."""
    rough = seconds / 8
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    for number in range(int(seconds / step) + 1):
        yield round(number * step, 6)
