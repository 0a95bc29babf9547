"""Pictures made from the code, as SVG that takes its colours from the page: `steps` and `layers`."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from lvmigrate.tasklet import Step

_TREE: Final = Path(__file__).resolve().parents[1]
_PACKAGES: Final = ("lvmigrate", "hv", "storage")
_WIDTH: Final = 760
_ROW: Final = 44


def steps(title: str, listed: Sequence[Step[Any]], *, turn: str) -> str:
    """The steps of a tasklet, one below the other; after the step ``turn`` there is no way back."""
    if turn not in {step.name for step in listed}:
        raise LookupError(turn)
    parts: list[str] = []
    y = 6
    for number, step in enumerate(listed, 1):
        parts.append(f'<rect class="box" x="1" y="{y}" width="118" height="30" rx="5"/>')
        parts.append(f'<text class="name" x="14" y="{y + 20}">{number}&#160; {escape(step.name)}</text>')
        parts.append(f'<text class="words" x="136" y="{y + 20}">{escape(step.sentence)}</text>')
        last = number == len(listed)
        if not last:
            parts.append(f'<line class="arrow" x1="60" y1="{y + 30}" x2="60" y2="{y + _ROW}"/>')
        y += _ROW
        if step.name == turn:
            parts.append(f'<line class="turn" x1="1" y1="{y + 6}" x2="{_WIDTH - 1}" y2="{y + 6}"/>')
            parts.append(
                f'<text class="small" x="{_WIDTH - 1}" y="{y}" text-anchor="end">above: a failure is undone, newest'
                " first; below: it is finished</text>"
            )
            if not last:
                parts.append(f'<line class="arrow" x1="60" y1="{y}" x2="60" y2="{y + 14}"/>')
            y += 14
    return _svg(title, y - 4, parts)


def layers() -> tuple[tuple[str, ...], ...]:
    """Every module, by how many imports lie below it: each imports only what is in rows before its own."""
    graph = _imports()
    depth: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(graph).static_order():
        depth[name] = 1 + max((depth[below] for below in graph[name]), default=-1)
    return tuple(
        tuple(sorted(name for name, its in depth.items() if its == row)) for row in range(max(depth.values()) + 1)
    )


def packages() -> str:
    """Which package imports which, and what from outside."""
    graph = {name: _outside(path) for name, path in _files().items()}
    arrows = {
        (name.split(".")[0] if name != "lvmigrate.cluster" else "lvmigrate.cluster", target)
        for name, targets in graph.items()
        for target in targets
    }
    places = {
        "lvmigrate.cluster": (270, 6, "lvmigrate.cluster", "puts the parts together"),
        "hv": (40, 96, "hv", "libvirt/KVM"),
        "storage": (500, 96, "storage", "DRBD, shared storage"),
        "lvmigrate": (270, 186, "lvmigrate", "the rest: rules, tasklets, command"),
        "libvirt": (40, 276, "libvirt-python", ""),
        "sh": (500, 276, "sh", ""),
    }
    parts = [_arrow(places[a], places[b]) for a, b in sorted(arrows) if a in places and b in places and a != b]
    for x, y, name, words in places.values():
        parts.append(f'<rect class="box" x="{x}" y="{y}" width="220" height="46" rx="5"/>')
        middle = y + (20 if words else 28)
        parts.append(f'<text class="name" x="{x + 110}" y="{middle}" text-anchor="middle">{escape(name)}</text>')
        if words:
            parts.append(f'<text class="small" x="{x + 110}" y="{y + 37}" text-anchor="middle">{escape(words)}</text>')
    return _svg("which package imports which", 330, parts)


def first_line(module: str) -> str:
    """What a module says of itself."""
    tree = ast.parse(_files()[module].read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ").removesuffix(":")


def _files() -> Mapping[str, Path]:
    found = (path for package in _PACKAGES for path in (_TREE / package).rglob("*.py") if path.stem != "__main__")
    return {".".join(path.relative_to(_TREE).with_suffix("").parts).removesuffix(".__init__"): path for path in found}


def _named(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imports() -> Mapping[str, frozenset[str]]:
    """Module -> modules of ours that it imports, wherever in it; a package's own names come with it."""
    files = _files()
    graph: dict[str, frozenset[str]] = {}
    for name, path in files.items():
        found = {word if word in files else word.rpartition(".")[0] for word in _named(path)}
        graph[name] = frozenset(word for word in found if word in files and word != name)
    return graph


def _outside(path: Path) -> frozenset[str]:
    name = next(name for name, file in _files().items() if file == path)
    return frozenset({word.split(".")[0] for word in _named(path)} - {name.split(".")[0]}) | (
        {"lvmigrate"} if name == "lvmigrate.cluster" else set()
    )


def _arrow(tail: tuple[int, int, str, str], head: tuple[int, int, str, str]) -> str:
    (x1, y1, _, _), (x2, y2, _, _) = tail, head
    down = y2 > y1
    return (
        f'<line class="arrow" x1="{x1 + 110}" y1="{y1 + 46 if down else y1}" x2="{x2 + 110}"'
        f' y2="{y2 if down else y2 + 46}" marker-end="url(#tip)"/>'
    )


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    """One line for each part: Markdown takes an element without empty lines as it is."""
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8"'
        ' orient="auto-start-reverse"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    head = f'<svg class="made" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    return "\n".join(['<div class="picture">', head, tip, *parts, "</svg>", "</div>"])
