"""`SqliteJournal`: the journal in one file, which several processes may write at the same time.

SQLite in WAL mode: what was committed outlives a kill -9 at any instant, and a reader never stops a writer.  It is not
synced at each row, so a power cut of the controller may take the last rows with it, never the file.  The file must be
on a local disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import structlog

from lvmigrate import sqlite_file
from lvmigrate.errors import Code, Finding, UsageError
from lvmigrate.journal import Entry, JournalUnusable, Kind, Opening, Record, Row, Story

_log = structlog.get_logger()

DEFAULT_PATH: Final = Path("/var/lib/lvmigrate/journal.sqlite")
#: What `PRAGMA user_version` says of the tables below.
_VERSION: Final = 1
_TABLES: Final = """
CREATE TABLE errand (
    id TEXT PRIMARY KEY,
    tasklet TEXT NOT NULL, instance TEXT NOT NULL, uuid TEXT NOT NULL, source TEXT NOT NULL, target TEXT NOT NULL,
    holder TEXT NOT NULL, began REAL NOT NULL, plan TEXT NOT NULL,
    seconds REAL, outcome TEXT, sentence TEXT NOT NULL DEFAULT '', result TEXT
) STRICT;
CREATE TABLE row (
    errand TEXT NOT NULL, number INTEGER NOT NULL, at_s REAL NOT NULL,
    kind TEXT NOT NULL, name TEXT NOT NULL, data TEXT NOT NULL,
    PRIMARY KEY (errand, number)
) STRICT, WITHOUT ROWID;
"""
_COLUMNS: Final = "id, tasklet, instance, uuid, source, target, holder, began, seconds, outcome, sentence"
#: How much room the disk must have for an errand to begin: a long one writes some MiB.
_ROOM: Final = 16 * 1024 * 1024
#: Written and taken away again at the beginning: a disk that is full in a way that it does not tell refuses it.
_BALLAST: Final = 256 * 1024
#: How long another process's writing is waited for, in seconds: at the beginning, and then beside the move.
_BUSY_S: Final = 10.0
#: The longest that a row is waited for.
_WAIT_S: Final = 0.25
#: How many rows may wait to be written, and for how long after the end, before they are given up.
_MOST_WAITING: Final = 50_000
_END_S: Final = 10.0
#: How many errands are kept, and how many of the older ones are forgotten at once.
_KEPT: Final = 5000
_FORGOTTEN_AT_ONCE: Final = 20
_DAY_S: Final = 86_400.0
#: An errand without an end that is older than this is not under way any more.
_ENDLESS_DAYS: Final = 30.0

_AWAY: Final = "Move it away (with its -wal and -shm), or name another one: [journal] path in the configuration."
_ROOM_HINT: Final = "Make room there, or name another file: [journal] path in the configuration."


class SqliteJournal:
    """Fulfils `lvmigrate.journal.Journal` with the file ``path``, made with its directory when it is first written."""

    def __init__(self, path: Path, *, keep_days: float | None = None) -> None:
        self._path = path
        #: Older errands are forgotten by and by, as new ones begin; ``None``: only those beyond the most that is kept.
        self._keep_days = keep_days

    def trouble(self) -> Finding | None:
        """Why no errand can be begun now."""
        try:
            with self._trouble_told("cannot be written"), closing(self._writable()) as file:
                file.execute("BEGIN IMMEDIATE")
                file.execute("ROLLBACK")
        except JournalUnusable as error:
            return error.finding()
        return None

    def begin(self, opening: Opening, *, now: Callable[[], float]) -> Record:
        """Write that an errand begins."""
        began = now()
        # The wall clock, because people ask when it was; nothing is waited for or decided by it.
        when = time.time()
        errand = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(when))}-{uuid.uuid4().hex[:6]}"
        values = (
            *(errand, opening.tasklet, opening.instance, opening.uuid, opening.source, opening.target, opening.holder),
            *(when, json.dumps(opening.plan)),
        )
        with self._trouble_told("cannot be written"):
            file = self._writable()
            try:
                with file:
                    file.execute("BEGIN IMMEDIATE")
                    file.execute(
                        "INSERT INTO errand (id, tasklet, instance, uuid, source, target, holder, began, plan)"
                        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        values,
                    )
                    file.execute("INSERT INTO row VALUES (?, -1, 0, '', '', ?)", (errand, " " * _BALLAST))
                with file:
                    file.execute("BEGIN IMMEDIATE")
                    file.execute("DELETE FROM row WHERE errand = ? AND number = -1", (errand,))
                    _forget_the_oldest(file)
                    if self._keep_days is not None:
                        _forget(file, self._keep_days, most=_FORGOTTEN_AT_ONCE)
            except BaseException:
                file.close()
                raise
        return _SqliteRecord(file, errand, began, now)

    def prune(self, days: float) -> int:
        """Forget what is older, and give the room back to the disk where nobody else is writing; how many errands."""
        if not self._path.exists():
            return 0
        with self._trouble_told("cannot be written"), closing(self._writable()) as file:
            with file:
                file.execute("BEGIN IMMEDIATE")
                gone = _forget(file, days, most=-1)
            if gone:
                with contextlib.suppress(sqlite3.OperationalError):
                    file.execute("VACUUM")
        return gone

    def history(self, *, instance: str | None = None, most: int = 50) -> tuple[Entry, ...]:
        """The newest errands, newest first."""
        with self._read() as file:
            if file is None:
                return ()
            found = file.execute(
                f"SELECT {_COLUMNS} FROM errand WHERE ?1 IS NULL OR ?1 IN (instance, uuid)"  # noqa: S608 -- constant
                " ORDER BY began DESC, id DESC LIMIT ?2",
                (instance, most),
            ).fetchall()
        return tuple(_entry(values) for values in found)

    def story(self, wanted: str) -> Story:
        """One errand with everything that is known of it."""
        with self._read() as file:
            found = [] if file is None else _find(file, wanted)
            if file is None or len(found) != 1:
                what = f"{'more than one' if found else 'no'} errand whose id begins with {wanted!r}"
                raise UsageError(
                    f"The journal has {'no errand yet' if wanted == 'last' else what}.",
                    hint="`lvmigrate history` lists the ids.",
                    code=Code.ERRAND_UNKNOWN,
                )
            *values, plan, result = found[0]
            rows = file.execute(
                "SELECT at_s, kind, name, data FROM row WHERE errand = ? AND number >= 0 ORDER BY number", (values[0],)
            )
            return Story(
                entry=_entry(values),
                plan=json.loads(plan),
                result=None if result is None else json.loads(result),
                rows=tuple(
                    Row(at_s=at_s, kind=Kind(kind), name=name, data=json.loads(data)) for at_s, kind, name, data in rows
                ),
            )

    # ---- the file

    def _writable(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._have_room()
        sqlite_file.make_once(self._path)
        # Transactions are begun by hand; the connection goes over to the record's own thread.
        file = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            version = _version(file)
            if version == 0:
                _make(file)
            file.execute("PRAGMA synchronous = NORMAL")
            self._understood(_version(file))
        except BaseException:
            file.close()
            raise
        return file

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection | None]:
        """The file for reading only; ``None``: there is none yet, or an empty one."""
        with self._trouble_told("cannot be read"):
            if not self._path.exists():
                yield None
                return
            with self._readable() as file:
                version = _version(file)
                if version:
                    self._understood(version)
                yield file if version else None

    @contextmanager
    def _readable(self) -> Iterator[sqlite3.Connection]:
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(closing(_opened_for_reading(self._path)))
                _version(file)
            except sqlite3.OperationalError:
                # SQLite needs a file beside it even to read, which a full or a read-only disk refuses: read a copy.
                away = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                for end in ("", "-wal"):
                    part = self._path.with_name(self._path.name + end)
                    if part.exists():
                        sqlite_file.copy(part, away / ("copy" + end))
                file = stack.enter_context(closing(_opened_for_reading(away / "copy")))
            yield file

    def _understood(self, version: int) -> None:
        if version != _VERSION:
            raise JournalUnusable(
                f"The journal {self._path} was written by another lvmigrate (version {version}, not {_VERSION}).",
                hint=f"Use the lvmigrate that wrote it. {_AWAY}",
            )

    def _have_room(self) -> None:
        disk = os.statvfs(self._path.parent)
        if disk.f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        free = disk.f_bavail * disk.f_frsize
        if free < _ROOM:
            raise JournalUnusable(
                f"The disk of the journal {self._path} has {free // 1024 // 1024} MiB left, and"
                f" {_ROOM // 1024 // 1024} MiB are needed.",
                hint=_ROOM_HINT,
            )

    @contextmanager
    def _trouble_told(self, what: str) -> Iterator[None]:
        """Turn whatever the file, the disk or what is in it makes SQLite say into `JournalUnusable`."""
        hints = {
            sqlite3.SQLITE_FULL: _ROOM_HINT,
            sqlite3.SQLITE_IOERR: f"The disk is full, or it fails. {_ROOM_HINT}",
            sqlite3.SQLITE_NOTADB: _AWAY,
            sqlite3.SQLITE_CORRUPT: _AWAY,
            sqlite3.SQLITE_BUSY: "See who writes to it (`fuser -v` on the file), then try again.",
        }
        try:
            yield
        except sqlite3.Error as error:
            hint = hints.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, f"Look at the file and its disk. {_AWAY}")
            raise JournalUnusable(f"The journal {self._path} {what}: {error}.", hint=hint) from error
        except (ValueError, KeyError, TypeError) as error:  # the file is SQLite's, and what is in it is not ours
            raise JournalUnusable(
                f"The journal {self._path} {what}: it does not hold what lvmigrate writes ({error}).", hint=_AWAY
            ) from error
        except OSError as error:
            raise JournalUnusable(
                f"The journal {self._path} {what}: {error.strerror}.",
                hint='Mend that, or name another file: [journal] path in the configuration; path = "" keeps none.',
            ) from error


class _SqliteRecord:
    """One errand being written: rows are put in line by whoever comes, and written by a thread of the record's own."""

    def __init__(self, file: sqlite3.Connection, errand: str, began: float, now: Callable[[], float]) -> None:
        self._file = file
        self._errand = errand
        self._began = began
        self._now = now
        self._line: queue.SimpleQueue[tuple[Kind, str, float, str, threading.Event | None] | None] = queue.SimpleQueue()
        #: Rows that could not be written, and the first reason.
        self._lost = 0
        self._why = ""
        self._slow = False
        self._ended = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._write_all, name=f"journal {errand}", daemon=True)
        self._thread.start()

    @property
    def id(self) -> str:
        """Under which it is found again."""
        return self._errand

    def add(self, kind: Kind, name: str, data: Mapping[str, Any] | None = None, *, wait: bool = False) -> None:
        """Put a row in line."""
        at_s = self._now() - self._began
        written = threading.Event() if wait and not self._slow else None
        with self._lock:
            if self._ended:
                return
            if self._line.qsize() > _MOST_WAITING:
                self._lose(1, "the disk is too slow")
                return
            self._line.put((kind, name, at_s, json.dumps(data or {}, default=str), written))
        if written is not None and not written.wait(_WAIT_S):
            self._slow = True  # from here on nothing waits, until the thread has caught up

    def end(self, outcome: str, sentence: str, result: Mapping[str, Any]) -> None:
        """Write how it ended."""
        seconds = self._now() - self._began
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._line.put(None)
        self._thread.join(_END_S)
        if self._thread.is_alive():
            _log.error("journal_not_written", errand=self._errand, why="it takes too long")
            return
        values = (seconds, outcome, sentence, json.dumps(result, default=str), self._errand)
        with contextlib.suppress(sqlite3.Error):
            self._file.execute(f"PRAGMA busy_timeout = {int(_END_S * 1000)}")
        with self._losing(1), self._file:
            self._file.execute(
                "UPDATE errand SET seconds = ?, outcome = ?, sentence = ?, result = ? WHERE id = ?", values
            )
        with contextlib.suppress(sqlite3.Error):
            self._file.close()
        if self._lost:
            _log.error("journal_incomplete", errand=self._errand, rows_lost=self._lost, why=self._why)

    def _write_all(self) -> None:
        number = 0
        ended = False
        while not ended:
            batch = [self._line.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    batch.append(self._line.get_nowait())
            ended = batch[-1] is None
            rows = [row for row in batch if row is not None]
            with self._losing(len(rows)), self._file:
                self._file.execute("BEGIN IMMEDIATE")
                self._file.executemany(
                    "INSERT INTO row VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        (self._errand, number + place, at_s, kind.value, name, data)
                        for place, (kind, name, at_s, data, _) in enumerate(rows)
                    ),
                )
            number += len(rows)
            for *_, written in rows:
                if written is not None:
                    written.set()
            self._slow = False

    @contextmanager
    def _losing(self, rows: int) -> Iterator[None]:
        """Whatever fails here costs rows of the journal and nothing else."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            with self._lock:
                self._lose(rows, str(error))

    def _lose(self, rows: int, why: str) -> None:
        if not self._lost:
            _log.error("journal_not_written", errand=self._errand, why=why)
        self._lost += rows
        self._why = self._why or why


def _opened_for_reading(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)


def _version(file: sqlite3.Connection) -> int:
    return int(file.execute("PRAGMA user_version").fetchone()[0])


def _make(file: sqlite3.Connection) -> None:
    """Make the tables, unless another process has done so meanwhile."""
    file.execute("PRAGMA journal_mode = WAL")
    with file:
        file.execute("BEGIN IMMEDIATE")
        if _version(file) == 0:
            for statement in _TABLES.split(";"):
                if statement.strip():
                    file.execute(statement)
            file.execute(f"PRAGMA user_version = {_VERSION}")


def _forget(file: sqlite3.Connection, days: float, *, most: int) -> int:
    """Forget what began before so many days. What has no end may still be written to, unless it is very old."""
    now = time.time()  # the wall clock, by which the beginnings were written
    old = file.execute(
        "SELECT id FROM errand WHERE began < ?1 AND (outcome IS NOT NULL OR began < ?2) ORDER BY began LIMIT ?3",
        (now - days * _DAY_S, now - max(days, _ENDLESS_DAYS) * _DAY_S, most),
    ).fetchall()
    _delete(file, old)
    return len(old)


def _forget_the_oldest(file: sqlite3.Connection) -> None:
    old = file.execute(
        "SELECT id FROM errand ORDER BY began DESC LIMIT ? OFFSET ?", (_FORGOTTEN_AT_ONCE, _KEPT)
    ).fetchall()
    _delete(file, old)


def _delete(file: sqlite3.Connection, old: list[tuple[str]]) -> None:
    for table, column in (("row", "errand"), ("errand", "id")):
        file.executemany(f"DELETE FROM {table} WHERE {column} = ?", old)  # noqa: S608 -- the names are constants


def _find(file: sqlite3.Connection, wanted: str) -> list[tuple[Any, ...]]:
    """The errands that ``wanted`` may mean, at most two."""
    columns = f"SELECT {_COLUMNS}, plan, result FROM errand"  # noqa: S608 -- the names are constants
    if wanted == "last":
        return file.execute(f"{columns} ORDER BY began DESC, id DESC LIMIT 1").fetchall()
    found = file.execute(f"{columns} WHERE substr(id, 1, ?1) = ?2 LIMIT 2", (len(wanted), wanted)).fetchall()
    exact = [values for values in found if values[0] == wanted]
    return exact or found


def _entry(values: Any) -> Entry:  # noqa: ANN401 -- a row of SQLite's
    names = [name.strip() for name in _COLUMNS.split(",")]
    return Entry(**dict(zip(names, values, strict=True)))
