"""`Ledger`: the service's jobs, and the trail of who asked for what, in the journal's file.

A job is in the file, and on the disk, before whoever asked for it is told so.  The tables are the service's own: the
rest of lvmigrate neither reads nor needs them.
"""

from __future__ import annotations

import errno
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from lvmigrate.errors import Code, UsageError
from lvmigrate.journal import JournalUnusable
from lvmigrate.service.job import Asked, Job, State, Wish
from lvmigrate.service.orders import Priority
from lvmigrate.sqlite_file import make_once

#: What `service.version` says of these tables.
_VERSION: Final = 1
#: What kinds of lines the trail has, and how many are kept: who is refused, or only signs in, pushes out nobody's
#: order.
_TRAIL: Final = {
    "ordered": ("status < 400 AND path != '/v1/session'", 100_000),
    "signed": ("status < 400 AND path = '/v1/session'", 10_000),
    "not_done": ("status >= 400", 20_000),
}
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS service (version INTEGER NOT NULL) STRICT",
    """CREATE TABLE IF NOT EXISTS job (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, what TEXT NOT NULL, about TEXT NOT NULL,
        subject TEXT NOT NULL, key TEXT, fingerprint TEXT NOT NULL, priority TEXT NOT NULL, body TEXT NOT NULL,
        state TEXT NOT NULL, wish TEXT NOT NULL DEFAULT '',
        asked REAL NOT NULL, begun REAL, ended REAL,
        uuid TEXT NOT NULL DEFAULT '', source TEXT NOT NULL DEFAULT '', target TEXT NOT NULL DEFAULT '',
        touched TEXT NOT NULL DEFAULT '[]', interruptions INTEGER NOT NULL DEFAULT 0,
        outcome TEXT, exit_code INTEGER, result TEXT, error TEXT
    ) STRICT""",
    "CREATE UNIQUE INDEX IF NOT EXISTS job_key ON job (subject, key) WHERE key IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS job_state ON job (state)",
    """CREATE TABLE IF NOT EXISTS asked (
        number INTEGER PRIMARY KEY, at REAL NOT NULL, subject TEXT NOT NULL, role TEXT NOT NULL, via TEXT NOT NULL,
        method TEXT NOT NULL, path TEXT NOT NULL, status INTEGER NOT NULL, code TEXT NOT NULL, job TEXT NOT NULL
    ) STRICT""",
    "DROP INDEX IF EXISTS asked_done",  # of an older lvmigrate, which counted who signs in among them
    *(
        f"CREATE INDEX IF NOT EXISTS asked_{name} ON asked (number) WHERE {which}"
        for name, (which, _) in _TRAIL.items()
    ),
)
_COLUMNS: Final = (
    "id, what, about, body, subject, priority, state, wish, asked, begun, ended, uuid, source, target, interruptions,"
    " outcome, exit_code, result, error"
)
#: How many jobs that have ended are kept.
_KEPT_JOBS: Final = 5000
_BUSY_S: Final = 10.0
#: How long it is known whether something can be written, in seconds: finding out is a write to the disk.
_TRIAL_S: Final = 2.0
_MOST: Final = 1000


#: What passes, of SQLite's errors and of the system's: somebody else has the file, or there is no room. On a disk that
#: is full SQLite cannot make the files beside its own either, and calls that an error of the disk.
_PASSES: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})
_PASSES_OF_SYSTEM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN, errno.EINTR})


class JournalOccupied(JournalUnusable):
    """The same for now: somebody else has locked the file, or its disk has no room. It passes, or is made to."""


class Ledger:
    """The file ``path``, made with its directory if it is not there. May be used from any thread.

    Raises `JournalUnusable`, as its methods do; `JournalOccupied` for what passes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._trying = threading.Lock()
        self._tried_at = -_TRIAL_S
        self._trouble: JournalUnusable | None = None
        with self._told():
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            make_once(path)
            self._file = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                version = self._begin()
            except BaseException:  # it is tried again
                self._file.close()
                raise
            if version not in (None, _VERSION):
                raise JournalUnusable(
                    f"The jobs in {path} were written by another lvmigrate (version {version}, not {_VERSION}).",
                    hint="Use the lvmigrate that wrote them, or name another file: [journal] path.",
                )

    def _begin(self) -> int | None:
        """Make what is not there; the version that was there before."""
        self._file.execute("PRAGMA journal_mode = WAL")
        # A job that was promised must outlive a power cut as well.
        self._file.execute("PRAGMA synchronous = FULL")
        with self._change() as file:
            for statement in _TABLES:
                file.execute(statement)
            version: int | None
            (version,) = file.execute("SELECT max(version) FROM service").fetchone()
            if version is None:
                file.execute("INSERT INTO service VALUES (?)", (_VERSION,))
        return version

    def close(self) -> None:
        """Nothing more is read or written."""
        with self._lock:
            self._file.close()

    def trial(self) -> None:
        """Whether something can be written, as of a moment ago. Raises `JournalUnusable` where it cannot."""
        with self._trying:  # however many ask, one of them tries
            if time.monotonic() - self._tried_at > _TRIAL_S:
                try:
                    with self._told(), self._change() as file:
                        file.execute("UPDATE service SET version = version")
                    self._trouble = None
                except JournalUnusable as error:
                    self._trouble = error
                self._tried_at = time.monotonic()
            if self._trouble is not None:
                raise self._trouble

    # ---- jobs

    def add(self, job: Job, *, key: str | None, fingerprint: str) -> Job | None:
        """Write a new job down; the earlier one, if it was asked for with this key before, and nothing is written.

        Raises `UsageError` (`Code.KEY_REUSED`) when that was another order.
        """
        with self._told(), self._change() as file:
            before = None if key is None else _ordered(file, job.subject, key, fingerprint)
            if before is not None:
                return before
            file.execute(
                "INSERT INTO job (id, what, about, subject, key, fingerprint, priority, body, state, asked)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(job.id, job.what, job.about, job.subject, key, fingerprint, job.priority.value),
                    json.dumps(job.order),
                    *(job.state.value, job.asked),
                ),
            )
            file.execute(
                "DELETE FROM job WHERE number IN (SELECT number FROM job WHERE state = 'ended'"
                " ORDER BY number DESC LIMIT 20 OFFSET ?)",
                (_KEPT_JOBS,),
            )
        return None

    def ordered(self, subject: str, key: str, fingerprint: str) -> Job | None:
        """The job that was asked for with this key. Raises `UsageError` (`Code.KEY_REUSED`), as `add` does."""
        with self._told(), self._lock:
            return _ordered(self._file, subject, key, fingerprint)

    def set(self, job: str, **changes: object) -> None:
        """Write what has changed of a job; what is no number or text goes as JSON."""
        values = [json.dumps(value) if isinstance(value, dict | list) else value for value in changes.values()]
        words = [value.value if isinstance(value, State | Wish) else value for value in values]
        with self._told(), self._change() as file:
            file.execute(
                f"UPDATE job SET {', '.join(f'{name} = ?' for name in changes)} WHERE id = ?",  # noqa: S608 -- ours
                (*words, job),
            )

    def one(self, job: str) -> Job | None:
        """The job of that id."""
        found = self._read(f"SELECT {_COLUMNS} FROM job WHERE id = ?", job)  # noqa: S608 -- constant
        return _job(found[0]) if found else None

    def some(
        self,
        *,
        what: tuple[str, ...] | None = None,
        states: tuple[State, ...] | None = None,
        about: str | None = None,
        exit_codes: tuple[int, ...] | None = None,
        most: int = _MOST,
    ) -> list[Job]:
        """The newest, newest first."""
        found = self._read(
            f"SELECT {_COLUMNS} FROM job"  # noqa: S608 -- constant
            " WHERE (?1 IS NULL OR what IN (SELECT value FROM json_each(?1)))"
            " AND (?2 IS NULL OR state IN (SELECT value FROM json_each(?2)))"
            " AND (?3 IS NULL OR ?3 IN (about, uuid))"
            " AND (?4 IS NULL OR exit_code IN (SELECT value FROM json_each(?4))) ORDER BY number DESC LIMIT ?5",
            None if what is None else json.dumps(what),
            None if states is None else json.dumps([state.value for state in states]),
            about,
            None if exit_codes is None else json.dumps(exit_codes),
            most,
        )
        return [_job(values) for values in found]

    def unfinished(self) -> list[Job]:
        """All that have not ended, in the order in which they were asked for."""
        found = self._read(f"SELECT {_COLUMNS} FROM job WHERE state != 'ended' ORDER BY number")  # noqa: S608 -- constant
        return [_job(values) for values in found]

    def touched(self, job: str) -> tuple[str, ...]:
        """The UUIDs of the guests that a drain had under way when it was last written."""
        found = self._read("SELECT touched FROM job WHERE id = ?", job)
        return tuple(json.loads(found[0][0])) if found else ()

    # ---- the trail

    def asked(self, line: Asked) -> int:
        """Write one line; the number that is given to it."""
        with self._told(), self._change() as file:
            number = file.execute(
                "INSERT INTO asked (at, subject, role, via, method, path, status, code, job)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(line.at, line.subject, line.role, line.via, line.method, line.path, line.status, line.code),
                    line.job,
                ),
            ).lastrowid
            if line.status:
                _forget_the_oldest(file)
        return number or 0

    def answered(self, number: int, *, status: int, code: str, job: str) -> None:
        """Write what the answer was to what had that line before it was done."""
        with self._told(), self._change() as file:
            file.execute("UPDATE asked SET status = ?, code = ?, job = ? WHERE number = ?", (status, code, job, number))
            _forget_the_oldest(file)

    def trail(self, most: int) -> list[Asked]:
        """The newest lines, newest first."""
        found = self._read(
            "SELECT number, at, subject, role, via, method, path, status, code, job FROM asked"
            " ORDER BY number DESC LIMIT ?",
            most,
        )
        return [Asked(**dict(zip(Asked.__struct_fields__, values, strict=True))) for values in found]

    # ---- the file

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._file.execute("BEGIN IMMEDIATE")
            try:
                yield self._file
                self._file.execute("COMMIT")
            except BaseException:
                if self._file.in_transaction:
                    self._file.execute("ROLLBACK")
                raise

    def _read(self, statement: str, *values: object) -> list[Any]:
        with self._told(), self._lock:
            return self._file.execute(statement, values).fetchall()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise (JournalOccupied if _passes(error) else JournalUnusable)(
                f"The jobs in {self._path} cannot be read or written: {error}.",
                hint="Make room there, see who else writes to it (`fuser -v`), or name another file: [journal] path.",
            ) from error


def _passes(error: sqlite3.Error | OSError) -> bool:
    if isinstance(error, OSError):
        return error.errno in _PASSES_OF_SYSTEM
    # The lower byte is the kind; Python's own complaints have none.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSES


def _forget_the_oldest(file: sqlite3.Connection) -> None:
    for which, kept in _TRAIL.values():
        file.execute(
            f"DELETE FROM asked WHERE {which} AND number <="  # noqa: S608 -- constants, as their indices have them
            f" (SELECT number FROM asked WHERE {which} ORDER BY number DESC LIMIT 1 OFFSET ?)",
            (kept,),
        )


def _ordered(file: sqlite3.Connection, subject: str, key: str, fingerprint: str) -> Job | None:
    before = file.execute(
        f"SELECT fingerprint, {_COLUMNS} FROM job WHERE subject = ? AND key = ?",  # noqa: S608 -- constant
        (subject, key),
    ).fetchone()
    if before is None:
        return None
    if before[0] != fingerprint:
        raise UsageError(
            f"The idempotency key stands for job {before[1]}, which was ordered with other words.",
            hint="Make a new key for each thing that is wanted.",
            code=Code.KEY_REUSED,
        )
    return _job(before[1:])


def new_id() -> str:
    """An id that sorts by time, as the errands' do."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"


def _job(values: Any) -> Job:  # noqa: ANN401 -- a row of SQLite's
    row: dict[str, Any] = dict(zip((name.strip() for name in _COLUMNS.split(",")), values, strict=True))
    body = row.pop("body")
    for name in ("result", "error"):
        row[name] = None if row[name] is None else json.loads(row[name])
    row |= {"state": State(row["state"]), "wish": Wish(row["wish"]), "priority": Priority(row["priority"])}
    return Job(order=json.loads(body), **row)
