"""``python -m tests.mutants``: take one line away that keeps a law, and see that it is noticed; then the next."""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import structlog

from tests.mutants import scripts
from tests.mutants.catch import BrokenError, Catcher, Verdict
from tests.mutants.found import found
from tests.mutants.mutant import ROOT, Mutant

#: What caught each mutant last: it is tried first.
CATCHERS: Final = Path(__file__).with_name("catchers.json")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    mutants = [m for m in every() if not options.only or any(fnmatch.fnmatchcase(m.name, o) for o in options.only)]
    if options.list:
        for mutant in mutants:
            print(mutant.name)
        return 0
    begin = time.monotonic()
    verdicts = tried(mutants, options)
    caught = [verdict for verdict in verdicts if verdict.catcher]
    if options.remember:
        remember(verdicts)
    by_tests = sum(verdict.catcher.startswith("pytest") for verdict in caught)
    detail: dict[str, object] = {"seconds": round(time.monotonic() - begin, 1), "by_unit_tests": by_tests}
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


def tried(mutants: list[Mutant], options: argparse.Namespace) -> list[Verdict]:
    """The verdict on each, in their order; survivors are told as they are found."""
    known = json.loads(CATCHERS.read_text(encoding="utf-8")) if CATCHERS.exists() else {}
    catcher = Catcher(seconds=options.seconds)
    others = list(dict.fromkeys(known.values()))

    def one(mutant: Mutant) -> Verdict:
        first = [known[mutant.name]] if mutant.name in known else []
        try:
            verdict = catcher.verdict(mutant, [*first, *(o for o in others if o.startswith("campaign"))])
        except BrokenError as broken:
            verdict = Verdict(mutant=mutant, catcher="", why=f"broken: {broken}")
        if options.remember and verdict.catcher.startswith("campaign "):
            others.append(verdict.catcher)
        if not verdict.catcher:
            print(f"SURVIVED {mutant.name} {verdict.why}", file=sys.stderr, flush=True)
        elif options.verbose:
            print(f"caught {mutant.name}\n    {verdict.catcher}: {verdict.why}", file=sys.stderr, flush=True)
        return verdict

    with ThreadPoolExecutor(options.jobs) as busy, ThreadPoolExecutor(options.waiting) as waiting:
        futures = [(busy if m.file.endswith(".py") else waiting).submit(one, m) for m in mutants]
        return [future.result() for future in futures]


def remember(verdicts: list[Verdict]) -> None:
    """Write down what caught each, and forget what is no mutant any more."""
    known = json.loads(CATCHERS.read_text(encoding="utf-8")) if CATCHERS.exists() else {}
    known |= {verdict.mutant.name: verdict.catcher for verdict in verdicts if verdict.catcher}
    names = {mutant.name for mutant in every()}
    kept = {name: catcher for name, catcher in sorted(known.items()) if name in names}
    CATCHERS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


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
