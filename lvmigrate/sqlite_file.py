"""A file of SQLite's, handled without opening and closing it here.

Closing a file takes away every lock that this process has on it, those of its other connections too (POSIX), and
another process that ends would then throw away what they have not written yet.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from pathlib import Path


def make_once(path: Path) -> None:
    """Make an empty file that others of our group may read; nothing if there is one: it is not opened."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640))


def copy(path: Path, to: Path) -> None:
    """Copy it, by another process. Raises `OSError`."""
    command = ("cp", "--", path.absolute(), to)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603 -- cp
    except OSError as error:
        raise OSError(error.errno, f"cp cannot be started ({error.strerror})") from error
    if done.returncode:
        raise OSError(errno.EIO, done.stderr.decode(errors="replace").strip() or f"cp ended with {done.returncode}")
