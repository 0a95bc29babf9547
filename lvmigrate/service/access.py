"""Who may do what: who is at the other end, by the kernel's word, a certificate's or a token's, and their role."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import pwd
import secrets
from datetime import UTC, date, datetime
from typing import Final, NamedTuple

from lvmigrate.errors import Code
from lvmigrate.service.origin import origin
from lvmigrate.service.problem import NotDone
from lvmigrate.service.settings import Role, Settings, TokenEntry

#: What a token begins with, so that it is known for one wherever it is found.
_PREFIX: Final = "lvm_"
_BYTES: Final = 32
#: What a browser keeps a token in. By this prefix it takes it from this very host over TLS only.
COOKIE: Final = "__Host-lvmigrate"
_FOR: Final = "Path=/; Secure; HttpOnly; SameSite=Strict"
#: What it is told when it is to keep none any more.
NO_COOKIE: Final = f"{COOKIE}=; Max-Age=0; {_FOR}"


class Peer(NamedTuple):
    """The other end of a connection."""

    #: The process at the other end of a unix socket; ``None``: it is TCP.
    pid: int | None = None
    uid: int | None = None
    gid: int | None = None
    #: ``ADDRESS:PORT`` of TCP.
    address: str = ""
    #: The common name of the certificate that it has shown, and that the authority has signed.
    certificate: str | None = None

    def __str__(self) -> str:
        return f"unix pid={self.pid} uid={self.uid} gid={self.gid}" if self.uid is not None else f"tls {self.address}"

    @property
    def origin(self) -> str:
        """Where it comes from, whatever it says of itself: for counting what is refused."""
        return f"uid {self.uid}" if self.uid is not None else origin(self.address.rpartition(":")[0])


class Subject(NamedTuple):
    """Somebody who is known."""

    name: str
    role: Role
    #: By a token that a browser keeps and sends by itself, whichever page has it ask.
    signed_in: bool = False


def new_token() -> tuple[str, str]:
    """A token of 256 random bits, and what the configuration is told of it.

    Such a token cannot be guessed, so a plain SHA-256 of it tells nothing; a slow hash is for what people think of.
    """
    token = _PREFIX + secrets.token_urlsafe(_BYTES)
    return token, digest(token)


def digest(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


class Access:
    """Who may what, by the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._changes = 0

    @property
    def epoch(self) -> tuple[int, date]:
        """While it is the same, whoever was known is known, and has the same role."""
        return self._changes, _today()

    def change(self, settings: Settings) -> None:
        """From now on by these: certificates, tokens, users and their roles."""
        self._settings = settings
        self._changes += 1

    def subject(self, peer: Peer, authorization: str, cookie: str | None = None) -> Subject:
        """Who asks, by that header or that cookie (`COOKIE`).

        Raises `NotDone` (`Code.UNAUTHENTICATED`), which tells nothing of what would have been right.
        """
        settings = self._settings
        if peer.uid is not None:
            name = _user(peer.uid)
            return Subject(f"user:{name}", settings.users.get(name, settings.socket_role))
        if (token := bearer(authorization)) and (known := self._token(token)) is not None:
            name, entry = known
            return Subject(f"token:{name}", entry.role)
        if not authorization and cookie is not None:
            if (known := self._token(_token_in(cookie))) is not None:
                name, entry = known
                return Subject(f"token:{name}", entry.role, signed_in=True)
        elif not authorization and peer.certificate is not None and peer.certificate in settings.certificates:
            return Subject(f"certificate:{peer.certificate}", settings.certificates[peer.certificate])
        raise NotDone(
            "The service does not know who asks.",
            hint="Give a token that is valid (LVMIGRATE_TOKEN, --token-file), or a certificate that it names.",
            code=Code.UNAUTHENTICATED,
        )

    def _token(self, token: str) -> tuple[str, TokenEntry] | None:
        offered = digest(token)
        found = None
        for name, entry in self._settings.tokens.items():  # all of them: how long it takes tells nothing
            if hmac.compare_digest(offered, entry.sha256):
                found = name, entry
        if found is None or (found[1].expires is not None and _today() >= found[1].expires):
            return None
        return found


def cookie(token: str) -> str:
    """What a browser is told to keep: no script sees it, and it comes with nothing that another site has it ask."""
    return f"{COOKIE}={base64.urlsafe_b64encode(token.encode()).decode()}; {_FOR}"


def bearer(authorization: str) -> str:
    """The token in that header; empty: there is none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _token_in(cookie: str) -> str:
    try:
        return base64.urlsafe_b64decode(cookie.encode()).decode()
    except (binascii.Error, ValueError):
        return ""


def allow(subject: Subject, needed: Role) -> None:
    """Raise `NotDone` (`Code.FORBIDDEN`) unless the role is enough."""
    if subject.role < needed:
        raise NotDone(
            f"{subject.name} has the role {subject.role.value}; this needs {needed.value}.",
            hint="Ask somebody who has it; [service] in the configuration gives roles.",
            code=Code.FORBIDDEN,
        )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _today() -> date:
    return datetime.now(UTC).date()
