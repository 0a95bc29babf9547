"""A few mutants of each kind: that taking away a line which keeps a law is noticed, and that the runner notices it."""

from __future__ import annotations

import json

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


@pytest.mark.parametrize("name", SAMPLE)
def test_a_line_that_is_missing_is_noticed(name: str) -> None:
    (mutant,) = [each for each in every() if each.name == name]
    known = json.loads(CATCHERS.read_text(encoding="utf-8"))[name]
    verdict = Catcher(seconds=0).verdict(mutant, known, [])
    assert verdict.catcher == known


def test_a_mutant_that_changes_nothing_survives() -> None:
    """With it the runner shows that it does not take just anything for a catch."""
    same = Mutant(name="none", file="lvmigrate/settle.py", old="_ASK_S: Final = 0.3\n", new="_ASK_S: Final = 0.30\n")
    known = json.loads(CATCHERS.read_text(encoding="utf-8"))
    cases = [known[name].removeprefix("campaign ") for name in SAMPLE if known[name].startswith("campaign ")]
    assert cases
    assert Catcher(seconds=0).by_cases(same, cases) is None


def test_a_mutant_of_a_text_that_is_gone_is_an_error() -> None:
    gone = Mutant(name="gone", file="lvmigrate/settle.py", old="there is no such line", new="")
    with pytest.raises(NoSuchTextError):
        Catcher(seconds=0).verdict(gone, "", [])
