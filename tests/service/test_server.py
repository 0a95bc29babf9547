"""The process: its sockets and who is at their other ends, its signals, its streams of events."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import sqlite3
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

import httpx2 as httpx
import pytest
import trustme

from lvmigrate import cli
from lvmigrate.errors import ExitCode
from lvmigrate.service import server
from lvmigrate.service.access import new_token
from lvmigrate.service.client import Way
from lvmigrate.service.door import Door
from lvmigrate.service.job import Job, State
from lvmigrate.service.messages import JobList
from lvmigrate.service.orders import Drain, DrainLimits, Migrate
from tests.service.support import House, house, wait_for

TOKEN, DIGEST = new_token()


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number: int = listener.getsockname()[1]
        return number


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, ca: trustme.CA, port: int) -> Iterator[House]:
    directory = tmp_path_factory.mktemp("house")
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    served = ca.issue_cert("127.0.0.1")
    served.cert_chain_pems[0].write_to_path(str(directory / "service.pem"))
    served.private_key_pem.write_to_path(str(directory / "service.key"))
    for name in ("ci", "stranger"):
        ca.issue_cert(f"{name}.example", common_name=name).private_key_and_cert_chain_pem.write_to_path(
            str(directory / f"{name}.pem")
        )
    trustme.CA().issue_cert("x.example", common_name="ci").private_key_and_cert_chain_pem.write_to_path(
        str(directory / "forged.pem")
    )
    service = f"""
listen = "127.0.0.1:{port}"
certificate = "service.pem"
key = "service.key"
client_ca = "ca.pem"
certificates = {{ ci = "move" }}
[service.tokens.nagios]
sha256 = "{DIGEST}"
"""
    with house(directory, service) as made:
        made.guest("web1")
        made.start()
        yield made


def ask(here: House, port: int, *, certificate: str | None = None, token: str = "", path: str = "/v1/nodes") -> Any:
    url = f"https://127.0.0.1:{port}"
    file = None if certificate is None else str(here.directory / certificate)
    with Way(url, token=token, ca=str(here.directory / "ca.pem"), certificate=file).client() as http:
        return http.get(path)


# ---- who is at the other end


def test_the_unix_socket_has_the_permissions_that_are_configured(here: House) -> None:
    mode = here.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660


def test_who_may_not_open_the_socket_does_not_come_in(here: House) -> None:
    code = f"import os, socket; os.setgid(65534); os.setuid(65534); socket.socket(1).connect({str(here.socket)!r})"
    for directory in (here.directory, *here.directory.parents):
        if directory.stat().st_mode & 0o005 != 0o005 and str(directory).startswith("/tmp/pytest"):
            directory.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "PermissionError" in done.stderr


def test_the_log_and_the_trail_tell_the_process_at_the_other_end(here: House) -> None:
    with here.client() as client:
        client.send("POST", "/v1/history/prune", {"days": 500.0}, dict)
        line = client.get("/v1/trail", dict)["asked"][0]
    who = f"unix pid={os.getpid()} uid={os.getuid()} gid={os.getgid()}"
    assert (line["via"], line["path"], line["status"]) == (who, "/v1/history/prune", 200)
    lines = [json.loads(line) for line in here.log.read_text().splitlines()]
    assert any(line.get("via") == who and line["path"] == "/v1/history/prune" for line in lines)


@pytest.mark.parametrize(
    ("certificate", "token", "status"),
    [
        (None, "", 401),
        (None, "wrong", 401),
        (None, TOKEN, 200),
        ("ci.pem", "", 200),
        ("stranger.pem", "", 401),
        ("ci.pem", "wrong", 401),
        ("stranger.pem", TOKEN, 200),
    ],
    ids=["neither", "another token", "token", "certificate", "a stranger's", "another token with it", "token with it"],
)
def test_over_the_net_with_a_token_or_a_certificate(
    here: House, port: int, certificate: str | None, token: str, status: int
) -> None:
    assert ask(here, port, certificate=certificate, token=token).status_code == status


def test_a_certificate_of_another_authority_is_refused_by_tls(here: House, port: int) -> None:
    with pytest.raises(httpx.HTTPError):
        ask(here, port, certificate="forged.pem")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_over_the_net_there_is_no_plain_text_and_no_old_tls(here: House, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 10) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in plain.recv(1000)
    context = ssl.create_default_context(cafile=str(here.directory / "ca.pem"))
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        pytest.raises(ssl.SSLError),
        socket.create_connection(("127.0.0.1", port), 10) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1"),
    ):
        pass


def test_the_command_comes_over_the_net(
    here: House, port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ["--server", f"https://127.0.0.1:{port}"]
    ca = ["--ca", str(here.directory / "ca.pem")]
    monkeypatch.setenv("LVMIGRATE_TOKEN", TOKEN)
    assert cli.main([*server, *ca, "status"]) == ExitCode.OK
    assert "web1" in capsys.readouterr().out
    assert cli.main([*server, *ca, "migrate", "web1", "--json"]) == ExitCode.REFUSED
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "FORBIDDEN"
    assert cli.main([*server, "status"]) == ExitCode.UNREACHABLE  # its authority is not known here
    assert "CERTIFICATE_VERIFY_FAILED" in capsys.readouterr().err
    monkeypatch.delenv("LVMIGRATE_TOKEN")
    assert cli.main([*server, *ca, "status"]) == ExitCode.REFUSED
    certificate = ["--client-cert", str(here.directory / "ci.pem")]
    assert cli.main([*server, *ca, *certificate, "rehearse", "web1"]) == ExitCode.OK


def test_a_certificate_and_its_key_may_be_in_two_files(
    here: House, port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, dashes, chain = (here.directory / "ci.pem").read_text().partition("-----BEGIN CERTIFICATE-----")
    (tmp_path / "ci.crt").write_text(dashes + chain)
    (tmp_path / "ci.key").write_text(key)
    asked = ["--server", f"https://127.0.0.1:{port}", "--ca", str(here.directory / "ca.pem")]
    asked += ["--client-cert", str(tmp_path / "ci.crt")]
    assert cli.main([*asked, "--client-key", str(tmp_path / "ci.key"), "status"]) == ExitCode.OK
    assert "web1" in capsys.readouterr().out
    assert cli.main([*asked, "status"]) == ExitCode.CONFIGURATION
    told = capsys.readouterr().err
    assert "The certificates for the service cannot be used" in told
    assert "--client-key names the key" in told


def test_sighup_reads_the_tokens_again(here: House, port: int) -> None:
    token, digest = new_token()
    before = here.configuration.read_text()
    assert here.process is not None
    try:
        here.configuration.write_text(before.replace(DIGEST, digest))
        here.process.send_signal(signal.SIGHUP)
        wait_for(lambda: ask(here, port, token=token).status_code == 200)
        assert ask(here, port, token=TOKEN).status_code == 401
        here.configuration.write_text(before.replace(DIGEST, "none"))  # what is wrong changes nothing
        here.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "access_not_read_again" in here.log.read_text())
        assert ask(here, port, token=token).status_code == 200
    finally:
        here.configuration.write_text(before)
        here.process.send_signal(signal.SIGHUP)
    wait_for(lambda: ask(here, port, token=TOKEN).status_code == 200)


def test_a_token_that_is_taken_back_ends_the_streams_that_it_follows(here: House, port: int) -> None:
    token, digest = new_token()
    before = here.configuration.read_text()
    assert here.process is not None
    pid = here.process.pid
    told: list[bytes] = []
    begun, over = threading.Event(), threading.Event()

    def follow() -> None:
        ca = str(here.directory / "ca.pem")
        with (
            Way(f"https://127.0.0.1:{port}", token=token, ca=ca).client() as http,
            http.stream("GET", "/v1/events") as answer,
        ):
            begun.set()
            told.extend(answer.iter_bytes())
            over.set()

    try:
        here.configuration.write_text(f'{before}\n[service.tokens.guest]\nsha256 = "{digest}"\n')
        os.kill(pid, signal.SIGHUP)
        wait_for(lambda: ask(here, port, token=token).status_code == 200)
        threading.Thread(target=follow, daemon=True).start()
        assert begun.wait(30)
        os.kill(pid, signal.SIGHUP)  # nothing is changed for them
        wait_for(lambda: here.log.read_text().count("access_read_again") >= 2)
        assert not over.wait(0.5)
        here.configuration.write_text(before)
        os.kill(pid, signal.SIGHUP)
        assert over.wait(30), "it follows still"
        with here.client() as client:
            client.order("moves", Migrate(instance="nobody"))
        assert b"nobody" not in b"".join(told)
    finally:
        here.configuration.write_text(before)
        os.kill(pid, signal.SIGHUP)
    wait_for(lambda: ask(here, port, token=TOKEN).status_code == 200)


def test_a_journal_that_is_locked_keeps_no_scrape_and_no_sign_of_life(tmp_path: Path) -> None:
    with house(tmp_path) as own:
        own.start()
        with closing(sqlite3.connect(own.journal, isolation_level=None)) as lock, ExitStack() as stack:
            lock.execute("BEGIN IMMEDIATE")
            stack.callback(lock.execute, "ROLLBACK")
            ordered = threading.Event()

            def order() -> None:
                with own.client() as client:
                    client.order("moves", Migrate(instance="web1"))
                ordered.set()

            threading.Thread(target=order, daemon=True).start()
            time.sleep(0.5)  # the order waits for the journal, and holds what the jobs are changed with
            assert own.process is not None
            own.process.send_signal(signal.SIGHUP)
            with Way(own.url).client() as http:
                assert "lvmigrate_jobs" in http.get("/metrics").text
                wait_for(lambda: "access_read_again" in own.log.read_text())
                assert http.get("/health").status_code == 200
            assert not ordered.is_set(), "it was not locked for so long"
        assert ordered.wait(30)


def test_what_is_no_http_does_no_harm(here: House) -> None:
    for words in (
        b"\x00" * 5000,
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"a" * 200_000,
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(here.socket))
            raw.settimeout(10)
            try:
                raw.sendall(words)
                raw.shutdown(socket.SHUT_WR)
                raw.recv(1000)
            except OSError:
                pass
    assert here.process is not None
    assert here.process.poll() is None
    with here.client() as client:
        assert client.get("/health", dict) == {"status": "ok"}


@pytest.mark.parametrize("form", ["json", "text"])
def test_nothing_that_comes_breaks_the_log(tmp_path: Path, form: str) -> None:
    with house(tmp_path, f'log = "{form}"') as own:
        own.start()
        for words in (
            b"GET\r\n\r\n",
            b"GET /v1/x%1b%5b2J%0d%0aFORGED%e2%80%ae%9b HTTP/1.1\r\nHost: x\r\n\r\n",
            *[b"G\r\n\r\n"] * 5,
        ):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(own.socket))
                raw.settimeout(10)
                raw.sendall(words)
                raw.recv(1000)
        wait_for(lambda: "FORGED" in own.log.read_text())
        lines = own.log.read_text(encoding="utf-8").splitlines()
        assert len([line for line in lines if "Invalid HTTP request received" in line]) == 1, "one tells of many"
        assert len([line for line in lines if "FORGED" in line and "request" in line]) == 1
        assert all(line.isprintable() for line in lines), lines
        if form == "json":
            told = [json.loads(line) for line in lines]
            assert any(line["event"] == "library_says" and line["library"] == "uvicorn.error" for line in told)


def test_who_goes_away_in_the_middle_is_no_defect(here: House) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(here.socket))
        raw.sendall(b"POST /v1/moves HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.3)
    wait_for(lambda: '"status": 400' in here.log.read_text())
    assert "defect" not in here.log.read_text()


# ---- those who come and say nothing


def files(pid: int) -> list[int]:
    return [int(file.name) for file in Path(f"/proc/{pid}/fd").iterdir()]


def test_silent_connections_take_the_service_from_nobody_else(here: House, port: int) -> None:
    assert here.process is not None
    pid = here.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    assert before[0] >= min(before[1], 4096)  # it has as many as it may
    with ExitStack() as stack:
        stack.callback(resource.prlimit, pid, resource.RLIMIT_NOFILE, before)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (400, before[1]))
        for _ in range(450):
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), 10)))
        with here.client() as client:
            assert client.get("/health", dict) == {"status": "ok"}
            assert client.get("/v1/instances", dict)["nodes"]
        assert wait_for(lambda: "turned_away" in here.log.read_text())
        assert len(files(pid)) < 350
    assert "Traceback" not in here.log.read_text()
    # They have gone: whoever speaks is let in again.
    wait_for(lambda: len(files(pid)) < 100)
    assert ask(here, port, token=TOKEN).status_code == 200


def test_with_no_file_left_the_log_is_not_flooded_and_it_comes_back(here: House) -> None:
    assert here.process is not None
    pid = here.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.prlimit, pid, resource.RLIMIT_NOFILE, before)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(files(pid)) + 20, before[1]))
        for _ in range(100):
            stack.enter_context(closing(socket.socket(socket.AF_UNIX))).connect(str(here.socket))
        wait_for(lambda: "turned_away" in here.log.read_text())
        assert "Traceback" not in here.log.read_text()
        assert len([line for line in here.log.read_text().splitlines() if "turned_away" in line]) < 10
    with here.client() as client:
        assert client.get("/health", dict) == {"status": "ok"}


def test_one_subject_follows_no_more_than_its_part(here: House) -> None:
    def follows(stack: ExitStack) -> tuple[socket.socket, bytes]:
        raw = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
        raw.connect(str(here.socket))
        raw.settimeout(30)
        raw.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        return raw, raw.recv(4000)

    with ExitStack() as stack:
        first, answer = follows(stack)
        answers = [answer, *(follows(stack)[1] for _ in range(199))]
        assert {answer.split()[1] for answer in answers} == {b"200"}
        refused = follows(stack)[1]
        assert refused.split()[1] == b"503"
        assert b"retry-after" in refused.lower()
        assert b"connection: close" in refused.lower()
        first.close()
        wait_for(lambda: follows(stack)[1].split()[1] == b"200")


async def _answers(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize(
    ("words", "tls"),
    [([], True), ([], False), ([b"GET / HT"], False), ([b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HT"], False)],
    ids=["no TLS", "nothing", "half a request", "half of the next"],
)
def test_who_does_not_say_what_they_want_is_disconnected(
    words: list[bytes],
    tls: bool,  # noqa: FBT001 -- a case
    ca: trustme.CA,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_HANDSHAKE_S" if tls else "_WORDS_S", 0.2)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)

    async def run() -> None:
        listener = Door(socket.create_server(("127.0.0.1", 0)), most=8)
        place = listener.getsockname()
        made = server._Server(server._uvicorn(cast("Any", _answers), context if tls else None))
        serving = asyncio.ensure_future(made.serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection(*place)
        async with asyncio.timeout(30):
            for number, each in enumerate(words, 1):
                writer.write(each)
                if number < len(words):
                    assert await reader.readuntil(b"ok")
            assert await reader.read() == b""  # long before TLS, or a connection that is kept alive, would end
        writer.close()
        made.should_exit = True
        await serving

    asyncio.run(run())


# ---- what the configuration may not say


@pytest.mark.parametrize(
    "service",
    [
        'listen = "127.0.0.1:1"',
        'listen = "nowhere"\ncertificate = "x"\nkey = "y"',
        'listen = "127.0.0.1:70000"\ncertificate = "x"\nkey = "y"',
        'listen = "127.0.0.1:1"\ncertificate = "x"\nkey = "y"',
        'socket_role = "king"',
        'socket_mode = "rw"',
        'socket_group = "no such group"',
        "at_once = 0",
        "nothing = 1",
        '[service.tokens.x]\nsha256 = "short"',
        'stop = "now"',
    ],
)
def test_a_configuration_that_makes_no_sense_is_told(
    tmp_path: Path, service: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(f'[nodes.a]\n[nodes.b]\n[journal]\npath = "j.sqlite"\n[service]\nsocket = "api.sock"\n{service}\n')
    assert cli.main(["serve", "--config", str(file), "--json"]) == ExitCode.CONFIGURATION
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "CONFIG_INVALID"
    assert error["hint"]
    assert not (tmp_path / "api.sock").exists()


def test_without_a_journal_there_is_no_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text('[nodes.a]\n[nodes.b]\n[journal]\npath = ""\n[service]\nsocket = "api.sock"\n')
    assert cli.main(["serve", "--config", str(file), "--json"]) == ExitCode.CONFIGURATION
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "JOURNAL_UNUSABLE"


# ---- its end


def one(here: House, collection: str = "moves") -> Job:
    with here.client() as client:
        return client.get(f"/v1/{collection}", JobList).jobs[0]


def test_a_stop_waits_for_what_is_under_way(tmp_path: Path) -> None:
    with house(tmp_path) as own:
        guest = own.guest("web1", copy_s=2.0)
        own.start()
        with own.client() as client:
            client.order("moves", Migrate(instance="web1"))
            wait_for(own.copies_begun)
            assert own.process is not None
            own.process.send_signal(signal.SIGTERM)
            with Way(own.url).client() as http:
                wait_for(lambda: http.get("/ready").status_code == 503)
                answer = http.post("/v1/moves", json={"what": "migrate", "instance": "web1"})
            assert (answer.status_code, answer.json()["code"]) == (503, "STOPPING")
        assert own.process.wait(60) == ExitCode.OK
        assert own.running(guest) == ["node2"]
        assert not own.socket.exists()
        own.at_rest()
        own.start()
        assert one(own).outcome == "OK"
        assert one(own).interruptions == 0


@pytest.mark.parametrize(("how", "twice"), [("abort", False), ("wait", True)])
def test_a_stop_that_aborts(tmp_path: Path, how: str, twice: bool) -> None:  # noqa: FBT001 -- a case
    with house(tmp_path, f'stop = "{how}"') as own:
        guest = own.guest("web1", copy_s=60.0)
        own.start()
        with own.client() as client:
            client.order("moves", Migrate(instance="web1"))
            wait_for(own.copies_begun)
        if twice:
            assert own.process is not None
            own.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        assert own.stop() == ExitCode.OK
        assert own.running(guest) == ["node1"]
        own.at_rest()
        own.start()
        assert one(own).outcome == "ABORTED"


@pytest.mark.parametrize("service", ['stop = "hand-over"', "stop_deadline_s = 0.5"])
def test_a_stop_that_hands_over(tmp_path: Path, service: str) -> None:
    with house(tmp_path, service) as own:
        guest = own.guest("web1", copy_s=2.0)
        own.start()
        with own.client() as client:
            client.order("moves", Migrate(instance="web1"))
            wait_for(own.copies_begun)
        assert own.stop() == ExitCode.OK
        assert "jobs_handed_over" in own.log.read_text()
        assert not own.socket.exists()
        own.start()
        wait_for(lambda: one(own).over)
        assert (one(own).outcome, own.running(guest), own.copies_begun()) == ("OK", ["node2"], 1)
        own.at_rest()


def test_a_drain_is_handed_over_between_two_guests(tmp_path: Path) -> None:
    with house(tmp_path) as own:
        guests = [own.guest(f"web{number}", copy_s=1.0) for number in range(2)]
        own.start()
        with own.client() as client:
            client.order("drains", Drain(nodes=["node1"], limits=DrainLimits(at_once=1)))
            wait_for(own.copies_begun)
        assert own.stop() == ExitCode.OK
        assert own.copies_begun() == 1
        own.start()
        wait_for(lambda: one(own, "drains").over)
        assert (one(own, "drains").outcome, one(own, "drains").interruptions) == ("OK", 0)
        assert [own.running(guest) for guest in guests] == [["node2"]] * 2
        assert own.copies_begun() == 2
        own.at_rest()


# ---- events


def follow(here: House, path: str, *, last: str = "", most: int = 10_000) -> list[httpx.ServerSentEvent]:
    found = []
    with (
        Way(here.url).client(quiet_s=30.0) as http,
        http.sse(path, headers={"Last-Event-ID": last} if last else {}) as source,
    ):
        for event in source:
            found.append(event)
            if len(found) == most:
                break
    return found


def test_a_job_is_told_of_until_its_end_and_can_be_taken_up_anywhere(here: House) -> None:
    here.guest("told1")
    with here.client() as client:
        job, since = client.order("moves", Migrate(instance="told1"))
    path = f"/v1/moves/{job.id}/events"
    whole = follow(here, path, last=since)  # ends by itself
    kinds = [event.event for event in whole]
    assert kinds[0] == "job"
    assert kinds.count("plan") == 1
    assert kinds.index("plan") < kinds.index("progress")
    assert json.loads(whole[-1].data)["outcome"] == "OK"
    steps = [json.loads(event.data)["progress"]["step"] for event in whole if event.event == "progress"]
    assert list(dict.fromkeys(steps)) == ["lock", "sync", "guard", "open", "memory", "switch", "close", "verify"]
    for place in (0, len(whole) // 2, len(whole) - 2):
        again = follow(here, path, last=whole[place].id)
        assert [event.data for event in again] == [event.data for event in whole[place + 1 :]]
    # Who has seen the end is told nothing more; who comes late is told how it stands.
    assert follow(here, path, last=whole[-1].id) == []
    for strange in ("", "nothing", "x-1", f"{whole[0].id}999999999", "\u00b2"[:0] + "a-b"):
        (now,) = follow(here, path, last=strange)
        assert (now.event, json.loads(now.data)["outcome"]) == ("job", "OK")


def test_everything_is_told_of_to_who_follows_all(here: House) -> None:
    here.guest("all1")
    found: list[httpx.ServerSentEvent] = []
    begun = threading.Event()

    def read() -> None:
        with Way(here.url).client(quiet_s=30.0) as http, http.sse("/v1/events") as source:
            begun.set()
            for event in source:
                found.append(event)
                told = json.loads(event.data)
                if event.event == "job" and told["about"] == "all1" and told["state"] == "ended":
                    return

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(30)
    time.sleep(0.3)
    with here.client() as client:
        client.order("moves", Migrate(instance="all1"))
    thread.join(60)
    assert not thread.is_alive()
    states = [json.loads(event.data)["state"] for event in found if event.event == "job"]
    assert [State(state) for state in dict.fromkeys(states)] == [State.QUEUED, State.RUNNING, State.ENDED]


def test_followers_do_not_hold_up_a_stop(tmp_path: Path) -> None:
    with house(tmp_path) as own:
        own.start()
        ended = threading.Event()

        def read() -> None:
            with Way(own.url).client() as http, http.sse("/v1/events") as source:
                for _ in source:
                    pass
            ended.set()

        threading.Thread(target=read, daemon=True).start()
        wait_for(lambda: "/v1/events" in own.log.read_text())
        began = time.monotonic()
        assert own.stop() == ExitCode.OK
        assert time.monotonic() - began < 10
        assert ended.wait(10)
