"""What the configuration says of the service: the table ``[service]``. And the three roles."""

from __future__ import annotations

import enum
import functools
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from lvmigrate.config import Config
from lvmigrate.errors import ConfigurationError

#: A count or a time that makes sense.
_Count = Annotated[int, Meta(ge=1, le=1_000_000)]
_Seconds = Annotated[float, Meta(ge=0, le=1_000_000)]
#: SHA-256 in hexadecimal digits.
_Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


@functools.total_ordering
class Role(enum.Enum):
    """What somebody may do; each may do all that those before it may."""

    #: See everything, check anything; change nothing.
    LOOK = "look"
    #: Move, drain, clean up, abort.
    MOVE = "move"
    #: Do what gives up a safeguard, or a memory: a node that is off by somebody's word, an old disk, no guard, pruning.
    FORCE = "force"

    def __lt__(self, other: Role) -> bool:
        ranks = list(Role)
        return ranks.index(self) < ranks.index(other)


class Stop(enum.Enum):
    """What a stop does with what is under way."""

    #: Wait for it, up to the deadline.
    WAIT = "wait"
    #: Abort it, each guest whole where it is; wait for that, up to the deadline.
    ABORT = "abort"
    #: Leave it to the next service, which adopts it.
    HAND_OVER = "hand-over"


class TokenEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somebody who comes with a token. The token itself is nowhere but with them."""

    sha256: _Digest
    role: Role = Role.LOOK
    #: The first day on which it is not valid any more.
    expires: date | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table, checked. Times in seconds."""

    #: The unix socket; empty: none. Not in /run/lvmigrate: on a host that is root's alone, for tokens and guards.
    socket: str = "/run/lvmigrate-service/api.sock"
    socket_mode: Annotated[str, Meta(pattern="^0?[0-7]{3}$")] = "0660"
    #: The group that may open it; empty: the service's own.
    socket_group: str = ""
    #: What those may do who can open it, and who may do something else, by their user's name.
    socket_role: Role = Role.FORCE
    users: dict[str, Role] = {}
    #: ``ADDRESS:PORT`` for TCP, always with TLS; empty: none.
    listen: str = ""
    certificate: str = ""
    key: str = ""
    #: The authority that signs clients' certificates; empty: none are asked for.
    client_ca: str = ""
    #: What whoever has a certificate may do, by its common name.
    certificates: dict[str, Role] = {}
    tokens: dict[str, TokenEntry] = {}
    #: Moves, rehearsals, failovers and drains under way in all; of moves and failovers those that touch one node.
    at_once: _Count = 4
    per_node: _Count = 2
    #: How many jobs may wait.
    queue: _Count = 1000
    requests_per_minute: _Count = 1200
    body_kib: _Count = 256
    stop: Stop = Stop.WAIT
    stop_deadline_s: _Seconds = 600.0
    log: Literal["text", "json"] = "json"

    @classmethod
    def of(cls, configuration: Config) -> Settings:
        """The configuration's, with its paths made absolute. Raises `ConfigurationError`."""
        written: Any = configuration.written.get("service", {})
        try:
            settings = msgspec.convert(written, cls)
        except msgspec.ValidationError as error:
            raise _wrong(configuration.path, str(error)) from error
        if settings.listen and not (settings.certificate and settings.key):
            raise _wrong(configuration.path, "listen needs a certificate and a key: TCP is served with TLS only")
        if not settings.socket and not settings.listen:
            raise _wrong(configuration.path, "neither socket nor listen names a place to be asked at")
        address(settings.listen, configuration.path)
        beside = configuration.path.parent
        paths = ("socket", "certificate", "key", "client_ca")
        absolute = {name: str(beside / value) for name in paths if (value := getattr(settings, name))}
        return msgspec.structs.replace(settings, **absolute)


def address(listen: str, path: Path) -> tuple[str, int] | None:
    """``ADDRESS:PORT`` (``[::]:PORT``) taken apart; ``None``: it is empty. Raises `ConfigurationError`."""
    if not listen:
        return None
    host, _, port = listen.rpartition(":")
    if not port.isdigit() or int(port) > _LAST_PORT:
        raise _wrong(path, f"listen must be ADDRESS:PORT, not {listen!r}")
    return host.strip("[]") or "::", int(port)


_LAST_PORT: Final = 65535


def _wrong(path: Path, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"The configuration file {path} is wrong in [service]: {what.rstrip('.')}.", hint="See docs/service.md."
    )
