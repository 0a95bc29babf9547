"""``python -m tests.mutants``: take one line away that keeps a law, and see that it is noticed; then the next."""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import structlog

from tests.mutants import scripts
from tests.mutants.catch import CORE, SCRIPTS, BrokenError, Catcher, Verdict
from tests.mutants.found import found
from tests.mutants.mutant import ROOT, Mutant

#: What caught each mutant last: it is tried first.
CATCHERS: Final = Path(__file__).with_name("catchers.json")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    all_of_them = every()
    mutants = [m for m in all_of_them if not options.only or any(fnmatch.fnmatchcase(m.name, o) for o in options.only)]
    if options.list:
        for mutant in mutants:
            print(mutant.name)
        return 0
    begin = time.monotonic()
    before = _known()
    known = {mutant.name: before[mutant.name] for mutant in all_of_them if mutant.name in before}
    verdicts = tried(mutants, known, options)
    caught = [verdict for verdict in verdicts if verdict.catcher]
    detail: dict[str, object] = {
        "seconds": round(time.monotonic() - begin, 1),
        "by_tests": sum(verdict.catcher.startswith("pytest") for verdict in caught),
        "by_what_caught_it_before": sum(before.get(verdict.mutant.name) == verdict.catcher for verdict in caught),
    }
    _line("campaign_mutants", len(mutants), goal=None, detail={})
    _line("campaign_mutants_caught", len(caught), goal=len(mutants), detail=detail)
    return 0 if len(caught) == len(mutants) else 1


def every() -> list[Mutant]:
    """Every mutant. Raises `ValueError` when two have one name, or `NoSuchTextError`."""
    mutants = [*found(), *scripts.mutants()]
    names = [mutant.name for mutant in mutants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"more than one mutant is called {', '.join(sorted(twice))}")
    for mutant in mutants:
        mutant.changed((ROOT / mutant.file).read_text(encoding="utf-8"))
    return mutants


def tried(mutants: list[Mutant], known: dict[str, str], options: argparse.Namespace) -> list[Verdict]:
    """The verdict on each, in their order; survivors are told as they are found, and ``known`` catchers renewed."""
    lock = threading.Lock()

    def one(catcher: Catcher, mutant: Mutant) -> Verdict:
        try:
            verdict = catcher.verdict(mutant, known.get(mutant.name, ""), _cases(known, mutant))
        except BrokenError as broken:
            verdict = Verdict(mutant=mutant, catcher="", why=f"broken: {broken}")
        with lock:
            if verdict.catcher and known.get(mutant.name) != verdict.catcher:
                known[mutant.name] = verdict.catcher
                if options.remember:
                    remember(known)
        if not verdict.catcher:
            print(f"SURVIVED {mutant.name} {verdict.why}", file=sys.stderr, flush=True)
        elif options.verbose:
            print(f"caught {mutant.name}\n    {verdict.catcher}: {verdict.why}", file=sys.stderr, flush=True)
        return verdict

    core = [mutant for mutant in mutants if mutant.file.endswith(".py")]
    scripts = [mutant for mutant in mutants if not mutant.file.endswith(".py")]
    with ExitStack() as stack:
        futures: dict[str, Future[Verdict]] = {}
        for part, processes, tests in ((core, options.jobs, CORE), (scripts, options.waiting, SCRIPTS)):
            if part:
                catcher = Catcher(seconds=options.seconds, processes=processes, tests=tests)
                stack.enter_context(catcher)
                pool = stack.enter_context(ThreadPoolExecutor(processes))
                futures |= {mutant.name: pool.submit(one, catcher, mutant) for mutant in part}
        return [futures[mutant.name].result() for mutant in mutants]


def _known() -> dict[str, str]:
    """By the name of a mutant: what caught it last."""
    return dict(json.loads(CATCHERS.read_text(encoding="utf-8"))) if CATCHERS.exists() else {}


def _cases(known: dict[str, str], mutant: Mutant) -> list[str]:
    """The cases that have caught others, those of the same function first."""
    function = mutant.name.partition(":")[0]
    of_it_first = sorted(known.items(), key=lambda item: item[0].partition(":")[0] != function)
    kinds = [catcher.partition(" ") for _, catcher in of_it_first]
    return list(dict.fromkeys(words for kind, _, words in kinds if kind == "campaign"))


def remember(known: dict[str, str]) -> None:
    """Write down what catches each."""
    text = json.dumps(dict(sorted(known.items())), indent=1) + "\n"
    CATCHERS.write_text(text, encoding="utf-8")


def _line(name: str, value: int, *, goal: int | None, detail: dict[str, object]) -> None:
    holds = None if goal is None else value >= goal
    line = {
        "name": name,
        "value": value,
        "unit": "",
        "goal": goal,
        "holds": holds,
        "better": "higher",
        "detail": detail,
    }
    print(json.dumps(line), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="only those whose name matches (as in a shell)")
    parser.add_argument("--list", action="store_true", help="print the names of all, and do nothing")
    parser.add_argument("--jobs", type=int, default=2, help="so many of the core's at once")
    parser.add_argument("--waiting", type=int, default=6, help="so many of the scripts' at once: their tests sleep")
    parser.add_argument("--seconds", type=float, default=60, help="how long the campaign tries where nothing is known")
    parser.add_argument("--remember", action="store_true", help="write down what caught each, to be tried first")
    parser.add_argument("--verbose", action="store_true", help="tell what caught each")
    return parser


if __name__ == "__main__":
    sys.exit(main())
