"""`lvmigrate --server URL COMMAND`: the same words, the same exit codes as on the machine itself."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from lvmigrate import cli, cluster
from lvmigrate.errors import Code, ExitCode, LvmigrateError, Refused, UsageError
from lvmigrate.failover import FailoverOptions
from lvmigrate.plan import Options
from lvmigrate.service.client import Client, Way
from lvmigrate.service.orders import Migrate
from lvmigrate.service.problem import NotDone, problem
from lvmigrate.service.remote import RemoteCluster
from lvmigrate.service.wire import encode
from lvmigrate.words import parser
from tests.service.support import House, house, wait_for

#: httpx2 leaves a unix socket to the garbage collector that nobody listens at.
REFUSED = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def collected() -> Iterator[None]:
    """What is left so is collected before the next test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("house")) as made:
        made.guest("web1")
        made.guest("off1", "node2", running=False)
        made.start()
        yield made


@pytest.fixture
def both(here: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command here, and by the service; each time its exit code and what it said."""

    def run(*words: str) -> tuple[tuple[int, str, str], tuple[int, str, str]]:
        monkeypatch.setattr(cluster.Cluster, "open", lambda _path=None: here.local())
        capsys.readouterr()
        local = cli.main(list(words)), *capsys.readouterr()
        remote = cli.main(["--server", here.url, *words]), *capsys.readouterr()
        return local, remote

    return run


def same(text: str) -> str:
    """Without what differs each time: durations, ids, whose process it was."""
    text = re.sub(r"\d{8}-\d{6}-[0-9a-f]+", "ID", text)
    text = re.sub(r"\b\d+(\.\d+)?(e-?\d+)?\b", "N", text)
    return re.sub(r"─+|━+| +", " ", text)


LOOKS = (
    ("status",),
    ("status", "web1"),
    ("status", "web9"),
    ("check", "web1"),
    ("check", "web1", "--to", "node2", "--policy", "force", "--bandwidth", "100", "--compression", "xbzrle"),
    ("check", "web1", "--show-commands"),
    ("check", "web1", "--to", "node1"),
    ("check", "web1", "--to", "node9"),
    ("check", "web1", "--policy", "none"),
    ("check", "web9"),
    ("check", "off1"),
    ("failover", "web1", "--dry-run"),
    ("failover", "web1", "--dry-run", "--is-off", "node1"),
    ("cleanup", "web1", "--dry-run"),
    ("cleanup", "web9", "--dry-run"),
    ("drain", "node1", "--dry-run"),
    ("drain", "node9", "--dry-run"),
    ("drain", "node1", "--dry-run", "--at-once", "1", "--to", "node2", "--mode", "non-live"),
    ("drain", "node1", "--pause"),
    ("return", "node1", "--dry-run"),
    ("return", "node1", "--dry-run", "--all"),
    ("node",),
    ("node", "node1"),
    ("node", "node9"),
    ("audit",),
    ("doctor",),
    ("history",),
    ("history", "--prune", "100"),
    ("report", "nothing"),
    ("bundle", "nothing"),
    ("explain", "LOCKED"),
    ("migrate", "web9"),
    ("drain", "node9"),
    ("drain", "node1", "--to", "node9"),
    ("rehearse", "web9"),
    ("cleanup", "web9"),
    ("failover", "web9"),
    ("migrate", "web1", "--bandwidth", "nan"),
)


@pytest.mark.parametrize("flag", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize("words", LOOKS, ids=" ".join)
def test_the_same_words_and_exit_codes(both: Any, words: tuple[str, ...], flag: tuple[str, ...]) -> None:
    local, remote = both(*words, *flag)
    assert remote[0] == local[0], (local, remote)
    assert same(remote[1]) == same(local[1])
    assert same(remote[2]) == same(local[2])


CHANGES: tuple[tuple[str, ...], ...] = (
    ("rehearse", "web1"),
    ("migrate", "web1", "--to", "node2"),
    ("migrate", "web1", "--to", "node1", "--show-commands"),
    ("failover", "web1", "--to", "node2"),
    ("failover", "web1", "--to", "node1"),
    ("cleanup", "web1"),
    ("node", "node2", "--drained", "new disks"),
    ("node", "node2", "--online"),
    ("report", "last"),
)


@pytest.mark.parametrize("flag", [(), ("--json",)], ids=["text", "json"])
def test_what_changes_something(
    here: House, both: Any, capsys: pytest.CaptureFixture[str], flag: tuple[str, ...]
) -> None:
    """Each of them by the service, and then the same here, from where that left the guest: there and back."""
    for words in CHANGES:
        capsys.readouterr()
        remote = cli.main(["--server", here.url, *words, *flag]), *capsys.readouterr()
        assert remote[0] == ExitCode.OK, remote
        if flag:
            json.loads(remote[1])
            assert remote[2] == ""
        elif words[0] in ("migrate", "failover"):
            target = words[words.index("--to") + 1]
            assert f"web1 runs on {target} (from " in remote[1]
            assert re.search(r"1/\d lock: ", remote[2])
    here.at_rest()


def test_a_report_has_the_same_fields(here: House, both: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("rehearse", "web1", "--json"), ("cleanup", "web1", "--json"), ("cleanup", "web1")):
        local, remote = both(*words)
        assert remote[0] == local[0] == ExitCode.OK
        if "--json" in words:
            assert json.loads(remote[1]).keys() == json.loads(local[1]).keys()
        assert (remote[2] == "") is (local[2] == "")


def test_a_drain_and_back(here: House, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--server", here.url, "drain", "node1", "--reason", "new disks"]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert out.startswith("node1 is empty: 1 moved, 0 not")
    assert "web1: node1 -> node2" in err
    assert "web1: on node2 (live, " in err
    assert cli.main(["--server", here.url, "return", "node1", "--json"]) == ExitCode.OK
    report = json.loads(capsys.readouterr().out)
    assert ([moved["name"] for moved in report["moved"]], report["exit_code"]) == (["web1"], 0)
    here.at_rest()


def test_a_report_as_a_page_and_a_bundle(here: House, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page, bundle = tmp_path / "m.html", tmp_path / "b.tar.gz"
    assert cli.main(["--server", here.url, "rehearse", "web1"]) == ExitCode.OK
    assert cli.main(["--server", here.url, "report", "last", "--html", str(page)]) == ExitCode.OK
    assert "<svg" in page.read_text()
    assert cli.main(["--server", here.url, "bundle", "last", "--output", str(bundle)]) == ExitCode.OK
    assert bundle.stat().st_mode & 0o777 == 0o600


def test_every_command_was_tried() -> None:
    commands = next(action.choices for action in parser()._actions if isinstance(action.choices, dict))
    assert set(commands) == {words[0] for words in (*LOOKS, *CHANGES)} | {"serve", "token"}


@pytest.mark.parametrize("words", [("serve",), ("token", "bob")])
def test_what_makes_no_sense_at_a_distance(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert cli.main(["--server", "unix:/nowhere", *words, "--json"]) == ExitCode.USAGE
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "NOT_REMOTE"


@REFUSED
@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (["--server", "unix:/nowhere/api.sock", "status"], "SERVICE_UNREACHABLE", ExitCode.UNREACHABLE),
        (["--server", "https://127.0.0.1:1", "status"], "SERVICE_UNREACHABLE", ExitCode.UNREACHABLE),
        (["--server", "http://127.0.0.1:1", "status"], "USAGE", ExitCode.USAGE),
        (["--server", "nowhere", "status"], "USAGE", ExitCode.USAGE),
        (["--server", "unix:/x", "status", "--config", "y"], "USAGE", ExitCode.USAGE),
        (["--server", "https://x", "--ca", "/nowhere.pem", "status"], "CONFIG_INVALID", ExitCode.CONFIGURATION),
        (["--server", "https://x", "--token-file", "/nowhere", "status"], "CONFIG_INVALID", ExitCode.CONFIGURATION),
    ],
)
def test_services_that_are_none(
    capsys: pytest.CaptureFixture[str], words: list[str], code: str, exit_code: ExitCode
) -> None:
    assert cli.main([*words, "--json"]) == exit_code
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["exit_code"]) == (code, exit_code)
    assert error["hint"]


def test_a_path_of_a_program_does_not_go_to_a_service(here: House, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--server", here.url, "check", "web1", "--iallocator", "/bin/true", "--json"]) == ExitCode.USAGE
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "NOT_REMOTE"


def test_errors_are_of_the_same_types(here: House) -> None:
    with here.remote() as remote:
        with pytest.raises(Refused) as refused:
            remote.check("web1", target="node1")
        assert refused.value.findings[0].code is Code.TARGET_IS_SOURCE
        with pytest.raises(UsageError):
            remote.story("nothing")
        with pytest.raises(UsageError) as unknown:
            remote.policy("nothing")
        assert "gentle" in unknown.value.hint
        with pytest.raises(LvmigrateError):
            remote.failover("web1", options=FailoverOptions(definition="/nowhere.xml"))


def test_the_server_is_named_by_the_environment_too(
    here: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LVMIGRATE_SERVER", here.url)
    assert cli.main(["status"]) == ExitCode.OK
    assert "web1" in capsys.readouterr().out


# ---- what is asked for meanwhile


def test_ctrl_c_aborts_at_a_distance(here: House) -> None:
    here.guest("slow1", copy_s=60.0)
    before = here.copies_begun()
    words = [sys.executable, "-m", "lvmigrate", "--server", here.url, "migrate", "slow1", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        wait_for(lambda: here.copies_begun() > before)
        command.send_signal(signal.SIGINT)
        out, _ = command.communicate(timeout=60)
    assert command.returncode == ExitCode.ABORTED
    assert json.loads(out)["error"]["code"] == "ABORTED"
    here.at_rest()


def test_a_command_that_dies_leaves_its_move_to_the_service(here: House) -> None:
    guest = here.guest("kept1", copy_s=1.0)
    before = here.copies_begun()
    words = [sys.executable, "-m", "lvmigrate", "--server", here.url, "migrate", "kept1"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as command:
        wait_for(lambda: here.copies_begun() > before)
        command.kill()
    wait_for(lambda: here.running(guest) == ["node2"])
    here.at_rest()


def test_a_service_that_is_killed_and_comes_back_does_not_end_the_command(tmp_path: Path) -> None:
    with house(tmp_path) as own:
        guest = own.guest("web1", copy_s=2.5)
        own.start()
        words = [sys.executable, "-m", "lvmigrate", "--server", own.url, "migrate", "web1"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
            wait_for(own.copies_begun)
            time.sleep(0.5)
            own.kill()
            own.start()
            out, err = command.communicate(timeout=90)
        assert command.returncode == ExitCode.OK, err
        assert "web1" in out
        assert own.running(guest) == ["node2"]
        assert own.copies_begun() == 1
        own.at_rest()


@REFUSED
@pytest.mark.usefixtures("collected")
def test_a_service_that_does_not_come_back_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvmigrate.service.client._PATIENCE_S", 1.0)
    with house(tmp_path) as own:
        own.guest("web1", copy_s=60.0)
        own.start()
        failure: list[LvmigrateError] = []

        def follow() -> None:
            with RemoteCluster(Way(own.url)) as remote:
                try:
                    remote.migrate("web1", options=Options(poll_s=0.1))
                except LvmigrateError as error:
                    failure.append(error)

        thread = threading.Thread(target=follow)
        thread.start()
        wait_for(own.copies_begun)
        own.kill()
        thread.join(60)
        (error,) = failure
        assert (error.code, error.exit_code) == (Code.SERVICE_UNREACHABLE, ExitCode.UNKNOWN)
        assert "job" in error.known[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", [httpx.ReadError, httpx.ConnectError])
def test_an_order_that_may_have_been_taken_is_not_called_refused(
    first: type[httpx.TransportError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvmigrate.service.client._AGAIN_S", 0.0)
    stopping = NotDone("The service is about to stop.", hint="Ask again.", code=Code.STOPPING)
    keys: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        if len(keys) == 1:
            raise first("gone")
        return httpx.Response(503, content=encode(problem(stopping)))

    way = Way("unix:/nowhere")
    monkeypatch.setattr(way, "_transport", lambda: httpx.MockTransport(answer))
    with Client(way) as client, pytest.raises(LvmigrateError) as told:
        client.order("moves", Migrate(instance="web1"))
    assert len(keys) == 2
    assert len(set(keys)) == 1
    taken = ExitCode.REFUSED if first is httpx.ConnectError else ExitCode.UNKNOWN
    assert (told.value.code, told.value.exit_code) == (Code.STOPPING, taken)


# ---- what is not installed


def test_help_and_mistakes_import_nothing_of_it() -> None:
    code = (
        "import sys\n"
        "from lvmigrate import cli\n"
        "assert cli.main(['fly']) == 2\n"
        "heavy = {'msgspec', 'httpx2', 'starlette', 'uvicorn', 'prometheus_client', 'limits', 'sse_starlette'}\n"
        "print(sorted(heavy & set(sys.modules)), [m for m in sys.modules if m.startswith('lvmigrate.service')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


@pytest.mark.parametrize("words", [["serve"], ["token", "bob"], ["--server", "unix:/x", "status"]])
def test_without_the_extra_it_says_how_to_get_it(words: list[str]) -> None:
    code = (
        "import sys\n"
        "sys.modules['msgspec'] = None\n"
        "from lvmigrate import cli\n"
        f"sys.exit(cli.main({[*words, '--json']!r}))\n"
    )
    environment = {**os.environ, "LVMIGRATE_CONFIG": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == ExitCode.CONFIGURATION, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "EXTRA_MISSING"
    assert "lvmigrate[service]" in error["hint"]
