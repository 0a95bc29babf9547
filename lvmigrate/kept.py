"""The last definition of each guest that was moved, kept on this machine: for when its node is dead, with the only one.

A memory for people, as the journal is.  A failover from a dead node says that there is one, and uses it only if asked:
what was changed in the guest since its last move is not in it.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from lvmigrate.errors import Code, Finding, LvmigrateError, Refused
from lvmigrate.tasklet import Context

_log = structlog.get_logger()

#: What is asked for where no file is named.
KEPT: Final = "kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A definition in a file."""

    path: Path
    #: Secrets included.
    text: str
    written: datetime

    def __str__(self) -> str:
        return f"{self.path}, of {self.written.isoformat(timespec='minutes')}"


def keep(context: Context, node: str, uuid: str, name: str) -> None:
    """Write down what ``node`` has as the guest's definition. Never raises: the move is over; the log says why not."""
    if context.definitions is None:
        return
    try:
        text = context.hypervisor.definition(node, uuid)
        if text is not None:
            _write(context.definitions, f"{uuid}.xml", text)
    except (LvmigrateError, OSError) as error:
        _log.error("definition_not_kept", instance=name, why=str(error))


def last(context: Context, instance: str) -> Kept | None:
    """What was kept of the guest of that name or UUID, if it can be read; of several of one name the newest."""
    found = []
    for path in [] if context.definitions is None else sorted(context.definitions.glob("*.xml")):
        try:
            kept = _read(path)
        except (OSError, UnicodeDecodeError) as error:
            _log.error("definition_not_read", path=str(path), why=str(error))
            continue
        if path.stem == instance or f"<name>{instance}</name>" in kept.text:
            found.append(kept)
    return max(found, key=lambda kept: kept.written, default=None)


def asked_for(context: Context, instance: str, word: str) -> Kept:
    """What was kept (``word`` is `KEPT`), or the file of that name. Raises `Refused` when there is none to read."""
    if word == KEPT:
        found = last(context, instance)
        if found is not None:
            return found
        sentence = f"No definition of {instance} was kept on this machine."
        hint = "One is after each move from here ([journal] in the configuration). Name a file: --definition FILE."
    else:
        try:
            return _read(Path(word))
        except (OSError, UnicodeDecodeError) as error:
            sentence = f"{word} cannot be read: {getattr(error, 'strerror', None) or error}."
            hint = "Name a file that `virsh dumpxml --inactive --security-info` has written."
    raise Refused(instance, [Finding(code=Code.DEFINITION_MISSING, sentence=sentence, hint=hint)])


def _read(path: Path) -> Kept:
    return Kept(
        path=path,
        text=path.read_text(encoding="utf-8"),
        written=datetime.fromtimestamp(path.stat().st_mtime, tz=UTC),
    )


def _write(directory: Path, name: str, text: str) -> None:
    """Whole, or as it was before."""
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    number, path = tempfile.mkstemp(dir=directory, prefix=".")  # readable by its owner only: it may hold a password
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(path).replace(directory / name)
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise
