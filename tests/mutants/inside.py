"""Run in a copy of the tree with one mutant in it: try cases, and print each in which a promise is broken.

The first line of standard output is ``ready PATH``, where the package was imported from; each further one is a case
(as ``python -m tests.campaign --case`` takes it), a tab, and what is wrong.  Standard input has the cases to begin with
(a line each); then come, for so many seconds as the first argument says, the straight ones and a sample of all.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Final

import structlog

import lvmigrate
from lvmigrate.simulator import Moment, Place
from lvmigrate.simulator.faults import What, Where
from tests.campaign.cases import SCENARIOS, VARIANTS, Case, faults_of
from tests.campaign.run import run

#: A case takes some hundredths of a second; one that takes this long does not end.
_MOST_S: Final = 20
_SEED: Final = 20261124
#: How many of the cases have one fault; the others have two.
_SINGLE: Final = 0.75


class Endless(BaseException):
    """The case does not end."""


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    signal.signal(signal.SIGALRM, _endless)
    print(f"ready {lvmigrate.__file__}", flush=True)
    for line in sys.stdin.read().splitlines():
        attempt(Case.parse(line))
    deadline = time.monotonic() + float(sys.argv[1])
    for case in sample():
        if time.monotonic() > deadline:
            return
        attempt(case)


def attempt(case: Case) -> None:
    """Play a case, and say what is wrong."""
    wrong = ""
    signal.alarm(_MOST_S)
    try:
        outcome = run(case)
    except Endless:
        wrong = f"it does not end within {_MOST_S} s"
    except Exception as error:  # noqa: BLE001 -- a defect of the mutant's
        wrong = f"{error!r}"
    else:
        wrong = outcome.violations[0] if outcome.violations else ""
    finally:
        signal.alarm(0)
    if wrong:
        print(f"{case}\t{' '.join(wrong.split())}", flush=True)


def sample() -> Iterator[Case]:
    """Every straight case, then cases with one fault and with two, drawn at random, without an end."""
    draw = random.Random(_SEED)
    bases = [Case(variant=variant, scenario=scenario) for variant in VARIANTS for scenario in SCENARIOS]
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


if __name__ == "__main__":
    main()
