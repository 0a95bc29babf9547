"""The ASGI application: every request is known, counted, judged, read, answered and noted here, whatever its route.

In this order: who asks, how often, which route, which role, how long the body is, what it says.  Whatever goes wrong is
answered as problem+json.  What changes something stands in the trail before it is done, but for what ends something;
what was refused, before it is answered.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final

import anyio
import anyio.to_thread
import msgspec
import structlog
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as Way
from starlette.types import ASGIApp, Receive, Scope, Send

from lvmigrate.defect import defect
from lvmigrate.errors import Code, LvmigrateError, UsageError
from lvmigrate.journal import JournalUnusable
from lvmigrate.service import openapi, orders
from lvmigrate.service.access import COOKIE, NO_COOKIE, Access, Subject, allow, bearer, cookie
from lvmigrate.service.events import Hub
from lvmigrate.service.files import NOTHING, PAGE, File, files
from lvmigrate.service.job import Asked
from lvmigrate.service.messages import Said
from lvmigrate.service.metrics import CONTENT_TYPE, Metrics
from lvmigrate.service.problem import MEDIA_TYPE, NotDone, problem
from lvmigrate.service.routes import PARAMETERS, ROUTES, Answer, Call, Key, Route, Service, whoami
from lvmigrate.service.settings import Role, Settings
from lvmigrate.service.slow import Slow
from lvmigrate.service.visitors import Visitors, peer_of
from lvmigrate.service.wire import encode

_log = structlog.get_logger()

#: How many requests may ask the journal at once; those that ask nodes must not hold them up (`Slow`).
_QUICK: Final = 16
#: How many streams of events one subject may follow at once, where nothing else is said.
_MOST_FOLLOWED: Final = 200
#: How long a body may take to come, in seconds.
_BODY_S: Final = 30.0
#: Between two signs of life on a quiet stream, in seconds.
_PING_S: Final = 15
#: Of a method or a path that is none of ours: what somebody else invents is no label of a metric.
_UNKNOWN: Final = "unknown"


class App:
    """One application. ``peer`` of the ASGI scope's state says who is at the other end (`lvmigrate.service.server`)."""

    def __init__(
        self,
        service: Service,
        hub: Hub,
        metrics: Metrics,
        settings: Settings,
        *,
        most_followed: int = _MOST_FOLLOWED,
    ) -> None:
        self._service = service
        self._hub = hub
        self._metrics = metrics
        self._settings = settings
        self._access = Access(settings)
        self._visitors = Visitors(settings, self._access)
        self._files = files()
        self._description = encode(openapi.description(ROUTES))
        self._quick: anyio.CapacityLimiter | None = None
        self._slow = Slow()
        self._most_followed = most_followed
        #: How many streams each subject follows now.
        self._follows: Counter[str] = Counter()
        by_path: dict[str, dict[str, Route]] = {}
        for route in ROUTES:
            by_path.setdefault(route.path, {})[route.method] = route
        self._starlette = Starlette(
            routes=[Way(path, _Endpoint(self, routes), methods=list(routes)) for path, routes in by_path.items()],
            exception_handlers={HTTPException: _no_route},
        )
        self._starlette.router.redirect_slashes = False
        self._texts: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "health": self._health,
            "ready": self._ready,
            "metrics": self._text_of_metrics,
            "description": self._text_of_description,
            "sign_in": self._sign_in,
            "sign_out": self._sign_out,
            "follow_all": self._follow,
            **{f"follow_{one}": self._follow for one in ("move", "drain", "cleanup")},
        }

    def change(self, settings: Settings) -> None:
        """From now on by these tokens, certificates, users and roles, also for who follows events already."""
        self._access.change(settings)
        self._hub.look_again()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":  # no web sockets here, and the server tells of the lifespan itself
            return
        began = time.monotonic()
        known = {"route": _UNKNOWN, "subject": None, "job": "", "code": "", "line": None}
        scope["state"] = {**scope.get("state", {}), **known}
        request = Request(scope, receive)
        status = 0

        async def noted(message: Any) -> None:  # noqa: ANN401 -- an ASGI message
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                await self._note(request, status, time.monotonic() - began)
            await send(message)

        answer: ASGIApp = self._starlette
        file = self._files.get(request.url.path) if request.method in ("GET", "HEAD") else None
        try:
            if file is not None:  # it tells nothing of anybody's guests, and shows who is not known where to sign in
                answer = self._file(request, file)
            else:
                scope["state"]["subject"] = self._visitors.known(request)
        except LvmigrateError as error:
            answer = _problem_of(error, request)
        except Exception as error:  # noqa: BLE001 -- never a traceback
            answer = _problem_of(defect(error), request)
        await answer(scope, receive, noted)

    def _file(self, request: Request, file: File) -> Response:
        """One of the page's files."""
        request.scope["state"]["route"] = "/page"
        self._visitors.count(request)
        headers = {**PAGE, "ETag": file.tag}
        if file.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(file.body, headers=headers, media_type=file.media_type)

    async def _note(self, request: Request, status: int, seconds: float) -> None:
        """For the log, the metrics and the trail."""
        state = request.scope["state"]
        route = state["route"]
        known_method = request.method if route != _UNKNOWN else _UNKNOWN
        self._metrics.requests.labels(known_method, route, str(status)).inc()
        if not state.get("streams"):
            self._metrics.request_seconds.labels(known_method, route).observe(seconds)
        refused = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS)
        if refused:
            self._metrics.refused.labels(state["code"] or str(status)).inc()
        line = _line(request, status)
        told = {
            name: getattr(line, name) for name in ("subject", "role", "via", "method", "path", "status", "code", "job")
        }
        _log.info("request", **{name: value for name, value in told.items() if value != ""}, ms=round(seconds * 1000))
        looks = request.method in ("GET", "HEAD") or route == "/v1/checks"
        # Who asks too often does not fill the journal as well.
        if (refused or not looks) and status != HTTPStatus.TOO_MANY_REQUESTS:
            try:
                await self._in_thread(lambda: self._write(line, state["line"]))
            except JournalUnusable as error:
                _log.error("trail_not_written", error=str(error))

    def _write(self, line: Asked, number: int | None) -> None:
        """Into the trail; ``number``: of its line there, which was written before it was done; 0: that could not be."""
        ledger = self._service.ledger
        if number is None:
            ledger.asked(line)
        elif number:
            ledger.answered(number, status=line.status, code=line.code, job=line.job)

    # ---- one request

    async def handle(self, route: Route, request: Request) -> Response:
        """Judge it, read it, do it. Never raises."""
        state = request.scope["state"]
        state["route"] = route.path
        try:
            subject: Subject = state["subject"]
            allow(subject, route.role)
            path = {name: _read(value, PARAMETERS[name]) for name, value in request.path_params.items()}
            query = _query(request, route)
            if route.handler is None:
                return await self._texts[route.name](request)
            key = request.headers.get("idempotency-key") if route.keyed else None
            call = Call(
                subject=subject,
                path=path,
                query=query,
                body=await self._body(request, route),
                key=None if key is None else _read(key, Key),
            )
            handler = route.handler
            if route.written_first:
                state["line"] = 0  # what could not be written is not tried twice: that may be waited for
                state["line"] = await self._in_thread(lambda: self._service.ledger.asked(_line(request, 0)))
            if route.slow:
                answer = await self._slow.run(subject, lambda: handler(self._service, call))
            else:
                answer = await self._in_thread(lambda: handler(self._service, call))
        except LvmigrateError as error:
            return _problem_of(error, request)
        except ClientDisconnect:  # nobody is there to be answered
            return Response(status_code=HTTPStatus.BAD_REQUEST)
        except Exception as error:  # noqa: BLE001 -- never a traceback
            return _problem_of(defect(error), request)
        if not isinstance(answer, Answer):
            answer = Answer(value=answer)
        state["job"] = answer.job
        headers = {**_SAFE, **answer.headers}
        body = encode(answer.value) if answer.media_type == "application/json" else str(answer.value)
        return Response(body, answer.status, headers, media_type=answer.media_type)

    async def _in_thread(self, act: Callable[[], Any]) -> Any:  # noqa: ANN401 -- whatever it returns
        if self._quick is None:
            self._quick = anyio.CapacityLimiter(_QUICK)
        return await anyio.to_thread.run_sync(act, limiter=self._quick)

    async def _body(self, request: Request, route: Route) -> object:
        """What came, at most as long as may come; where nothing is awaited, nothing is read."""
        if route.body is None:
            return None
        most = self._settings.body_kib * 1024
        body = bytearray()
        with anyio.move_on_after(_BODY_S) as waiting:
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise UsageError(
                        f"The body is longer than {self._settings.body_kib} KiB.",
                        hint="Send less; [service] body_kib raises the limit.",
                        code=Code.TOO_LARGE,
                    )
        if waiting.cancelled_caught:
            raise UsageError("The body did not come in time.", hint=f"It may take {_BODY_S:.0f} s.")
        try:
            return orders.read(bytes(body), route.body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise _not_understood("The body", error) from error

    # ---- what is no JSON of a handler's

    async def _health(self, _request: Request) -> Response:
        return Response(encode(Said(status="ok")), headers=_SAFE, media_type="application/json")

    async def _sign_in(self, request: Request) -> Response:
        """Who has come with a token need not do so again; who has not, by a certificate, say, has no need to."""
        subject: Subject = request.scope["state"]["subject"]
        token = bearer(request.headers.get("authorization", ""))
        by_token = subject.name.startswith("token:") and token
        headers = dict(_SAFE)
        if by_token:
            headers["Set-Cookie"] = cookie(token)
            subject = subject._replace(signed_in=True)
        return Response(encode(whoami(subject)), headers=headers, media_type="application/json")

    async def _sign_out(self, _request: Request) -> Response:
        headers = {**_SAFE, "Set-Cookie": NO_COOKIE}
        return Response(encode(Said(status="signed out")), headers=headers, media_type="application/json")

    async def _ready(self, request: Request) -> Response:
        if self._service.jobs.stopping:
            error = NotDone("The service is about to stop.", hint="Ask again when it is back.", code=Code.STOPPING)
            return _problem_of(error, request)
        await self._in_thread(self._service.ledger.trial)
        return await self._health(request)

    async def _text_of_metrics(self, _request: Request) -> Response:
        self._metrics.followers.set(self._hub.followers)
        text = await self._in_thread(self._metrics.text)  # it asks the kernel, too: others are answered meanwhile
        return Response(text, headers={"Content-Type": CONTENT_TYPE, **_SAFE})

    async def _text_of_description(self, _request: Request) -> Response:
        return Response(self._description, headers=_SAFE, media_type="application/json")

    async def _follow(self, request: Request) -> Response:
        collection = request.url.path.split("/")[2]
        job = request.path_params.get("id")
        jobs = self._service.jobs
        if job is not None:
            await self._in_thread(lambda: jobs.one(job, orders.WHAT[collection]))
        if request.method == "HEAD":
            return Response(headers=_SAFE, media_type="text/event-stream")
        subject: Subject = request.scope["state"]["subject"]
        if self._follows[subject.name] >= self._most_followed:
            raise NotDone(
                f"{subject.name} follows {self._most_followed} streams of events already: no more may be.",
                hint="End some; one stream of /v1/events tells of every job.",
                code=Code.SERVICE_BUSY,
            )
        request.scope["state"]["streams"] = True
        frames: AsyncIterator[bytes] = self._hub.stream(
            request.headers.get("last-event-id"),
            lambda: jobs.stands(job),
            job=job,
            may=self._visitors.standing(request, subject, Role.LOOK),
        )
        return _Followed(frames, self._follows, subject.name)


class _Followed(EventSourceResponse):
    """A stream of events, counted while it is sent."""

    def __init__(self, frames: AsyncIterator[bytes], follows: Counter[str], subject: str) -> None:
        super().__init__(frames, ping=_PING_S, headers=_SAFE)
        self._follows = follows
        self._subject = subject

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._follows[self._subject] += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._follows[self._subject] -= 1


class _Endpoint:
    """All of one path, by method, as Starlette calls it: what is no function is an ASGI application of its own."""

    def __init__(self, app: App, routes: Mapping[str, Route]) -> None:
        self._app = app
        self._routes = {**routes, **({"HEAD": routes["GET"]} if "GET" in routes else {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._app.handle(self._routes[scope["method"]], Request(scope, receive))
        await response(scope, receive, send)


#: What is served here is for nobody's cache, and is never run.
_SAFE: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": NOTHING,
    "Lvmigrate-Version": version("lvmigrate"),
}


def _line(request: Request, status: int) -> Asked:
    """What the trail says of it; ``status`` 0: as long as that is not known."""
    state = request.scope["state"]
    subject: Subject | None = state["subject"]
    return Asked(
        number=0,
        at=time.time(),  # the wall clock: it is for people
        subject=subject.name if subject is not None else "",
        role=subject.role.value if subject is not None else "",
        via=str(peer_of(request)),
        method=request.method[:20],
        path=request.url.path[:300],
        status=status,
        code=state["code"],
        job=state["job"],
    )


def _problem_of(error: LvmigrateError, request: Request) -> Response:
    told = problem(error)
    request.scope["state"]["code"] = told["code"]
    headers = dict(_SAFE)
    if error.code is Code.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = 'Bearer realm="lvmigrate"'
        if COOKIE in request.cookies:  # it is not valid any more, and would hide a certificate that is
            headers["Set-Cookie"] = NO_COOKIE
    if told["status"] in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers["Retry-After"] = "10"
    # What more comes of a body is not read; and who was sent away must not keep a place.
    if error.code in (Code.TOO_LARGE, Code.UNAUTHENTICATED, Code.RATE_LIMITED, Code.SERVICE_BUSY):
        headers["Connection"] = "close"
    return Response(encode(told), told["status"], headers, media_type=MEDIA_TYPE)


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.NOT_FOUND
    response = _problem_of(
        UsageError(
            f"There is nothing at {request.method[:20]} {request.url.path[:200]}.",
            hint="/v1/openapi.json describes all that there is.",
            code=Code.ROUTE_UNKNOWN,
        ),
        request,
    )
    if status == HTTPStatus.METHOD_NOT_ALLOWED and isinstance(error, HTTPException):
        response.status_code = status
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
    return response


def _read(value: str, kind: Any) -> Any:  # noqa: ANN401 -- as it is annotated
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _not_understood("The address, or a header,", error) from error


def _query(request: Request, route: Route) -> Any:  # noqa: ANN401 -- the route's own Struct
    words = dict(request.query_params)
    if len(words) != len(request.query_params.multi_items()):
        raise _not_understood("The query", ValueError("a word is said twice"))
    try:
        found = msgspec.convert(words, route.query, strict=False)
    except msgspec.ValidationError as error:
        raise _not_understood("The query", error) from error
    if any(getattr(found, name) is None for name in words):  # msgspec reads one for the word
        raise _not_understood("The query", ValueError("there is no null in it"))
    return found


def _not_understood(what: str, error: Exception) -> UsageError:
    why = str(error)
    with suppress(UnicodeError):
        why = why.encode("ascii", "backslashreplace").decode()
    return UsageError(
        f"{what} is not understood: {why[:300]}.", hint="/v1/openapi.json describes what may come.", code=Code.USAGE
    )
