"""``python -m tests.campaign``: every tasklet x every call x every fault, then the guards, a cleanup, an audit."""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Final, TypeVar

import structlog

from tests.campaign.cases import MAIN, SCENARIOS, VARIANTS, Case, Variant, faults_of
from tests.campaign.run import Outcome, run, singles_of

T = TypeVar("T")

#: How many cases a process gets at once, and how many such batches are under way.
_BATCH: Final = 40
#: The short version tries every so-manieth fault of what it does not try whole.
_SHORT: Final = 60
_AHEAD: Final = 12


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    _quiet()
    if options.case:
        return _one(options.case)
    begin = time.monotonic()
    tally = Tally(most=options.most)
    with ProcessPoolExecutor(max_workers=options.jobs, initializer=_quiet) as pool:
        for outcome in _outcomes(pool, options):
            tally.add(outcome)
            if options.first and tally.violations:
                pool.shutdown(cancel_futures=True)
                break
    tally.report(seconds=time.monotonic() - begin, seed=options.seed)
    return 1 if tally.violations else 0


class Tally:
    """What a campaign has found."""

    def __init__(self, *, most: int) -> None:
        self.cases: set[str] = set()
        #: Distinct (tasklet, call, fault), whatever the variant of the world.
        self.faults: set[tuple[str, str, str]] = set()
        self.violations = 0
        self._most = most
        self._kinds: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._accepted = 0
        self._ends: Counter[str] = Counter()
        self._unmet = 0

    def add(self, outcome: Outcome) -> None:
        self.cases.add(str(outcome.case))
        for place, what in outcome.case.faults:
            self.faults.add((outcome.case.scenario.name, str(place), what.name))
        self._ends[outcome.ended] += 1
        self._unmet += not outcome.met
        if outcome.held:
            self._held[outcome.held] += 1
        if outcome.accepted:
            self._accepted += 1
        if outcome.violations:
            self.violations += 1
            kind = outcome.violations[0].split("s, ", 1)[-1]
            self._kinds[kind] += 1
            if self._kinds[kind] <= self._most:
                print(f"VIOLATION {outcome.violations[0]}", file=sys.stderr)
                for more in outcome.violations[1:]:
                    print(f"      and {more}", file=sys.stderr)
                print(f"          python -m tests.campaign --case '{outcome.case}'", file=sys.stderr, flush=True)

    def report(self, *, seconds: float, seed: int) -> None:
        for kind, number in self._kinds.most_common():
            print(f"{number:6} {kind}", file=sys.stderr)
        for why, number in self._held.most_common():
            print(f"{number:6} held for a person, rightly: {why}", file=sys.stderr)
        detail = {
            "seconds": round(seconds, 1),
            "seed": seed,
            "distinct_tasklet_call_fault": len(self.faults),
            "ends": dict(self._ends.most_common()),
            "held": dict(self._held),
            "limits_of_the_fast_switch": self._accepted,
            "fault_not_reached": self._unmet,
        }
        _line("campaign_cases", len(self.cases), goal=None, better="higher", detail=detail)
        _line("campaign_violations", self.violations, goal=0, better="lower", detail={"kinds": dict(self._kinds)})


def _line(name: str, value: int, *, goal: int | None, better: str, detail: dict[str, object]) -> None:
    holds = None if goal is None else value <= goal
    line = {"name": name, "value": value, "unit": "", "goal": goal, "holds": holds, "better": better, "detail": detail}
    print(json.dumps(line), flush=True)


def _outcomes(pool: Executor, options: argparse.Namespace) -> Iterator[Outcome]:
    """Every single fault of every base, then the pairs; in an order that does not depend on the machine."""
    bases = list(_bases(options))
    singles = (case for base in bases for case in _share_of(base, options))
    yield from _spread(pool, _single, itertools.islice(singles, options.offset, None, options.every))
    seeds = [(base, f"{options.seed}/{base}/{number}") for number in range(options.pairs) for base in bases]
    yield from _spread(pool, _pair, seeds)


def _share_of(base: Case, options: argparse.Namespace) -> Iterator[Case]:
    """Every single fault, or every so-manieth; which ones depends on the seed, and differs from base to base."""
    if options.short:
        every = 1 if base.scenario.name == "migrate" and base.variant in MAIN[:2] else _SHORT
    else:
        every = 1 if base.variant in MAIN else options.others
    begin = random.Random(f"{options.seed}/{base}").randrange(every)
    return itertools.islice(singles_of(base), begin, None, every)


def _spread(pool: Executor, play: Callable[[T], Outcome], cases: Iterable[T]) -> Iterator[Outcome]:
    """As ``map``, over the processes of the pool, without drawing all cases at once."""
    rest = iter(cases)
    waiting: deque[Future[list[Outcome]]] = deque()
    while True:
        while len(waiting) < _AHEAD and (batch := list(itertools.islice(rest, _BATCH))):
            waiting.append(pool.submit(_batch, play, batch))
        if not waiting:
            return
        yield from waiting.popleft().result()


def _batch(play: Callable[[T], Outcome], cases: list[T]) -> list[Outcome]:
    return [play(case) for case in cases]


def _single(case: Case) -> Outcome:
    return _brief(run(case))


def _pair(drawn: tuple[Case, str]) -> Outcome:
    """Two faults: the second one is put at a call of the run that the first one has made of it."""
    case, seed = drawn
    random_ = random.Random(seed)
    for _fault in range(2):
        straight = run(case)
        case = case.with_fault(*random_.choice(list(faults_of(straight.calls, straight.moments, case.scenario))))
    return _brief(run(case))


def _brief(outcome: Outcome) -> Outcome:
    """Without what is only needed for telling its story."""
    outcome.calls, outcome.moments, outcome.story = [], [], []
    return outcome


def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def _bases(options: argparse.Namespace) -> Iterator[Case]:
    variants = [Variant.parse(text) for text in options.variant] or VARIANTS
    for scenario in SCENARIOS:
        if not options.scenario or scenario.name in options.scenario:
            for variant in variants:
                yield Case(variant=variant, scenario=scenario)


def _one(text: str) -> int:
    outcome = run(Case.parse(text))
    for at_s, what in outcome.story:
        print(f"{at_s:9.3f} {what}")
    print(f"ended: {outcome.ended}; held: {outcome.held or 'no'}; every fault met: {outcome.met}")
    for accepted in outcome.accepted:
        print(f"ACCEPTED (fast switch): {accepted}")
    for violation in outcome.violations:
        print(f"VIOLATION {violation}")
    return 1 if outcome.violations else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--case", help="run this one, and tell its story")
    parser.add_argument("--scenario", action="append", default=[], help="only this one (may be repeated)")
    parser.add_argument("--variant", action="append", default=[], help="only this one (may be repeated)")
    parser.add_argument(
        "--pairs", type=int, default=0, help="so many random pairs of faults in each scenario and variant"
    )
    parser.add_argument("--every", type=int, default=1, help="only every so-manieth single fault")
    parser.add_argument("--offset", type=int, default=0, help="beginning with that one")
    parser.add_argument(
        "--short",
        action="store_true",
        help="every fault of a straight move with DRBD 9 and with 8.4, and a share of everything else: about a minute",
    )
    parser.add_argument(
        "--others", type=int, default=1, help="of the variants that are not the main ones only every so-manieth"
    )
    parser.add_argument("--jobs", type=int, default=2, help="so many processes")
    parser.add_argument("--seed", type=int, default=20261124)
    parser.add_argument("--most", type=int, default=3, help="print so many cases of each kind of violation")
    parser.add_argument("--first", action="store_true", help="stop at the first violation")
    return parser


if __name__ == "__main__":
    sys.exit(main())
