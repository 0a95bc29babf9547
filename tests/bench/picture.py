"""A curve as a picture: SVG, with axes from nought, to be looked at in any browser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

#: Where they go.
PICTURES: Final = Path("build/bench")

_WIDTH: Final = 640
_HEIGHT: Final = 376
_LEFT: Final = 70
_RIGHT: Final = 20
_TOP: Final = 76
_BOTTOM: Final = 50
#: Told apart by those who see fewer colours as well (Okabe and Ito), and by the marks.
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
_TICKS: Final = 5

Points = Sequence[tuple[float, float]]


def draw(
    name: str,
    title: str,
    curves: Mapping[str, Points],
    *,
    across: str,
    up: str,
    marks: bool = True,
    folder: Path = PICTURES,
) -> Path:
    """Write ``NAME.svg``; ``across`` and ``up`` say what the axes are. ``marks``: a circle at each point."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    path.write_text(svg(title, curves, across=across, up=up, marks=marks), encoding="utf-8")
    return path


def svg(title: str, curves: Mapping[str, Points], *, across: str, up: str, marks: bool = True) -> str:
    """The picture's text. Some curve has a point."""
    xs = ticks(max(x for points in curves.values() for x, _ in points))
    ys = ticks(max(y for points in curves.values() for _, y in points))
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return round(_LEFT + wide * x / xs[-1], 1), round(_TOP + high * (1 - y / ys[-1]), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        _text(_LEFT, 22, title, size=15),
        _text(_LEFT + wide / 2, _HEIGHT - 12, across, anchor="middle"),
        _text(_LEFT - 50, _TOP - 14, up),
    ]
    for y in ys:
        left, height = at(0, y)
        parts.append(f'<path d="M{left} {height}h{wide}" stroke="#ddd"/>')
        parts.append(_text(left - 8, height + 4, f"{y:g}", anchor="end"))
    for x in xs:
        along, foot = at(x, 0)
        parts.append(f'<path d="M{along} {foot}v5" stroke="#333"/>')
        parts.append(_text(along, foot + 18, f"{x:g}", anchor="middle"))
    begin = _LEFT + 0.0
    for (name, points), colour in zip(curves.items(), _COLOURS, strict=False):
        places = [at(x, y) for x, y in points]
        line = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if marks:
            parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>' for x, y in places]
        parts.append(f'<rect x="{begin:g}" y="31" width="12" height="4" fill="{colour}"/>')
        parts.append(_text(begin + 16, 38, name))
        begin += 36 + 6.5 * len(name)
    return "\n".join([*parts, "</svg>", ""])


def ticks(most: float) -> tuple[float, ...]:
    """Round numbers from 0 to ``most`` or a little more."""
    if most <= 0:
        return (0.0, 1.0)
    rough = most / _TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough * (1 - 1e-9))
    return tuple(round(step * number, 10) for number in range(math.ceil(most / step - 1e-9) + 1))


def _text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" fill="#222">{escape(words)}</text>'
