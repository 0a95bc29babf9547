"""The last definition of each guest that was moved, kept on this machine: for when its node is dead, with the only one.

A memory for people, as the journal is: nothing is decided from it, and a failover names the file when it would help.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import structlog

from lvmigrate.errors import LvmigrateError
from lvmigrate.tasklet import Context

_log = structlog.get_logger()


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


def last(context: Context, instance: str) -> Path | None:
    """The file of the guest of that name or UUID, if there is one that can be read."""
    if context.definitions is None:
        return None
    try:
        for path in sorted(context.definitions.glob("*.xml")):
            if path.stem == instance or f"<name>{instance}</name>" in path.read_text(encoding="utf-8"):
                return path
    except (OSError, UnicodeDecodeError):
        pass
    return None


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
