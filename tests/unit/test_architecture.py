"""The arrows between the packages, held by what the files import wherever in them they do it."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lvmigrate", "hv", "storage")
#: The one module that puts a cluster together from its configuration.
ASSEMBLES = "lvmigrate.cluster"
#: Lines; one that is longer says why at its top.
LONG = 430


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is named in an import, be it at the top, in a function or for the types only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else node.module


GRAPH = {name: set(imported(tree)) for name, tree in TREES.items()}


def package(module: str) -> str:
    return module.partition(".")[0]


def test_there_is_something_to_look_at() -> None:
    assert {package(name) for name in GRAPH} == set(PACKAGES)
    assert len(GRAPH) > 90
    assert "lvmigrate.cluster" in GRAPH["lvmigrate"]


@pytest.mark.parametrize("name", GRAPH)
def test_the_arrows(name: str) -> None:
    seen = {package(module) for module in GRAPH[name]}
    allowed = {"lvmigrate": set(), "hv": {"hv", "libvirt"}, "storage": {"storage", "sh"}}[package(name)]
    if name == ASSEMBLES:
        allowed = {"hv", "storage"}
    assert seen & {"hv", "storage", "libvirt", "libvirt_qemu", "sh"} <= allowed


def test_one_module_starts_processes_and_it_alone_imports_sh() -> None:
    assert [name for name, modules in GRAPH.items() if "sh" in modules] == ["storage.shell"]


#: What the extra ``lvmigrate[service]`` brings.
EXTRA = {"httpx2", "limits", "msgspec", "prometheus_client", "sse_starlette", "starlette", "uvicorn", "anyio"}
#: What serves, and what asks: they share the words.
SERVES = {f"lvmigrate.service.{name}" for name in ("app", "events", "jobs", "metrics", "routes", "server", "work")}
ASKS = {"lvmigrate.service.client", "lvmigrate.service.remote"}


@pytest.mark.parametrize("name", GRAPH)
def test_the_core_knows_of_no_service(name: str) -> None:
    """Only the command does, in the functions that need it; and nothing else needs the packages of the extra."""
    if name.startswith("lvmigrate.service"):
        assert not {package(module) for module in GRAPH[name]} & {"hv", "storage"}
        return
    assert not {package(module) for module in GRAPH[name]} & EXTRA
    if name != "lvmigrate.cli":
        assert not {module for module in GRAPH[name] if module.startswith("lvmigrate.service")}


def reached(names: set[str]) -> set[str]:
    """All that these import, and what that does; what is imported in a function, too."""
    found: set[str] = set()
    while names:
        found |= names
        names = {module for name in names for module in GRAPH.get(name, ())} - found
    return found


def test_who_asks_a_service_needs_nothing_of_what_serves() -> None:
    assert {"lvmigrate.cluster", "uvicorn", "starlette", "libvirt", "sh", *SERVES} & reached(set(ASKS)) == set()
    assert ASKS & reached(set(SERVES)) == set()


def test_no_circle() -> None:
    ours = {name: {module for module in modules if module in FILES} - {name} for name, modules in GRAPH.items()}
    graphlib.TopologicalSorter(ours).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", TREES)
def test_no_way_around(name: str) -> None:
    """Nothing is imported by a name that is made at run time; `importlib.metadata` and `.resources` import nothing."""
    assert not GRAPH[name] & {"importlib", "importlib.util", "imp", "pkgutil", "runpy"}
    words = {node.id for node in ast.walk(TREES[name]) if isinstance(node, ast.Name)}
    assert not words & {"__import__", "exec", "eval"}


@pytest.mark.parametrize("name", FILES)
def test_a_long_module_says_why(name: str) -> None:
    lines = len(FILES[name].read_text(encoding="utf-8").splitlines())
    says_why = "\n\nLong, because " in (ast.get_docstring(TREES[name]) or "")
    assert says_why == (lines > LONG), f"{name} has {lines} lines"


@pytest.mark.parametrize("name", [name for name in TREES if not name.endswith("__main__")])
def test_every_module_says_in_its_first_lines_what_it_is(name: str) -> None:
    assert ast.get_docstring(TREES[name])
