"""Mutants that are found in the source, so that none is forgotten when a line is added to it.

Each of these is one mutant: a statement that only calls something, or that sets an attribute, left out; the condition
of an ``if``, as if it never held; one part of another ``and`` or ``or``, left out; one member of a table, left out.
What is left out here and why stands in `NOT_MUTATED`.
"""

from __future__ import annotations

import ast
import fnmatch
from collections import Counter
from collections.abc import Iterator
from typing import Final

from lvmigrate.decision import DISKS, GUEST
from tests.mutants.mutant import ROOT, Mutant

#: Where a line is there to keep a law.
MODULES: Final = (
    "move",
    "settle",
    "arrival",
    "dual_primary",
    "follow",
    "definitions",
    "cleanup",
    "lease",
    "rollback",
    "guard",
    "disks",
    "decision",
    "takeover",
    "survivor",
    "stale",
    "upstart",
    "fencing",
    "handover",
    "scene",
    "opening",
    "failover",
    "hooks",
    "program",
    "target",
    "balloon",
    "recovery",
)
#: Module-level tables of which each member is a mutant.
_TABLES: Final = frozenset(
    {
        "settle._LOOK_TWICE",
        "settle._UNSEEN",
        "decision._PASSING",
        "decision._STOPPED_BY_LIBVIRT",
        "move.STEPS",
    }
)
#: Where the parts of an ``if``'s condition are mutants as well, each for itself.
_PART_BY_PART: Final = frozenset({"guard"})
_MOST: Final = 70
#: What is only said to people: no law hangs on it.
_SAID: Final = ("_log.", "self.chronicle.", "self.notes.add(", "lines.append(")

#: Names of mutants (as `fnmatch` has them) that are none, each with the reason.
NOT_MUTATED: Final[dict[str, str]] = {}


class StaleError(Exception):
    """An exception in `NOT_MUTATED` is about nothing any more."""


def found() -> list[Mutant]:
    """Every mutant that is found in the source and not excepted. Raises `StaleError`."""
    every = [*rows(), *(mutant for module in MODULES for mutant in of_module(module))]
    used = {pattern for mutant in every for pattern in NOT_MUTATED if fnmatch.fnmatchcase(mutant.name, pattern)}
    if unused := NOT_MUTATED.keys() - used:
        raise StaleError(f"these are about no mutant: {', '.join(sorted(unused))}")
    return [m for m in every if not any(fnmatch.fnmatchcase(m.name, pattern) for pattern in NOT_MUTATED)]


def rows() -> Iterator[Mutant]:
    """One row of the decision table at a time."""
    file = "lvmigrate/decision.py"
    for source, target in GUEST:
        yield Mutant(
            name=f"decision: GUEST without {source.name} x {target.name}",
            file=file,
            old="    ruling = GUEST.get(pair)\n",
            new=f"    ruling = GUEST.get(pair) if pair != (_S.{source.name}, _S.{target.name}) else None\n",
        )
    for row in DISKS:
        yield Mutant(
            name=f"decision: DISKS without '{row.when}'",
            file=file,
            old="next(row for row in DISKS if row.holds(disk))",
            new=f"next(row for row in DISKS if row.when != {row.when!r} and row.holds(disk))",
        )


def of_module(module: str) -> list[Mutant]:
    """What is found in one module of the core, each under a name that no line number is part of."""
    file = f"lvmigrate/{module}.py"
    text = (ROOT / file).read_text(encoding="utf-8")
    finder = _Finder(module, text)
    finder.visit(ast.parse(text))
    counts = Counter(name for name, _, _, _ in finder.found)
    numbers: Counter[str] = Counter()
    mutants = []
    for name, begin, end, new in finder.found:
        numbers[name] += 1
        full = f"{name} #{numbers[name]}" if counts[name] > 1 else name
        mutants.append(Mutant(name=full, file=file, old=text[begin:end], new=new, span=(begin, end)))
    return mutants


class _Finder(ast.NodeVisitor):
    """Walks through a module; ``found`` are a name, a begin, an end and a new text."""

    def __init__(self, module: str, text: str) -> None:
        self.found: list[tuple[str, int, int, str]] = []
        self._module = module
        # ast counts columns in bytes; the sources of this package are nothing but ASCII.
        assert text.isascii()
        self._lines = [0]
        for line in text.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self._where: list[str] = []

    def _note(self, what: str, node: ast.expr | ast.stmt, new: str) -> None:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        begin = self._lines[node.lineno - 1] + node.col_offset
        end = self._lines[node.end_lineno - 1] + node.end_col_offset
        self.found.append((f"{self._module}.{'.'.join(self._where)}: {what}".replace(".:", ":"), begin, end, new))

    def _within(self, name: str, node: ast.AST) -> None:
        self._where.append(name)
        self.generic_visit(node)
        self._where.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._within(node.name, node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._within(node.name, node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and self._where and not ast.unparse(node).startswith(_SAID):
            self._note(f"without {_short(node)}", node, "pass")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._attribute(node, node.targets)
        self._table(node, node.targets[0], node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._table(node, node.target, node.value)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._note(f"without {_short(node)}", node, "pass")
        self.generic_visit(node)

    def _attribute(self, node: ast.Assign, targets: list[ast.expr]) -> None:
        """Only outside of constructors: there it would only be a name that is missing."""
        if self._where and self._where[-1] != "__init__" and all(isinstance(t, ast.Attribute) for t in targets):
            self._note(f"without {_short(node)}", node, "pass")

    def _table(self, node: ast.Assign | ast.AnnAssign, target: ast.expr, value: ast.expr | None) -> None:
        if self._where or not isinstance(target, ast.Name) or f"{self._module}.{target.id}" not in _TABLES:
            return
        of = value.args[0] if isinstance(value, ast.Call) else value
        assert isinstance(of, ast.Set | ast.Tuple), f"{target.id} is no table at line {node.lineno}"
        for index, member in enumerate(of.elts):
            rest = [ast.unparse(other) for number, other in enumerate(of.elts) if number != index]
            opening, closing = ("{", "}") if isinstance(of, ast.Set) else ("(", ",)")
            self._note(f"{target.id} without {_short(member)}", of, f"{opening}{', '.join(rest)}{closing}")

    def visit_If(self, node: ast.If) -> None:
        self._note(f"as if never {_short(node.test)}", node.test, "False")
        if self._module in _PART_BY_PART:
            self.generic_visit(node)
            return
        for child in (*node.body, *node.orelse):
            self.visit(child)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Words for people."""

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        word = "and" if isinstance(node.op, ast.And) else "or"
        if isinstance(node.values[-1], ast.Constant):  # a default
            return
        for index, part in enumerate(node.values):
            rest = [f"({ast.unparse(other)})" for number, other in enumerate(node.values) if number != index]
            self._note(f"without '{word} {_short(part)}' in {_short(node)}", node, f"({f' {word} '.join(rest)})")
        self.generic_visit(node)


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= _MOST else f"{text[: _MOST - 3]}..."
