"""Whether a mutant is caught: by a test, or by a case of the campaign."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Self

from tests.mutants.inside import MOST_S as MOST_OF_A_CASE_S
from tests.mutants.mutant import ROOT, Mutant
from tests.mutants.warm import FAILED, PASSED

_UNITS: Final = (
    *("settle", "guard", "rollback", "lease", "disks", "dual_primary", "decision", "move"),
    *("mending", "cleanup", "definitions", "migrate", "balloon", "steering", "lineage"),
    *("handover", "stale", "kept", "hooks", "fencing", "program", "upstart", "target"),
    *("scene", "namesakes", "failover", "opening"),
)
#: The tests that are about the core and take no more than seconds.
CORE: Final = (
    *(f"tests/unit/test_{name}.py" for name in _UNITS),
    *(f"tests/simulator/test_{name}.py" for name in ("rows", "told", "late", "failover", "seed", "found", "compared")),
)
SCRIPTS: Final = tuple(
    f"tests/unit/storage/test_{name}.py" for name in ("node_script", "session", "drbd", "marks", "guard_script")
)
#: By module: the tests that are most about it, where they do not have its name.
_TESTED_BY: Final = {"cleanup": "mending"}
#: By module: the campaign's scenarios in which most of it runs, where those are few.
_DEAD: Final = ("failover-of-a-dead-node", "failover-with-a-kept-definition", "failover-ignoring-consistency")
_LIVING: Final = ("failover", "failover-keeping-definition", "migrate-falling-back", "cleanup-in-failover")
_PLAYED_BY: Final = {
    "handover": _LIVING,
    "failover": (*_LIVING, *_DEAD),
    "upstart": (*_LIVING, *_DEAD),
    "takeover": _DEAD,
    "survivor": _DEAD,
    "fencing": _DEAD,
    "hooks": ("migrate-hook-refuses", "migrate-hook-hangs", "migrate-post-hook-fails"),
    "program": ("migrate-hook-refuses", "migrate-hook-hangs", "migrate-post-hook-fails", *_DEAD),
    "target": ("migrate-with-three-nodes", "drain"),
    "balloon": ("migrate-shrinking", "cleanup-of-a-shrunk-guest"),
}
#: How long one test may take, in seconds: of the core's, and of the scripts', which sleep.
_MOST_S: Final = 60
_MOST_OF_SCRIPTS_S: Final = 180
#: What does not end is caught only by what ends within this part of its time with the product as it is.
_PART: Final = 1 / 5


class BrokenError(Exception):
    """The mutant cannot even be put in: it shows nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a mutant."""

    mutant: Mutant
    #: ``campaign CASE`` or ``pytest TEST``; empty: nothing has caught it.
    catcher: str
    why: str


class Catcher:
    """Tries mutants, as many at once as there are ``processes``, which collect ``tests``.

    ``seconds``: how long the campaign goes on where nothing else catches one.
    """

    def __init__(self, *, seconds: float, processes: int = 1, tests: Sequence[str] = (*CORE, *SCRIPTS)) -> None:
        self._seconds = seconds
        self._processes = processes
        self._tests = tests
        self._idle: queue.Queue[_Warm] = queue.Queue()
        self._stack = ExitStack()
        #: By test or case: how long it took with the product as it is; ``None`` where something is wrong with it.
        self._proofs: dict[str, Future[float | None]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        for _ in range(self._processes):
            self._idle.put(self._stack.enter_context(_Warm.started(self._tests)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def verdict(self, mutant: Mutant, known: str, cases: Sequence[str]) -> Verdict:
        """Try what is ``known`` to catch it, then every test that is about it, then ``cases`` and more of them.

        Raises `BrokenError`, `NoSuchTextError`.
        """
        kind, _, words = known.partition(" ")
        core = mutant.file.endswith(".py")
        found = None
        if kind == "pytest":
            found = self._by_tests(mutant, [words])
        elif kind == "campaign":
            found = self.by_cases(mutant, [words])
        found = found or self._by_tests(mutant, _tests_of(mutant))
        if core and found is None:
            found = self.by_cases(mutant, cases, seconds=self._seconds)
        return found or Verdict(mutant=mutant, catcher="", why="")

    def by_cases(self, mutant: Mutant, cases: Sequence[str], *, seconds: float = 0) -> Verdict | None:
        """What the ``cases`` alone say, and after them others for so many seconds."""
        scenarios = _PLAYED_BY.get(Path(mutant.file).stem, ())
        ask = partial(_Question, mutant=mutant, cases=tuple(cases), seconds=seconds, scenarios=scenarios)
        return self._found(mutant, "campaign", ask, MOST_OF_A_CASE_S)

    def _by_tests(self, mutant: Mutant, tests: Sequence[str]) -> Verdict | None:
        most_s = _MOST_S if mutant.file.endswith(".py") else _MOST_OF_SCRIPTS_S
        return self._found(
            mutant, "pytest", partial(_Question, mutant=mutant, tests=tuple(tests), most_s=most_s), most_s
        )

    def _found(self, mutant: Mutant, kind: str, ask: Callable[..., _Question], most_s: int) -> Verdict | None:
        """What fails, unless it does so with the product as it is: then the question is asked again without it."""
        nothing: list[str] = []
        while True:
            answer = self._ask(ask(without=tuple(nothing)))
            if answer.status == PASSED:
                return None
            endless = answer.status == -signal.SIGALRM or answer.why.startswith("it does not end")
            if not answer.what or not (answer.status == FAILED or endless):
                raise BrokenError(f"{mutant.name}: {answer.status} {answer.what} {answer.why}")
            took_s = self._proof(kind, answer.what, most_s)
            if took_s is not None and (took_s <= most_s * _PART or not endless):
                why = answer.why if answer.status == FAILED else f"it does not end within {most_s} s"
                return Verdict(mutant=mutant, catcher=f"{kind} {answer.what}", why=why)
            nothing.append(answer.what)

    def _proof(self, kind: str, what: str, most_s: int) -> float | None:
        """How long a test or case takes with the product as it is; ``None`` if something is wrong with it there."""
        with self._lock:
            others = self._proofs.get(what)
            ours = self._proofs.setdefault(what, Future())
        if others is None:
            tests, cases = ((what,), ()) if kind == "pytest" else ((), (what,))
            begin = time.monotonic()
            try:
                answer = self._ask(_Question(tests=tests, cases=cases, most_s=most_s))
            except BaseException as error:
                ours.set_exception(error)
                raise
            ours.set_result(time.monotonic() - begin if answer.status == PASSED else None)
        return ours.result()

    def _ask(self, question: _Question) -> _Answer:
        warm = self._idle.get()
        try:
            return warm.answer(question)
        finally:
            self._idle.put(warm)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """See `tests.mutants.warm`."""

    mutant: Mutant | None = None
    tests: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    seconds: float = 0
    scenarios: tuple[str, ...] = ()
    most_s: int = _MOST_S

    def __str__(self) -> str:
        mutant = self.mutant
        text = None if mutant is None else mutant.changed((ROOT / mutant.file).read_text(encoding="utf-8"))
        words = {name: getattr(self, name) for name in ("tests", "cases", "without", "seconds", "scenarios", "most_s")}
        return json.dumps({"file": mutant and mutant.file, "text": text} | words)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    #: The test or case that failed, or else the test that was begun last.
    what: str
    why: str


class _Warm:
    """A process that answers, one question after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    @contextlib.contextmanager
    def started(cls, tests: Sequence[str]) -> Iterator[Self]:
        """One that has collected ``tests``; it ends when it is left, with all that it has started."""
        with subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.warm", *tests],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            yield cls(process)

    def answer(self, question: _Question) -> _Answer:
        """Ask. Raises `BrokenError` if there is no answer any more."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(question, file=self._process.stdin, flush=True)
        what = why = ""
        for line in self._process.stdout:
            word, _, rest = line.rstrip("\n").partition(" ")
            if word == "end":
                return _Answer(status=int(rest), what=what, why=why)
            if word in ("begun", "failed"):
                what, _, why = rest.partition("\t")
        raise BrokenError(f"there is no answer any more after {what}")


def _tests_of(mutant: Mutant) -> tuple[str, ...]:
    """The files of tests that may catch it, the likeliest first."""
    if mutant.file.endswith(".py"):
        stem = Path(mutant.file).stem
        own = f"test_{_TESTED_BY.get(stem, stem)}.py"
        return tuple(sorted(CORE, key=lambda file: not file.endswith(f"/{own}")))
    return SCRIPTS[-1:] if mutant.file.endswith("/guard.sh") else SCRIPTS
