"""Visitors: who asks, how often they may, and whether it is their own page that asks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.requests import Request

from lvmigrate.errors import Code
from lvmigrate.service.access import COOKIE, Access, Peer, Subject
from lvmigrate.service.problem import NotDone
from lvmigrate.service.settings import Role, Settings

_NOBODY: Final = Peer()


def peer_of(request: Request) -> Peer:
    """Who is at the other end, as the server says."""
    found: Peer = request.scope["state"].get("peer", _NOBODY)
    return found


class Visitors:
    """Whoever asks for something is looked at here. It belongs to the event loop."""

    def __init__(self, settings: Settings, access: Access) -> None:
        self._access = access
        self._most = RateLimitItemPerMinute(settings.requests_per_minute)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    def count(self, request: Request) -> None:
        """A file for everybody is asked for. Raises `NotDone` where that is too often from there."""
        if not self._limiter.hit(self._most, "page", peer_of(request).origin):
            raise _too_many()

    def known(self, request: Request) -> Subject:
        """Who asks. Raises `NotDone`: nobody knows, too often, by another name, or from another site's page."""
        peer, most = peer_of(request), self._most
        # Those who are refused are counted by where they come from, before it is looked at what they have brought.
        if not self._limiter.test(most, "refused", peer.origin):
            raise _too_many()
        if peer.uid is not None and not _of_this_machine(request.headers.get("host", "")):
            # A name that leads here only now (DNS rebinding): a page of another site would be one of the service's own.
            # Counted apart: it is somebody's browser that asks, and its user goes on by their own programs.
            if not self._limiter.hit(most, "by another name", peer.origin):
                raise _too_many()
            raise NotDone(
                f"The unix socket does not go by the name {request.headers['host'][:100]!r}.",
                hint="Ask for localhost, or by a name without a dot.",
                code=Code.FORBIDDEN,
            )
        try:
            subject = self._subject(request)
        except NotDone:
            self._limiter.hit(most, "refused", peer.origin)
            raise
        if not self._limiter.hit(most, "known", subject.name):
            raise _too_many()
        origin = request.headers.get("origin")
        changes = request.method not in ("GET", "HEAD")
        # A browser shows its certificate, and what it was told to keep, to whichever page has it ask: another site's
        # must not order anything. Of what it keeps it says by itself which page asks.
        foreign = origin is not None and _site(origin) not in request.headers.getlist("host")
        if changes and (foreign or (origin is None and subject.signed_in)):
            raise NotDone(
                f"A page of {(origin or 'nowhere')[:100]!r} asks for it, which is another site.",
                hint="Ask from a page of the service's own, or from a program.",
                code=Code.FORBIDDEN,
            )
        return subject

    def standing(self, request: Request, subject: Subject, needed: Role) -> Callable[[], bool]:
        """What tells whether who has asked is known as ``subject`` still, and may do what needs that role.

        While nothing has changed it costs next to nothing; once it is false, it stays false.
        """
        epoch, holds = self._access.epoch, True

        def stands() -> bool:
            nonlocal epoch, holds
            if holds and epoch != self._access.epoch:
                epoch = self._access.epoch
                try:
                    now = self._subject(request)
                except NotDone:
                    holds = False
                else:
                    holds = now.name == subject.name and now.role >= needed
            return holds

        return stands

    def _subject(self, request: Request) -> Subject:
        authorization = request.headers.get("authorization", "")
        return self._access.subject(peer_of(request), authorization, request.cookies.get(COOKIE))


def _site(origin: str) -> str | None:
    """The host, and the port, of what a browser says the page is of; ``None``: of none, or it makes no sense."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def _of_this_machine(host: str) -> bool:
    """Whether nobody else can have given it that name: the world's names have dots."""
    name = re.sub(r":\d*$", "", host).lower()
    return "." not in name or name == "127.0.0.1" or name.endswith(".localhost")


def _too_many() -> NotDone:
    return NotDone(
        "Too many requests came in the last minute.",
        hint="Wait as long as Retry-After says; follow events instead of asking again and again.",
        code=Code.RATE_LIMITED,
    )
