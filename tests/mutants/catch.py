"""Whether a mutant is caught: by a case of the campaign, or else by a unit test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.campaign.cases import Case
from tests.campaign.run import run
from tests.mutants.mutant import Mutant, apply, copy_tree

#: The unit tests of the core, which are asked when no case catches it.
_CORE: Final = (
    "tests/simulator",
    "tests/unit/test_decision.py",
    "tests/unit/test_migrate.py",
    "tests/unit/test_cleanup.py",
)
_SCRIPTS: Final = tuple(
    f"tests/unit/storage/test_{name}.py" for name in ("node_script", "drbd", "marks", "guard_script")
)
#: It compares the guard's two halves.
_DECIDES: Final = "tests/unit/storage/test_guard_script.py::test_it_decides_as_the_function_does"
#: These tests take some seconds; one that takes this long does not end.
_MOST_S: Final = 180
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


class BrokenError(Exception):
    """The mutant cannot even be imported: it shows nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a mutant."""

    mutant: Mutant
    #: ``campaign CASE`` or ``pytest TEST``; empty: nothing has caught it.
    catcher: str
    why: str


class Catcher:
    """Tries mutants. ``seconds``: how long the campaign goes on where what is known does not catch one."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._clean: dict[str, bool] = {}
        #: A world belongs to one thread; the product as it is, is tried in one.
        self._lock = threading.Lock()

    def verdict(self, mutant: Mutant, known: Sequence[str]) -> Verdict:
        """Try what is ``known`` to catch such mutants first. Raises `BrokenError`, `NoSuchTextError`."""
        with tempfile.TemporaryDirectory(prefix="mutant-") as name:
            where = Path(name)
            copy_tree(where)
            apply(mutant, where)
            core = mutant.file.endswith(".py")
            tests = [words for kind, _, words in (each.partition(" ") for each in known) if kind == "pytest"]
            cases = [words for kind, _, words in (each.partition(" ") for each in known) if kind == "campaign"]
            if tests and (found := self._by_tests(mutant, where, tests[:1])):
                return found
            if core and (found := self._by_cases(mutant, where, cases)):
                return found
            found = self._by_tests(mutant, where, _tests_of(mutant))
            return found or Verdict(mutant=mutant, catcher="", why="")

    def by_cases(self, mutant: Mutant, known: Sequence[str]) -> Verdict | None:
        """What the ``known`` cases alone say."""
        with tempfile.TemporaryDirectory(prefix="mutant-") as name:
            copy_tree(Path(name))
            apply(mutant, Path(name))
            cases = [each.partition(" ")[2] for each in known if each.startswith("campaign ")]
            return self._by_cases(mutant, Path(name), cases)

    def _by_cases(self, mutant: Mutant, where: Path, cases: Sequence[str]) -> Verdict | None:
        with subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.inside", f"{self._seconds}"],
            cwd=where,
            env=_environment(where),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdin.write("".join(f"{case}\n" for case in cases))
            process.stdin.close()
            first = process.stdout.readline()
            if not first.startswith(f"ready {where}/"):
                process.kill()
                raise BrokenError(f"{mutant.name}: {first or process.stderr.read()}")
            for line in process.stdout:
                case, _, why = line.rstrip("\n").partition("\t")
                if self._is_clean(case):
                    process.kill()
                    return Verdict(mutant=mutant, catcher=f"campaign {case}", why=why)
            if process.wait():
                raise BrokenError(f"{mutant.name}: {process.stderr.read()[-500:]}")
        return None

    def _by_tests(self, mutant: Mutant, where: Path, tests: Sequence[str]) -> Verdict | None:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
        try:
            done = subprocess.run(
                [*command, f"--basetemp={where}/tmp", *tests],
                cwd=where,
                env=_environment(where),
                capture_output=True,
                text=True,
                timeout=_MOST_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Verdict(mutant=mutant, catcher=f"pytest {tests[0]}", why=f"does not end within {_MOST_S} s")
        if done.returncode == 0:
            return None
        failed = _FAILED.search(done.stdout)
        if done.returncode != 1 or failed is None:
            raise BrokenError(f"{mutant.name}: {done.stdout[-2000:]}{done.stderr[-1000:]}")
        return Verdict(mutant=mutant, catcher=f"pytest {failed[1]}", why="fails")

    def _is_clean(self, case: str) -> bool:
        """Whether nothing is wrong in that case with the product as it is: else it shows nothing."""
        with self._lock:
            if case not in self._clean:
                self._clean[case] = not run(Case.parse(case)).violations
            return self._clean[case]


def _tests_of(mutant: Mutant) -> tuple[str, ...]:
    """The tests that may catch it, the likeliest first."""
    if mutant.file.endswith(".py"):
        return (*_CORE, _DECIDES) if mutant.file.endswith("/guard.py") else _CORE
    if mutant.name.startswith("guard.sh decide:"):
        return (_DECIDES,)
    return _SCRIPTS[-1:] if mutant.file.endswith("/guard.sh") else _SCRIPTS


def _environment(where: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(where), "PYTHONHASHSEED": "0"}
