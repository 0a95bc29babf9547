"""What came with an order and is not for the journal: definitions, which may hold secrets."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

from lvmigrate.journal import JournalUnusable


class Parcels:
    """Definitions that came with orders, as files that only the service reads: they may hold secrets."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def keep(self, job: str, text: str) -> None:
        """Until the job has ended. Raises `JournalUnusable`, and nothing of it stays then."""
        path = self._path(job)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            self.forget(job)
            raise JournalUnusable(
                f"The definition cannot be kept in {self._directory}: {error}.", hint="Make room there."
            ) from error

    def of(self, job: str) -> Path | None:
        """The file that came with the job's order."""
        path = self._path(job)
        return path if path.exists() else None

    def forget(self, job: str) -> None:
        """It is not needed any more. Never raises."""
        with contextlib.suppress(OSError):
            self._path(job).unlink(missing_ok=True)

    def keep_only(self, jobs: Collection[str]) -> None:
        """Forget what came with any other job, such as one that was never accepted. Never raises."""
        kept = {self._path(job) for job in jobs}
        with contextlib.suppress(OSError):
            for path in set(self._directory.glob("definition-*.xml")) - kept:
                path.unlink(missing_ok=True)

    def _path(self, job: str) -> Path:
        return self._directory / f"definition-{job}.xml"
