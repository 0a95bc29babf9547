"""The way to a service, by its unix socket or over TLS: errors as what they were, and jobs followed to their end."""

from __future__ import annotations

import os
import queue
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx2 as httpx
import msgspec

from lvmigrate.errors import Code, ConfigurationError, ExitCode, LvmigrateError, OutcomeUnknown, UsageError
from lvmigrate.service.job import Job
from lvmigrate.service.messages import EVENT_ID
from lvmigrate.service.problem import Told, error_of
from lvmigrate.service.wire import decode, encode, value_of

T = TypeVar("T")

#: A look at nodes may take as long as the service waits for one that is silent, and longer.
_ANSWER_S: Final = 180.0
_CONNECT_S: Final = 10.0
#: A stream that is this quiet is dead: the service says something every 15 s.
_QUIET_S: Final = 45.0
#: The plan of a drain of some thousand guests is an event of some MiB.
_MOST_OF_AN_EVENT: Final = 256 * 1024 * 1024
#: Between two tries to reach a service that went away, and how long that is tried, in seconds.
_AGAIN_S: Final = 1.0
_PATIENCE_S: Final = 300.0
#: How often it is looked whether somebody wishes something.
_LOOK_S: Final = 0.2

#: The service did not hear what was asked, and may the next time.
_ASK_AGAIN: Final = frozenset(
    {Code.SERVICE_UNREACHABLE, Code.STOPPING, Code.RATE_LIMITED, Code.SERVICE_BUSY, Code.JOURNAL_UNUSABLE}
)

#: Nothing of the request has left this machine.
_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL, httpx.UnsupportedProtocol)

Query = Mapping[str, str | int]


class Way:
    """Where a service is, and who we are to it."""

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        ca: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
    ) -> None:
        scheme, _, rest = url.partition(":")
        self._transport: Callable[[], httpx.HTTPTransport]
        if scheme == "unix" and rest.startswith("/"):
            self._transport = lambda: httpx.HTTPTransport(uds=os.path.normpath(rest))
            self._base = "http://lvmigrate"
        elif scheme == "https" and rest.startswith("//"):
            context = _context(ca, certificate, key)
            self._transport = lambda: httpx.HTTPTransport(verify=context)
            self._base = url.rstrip("/")
        else:
            raise UsageError(
                f"{url!r} is no URL of a service.", hint="unix:/run/lvmigrate-service/api.sock, or https://HOST:PORT."
            )
        self.url: Final = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def client(self, *, quiet_s: float = _ANSWER_S) -> httpx.Client:
        """Something that speaks HTTP."""
        return httpx.Client(
            transport=self._transport(),
            base_url=self._base,
            headers=self._headers,
            timeout=httpx.Timeout(quiet_s, connect=_CONNECT_S),
            trust_env=False,
        )


class Client:
    """Asks one service. May be used from several threads."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._http = way.client()

    def close(self) -> None:
        """End the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def get(self, path: str, kind: type[T], **query: str | int | None) -> T:
        """What the service has there. Raises what it tells."""
        words = {name: value for name, value in query.items() if value is not None}
        return decode(self._ask("GET", path, query=words).content, kind)

    def send(self, method: str, path: str, body: object, kind: type[T]) -> T:
        """The same with something that is sent along. It is sent once: whether it acted is not known if that fails."""
        return decode(self._ask(method, path, body=body).content, kind)

    def order(self, collection: str, order: object) -> tuple[Job, str]:
        """A job for this order, and the event from which on to follow it (empty: from how it stands).

        It is ordered once, however often it has to be asked for.  Raises `OutcomeUnknown` when it may have been taken
        by a service whose answer did not come.
        """
        key = uuid.uuid4().hex
        until = time.monotonic() + _CONNECT_S
        unheard = False
        while True:
            try:
                answer = self._ask("POST", f"/v1/{collection}", body=order, key=key)
                return decode(answer.content, Job), answer.headers.get(EVENT_ID, "")
            except LvmigrateError as error:
                sent = not isinstance(error.__cause__, _NOT_SENT)
                unheard = unheard or (error.code is Code.SERVICE_UNREACHABLE and sent)
                if error.code is not Code.SERVICE_UNREACHABLE or time.monotonic() > until:
                    if unheard:
                        raise _perhaps_taken(collection, error) from error
                    raise
                time.sleep(_AGAIN_S)

    def follow(  # noqa: C901 -- reading, asking and telling belong together
        self,
        collection: str,
        job: Job,
        since: str,
        on_event: Callable[[str, Any], None],
        on_look: Callable[[Callable[[str], bool]], None],
    ) -> Job:
        """Tell of what happens to the job from the event ``since`` on until it has ended, and give it as it is then.

        ``on_look(ask)`` is called several times a second, in the calling thread as everything is; ``ask("abort")`` has
        the service do that, and tells whether it has heard it.  A service that goes away is waited for: it takes the
        job up when it is back.  Raises `OutcomeUnknown` when it does not come back in time.
        """
        events: queue.SimpleQueue[tuple[str, Any] | LvmigrateError] = queue.SimpleQueue()
        over = threading.Event()

        def read() -> None:
            try:
                for event in self._events(f"/v1/{collection}/{quote(job.id)}/events", since, over):
                    events.put(event)
            except LvmigrateError as error:
                events.put(error)

        def ask(wanted: str) -> bool:
            try:
                self._ask("POST", f"/v1/{collection}/{quote(job.id)}/{wanted}")
            except LvmigrateError as error:
                return error.code not in _ASK_AGAIN
            return True

        threading.Thread(target=read, name=f"follow-{job.id}", daemon=True).start()
        try:
            while True:
                on_look(ask)
                try:
                    told = events.get(timeout=_LOOK_S)
                except queue.Empty:
                    continue
                if isinstance(told, LvmigrateError):
                    raise _unknown(job, told)
                kind, value = told
                if kind == "job":
                    now = value_of(value, Job)
                    if now.over:
                        return now
                on_event(kind, value)
        finally:
            over.set()

    def _events(self, path: str, last: str, over: threading.Event) -> Iterator[tuple[str, Any]]:
        silent_since: float | None = None
        while not over.is_set():
            try:
                with self._way.client(quiet_s=_QUIET_S) as http:
                    headers = {"Last-Event-ID": last} if last else {}
                    with http.sse(path, headers=headers, max_event_size=_MOST_OF_AN_EVENT) as source:
                        if source.response.status_code != httpx.codes.OK:
                            source.response.read()
                            raise _error(source.response)
                        for event in source:
                            silent_since = None
                            last = event.id or last
                            yield event.event, msgspec.json.decode(event.data)
            except (httpx.HTTPError, httpx.StreamError, OSError, msgspec.DecodeError) as error:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > _PATIENCE_S:
                    raise self._unreachable(error) from error
            except LvmigrateError as error:
                if error.code not in (Code.STOPPING, Code.RATE_LIMITED, Code.SERVICE_BUSY):
                    raise
            over.wait(_AGAIN_S)

    def _ask(
        self, method: str, path: str, *, query: Query | None = None, body: object = None, key: str = ""
    ) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            response = self._http.request(
                method,
                path,
                params=dict(query or {}),
                content=None if body is None else encode(body),
                headers=headers,
            )
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise self._unreachable(error) from error
        if response.is_success:
            return response
        raise _error(response)

    def _unreachable(self, error: Exception) -> LvmigrateError:
        return Told(
            f"The service at {self._way.url} does not answer: {str(error) or type(error).__name__}.",
            hint="See that it runs (`lvmigrate serve` there), and that the way to it is open.",
            code=Code.SERVICE_UNREACHABLE,
            detail="",
            exit_code=ExitCode.UNREACHABLE,
        )


def part(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="")


def _error(response: httpx.Response) -> LvmigrateError:
    """What the service tells, as what it was there."""
    try:
        return error_of(response.json()["error"])
    except (ValueError, KeyError, TypeError) as error:
        told = Told(
            f"What answers with status {response.status_code} is no lvmigrate service that is understood.",
            hint="Check the URL; install the same version of lvmigrate at both ends.",
            code=Code.SERVICE_DIFFERS,
            detail=response.text[:200],
            exit_code=ExitCode.CONFIGURATION,
        )
        told.__cause__ = error
        return told


def _unknown(job: Job, error: LvmigrateError) -> OutcomeUnknown:
    unknown = OutcomeUnknown(
        f"What becomes of {job.about} is not known: {error.sentence}",
        known=[f"the service was asked for it: job {job.id}, {job.what} {job.about}"],
        hint="The job goes on, or is taken up when the service is back: `lvmigrate --server URL status`, or"
        f" GET the job {job.id}.",
    )
    unknown.code = error.code
    return unknown


def _perhaps_taken(collection: str, error: LvmigrateError) -> OutcomeUnknown:
    unknown = OutcomeUnknown(
        f"Whether the order was taken is not known: {error.sentence}",
        known=["the service was asked for it, and its answer did not come"],
        hint=f"See before it is ordered again: GET /v1/{collection} lists the newest jobs.",
    )
    unknown.code = error.code
    return unknown


def _context(ca: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(name for name in (ca, certificate, key) if name)
        raise ConfigurationError(
            f"The certificates for the service cannot be used ({names}): {error}.",
            hint="Check the files; --client-key names the key, where it is not in the certificate's file.",
        ) from error
    return context


def read_token(path: str | None) -> str:
    """The token in that file, else in LVMIGRATE_TOKEN; empty: there is none. Raises `ConfigurationError`."""
    if path is None:
        return os.environ.get("LVMIGRATE_TOKEN", "").strip()
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"The token in {path} cannot be read: {error}.", hint="Name another file.") from error
