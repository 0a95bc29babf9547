"""The site: built with warnings as errors, of one piece, and with nothing of anybody else's."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from docs.commands import commands, options_of
from docs.keys import RULE, TABLES
from docs.site import ROOT, pages
from lvmigrate.errors import Code
from lvmigrate.words import parser

#: Pages elsewhere that a reader may be sent to; nothing is loaded from them.
ELSEWHERE = {"github.com", "keepachangelog.com", "semver.org"}


class Page(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a":
            self.links += [given["href"]] if "href" in given else []
        else:
            self.loads += [given[name] for name in ("src", "href", "data", "poster", "srcset") if name in given]
            self.loads += re.findall(r"url\(([^)]*)\)", given.get("style", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = run("-m", "docs.site", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)


@cache
def read(site: Path) -> Mapping[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def outside(address: str) -> bool:
    return bool(urlsplit(address).netloc) or urlsplit(address).scheme in ("http", "https")


def test_a_page_that_is_wrong_is_an_error(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from docs import site
site.pages = lambda: {{"index": "# Here\\n\\n[there](nowhere.md)\\n"}}
raise SystemExit(site.build(Path({str(tmp_path)!r})))
"""
    done = run("-c", code)
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr


def test_every_page_is_there(site: Path) -> None:
    assert {path.relative_to(site).with_suffix("").as_posix() for path in read(site)} >= set(pages())
    assert len(pages()) > 30


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = {address for page in read(site).values() for address in page.loads}
    assert len(loaded) > 5
    assert {address for address in loaded if outside(address)} == set()
    styles = [*site.rglob("*.css"), *site.rglob("*.svg")]
    assert len(styles) > 3
    for path in styles:
        text = path.read_text(encoding="utf-8")
        found = [*re.findall(r"url\(\s*[\"']?([^\"')]+)", text), *re.findall(r"@import\s+[\"']([^\"']+)", text)]
        assert [address for address in found if outside(address)] == []
    for path in site.rglob("*.js"):
        assert not re.search(r"(?:fetch|import|src\s*=|importScripts)\s*\(?\s*[\"'`](?:https?:)?//", path.read_text())


def test_readers_are_sent_to_few_places(site: Path) -> None:
    hosts = {urlsplit(link).netloc for page in read(site).values() for link in page.links if outside(link)}
    assert hosts <= ELSEWHERE


def test_every_link_leads_to_something(site: Path) -> None:
    known = read(site)
    wrong = []
    for path, page in known.items():
        for address in (*page.links, *page.loads):
            parts = urlsplit(address)
            if outside(address) or parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file() or (
                parts.fragment and target in known and unquote(parts.fragment) not in known[target].anchors
            ):
                wrong.append(f"{path.relative_to(site)}: {address}")
    assert wrong == []


def test_every_command_has_its_section_and_every_option_is_there(site: Path) -> None:
    (page,) = (page for path, page in read(site).items() if path.match("reference/commands.html"))
    assert set(commands()) <= page.anchors
    text = pages()["reference/commands"]
    below = text.split("\n## What several commands understand\n")[1]
    shared = re.split(r"^### Understood by (.+)$", below, flags=re.MULTILINE)
    groups = dict(zip(shared[1::2], shared[2::2], strict=True))
    assert len(groups) > 3
    before = text.split("\n## Before the command\n")[1].split("\n## ")[0]
    for action in options_of(parser()):
        assert not action.option_strings or f"| `{action.option_strings[0]}" in before
    for name, command in commands().items():
        own = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        mine = [part for title, part in groups.items() if title == "every command" or name in re.findall(r"\w+", title)]
        rows = [line for part in (own, *mine) for line in part.splitlines() if line.startswith("| `")]
        for action in options_of(command):
            word = (*action.option_strings, str(action.metavar))[0]
            assert [row for row in rows if re.match(rf"\| `{re.escape(word)}[ `]", row)], (name, word)


def test_every_key_and_every_code_is_there(site: Path) -> None:
    text = pages()["reference/configuration"]
    for table in (*TABLES, RULE):
        assert [f"| `{key.name}` |" for key in table.keys if f"| `{key.name}` |" not in text] == []
    (codes,) = (page for path, page in read(site).items() if path.name == "codes.html")
    assert {code.value.lower().replace("_", "-") for code in Code} | {"exit-codes"} <= {
        anchor.replace("_", "-") for anchor in codes.anchors
    }


def test_every_picture_was_made(site: Path) -> None:
    assert not [name for name, text in pages().items() if "<!-- picture" in text]
    text = (site / "design.html").read_text(encoding="utf-8")
    assert text.count('<svg class="made"') == 4
    for word in ("verify</text>", "puts the parts together", "storage.drbd"):
        assert word in text
