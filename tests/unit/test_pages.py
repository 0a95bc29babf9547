"""What the pages for people name is there: files, sections, commands with their options, keys of the configuration."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.commands import commands
from lvmigrate import config
from lvmigrate.errors import UsageError
from lvmigrate.service.settings import Settings
from lvmigrate.words import parser
from tests.unit.test_explanation import anchors

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "vagrant" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
SOURCES = [path for folder in ("lvmigrate", "hv", "storage") for path in sorted((ROOT / folder).rglob("*.py"))]
NAMES = set(commands())
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def links(page: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


@by_page
def test_every_link_leads_to_a_file_and_to_a_section_of_it(page: Path) -> None:
    wrong = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        # GitHub keeps an underscore in an anchor, `anchors` does not.
        known = {known.replace("_", "") for known in anchors(target)} if target.suffix == ".md" else set()
        if not target.exists() or (known and anchor and anchor.replace("_", "") not in known):
            wrong.append(link)
    assert wrong == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, wanted = set(), [ROOT / "README.md"]
    while wanted:
        page = wanted.pop()
        reached.add(page)
        for link in links(page):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target not in reached:
                wanted.append(target)
    # The site's front page repeats the README's table; Keep a Changelog's file is known by its name.
    assert set(PAGES) - reached == {ROOT / "docs" / "index.md", ROOT / "CHANGELOG.md"}


def examples(page: Path) -> Iterator[str]:
    yield from re.findall(r"^```toml\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if list(examples(page))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_example_of_a_configuration_is_one(page: Path, tmp_path: Path) -> None:
    for text in examples(page):
        whole = text
        if re.match(r"\w+ =", text):  # keys of a node
            whole = f"[nodes.beta]\n{text}"
        elif "[nodes." not in text:
            whole = f"[nodes.alpha]\n{text}"
        file = tmp_path / "cluster.toml"
        file.write_text(whole.replace('sha256 = "..."', f'sha256 = "{"0" * 64}"'), encoding="utf-8")
        found = config.load(file)
        if "[service]" in text:
            Settings.of(found)


def not_understood(text: str) -> Iterator[str]:
    """What is shown to be typed, in lines of a block and in backticks, and means nothing."""
    for line in re.findall(r"^    (?:sudo )?(lvmigrate .*)$", text, flags=re.MULTILINE):
        for words in re.split(r"  +| \.\.\.$", line)[0].split(" ; "):
            yield from _told(words)
    for words in re.findall(r"`(lvmigrate (?:--server \S+ )?[a-z][^`\n]*)`", text):
        # A sentence may leave out which guest it is about.
        yield from (told for told in _told(words) if "arguments are required: INSTANCE" not in told)


def _told(words: str) -> Iterator[str]:
    said = [re.sub(r"^\[(.*)\]$", r"\1", word) for word in shlex.split(words.removesuffix(" ..."), comments=True)[1:]]
    if len(said) == 1 and said[0] in NAMES:
        return  # the command's name in a sentence: what it wants is not there
    try:
        parser().parse_args(said)
    except UsageError as error:
        yield f"{words}: {error.sentence}"


@by_page
def test_every_command_is_understood(page: Path) -> None:
    assert list(not_understood(page.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_an_error_names_is_understood(source: Path) -> None:
    text = re.sub(r'"\s*\n\s*f?"', "", source.read_text(encoding="utf-8"))  # sentences of several lines
    assert list(not_understood(re.sub(r"\{[^{}]*\}", "X", text))) == []
