"""What libraries say by `logging`, as lines of the service's own log: whoever reads that reads one kind of line."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog

_log = structlog.get_logger()

#: Between two lines from the same place of a library, in seconds: whoever connects can have uvicorn complain.
_AGAIN_S: Final = 10.0


class Overheard(logging.Handler):
    """Passes warnings and worse on, and of those that come again and again their number."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told: dict[tuple[str, int], tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """As `logging.Handler` has it. Never raises."""
        try:
            place, now = (record.pathname, record.lineno), time.monotonic()
            since, untold = self._told.get(place, (-_AGAIN_S, 0))
            if now - since < _AGAIN_S:
                self._told[place] = since, untold + 1
                return
            self._told[place] = now, 0
            more: dict[str, Any] = {"not_told": untold} if untold else {}
            if record.exc_info:
                more["exc_info"] = record.exc_info
            _log.log(record.levelno, "library_says", library=record.name, says=record.getMessage(), **more)
        except Exception:  # noqa: BLE001 -- what a library says must not end what it does
            self.handleError(record)


@contextmanager
def overheard() -> Iterator[None]:
    """Pass on what all of them say."""
    handler = Overheard()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
