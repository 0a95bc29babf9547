"""The process: its sockets, its signals, its end. uvicorn speaks HTTP and TLS; here is who listens, until when."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import fcntl
import grp
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from lvmigrate import config
from lvmigrate.cluster import Cluster
from lvmigrate.errors import Code, ConfigurationError, ExitCode, Finding, LvmigrateError, Refused
from lvmigrate.journal import JournalUnusable
from lvmigrate.log import configure
from lvmigrate.service import door
from lvmigrate.service.access import Peer
from lvmigrate.service.app import App
from lvmigrate.service.events import Hub
from lvmigrate.service.jobs import Jobs
from lvmigrate.service.ledger import JournalOccupied, Ledger
from lvmigrate.service.metrics import Metrics
from lvmigrate.service.notify import Notify
from lvmigrate.service.overheard import overheard
from lvmigrate.service.routes import Service
from lvmigrate.service.settings import Settings, Stop, address

_log = structlog.get_logger()

T = TypeVar("T")

#: How long answers that are under way may take once the service ends.
_LAST_ANSWERS_S: Final = 3
_BACKLOG: Final = 256
#: How long TLS may take to be agreed upon, a request to be said, and how long a connection stays open for the next one.
_HANDSHAKE_S: Final = 10.0
_WORDS_S: Final = 10.0
_KEEP_ALIVE_S: Final = 75
_LATER: Final = frozenset({signal.SIGHUP})
#: Between two tries to open a journal that cannot be used just now, and how long one may take by far, in seconds.
_JOURNAL_AGAIN_S: Final = 2.0
_STARTS_S: Final = 90.0
#: Between two lines of the log about the same trouble, in seconds.
_TROUBLE_S: Final = 10.0


class _Protocol(H11Protocol):
    """Tells the application who is at the other end, and is done with those who do not say what they want."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self.app_state = {**self.app_state, "peer": _peer(transport)}
        self._patience = self.loop.call_later(_WORDS_S, self._be_done)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._half_said():
            self._be_patient()
        elif self._patience is None:
            self._patience = self.loop.call_later(_WORDS_S, self._be_done)

    def connection_lost(self, exc: Exception | None) -> None:
        self._be_patient()
        super().connection_lost(exc)

    def _half_said(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)  # uvicorn says that there always is one
        return (cycle is None or cycle.response_complete) and self.timeout_keep_alive_task is None

    def _be_patient(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _be_done(self) -> None:
        self._patience = None
        if self._half_said() and not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """Leaves the signals to the process, and does not wait long for TLS."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        protocol = partial(_Protocol, config=self.config, server_state=self.server_state, app_state={})
        context = self.config.ssl
        self.servers = [
            await loop.create_server(
                protocol,
                sock=listener,
                ssl=context,
                ssl_handshake_timeout=None if context is None else _HANDSHAKE_S,
                backlog=_BACKLOG,
            )
            for listener in sockets or ()
        ]
        self.started = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(path: str | None = None, *, open_cluster: Callable[[str | None], Cluster] = Cluster.open) -> int:
    """Serve until SIGTERM or SIGINT asks to stop, and tell the `ExitCode`.

    A second signal aborts what is waited for.  SIGHUP reads tokens, certificates, users and roles again.  A service
    manager is told when it is ready, what it is doing, and how long its end may take (`Notify`).  A journal that
    somebody else has locked, or whose disk is full, is waited for.  Raises `ConfigurationError`, `JournalUnusable`, and
    `Refused` (`Code.LOCKED`) where another service uses the same journal.
    """
    notify = Notify()
    if notify.watchdog_s:
        faulthandler.enable()  # a service that hangs is ended by SIGABRT: the log then says where each thread was
    with open_cluster(path) as cluster:
        settings = Settings.of(cluster.config)
        most = door.most_connections(door.raise_limit())
        configure(level="info", json=settings.log == "json")
        journal = cluster.config.journal
        if journal is None:
            raise JournalUnusable(
                "The service keeps its jobs in the journal, and the configuration names none.",
                hint="Name a file for it: [journal] path in the configuration.",
            )
        with overheard(), _alone(journal.parent), _later():
            ledger = _patiently(lambda: Ledger(journal), notify)
            hub, metrics = Hub(), Metrics()
            jobs = Jobs(cluster, ledger, hub, metrics, settings, journal.parent / "service")
            service = Service(cluster=cluster, jobs=jobs, ledger=ledger, hub=hub)
            app = App(service, hub, metrics, settings, most_followed=door.most_followed(most))
            with _listening(settings, cluster.config.path, most) as sockets:
                access = _AccessAgain(app, jobs, notify, lambda: Settings.of(config.load(path)))
                left = asyncio.run(_serve(app, service, settings, sockets, notify, access))
            if left:
                # Threads of the core are in the middle of them; the next service takes them up as after a kill -9.
                _log.warning("jobs_handed_over", jobs=list(left))
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(ExitCode.OK)
            ledger.close()
    return ExitCode.OK


async def _serve(
    app: App,
    service: Service,
    settings: Settings,
    sockets: list[tuple[socket.socket, ssl.SSLContext | None]],
    notify: Notify,
    access: _AccessAgain,
) -> tuple[str, ...]:
    """Until it is asked to stop; the jobs that are handed over."""
    jobs, hub, loop = service.jobs, service.hub, asyncio.get_running_loop()
    loop.set_exception_handler(_Trouble())
    hub.run_in(loop)
    asked, hurry = asyncio.Event(), threading.Event()

    def stop() -> None:
        (hurry if asked.is_set() else asked).set()

    for number, act in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGHUP, access.read)):
        loop.add_signal_handler(number, act)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LATER)
    living = asyncio.ensure_future(notify.live(jobs.sentence))
    try:
        await asyncio.to_thread(_patiently, jobs.start, notify, asked.is_set)
    except JournalOccupied:
        return ()  # it was asked to stop before it could begin
    servers = [_Server(_uvicorn(app, context)) for _, context in sockets]
    serving = [
        asyncio.ensure_future(server.serve(sockets=[listener]))
        for server, (listener, _) in zip(servers, sockets, strict=True)
    ]
    waiting = asyncio.ensure_future(asked.wait())
    _log.info("serving", at=[_where(listener) for listener, _ in sockets])
    notify.ready(await asyncio.to_thread(jobs.sentence))
    await asyncio.wait([waiting, *serving], return_when=asyncio.FIRST_COMPLETED)
    _log.info("stopping", how=settings.stop.value)
    notify.stopping(0.0 if settings.stop is Stop.HAND_OVER else settings.stop_deadline_s)
    # It goes on answering meanwhile: who follows a job sees its end.
    left = await asyncio.to_thread(jobs.stop, settings.stop, settings.stop_deadline_s, hurry=hurry.is_set)
    hub.close()
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*serving)
    waiting.cancel()
    living.cancel()
    return left


def _patiently(act: Callable[[], T], notify: Notify, give_up: Callable[[], bool] = lambda: False) -> T:
    """What ``act`` returns, as soon as the journal lets it.

    What passes, a file that somebody else has locked or a disk without room, must not end a service that has guests to
    look after: it is waited for, as long as it takes, and told.  Everything else is raised.
    """
    while True:
        try:
            return act()
        except JournalOccupied as error:
            if give_up():
                raise
            _log.warning("journal_waited_for", why=str(error), hint=error.hint)
            notify.waiting(f"Waiting for the journal: {error}", _STARTS_S)
        time.sleep(_JOURNAL_AGAIN_S)


@contextmanager
def _later() -> Iterator[None]:
    """What asks it to read something again is heard once somebody is there to hear it, however long that takes."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LATER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _AccessAgain:
    """Who may what, read again when a signal asks for it: one reading at a time, and the loop waits for none of it."""

    def __init__(self, app: App, jobs: Jobs, notify: Notify, settings: Callable[[], Settings]) -> None:
        self._app = app
        self._jobs = jobs
        self._notify = notify
        self._settings = settings
        self._wanted = False
        self._reading: asyncio.Future[None] | None = None

    def read(self) -> None:
        """Have it be read; what was asked for while it is being read is read once more."""
        self._wanted = True
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        while self._wanted:
            self._wanted = False
            self._notify.reloading()
            try:
                self._app.change(await asyncio.to_thread(self._settings))
                _log.info("access_read_again")
            except LvmigrateError as error:  # what holds goes on holding
                _log.error("access_not_read_again", error=str(error))
            # It waits for the journal as long as the jobs do.
            self._notify.ready(await asyncio.to_thread(self._jobs.sentence))


def _uvicorn(app: App, context: ssl.SSLContext | None) -> uvicorn.Config:
    found = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_LAST_ANSWERS_S,
        timeout_keep_alive=_KEEP_ALIVE_S,
    )
    found.load()
    found.ssl = context
    return found


class _Trouble:
    """Has what the loop complains of be one line of the log, and the same no more than once in some seconds."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, int]] = {}

    def __call__(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error, now = context.get("exception"), time.monotonic()
        kind = type(error).__name__
        since, again = self._told.get(kind, (-_TROUBLE_S, 0))
        if now - since < _TROUBLE_S:
            self._told[kind] = since, again + 1
            return
        self._told[kind] = now, 0
        defect = None if isinstance(error, OSError) else error
        _log.error("loop_trouble", what=context["message"], error=repr(error), not_told=again, exc_info=defect)


def _peer(transport: asyncio.BaseTransport) -> Peer:
    """Who is there: by the kernel's word on a unix socket, by what TLS has verified on TCP."""
    end: socket.socket = transport.get_extra_info("socket")
    if end.family == socket.AF_UNIX:
        pid, uid, gid = door.credentials(end)
        return Peer(pid=pid, uid=uid, gid=gid)
    host, port, *_ = transport.get_extra_info("peername") or ("", 0)
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    names: Any = (tls.getpeercert() or {}).get("subject", ()) if tls is not None else ()
    common = [value for part in names for key, value in part if key == "commonName"]
    return Peer(address=f"{host}:{port}", certificate=common[0] if len(common) == 1 else None)


# ---- where it listens


@contextmanager
def _listening(
    settings: Settings, path: Path, most: int
) -> Iterator[list[tuple[socket.socket, ssl.SSLContext | None]]]:
    """All sockets, open, each for so many connections; the unix one is taken away afterwards.

    Raises `ConfigurationError`.
    """
    with contextlib.ExitStack() as stack:
        sockets: list[tuple[socket.socket, ssl.SSLContext | None]] = []
        place = address(settings.listen, path)
        context = _tls(settings) if place is not None else None
        if settings.socket:
            sockets.append((stack.enter_context(contextlib.closing(door.Door(_unix(settings), most=most))), None))
            stack.callback(Path(settings.socket).unlink, missing_ok=True)
        if place is not None:
            sockets.append((stack.enter_context(contextlib.closing(door.Door(_tcp(*place), most=most))), context))
        yield sockets


def _unix(settings: Settings) -> socket.socket:
    where = Path(settings.socket)
    with _cannot(f"listen on {where}"), contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)))
        where.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        where.unlink(missing_ok=True)  # of one that was killed: whoever has the lock beside the journal is alone
        before = os.umask(0o177)  # nobody may come before it is said who may
        try:
            listener.bind(str(where))
        finally:
            os.umask(before)
        stack.callback(where.unlink, missing_ok=True)
        if settings.socket_group:
            os.chown(where, -1, _group(settings.socket_group))
        where.chmod(int(settings.socket_mode, 8))
        listener.listen(_BACKLOG)
        stack.pop_all()
        return listener


def _tcp(host: str, port: int) -> socket.socket:
    with _cannot(f"listen on {host} port {port}"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def _tls(settings: Settings) -> ssl.SSLContext:
    with _cannot("use the certificate, its key, or the clients' authority"):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(settings.certificate, settings.key)
        if settings.client_ca:
            context.load_verify_locations(settings.client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL  # who shows none comes with a token
        return context


@contextmanager
def _cannot(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ssl.SSLError, OverflowError) as error:
        raise ConfigurationError(
            f"The service cannot {what}: {error}.", hint="See [service] in the configuration."
        ) from error


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """The only service of this journal; the lock ends with the process, however that ends."""
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    with (directory / "service.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            finding = Finding(
                code=Code.LOCKED,
                sentence=f"Another service works with the journal in {directory}.",
                hint="Ask that one, or stop it first; a second one needs a journal of its own.",
            )
            raise Refused("", [finding]) from None
        yield


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigurationError(
            f"There is no group {name}, which [service] socket_group names.", hint="Make it: `groupadd --system`."
        ) from None


def _where(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"unix:{name}" if isinstance(name, str) else f"https://{name[0]}:{name[1]}"
