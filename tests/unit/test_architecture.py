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


#: What imports, or runs, what is named at run time.
IMPORTERS = {
    "importlib",
    "imp",
    "pkgutil",
    "runpy",
    "zipimport",
    "builtins",
    "pydoc",
    "pkg_resources",
    "code",
    "codeop",
}
#: Parts of these that import nothing, if they are imported by ``from``: otherwise the whole is at hand with them.
HARMLESS = {"importlib.metadata", "importlib.resources"}
#: What every module has at hand without an import.
BUILTINS = {"__import__", "__builtins__", "__loader__", "__spec__", "exec", "eval", "compile"}
#: Where modules that were imported by others lie, and where the way to modules is told.
OF_SYS = {"modules", "meta_path", "path_hooks", "path_importer_cache", "path"}
#: However the thing is called that has them, and also as a word for `getattr`.
EVERYWHERE = {
    *("__import__", "import_module", "__builtins__", "exec_module", "load_module", "module_from_spec"),
    *("spec_from_file_location", "run_module", "run_path", "resolve_name", "walk_packages", "iter_modules"),
}


def ways_around(tree: ast.AST) -> Iterator[str]:
    """Whatever in it could import what no import names, under whichever name it has it.

    A word that is put together at run time is not seen.
    """
    nodes = list(ast.walk(tree))
    plain = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    yield from (alias.name for alias in plain if package(alias.name) in IMPORTERS)
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            yield from _imports_around(str(node.module), {alias.name for alias in node.names})
    sys_names = {alias.asname or alias.name for alias in plain if alias.name == "sys"}
    for node in nodes:
        yield from _words_around(node, sys_names)


def _imports_around(module: str, names: set[str]) -> Iterator[str]:
    if package(module) in IMPORTERS and module not in HARMLESS:
        yield module
    yield from names & (EVERYWHERE | {*OF_SYS, "*"} if module == "sys" else EVERYWHERE)


def _words_around(node: ast.AST, sys_names: set[str]) -> Iterator[str]:
    match node:
        case ast.Name(id=name) if name in BUILTINS:
            yield name
        case ast.Attribute(value=ast.Name(id=of), attr=name) if of in sys_names and name in OF_SYS:
            yield f"sys.{name}"
        case ast.Attribute(attr=name) if name in EVERYWHERE:
            yield name
        case ast.Call(func=ast.Name(id="getattr" | "vars"), args=[ast.Name(id=of), *_]) if of in sys_names:
            yield "a word of sys"
        case ast.Constant(value=str(word)) if word in EVERYWHERE:
            yield word


@pytest.mark.parametrize("name", TREES)
def test_no_way_around(name: str) -> None:
    """Nothing is imported by a name that is made at run time."""
    assert list(ways_around(TREES[name])) == []


@pytest.mark.parametrize(
    "code",
    [
        "import importlib\nimportlib.import_module('hv')",
        "import importlib as i\ni.import_module('hv')",
        "import importlib.metadata\nimportlib.import_module('hv')",
        "import importlib.util as u",
        "from importlib import import_module",
        "from importlib import import_module as x\nx('hv')",
        "from importlib.util import find_spec",
        "from importlib import util, machinery",
        "def f():\n    from importlib import import_module as x",
        "__import__('hv')",
        "load = __import__\nload('hv')",
        "import builtins\nbuiltins.__import__('hv')",
        "__builtins__['__import__']('hv')",
        "getattr(anything, 'import_module')('hv')",
        "anything.import_module('hv')",
        "import runpy\nrunpy.run_module('hv')",
        "from runpy import run_path as go",
        "import pkgutil",
        "from pkgutil import resolve_name",
        "import zipimport",
        "exec('import hv')",
        "eval('hv')",
        "go = exec\ngo('import hv')",
        "compile('import hv', '', 'exec')",
        "import sys\nsys.modules['hv']",
        "import sys as s\ns.modules.get('hv')",
        "from sys import modules",
        "from sys import modules as known\nknown['hv']",
        "from sys import *",
        "import sys\ngetattr(sys, 'modu' + 'les')",
        "import sys\nvars(sys)['modules']",
        "import sys\nsys.path.append('/x')",
        "__loader__.load_module('hv')",
        "__spec__.loader.load_module('hv')",
        "import pydoc\npydoc.locate('hv')",
    ],
)
def test_every_way_around_is_seen(code: str) -> None:
    assert list(ways_around(ast.parse(code))) != []


@pytest.mark.parametrize(
    "code",
    [
        "from importlib.metadata import version",
        "from importlib.resources import files as resources",
        "import sys\nsys.argv, sys.stderr, sys.exc_info()",
        "import re\nre.compile('x')",
        "tasklet.exec()",
        "class T:\n    def exec(self): ...",
        "getattr(plan, name)",
        "self.path, options.path",
    ],
)
def test_what_imports_nothing_is_no_way_around(code: str) -> None:
    assert list(ways_around(ast.parse(code))) == []


@pytest.mark.parametrize("name", FILES)
def test_a_long_module_says_why(name: str) -> None:
    lines = len(FILES[name].read_text(encoding="utf-8").splitlines())
    says_why = "\n\nLong, because " in (ast.get_docstring(TREES[name]) or "")
    assert says_why == (lines > LONG), f"{name} has {lines} lines"


@pytest.mark.parametrize("name", [name for name in TREES if not name.endswith("__main__")])
def test_every_module_says_in_its_first_lines_what_it_is(name: str) -> None:
    assert ast.get_docstring(TREES[name])
