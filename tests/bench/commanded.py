"""A program that uses the Python API for long: ``python -m tests.bench.commanded CONFIGURATION DESCRIPTION``.

It does what it is told on standard input, several things at once, and says on standard output how each ended; both are
a JSON object a line.  It lives until its standard input ends.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import structlog

from lvmigrate.cluster import Cluster
from lvmigrate.errors import LvmigrateError
from lvmigrate.jsonable import jsonable
from lvmigrate.plan import Options
from lvmigrate.progress import StepProgress
from tests.bench.served import cluster, configure
from tests.pair.cluster import Description

_PATIENCE_S: Final = 400.0


def main() -> None:
    """See above."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    path, description = sys.argv[1:]
    cancels: dict[int, threading.Event] = {}
    saying = threading.Lock()

    def say(**words: Any) -> None:
        with saying:
            print(json.dumps(words), flush=True)

    def act(ours: Cluster, order: dict[str, Any]) -> None:
        number = order["number"]
        try:
            say(number=number, outcome="OK", result=jsonable(_done(ours, order, cancels[number], say)))
        except LvmigrateError as error:
            say(number=number, outcome=error.code.value, result=str(error))
        except Exception as error:  # noqa: BLE001 -- the soak counts it
            say(number=number, outcome="defect", result=repr(error))
        finally:
            del cancels[number]

    with cluster(path, Description.read(Path(description).read_text())) as ours:
        for line in sys.stdin:
            order = json.loads(line)
            if order["do"] == "cancel":
                with contextlib.suppress(KeyError):
                    cancels[order["number"]].set()
                continue
            cancels[order["number"]] = threading.Event()
            threading.Thread(target=act, args=(ours, order), daemon=True).start()


def _done(ours: Cluster, order: dict[str, Any], cancel: threading.Event, say: Callable[..., None]) -> object:
    match order["do"]:
        case "migrate":

            def look(progress: StepProgress) -> None:
                if progress.memory is not None:
                    say(number=order["number"], under_way=True)

            options = Options(**order["options"])
            report = ours.migrate(
                order["guest"], target=order["target"], options=options, on_progress=look, cancel=cancel
            )
            return report.target
        case "cleanup":
            return list(ours.cleanup(order["guest"]).acts)
        case "audit":
            audit = ours.audit()
            return [str(found) for found in (*audit.findings, *audit.silent, *audit.under_way)]
        case "rest":
            # A connection that broke during a copy may hang in a circle with that move's error until Python's collector
            # comes by, which a program that does little else keeps waiting: that is no leak.
            return gc.collect()
    raise AssertionError(order)


class Order:
    """Something that it was told, from outside."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self.cancel = cancel
        self.under_way = threading.Event()
        self._ended = threading.Event()
        self._outcome = ("", None)

    def ended(self, outcome: str, result: Any) -> None:
        self._outcome = outcome, result
        self.under_way.set()
        self._ended.set()

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    def outcome(self) -> tuple[str, Any]:
        """``OK`` or a code, and what came of it."""
        assert self._ended.wait(_PATIENCE_S), "no end"
        return self._outcome


class Commanded:
    """The process, from outside. As a context manager; afterwards it has ended."""

    def __init__(self, description: Description, folder: Path) -> None:
        words = [sys.executable, "-m", "tests.bench.commanded", *configure(description, folder, at_once=1)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._numbers = itertools.count()
        self._orders: dict[int, Order] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            self._reader.join()

    def start(self, do: str, **words: Any) -> Order:
        """Tell it."""
        number = next(self._numbers)
        order = self._orders[number] = Order(lambda: self._say(do="cancel", number=number))
        self._say(do=do, number=number, **words)
        return order

    def _say(self, **words: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if "outcome" in said:
                self._orders.pop(said["number"]).ended(said["outcome"], said["result"])
            else:
                self._orders[said["number"]].under_way.set()


if __name__ == "__main__":
    main()
