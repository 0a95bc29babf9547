"""The journal: what every tasklet did, and when. A memory for people; no decision is ever made from it (law 3).

The core writes through two narrow seams, `Journal` and `Record`, and works without either (`NO_JOURNAL`).
``lvmigrate.sqlite_journal`` fulfils them with a file; a database of several controllers would be another module.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import structlog

from lvmigrate.errors import Code, ExitCode, Finding, LvmigrateError, Refused
from lvmigrate.jsonable import error_object, jsonable

_log = structlog.get_logger()

T = TypeVar("T")

#: The outcome of an errand that did what was asked; every other outcome is an error's code.
OK: Final = "OK"


class Kind(enum.StrEnum):
    """What a row tells."""

    #: A step of the plan began, or ended. ``data``: its sentence; its error, if it had one.
    STEP = "step"
    STEP_END = "step end"
    #: A call that changes something is about to be made, or was answered. ``data``: the node; the error.
    ACT = "act"
    ACT_END = "act end"
    #: Something was seen or done. ``data``: who said so (libvirt, drbd, or lvmigrate itself).
    MOMENT = "moment"
    #: The first time that something happened which a window begins or ends with, such as ``source stopped``.
    MARK = "mark"
    #: A `lvmigrate.progress.MemoryProgress`, a `SyncProgress`.
    MEMORY = "memory"
    SYNC = "sync"
    #: One resource as one node's kernel had it. ``data``: node, role, connection, replication, disk.
    DISK = "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing that happened, in seconds since the errand began, by the controller's monotonic clock."""

    at_s: float
    kind: Kind
    name: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What an errand sets out to do."""

    #: ``migrate``, ``rehearse``, ``failover`` or ``cleanup``.
    tasklet: str
    instance: str
    uuid: str
    source: str
    target: str
    #: Who does it, for people.
    holder: str
    #: The plan as JSON has it.
    plan: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One errand, in a line of the history."""

    id: str
    tasklet: str
    instance: str
    uuid: str
    source: str
    target: str
    holder: str
    #: Seconds since 1970, by the controller's clock.
    began: float
    #: ``None``: no end was written. It is under way, or its controller died.
    seconds: float | None
    #: `OK`, or an error's code; ``None`` as above.
    outcome: str | None
    #: What the error said; empty when there was none.
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Everything that is known of one errand."""

    entry: Entry
    plan: Mapping[str, Any]
    #: The report, or the error, as JSON has it; ``None`` while there is no end.
    result: Mapping[str, Any] | None
    rows: tuple[Row, ...]


class JournalUnusable(LvmigrateError):
    """The journal cannot be written, or not be read. Nothing was begun."""

    code = Code.JOURNAL_UNUSABLE
    exit_code = ExitCode.CONFIGURATION

    def finding(self) -> Finding:
        """The same as a reason to refuse."""
        return Finding(code=self.code, sentence=self.sentence, hint=self.hint)


class Record(Protocol):
    """One errand being written. Its methods may be called from any thread, and never raise."""

    @property
    def id(self) -> str:
        """Under which it is found again; empty: nowhere."""

    def add(self, kind: Kind, name: str, data: Mapping[str, Any] | None = None, *, wait: bool = False) -> None:
        """Write a row, stamped with the time of the call.

        With ``wait``, it is on its way to the disk when this returns, so that a kill -9 does not lose it; but never is
        it waited for longer than a fraction of a second: a slow disk must not hold a guest.
        """

    def end(self, outcome: str, sentence: str, result: Mapping[str, Any]) -> None:
        """Write how it ended, after everything else. What could not be written is said in the log."""


class Journal(Protocol):
    """All errands. Several processes may use one at the same time."""

    def trouble(self) -> Finding | None:
        """Why no errand can be begun now; ``None`` when one can."""

    def begin(self, opening: Opening, *, now: Callable[[], float]) -> Record:
        """Write that an errand begins; ``now`` is the clock of its rows. Raises `JournalUnusable`."""

    def history(self, *, instance: str | None = None, most: int = 50) -> tuple[Entry, ...]:
        """The newest errands, of all guests or of one (by name or UUID), newest first. Raises `JournalUnusable`."""

    def prune(self, days: float) -> int:
        """Forget what is older than so many days, and tell how many errands that was. Raises `JournalUnusable`."""

    def story(self, wanted: str) -> Story:
        """One errand by its id, by the unique beginning of it, or the newest (``last``).

        Raises `JournalUnusable`, or `lvmigrate.errors.UsageError` when there is no such errand, or are several.
        """


class NoRecord:
    """Writes nothing."""

    id: Final = ""

    def add(self, kind: Kind, name: str, data: Mapping[str, Any] | None = None, *, wait: bool = False) -> None:
        """Nothing."""

    def end(self, outcome: str, sentence: str, result: Mapping[str, Any]) -> None:
        """Nothing."""


class NoJournal:
    """Remembers nothing: for the simulator, and for who wants none."""

    def trouble(self) -> Finding | None:
        """Never any."""
        return None

    def begin(self, opening: Opening, *, now: Callable[[], float]) -> Record:  # noqa: ARG002 -- as the seam has it
        """A record that writes nothing."""
        return NO_RECORD

    def history(self, *, instance: str | None = None, most: int = 50) -> tuple[Entry, ...]:  # noqa: ARG002
        """Raises: nothing was kept."""
        raise self._none()

    def prune(self, days: float) -> int:  # noqa: ARG002
        """Raises: nothing was kept."""
        raise self._none()

    def story(self, wanted: str) -> Story:  # noqa: ARG002
        """Raises: nothing was kept."""
        raise self._none()

    @staticmethod
    def _none() -> JournalUnusable:
        return JournalUnusable(
            "This cluster keeps no journal.", hint="Name a file for it: [journal] path in the configuration."
        )


NO_RECORD: Final = NoRecord()
NO_JOURNAL: Final = NoJournal()


def keep(
    journal: Journal, opening: Opening, act: Callable[[Record], T], *, now: Callable[[], float], needed: bool = True
) -> T:
    """Do ``act`` and have the journal tell of its beginning and its end, however it ends.

    Raises `Refused` when the journal cannot be written and is ``needed``: ``act`` was not begun then.  What mends
    (a cleanup) does not need it.
    """
    try:
        record = journal.begin(opening, now=now)
    except JournalUnusable as error:
        if needed:
            raise Refused(opening.instance, [error.finding()]) from error
        _log.warning("no_journal", error=str(error))
        record = NO_RECORD
    try:
        with structlog.contextvars.bound_contextvars(**({"errand": record.id} if record.id else {})):
            result = act(record)
    except LvmigrateError as error:
        record.end(error.code.value, error.sentence, error_object(error))
        raise
    except BaseException as error:
        record.end(Code.INTERNAL.value, repr(error), {"sentence": repr(error)})
        raise
    record.end(OK, "", jsonable(result))
    return result
