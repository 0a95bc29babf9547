"""Every code is explained, once, truly as far as the checks themselves tell, and with a place that exists."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from docs.codes import page
from lvmigrate import audit, checks, cli, doctor, environment, explanation, whereabouts
from lvmigrate.errors import Code, ExitCode, UsageError
from lvmigrate.explanation import EXITS, EXPLANATIONS, Explanation, Told, explained

ALL = (*EXPLANATIONS.values(), *EXITS.values())


def anchors(path: Path) -> set[str]:
    """The sections of a page, as its links name them."""
    heads = (line.lstrip("#").strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads}


def codes_in(source: object) -> set[Code]:
    return {Code[name] for name in re.findall(r"\bCode\.([A-Z_]+)", inspect.getsource(source))}  # type: ignore[arg-type]


def test_every_code_has_one_explanation_and_there_is_no_other() -> None:
    assert [row.code for row in explanation._ROWS] == [code.value for code in Code]
    assert [row.code for row in explanation._EXIT_ROWS] == [str(code.value) for code in ExitCode]


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.code)
def test_each_says_everything(one: Explanation) -> None:
    for text in (one.meaning, one.changed, one.remedy):
        assert text.endswith((".", ".)"))
        assert len(text.splitlines()) == 1
    assert len(set(one.told)) == len(one.told)
    assert one.told or one.code.isdigit()
    path, _, anchor = one.where.partition("#")
    assert anchor in anchors(Path(path))


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        (checks.REFUSALS, Told.REFUSED),
        (checks.WARNINGS, Told.WARNED),
        ((whereabouts.where, environment.reach), Told.REFUSED),
        ((audit, doctor), Told.FOUND),
    ],
    ids=["refusals", "warnings", "where", "audit"],
)
def test_the_occasions_are_those_of_the_checks(sources: tuple[Callable[..., Any] | object, ...], told: Told) -> None:
    found = {code for source in sources for code in codes_in(source)}
    assert found
    assert {code for code in found if told not in EXPLANATIONS[code].told} == set()


@pytest.mark.parametrize("word", ["LOCKED", "locked", " Locked "])
def test_a_code_is_found_by_its_name(word: str) -> None:
    assert explained(word) is EXPLANATIONS[Code.LOCKED]


def test_an_exit_code_is_found_by_its_number() -> None:
    assert explained("5") is EXITS[ExitCode.UNKNOWN]
    assert explained("tls-name") is EXPLANATIONS[Code.TLS_NAME]


@pytest.mark.parametrize("word", ["", "10", "-1", "NO_SUCH", "5.0", "²"])
def test_what_is_no_code(word: str) -> None:
    with pytest.raises(UsageError):
        explained(word)


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LVMIGRATE_CONFIG", "/nonexistent")  # it needs no configuration
    assert cli.main(["explain", "locked"]) == ExitCode.OK
    out = capsys.readouterr().out
    assert out.startswith("LOCKED: Another move")
    for word in ("changed", "do", "more"):
        assert f"\n  {word} " in out
    assert cli.main(["explain", "9", "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["code"] == "9"
    assert cli.main(["explain", "nothing"]) == ExitCode.USAGE
    assert "There is no code nothing." in capsys.readouterr().err


def test_the_command_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain"]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [
        *(str(code.value) for code in ExitCode),
        *(code.value for code in Code),
    ]
    assert cli.main(["explain", "--json"]) == ExitCode.OK
    found = json.loads(capsys.readouterr().out)
    assert [one["code"] for one in found["codes"]] == [code.value for code in Code]
    assert len(found["exit_codes"]) == len(ExitCode)


def test_the_page_in_the_docs_is_the_texts() -> None:
    """`make docs` writes it."""
    assert Path("docs/codes.md").read_text(encoding="utf-8") == page()
