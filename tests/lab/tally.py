"""The campaign's rounds one after the other: what each case came to, told at once, and the sums, whatever ends them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from tests.lab.faults import Case

#: How often a case is played whose fault was not met: a node too busy to answer refuses a move before its time.
TRIES: Final = 3


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """What became of one guest under one fault."""

    case: str
    guest: str
    #: How the command ended: an exit code's name, or ``killed``.
    ended: str = ""
    home: str | None = None
    #: Why the fault could not be done, or did not come to what it is about; empty: it was met.
    not_met: str = ""
    #: What the kernel said to the fault, where that refused it.
    refused: str = ""
    #: What was left to a person, rightly, and how it was decided.
    held: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    #: What went wrong with the campaign itself: it says nothing of lvmigrate.
    errors: list[str] = dataclasses.field(default_factory=list)
    violations: list[str] = dataclasses.field(default_factory=list)


class Stage(Protocol):
    """Where rounds are played."""

    def play(self, chosen: Sequence[Case]) -> list[Outcome]:
        """One round. What it raises is told as an error of each of its cases."""

    def heal(self) -> None:
        """Whatever was done to the nodes is mended, and both guests are newly made. Raises if that cannot be done."""

    def bundle(self, outcomes: Sequence[Outcome]) -> Path:
        """Keep everything that tells what happened."""


@dataclasses.dataclass(kw_only=True)
class Tally:
    """The sums so far."""

    counted: Counter[str] = dataclasses.field(default_factory=Counter)
    #: By case: whether its fault was met at least once.
    met: dict[str, bool] = dataclasses.field(default_factory=dict)
    #: What ended the campaign before its time, if anything did; and the signal's number, if it was one.
    ended_by: str = ""
    signal: int = 0

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Count what a round came to."""
        for outcome in outcomes:
            self.counted["cases"] += 1
            self.counted["held for a person"] += bool(outcome.held)
            self.counted["refused by the kernel"] += bool(outcome.refused)
            self.counted["errors"] += bool(outcome.errors)
            self.counted["violations"] += bool(outcome.violations)
            self.counted[f"ended {outcome.ended or 'not at all'}"] += 1
        for name in {outcome.case for outcome in outcomes}:
            self.met[name] = self.met.get(name, False) or not missed(outcomes, name)

    @property
    def not_met(self) -> list[str]:
        """The cases that were played, and whose fault was never met."""
        return sorted(name for name, met in self.met.items() if not met)

    @property
    def failed(self) -> bool:
        """Whether anything is wrong, or was not shown."""
        wrong = self.counted["violations"] or self.counted["errors"] or self.not_met or self.ended_by
        return bool(wrong) or not self.counted["cases"]

    @property
    def sums(self) -> dict[str, Any]:
        """For people and programs."""
        return {**self.counted, "not met": len(self.not_met), "ended by": self.ended_by}


def missed(outcomes: Sequence[Outcome], name: str) -> bool:
    """Whether the fault of that case was not met by one of those who were to meet it."""
    return any(outcome.not_met for outcome in outcomes if outcome.case == name)


def told(outcomes: Sequence[Outcome]) -> None:
    """A line of JSON for each."""
    for outcome in outcomes:
        print(json.dumps(dataclasses.asdict(outcome)), flush=True)


def rounds_played(stage: Stage, rounds: Sequence[Sequence[Case]], tally: Tally, *, more: Callable[[], bool]) -> None:
    """Every round while there may be more; one that fails, however it does, is not the end of the others.

    Raises what `Stage.heal` raises, when the nodes cannot be healed twice in a row.
    """
    waiting = deque((list(chosen), 1) for chosen in rounds)
    while waiting and more():
        chosen, tries = waiting.popleft()
        try:
            outcomes = stage.play(chosen)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is this round's
            outcomes = [Outcome(case=str(one), guest="", errors=[_words(error)]) for one in chosen]
        told(outcomes)
        tally.add(outcomes)
        if any(outcome.violations or outcome.errors for outcome in outcomes):
            _keep(stage, outcomes)
            _heal(stage)  # whatever is wrong now must not count twice
        again = [one for one in chosen if missed(outcomes, str(one))]
        if again and tries < TRIES:
            waiting.append((again, tries + 1))


def whatever_ends_it(
    tally: Tally, work: Callable[[], object], *, tell: Callable[[], None], stop: Callable[[], None]
) -> None:
    """Do ``work``, and ``tell`` the sums: at its end, at an error's, or as soon as SIGINT or SIGTERM comes.

    After a signal ``stop`` is to have it end soon, which is waited for; another one ends the process at once.  Raises
    what ``work`` raises.
    """
    news, teller = os.pipe()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 -- it is raised where it is waited for
            failures.append(error)
        finally:
            os.write(teller, b"\0")

    # Nothing but a byte is sent by the handler: in whatever it interrupts, nothing is raised and no lock is taken.
    before = {
        number: signal.signal(number, lambda number, _frame: os.write(teller, bytes([number])) and None)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    worker = threading.Thread(target=run)
    worker.start()
    (tally.signal,) = os.read(news, 1)
    for number, handler in before.items():
        signal.signal(number, handler)
    tally.ended_by = signal.Signals(tally.signal).name if tally.signal else "".join(map(_words, failures))
    tell()
    if tally.signal:
        stop()
    worker.join()
    for end in (news, teller):
        os.close(end)
    if failures:
        raise failures[0]


def _keep(stage: Stage, outcomes: Sequence[Outcome]) -> None:
    try:
        print(f"kept: {stage.bundle(outcomes)}", file=sys.stderr, flush=True)
    except Exception as error:  # noqa: BLE001 -- what cannot be kept ends nothing
        print(f"not kept: {_words(error)}", file=sys.stderr, flush=True)


def _heal(stage: Stage) -> None:
    try:
        stage.heal()
    except Exception as error:  # noqa: BLE001 -- a node that has just come up may need a second time
        print(f"not healed yet: {_words(error)}", file=sys.stderr, flush=True)
        stage.heal()


def _words(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_words(one) for one in error.exceptions)
    return f"{type(error).__name__}: {error}"
