"""What a service does with a job that another one was amid when it died."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lvmigrate.errors import Code, CommandFailed, Finding, LvmigrateError, NodeUnreachable, OutcomeUnknown, Refused
from lvmigrate.journal import JournalUnusable
from lvmigrate.service import recovery
from lvmigrate.service.recovery import Recovery

GUEST = "0b6f0c3e-0000-4000-8000-00000000000b"
TAKEN = Refused("web1", [Finding(code=Code.LOCKED, sentence="It is being worked on.", hint="Wait.")])


class Attempt:
    """A recovery whose cleanups end one after the other as they are told to."""

    def __init__(self, *ends: LvmigrateError) -> None:
        self.ends = list(ends)
        self.said: list[str] = []
        self.over: list[tuple[object, LvmigrateError | None]] = []
        self.made = Recovery(
            cast("Any", self),
            cast("Any", None),
            threading.Condition(),
            stopping=lambda: False,
            says=lambda _under, words: self.said.append(words),
            finish=self.finish,
        )

    def cleanup(self, _guest: str, **_options: object) -> object:
        if self.ends:
            raise self.ends.pop(0)
        return SimpleNamespace(node="node2", instance="web1")

    def finish(self, under: object, *, result: object = None, error: LvmigrateError | None = None) -> None:
        self.over.append((result, error))

    def move(self) -> None:
        job = SimpleNamespace(uuid=GUEST, what="move", target="node2", wish=None)
        self.made.move(cast("Any", SimpleNamespace(job=job, cancel=threading.Event(), abort=threading.Event())))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_AGAIN_S", 0.001)


@pytest.mark.parametrize(
    "passing",
    [
        TAKEN,
        NodeUnreachable("node1", "no answer", hint="Look."),
        JournalUnusable("The journal cannot be written.", hint="Make room."),
    ],
    ids=["somebody has its token", "a node is silent", "the disk is full"],
)
def test_what_passes_is_tried_again(passing: LvmigrateError) -> None:
    attempt = Attempt(passing, passing)
    attempt.move()
    assert len(attempt.said) == 2
    ((result, error),) = attempt.over
    assert (getattr(result, "node", None), error) == ("node2", None)


@pytest.mark.parametrize(
    "lasting",
    [
        OutcomeUnknown("Nobody knows.", known=(), hint="Look."),
        CommandFailed("node1", "demoting", status=11, hint="Look."),
    ],
    ids=["a person has to look", "a command failed"],
)
def test_what_does_not_pass_is_the_jobs_end(lasting: LvmigrateError) -> None:
    attempt = Attempt(lasting)
    attempt.move()
    assert attempt.over == [(None, lasting)]
    assert attempt.said == []
