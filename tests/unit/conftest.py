"""What holds for every unit test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """The command configures the log for the whole process: not beyond one test."""
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
