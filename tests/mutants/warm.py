"""``python -m tests.mutants.warm``: a process that has everything imported and collected, and forks for each question.

A question is a line of JSON: ``file`` and ``text`` (a mutant; neither: the product as it is), ``tests`` (whole names,
or files), ``cases``, ``without`` (those of both that prove nothing), ``most_s`` for each test, and the ``seconds`` for
which the campaign goes on after the ``cases``.  Answers are lines: ``begun TEST``, ``failed WHAT`` with a tab and the
reason, and at the end ``end STATUS``, the fork's: `PASSED`, `FAILED`, `BROKEN`, or that of a signal.  What was started
in a fork is gone by then.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import structlog

from tests.mutants.inside import tried
from tests.mutants.swap import swap

PASSED: Final = 0
FAILED: Final = 1
BROKEN: Final = 3
#: The environment's mark of what a fork has started: guards go into sessions of their own.
_MARK: Final = "LVMIGRATE_MUTANT"


class Serving:
    """A plugin of pytest's that answers questions in place of running what was collected."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        self._failed = ""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        print(f"ready {len(session.items)}", file=self._out)
        for number, line in enumerate(sys.stdin):
            mark = f"{os.getpid()}.{number}"
            child = os.fork()
            if not child:
                self._answer(session, json.loads(line), mark)
            _wait(child)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            _end_all(mark)
            print(f"end {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", file=self._out)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self._failed:
            self._failed = " ".join(str(report.longrepr).split())[-200:]

    def _answer(self, session: pytest.Session, question: dict[str, Any], mark: str) -> None:
        """In the fork; it does not come back."""
        os.setsid()
        os.dup2(1, 2)
        os.environ[_MARK] = mark
        status = BROKEN
        try:
            if question["file"]:
                swap(question["file"], question["text"])
            status = FAILED if self._tests_fail(session, question) or self._cases_fail(question) else PASSED
        except BaseException as error:  # noqa: BLE001 -- a fork ends here, whatever the reason
            print(f"failed \t{error!r}", file=self._out)
        finally:
            self._out.flush()
            os._exit(status)

    def _tests_fail(self, session: pytest.Session, question: dict[str, Any]) -> bool:
        for wanted in question["tests"]:
            for item in session.items:
                if item.nodeid in question["without"] or wanted not in (item.nodeid, item.nodeid.partition("::")[0]):
                    continue
                print(f"begun {item.nodeid}", file=self._out)
                signal.alarm(question["most_s"])
                item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
                signal.alarm(0)
                if self._failed:
                    print(f"failed {item.nodeid}\t{self._failed}", file=self._out)
                    return True
        return False

    def _cases_fail(self, question: dict[str, Any]) -> bool:
        for case, why in tried(question["cases"], seconds=question["seconds"], scenarios=question["scenarios"]):
            if case not in question["without"]:
                print(f"failed {case}\t{why}", file=self._out)
                return True
        return False


def _wait(child: int) -> None:
    """Until the fork has ended; it is ended when nobody asks any more."""
    process = os.pidfd_open(child)
    while process not in (ready := select.select([process, sys.stdin], [], [])[0]):
        if ready:
            os.kill(child, signal.SIGKILL)
            select.select([process], [], [])
            break
    os.close(process)


def _end_all(mark: str) -> None:
    wanted = f"{_MARK}={mark}\0".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    serving = Serving()
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    options = ["-q", "-s", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-p", "no:terminalreporter"]
    return pytest.main([*options, *sys.argv[1:]], plugins=[serving])


if __name__ == "__main__":
    sys.exit(main())
