"""Builds the site into a folder: ``python -m docs.site FOLDER``; what is not as it should be is an error.

Its pages are those of this folder, the lab's, the changelog, and what is made from the code. They are put together
below FOLDER/source, where links between files of the repository become links between pages, and Sphinx makes
FOLDER/html of them. Nothing there is fetched from anywhere.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from sphinx.cmd.build import build_main

import lvmigrate
from docs import commands, diagrams, keys
from lvmigrate import handover, move, takeover

ROOT: Final = Path(__file__).resolve().parents[1]
_DOCS: Final = ROOT / "docs"
#: Parts of the menu, and their pages in order. Every page is in one of them: Sphinx says so otherwise.
_MENU: Final[Mapping[str, tuple[str, ...]]] = {
    "Begin": ("start", "guide/what-a-migration-does", "guide/see-it", "tested"),
    "How to": (
        *("howto/drain", "howto/not-converging", "howto/crash", "howto/split-brain", "howto/tls", "howto/rights"),
        *("howto/linstor", "howto/pacemaker"),
    ),
    "Guide": (
        *("guide/what-is-checked-before-a-move", "guide/how-memory-travels", "guide/where-it-goes"),
        *("guide/to-empty-a-node", "guide/when-the-command-dies", "guide/failover", "guide/journal", "guide/hooks"),
        *("guide/doctor", "service", "guide/what-it-does-not-do-yet", "guide/words"),
    ),
    "Reference": (
        "reference/commands",
        "reference/configuration",
        "codes",
        "python",
        "reference/api",
        "simulator",
    ),
    "Design": ("design", "decisions", "seed", "lab", "benchmarks", "changelog"),
}
#: Files that a page tells more of, or that are a page by another name.
_ELSEWHERE: Final[Mapping[str, str]] = {
    "vagrant/README.md": "lab.md",
    "CHANGELOG.md": "changelog.md",
    "docs/cluster.toml.example": "reference/configuration.md",
    "lvmigrate/__init__.py": "reference/api.md",
}
_LINK: Final = re.compile(r"(?<=\]\()(?P<path>[^)#\s]*)(?P<anchor>#[^)\s]*)?(?=\))")


def build(folder: Path) -> int:
    """Put everything together and build it; Sphinx's exit status."""
    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "source"
    for name, text in pages().items():
        page = source / f"{name}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
    shutil.copy(_DOCS / "conf.py", source)
    shutil.copytree(_DOCS / "theme", source / "theme")
    shutil.copy(keys.EXAMPLE, source)
    quiet = ["--quiet", "--fail-on-warning", "--keep-going", "--fresh-env"]
    return build_main([*quiet, "--builder", "html", str(source), str(folder / "html")])


def pages() -> Mapping[str, str]:
    """Every page in Markdown, by its name."""
    made = {path.relative_to(_DOCS).with_suffix("").as_posix(): path for path in sorted(_DOCS.rglob("*.md"))}
    found = {name: _moved(path.read_text(encoding="utf-8"), f"docs/{name}.md", name) for name, path in made.items()}
    found["lab"] = _moved((ROOT / "vagrant" / "README.md").read_text(encoding="utf-8"), "vagrant/README.md", "lab")
    found["changelog"] = _moved((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), "CHANGELOG.md", "changelog")
    found["reference/commands"] = commands.page()
    found["reference/configuration"] = keys.page()
    found["reference/api"] = _api()
    found["index"] += "".join(_menu())
    for name, text in found.items():
        found[name] = re.sub(r"<!-- picture: (\w+) -->", lambda match: _PICTURES[match[1]](), text)
    return found


def _moved(text: str, file: str, name: str) -> str:
    """The text of a file of the repository with its links as those of the page ``name``."""

    def link(match: re.Match[str]) -> str:
        path, anchor = match["path"], match["anchor"] or ""
        if re.match(r"[a-z]+:", path):
            return match[0]
        whole = posixpath.normpath(posixpath.join(posixpath.dirname(file), path)) if path else file
        if whole == "README.md":  # its sections are told in full by the pages that `start` leads to
            target, anchor = ("start.md" if anchor else "index.md"), ""
        else:
            target = _ELSEWHERE.get(whole, whole.removeprefix("docs/"))
        return posixpath.relpath(target, posixpath.dirname(name) or ".") + anchor

    # An example of Python's own prompt is coloured as one; what stands in a fence is shown as it is.
    text = re.sub(r"(?<=\n\n)((?:    .*\n)+)", lambda match: _as_python(match[1]), text)
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if number % 2 else _LINK.sub(link, part) for number, part in enumerate(parts))


def _as_python(block: str) -> str:
    return f"```pycon\n{textwrap.dedent(block)}```\n" if block.startswith("    >>> ") else block


def _menu() -> Iterator[str]:
    for caption, names in _MENU.items():
        yield f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(names) + "\n```\n"


def _api() -> str:
    """The Python interface, from its docstrings."""
    text = "# Python: every name\n\nMade from the docstrings. With examples: [Python](../python.md).\n"
    for name in sorted(lvmigrate.__all__, key=lambda name: (name != "Cluster", name)):
        thing = getattr(lvmigrate, name)
        if name == "Code":
            text += f"\n## {name}\n\n{lvmigrate.Code.__doc__}\n\nEach with its meaning: [every code](../codes.md).\n"
            continue
        family = "   :show-inheritance:\n" if issubclass(thing, Exception) else ""
        text += (
            f"\n## {name}\n\n```{{eval-rst}}\n.. autoclass:: {thing.__module__}.{thing.__qualname__}\n"
            f"   :members:\n{family}```\n"
        )
    return text


def _modules() -> str:
    """Every module, in rows: it imports only what stands in rows above its own."""
    rows = ["| | module | what it is |", "|---|---|---|"]
    for number, row in enumerate(diagrams.layers(), 1):
        for name in row:
            what = diagrams.first_line(name).replace("|", "\\|")
            rows.append(f"| {number if name == row[0] else ''} | `{name}` | {what} |")
    return "\n".join(rows)


_PICTURES: Final = {
    "migrate": lambda: diagrams.steps("the steps of a live migration", move.STEPS, turn="switch"),
    "handover": lambda: diagrams.steps("the steps of a failover", handover.STEPS, turn="start"),
    "takeover": lambda: diagrams.steps("the steps of a failover from a dead node", takeover.STEPS, turn="promote"),
    "packages": diagrams.packages,
    "modules": _modules,
}


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "site")))
