"""Values on their way: as JSON, and back as the core's own dataclasses. The names are those of `lvmigrate.jsonable`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from lvmigrate.errors import Code, ExitCode, LvmigrateError
from lvmigrate.jsonable import error_object
from lvmigrate.service.problem import Told, error_of

T = TypeVar("T")


def _encoded(value: object) -> Any:  # noqa: ANN401 -- JSON is what it is
    if isinstance(value, LvmigrateError):
        return error_object(value)
    if isinstance(value, Mapping):
        return dict(value)
    # What a hook of msgspec raises for a type that it does not know.
    raise NotImplementedError(f"{type(value).__name__} is nothing that is sent")


def _decoded(kind: type, value: Any) -> Any:  # noqa: ANN401 -- as above
    if issubclass(kind, LvmigrateError):
        return error_of(value)
    raise NotImplementedError(f"{kind.__name__} is nothing that is sent")


_encoder = msgspec.json.Encoder(enc_hook=_encoded)


def encode(value: object) -> bytes:
    """As JSON."""
    return _encoder.encode(value)


def plain(value: object) -> Any:  # noqa: ANN401 -- as above
    """As dicts, lists, strings and numbers."""
    return msgspec.json.decode(encode(value))


def decode(text: bytes | str, kind: type[T]) -> T:
    """The inverse of `encode`. Raises `LvmigrateError` (`Code.SERVICE_DIFFERS`) when it is none of that kind."""
    try:
        return msgspec.json.decode(text, type=kind, dec_hook=_decoded)
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError) as error:
        raise _differs(kind, error) from error


def value_of(told: object, kind: type[T]) -> T:
    """The same of what `plain` has made."""
    try:
        return msgspec.convert(told, kind, dec_hook=_decoded)
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError) as error:
        raise _differs(kind, error) from error


def _differs(kind: object, error: Exception) -> LvmigrateError:
    name = getattr(kind, "__name__", str(kind))
    return Told(
        f"What the service has answered is no {name} ({str(error)[:200]}).",
        hint="Check the URL; install the same version of lvmigrate at both ends.",
        code=Code.SERVICE_DIFFERS,
        detail="",
        exit_code=ExitCode.CONFIGURATION,
    )
