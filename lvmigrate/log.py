"""Where the log goes: standard error, as lines for people or as JSON."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Final, TextIO, cast

import structlog

LEVELS: Final = ("debug", "info", "warning", "error")


class _NeverFails:
    """Standard error, whatever becomes of it: a terminal that went away must not stop a move half-way."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


def _in_one_line(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What somebody else has said neither acts on a terminal nor looks like a line of its own; JSON sees to it."""
    return {key: _visible(value) if isinstance(value, str) else value for key, value in event.items()}


def _visible(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def quiet_by_default() -> None:
    """Log warnings only, unless the program has configured structlog: its own default prints everything."""
    if not structlog.is_configured():
        configure(level="warning", json=False)


def configure(*, level: str, json: bool) -> None:
    """Log from ``level`` on. For programs that use the package: structlog's own configuration does the same."""
    # A traceback without the values of its variables: they may be secrets.
    tell_errors: structlog.typing.Processor = structlog.processors.ExceptionRenderer(
        structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    )
    renderer = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=24, exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            tell_errors if json else _in_one_line,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _NeverFails())),
        cache_logger_on_first_use=False,
    )
