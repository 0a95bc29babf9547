"""Put a mutant into the running process: what it executes from then on is the changed text.

Nothing is imported again, so that a process which has everything at hand can be forked for each mutant.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from tests.mutants.mutant import ROOT

#: Packages in which a name may stand for what is changed.
_OURS: Final = ("lvmigrate", "hv", "storage", "tests")


class NoSuchPlaceError(Exception):
    """The change is at a place where a running process cannot be changed."""


def swap(file: str, text: str) -> None:
    """Have ``file`` be ``text``, which is its own text with one change. Raises `NoSuchPlaceError`, `SyntaxError`."""
    before = (ROOT / file).read_text(encoding="utf-8")
    if file.endswith(".py"):
        module = sys.modules[file.removesuffix(".py").replace("/", ".")]
        code = compile(text, str(module.__file__), "exec")
        _swap_in(module, (), ast.parse(before).body, ast.parse(text).body, code)
        return
    # A script is part of every text that is sent to a node.
    texts = {value for _, _, value in _names() if isinstance(value, str) and before in value}
    if not texts:
        raise NoSuchPlaceError(f"nothing holds the text of {file}")
    for each in texts:
        _rename(each, each.replace(before, text))


def _swap_in(
    module: ModuleType, path: tuple[str, ...], before: list[ast.stmt], after: list[ast.stmt], code: CodeType
) -> None:
    pairs = [(old, new) for old, new in zip(before, after, strict=True) if ast.dump(old) != ast.dump(new)]
    if not pairs:
        return
    ((old, new),) = pairs
    if isinstance(old, ast.ClassDef) and isinstance(new, ast.ClassDef):
        _swap_in(module, (*path, old.name), old.body, new.body, _code_of(code, old.name))
    elif isinstance(old, ast.FunctionDef):
        _swap_function(module, (*path, old.name), _code_of(code, old.name))
    elif not path and isinstance(new, ast.Assign | ast.AnnAssign):
        (name,) = new.targets if isinstance(new, ast.Assign) else [new.target]
        value = vars(module)[ast.unparse(name)]
        exec(compile(ast.Module([new], []), str(module.__file__), "exec"), vars(module))
        _rename(value, vars(module)[ast.unparse(name)])
    else:
        raise NoSuchPlaceError(f"line {old.lineno} of {module.__name__}")


def _code_of(code: CodeType, name: str) -> CodeType:
    found = [each for each in code.co_consts if isinstance(each, CodeType) and each.co_name == name]
    if len(found) != 1:
        raise NoSuchPlaceError(f"{code.co_name} has {len(found)} {name}")
    return found[0]


def _swap_function(module: ModuleType, path: tuple[str, ...], code: CodeType) -> None:
    found: Any = module
    for name in path:
        found = vars(found)[name]
    if isinstance(found, property):
        found = found.fget
    found = getattr(found, "__func__", found)
    found = getattr(found, "__wrapped__", found)
    if not isinstance(found, FunctionType) or found.__code__.co_qualname != code.co_qualname:
        raise NoSuchPlaceError(f"{module.__name__}: {'.'.join(path)} is no plain function")
    found.__code__ = code


def _rename(before: object, after: object) -> None:
    """Have every name of a module of ours that stands for the one stand for the other."""
    for module, name, value in list(_names()):
        if value is before or (isinstance(before, str) and value == before):
            setattr(module, name, after)


def _names() -> Iterator[tuple[ModuleType, str, object]]:
    for full, module in list(sys.modules.items()):
        if full.partition(".")[0] in _OURS:
            yield from ((module, name, value) for name, value in list(vars(module).items()))
