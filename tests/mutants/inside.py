"""Cases of the campaign, tried one after the other, up to the first in which a promise is broken."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from types import FrameType
from typing import Final

from lvmigrate.simulator import Moment, Place
from lvmigrate.simulator.faults import What, Where
from tests.campaign.cases import SCENARIOS, VARIANTS, Case, faults_of
from tests.campaign.run import run

#: A case takes some hundredths of a second of a processor; one that takes this long does not end.
MOST_S: Final = 10
_SEED: Final = 20261124
#: How many of the cases have one fault; the others have two.
_SINGLE: Final = 0.75


class Endless(BaseException):
    """The case does not end."""


def tried(known: Iterable[str], *, seconds: float, scenarios: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Every case in which something is wrong, and what: of those ``known``, then of a sample for so many seconds.

    ``scenarios``: what the sample is drawn from; none: all.
    """
    signal.signal(signal.SIGPROF, _endless)
    for case in map(Case.parse, known):
        if why := wrong_in(case):
            yield str(case), why
    deadline = time.monotonic() + seconds
    for case in sample(scenarios):
        if time.monotonic() > deadline:
            return
        if why := wrong_in(case):
            yield str(case), why


def wrong_in(case: Case) -> str:
    """Play a case; what is wrong in it."""
    signal.setitimer(signal.ITIMER_PROF, MOST_S)
    try:
        outcome = run(case)
    except Endless:
        return f"it does not end within {MOST_S} s"
    except Exception as error:  # noqa: BLE001 -- a defect of the mutant's
        return " ".join(f"{error!r}".split())
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return " ".join(outcome.violations[0].split()) if outcome.violations else ""


def sample(scenarios: Collection[str]) -> Iterator[Case]:
    """Every straight case, then cases with one fault and with two, drawn at random, without an end."""
    draw = random.Random(_SEED)
    chosen = [scenario for scenario in SCENARIOS if not scenarios or scenario.name in scenarios]
    bases = [Case(variant=variant, scenario=scenario) for variant in VARIANTS for scenario in chosen]
    yield from bases
    faults: dict[Case, list[list[tuple[Where, What]]]] = {}
    while True:
        base = draw.choice(bases)
        if base not in faults:
            outcome = run(base)
            every = list(faults_of(outcome.calls, outcome.moments, base.scenario))
            kinds = [[fault for fault in every if isinstance(fault[0], kind)] for kind in (Moment, Place)]
            faults[base] = [kind for kind in kinds if kind]
        for _ in range(10):
            case = base.with_fault(*draw.choice(draw.choice(faults[base])))
            yield case if draw.random() < _SINGLE else case.with_fault(*draw.choice(draw.choice(faults[base])))


def _endless(_number: int, _frame: FrameType | None) -> None:
    raise Endless
