"""What holds for every unit test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """The command configures the log for the whole process: not beyond one test.

    A traceback that shows every local value takes seconds, and nobody reads it.
    """
    structlog.configure(processors=[structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)])
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
