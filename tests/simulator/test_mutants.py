"""A few mutants of each kind: that taking away a line which keeps a law is noticed, and that the runner notices it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.mutants.__main__ import CATCHERS, every
from tests.mutants.catch import Catcher
from tests.mutants.mutant import Mutant, NoSuchTextError

SAMPLE = (
    "decision: GUEST without STALLED x GONE",
    "settle.Settlement._act: without self._end(self.target, ruling, late=late)",
    "definitions.Definitions.moved: without self.hypervisor.undefine(self.source, self.uuid)",
    "node.sh take_token: a living one is not respected",
)
SAME = Mutant(name="none", file="lvmigrate/settle.py", old="_ASK_S: Final = 0.3\n", new="_ASK_S: Final = 0.30\n")
CASES = ["migrate-reply-lost 8.4/fast/running", "migrate-source-daemon-dies 9/strict/running"]


def known() -> dict[str, str]:
    return dict(json.loads(CATCHERS.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def catcher() -> Iterator[Catcher]:
    """It collects no more than what has caught the sample."""
    catchers = [known()[name].partition(" ") for name in SAMPLE]
    tests = {words.partition("::")[0] for kind, _, words in catchers if kind == "pytest"}
    with Catcher(seconds=0, tests=sorted(tests)) as made:
        yield made


@pytest.mark.parametrize("name", SAMPLE)
def test_a_line_that_is_missing_is_noticed(catcher: Catcher, name: str) -> None:
    (mutant,) = [each for each in every() if each.name == name]
    verdict = catcher.verdict(mutant, known()[name], [])
    assert verdict.catcher == known()[name]


def test_a_mutant_that_changes_nothing_survives(catcher: Catcher) -> None:
    """With it the runner shows that it does not take just anything for a catch."""
    assert catcher.by_cases(SAME, CASES) is None


def test_a_test_that_is_gone_breaks_nothing_and_catches_nothing(catcher: Catcher) -> None:
    assert catcher.verdict(SAME, "pytest tests/simulator/test_there_is_none.py::test_none", CASES).catcher == ""


def test_a_mutant_of_a_text_that_is_gone_is_an_error(catcher: Catcher) -> None:
    gone = Mutant(name="gone", file="lvmigrate/settle.py", old="there is no such line", new="")
    with pytest.raises(NoSuchTextError):
        catcher.verdict(gone, "", [])
