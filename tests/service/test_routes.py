"""What is answered, and how: values as the command's JSON, errors as problem+json, orders as jobs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lvmigrate.errors import Code
from lvmigrate.jsonable import jsonable
from lvmigrate.service import problem
from lvmigrate.service.routes import ROUTES
from lvmigrate.service.settings import Settings
from tests.service.conftest import Bench
from tests.service.support import wait_for
from tests.unit.fakes import NODES, UUID, unreachable

MIGRATE = {"what": "migrate", "instance": "web1"}


def ended(bench: Bench, job: dict[str, Any]) -> dict[str, Any]:
    wait_for(lambda: bench.jobs.one(job["id"]).over)
    told: dict[str, Any] = bench.client().get(f"/v1/moves/{job['id']}").json()
    return told


def hold(bench: Bench) -> threading.Event:
    """The copy does not end before the event is set, or an abort is asked for."""
    go = threading.Event()
    bench.world.looks = 1_000_000

    def on_look(_left: int) -> None:
        if go.is_set():
            bench.world.looks = 0
        else:
            threading.Event().wait(0.01)

    bench.world.on_look = on_look
    return go


# ---- looking


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/v1/instances", lambda cluster: {"nodes": cluster.status()}),
        ("/v1/instances/web1", lambda cluster: {"nodes": cluster.status("web1")}),
        (f"/v1/instances/{UUID}", lambda cluster: {"nodes": cluster.status(UUID)}),
        ("/v1/instances/web1/options", lambda cluster: cluster.options("web1")),
        ("/v1/audit", lambda cluster: cluster.audit()),
        ("/v1/doctor", lambda cluster: cluster.doctor()),
        ("/v1/history", lambda cluster: {"errands": cluster.history()}),
    ],
)
def test_values_are_those_of_the_python_interface(bench: Bench, path: str, value: Callable[..., Any]) -> None:
    answer = bench.client().get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == json.loads(json.dumps(jsonable(value(bench.cluster))))


def test_nodes_and_who_may_come(bench: Bench) -> None:
    client = bench.client()
    assert [(n["node"], n["closed"]) for n in client.get("/v1/nodes").json()["nodes"]] == [
        ("node1", None),
        ("node2", None),
    ]
    told = client.put("/v1/nodes/node2/state", json={"state": "drained", "reason": "new disks"}).json()["nodes"][1]
    assert told["closed"] == "is drained (new disks)"
    assert client.post("/v1/moves", json={**MIGRATE, "target": "node2"}).status_code == 202
    wait_for(lambda: not bench.ledger.unfinished())
    (job,) = client.get("/v1/moves").json()["jobs"]
    assert (job["outcome"], job["error"]["findings"][0]["code"]) == ("NODE_DRAINED", "NODE_DRAINED")
    assert client.put("/v1/nodes/node9/state", json={"state": "drained"}).status_code == 404


def test_a_node_that_is_silent_is_told_of_and_does_not_fail_the_look(bench: Bench) -> None:
    bench.world.faults["domains", "node2"] = unreachable("node2")
    told = bench.client().get("/v1/instances").json()["nodes"]
    assert told[1]["trouble"]["code"] == "NODE_UNREACHABLE"


def test_health_readiness_and_the_description(bench: Bench) -> None:
    client = bench.client()
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ok"}
    assert client.get("/v1/openapi.json").json()["openapi"].startswith("3.1")
    assert client.head("/v1/nodes").content == b""


# ---- checks


def test_a_check_tells_the_plan_and_changes_nothing(bench: Bench) -> None:
    told = bench.client().post("/v1/checks", json=MIGRATE).json()
    assert (told["plan"]["source"], told["plan"]["target"]) == ("node1", "node2")
    assert told["by_hand"][0]["step"] == "lock"
    assert bench.world.running() == ["node1"]
    assert bench.world.tokens == {}


@pytest.mark.parametrize(
    ("order", "part"),
    [
        ({"what": "failover", "instance": "web1"}, "plan"),
        ({"what": "cleanup", "instance": "web1"}, "cleanup"),
        ({"what": "drain", "nodes": ["node1"]}, "schedule"),
    ],
)
def test_every_order_can_be_checked(bench: Bench, order: Any, part: str) -> None:
    told = bench.client().post("/v1/checks", json=order).json()
    assert told[part] is not None
    assert bench.world.running() == ["node1"]


def test_a_refusal_tells_every_reason(bench: Bench) -> None:
    bench.world.protocol = None
    bench.world.connected = False
    answer = bench.client().post("/v1/checks", json=MIGRATE)
    told = answer.json()
    assert answer.status_code == told["status"] == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert told["type"] == f"urn:lvmigrate:{told['code']}"
    assert (told["code"], told["exit_code"]) == ("NOT_CONNECTED", 3)
    assert told["hint"]
    assert told["error"]["findings"][0]["code"] == "NOT_CONNECTED"


# ---- mistakes


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/nothing", None, 404, "ROUTE_UNKNOWN"),
        ("GET", "/v1", None, 404, "ROUTE_UNKNOWN"),
        ("DELETE", "/v1/moves", None, 405, "ROUTE_UNKNOWN"),
        ("GET", "/v1/nodes/", None, 404, "ROUTE_UNKNOWN"),
        ("GET", "/v1/instances/web9", None, 404, "INSTANCE_UNKNOWN"),
        ("GET", "/v1/moves/nothing", None, 404, "JOB_UNKNOWN"),
        ("GET", "/v1/moves/nothing/events", None, 404, "JOB_UNKNOWN"),
        ("POST", "/v1/moves/nothing/abort", None, 404, "JOB_UNKNOWN"),
        ("GET", "/v1/history/nothing", None, 404, "ERRAND_UNKNOWN"),
        ("GET", "/v1/history?most=0", None, 400, "USAGE"),
        ("GET", "/v1/history?least=1", None, 400, "USAGE"),
        ("GET", "/v1/history?most=1&most=2", None, 400, "USAGE"),
        ("GET", "/v1/moves?state=flying", None, 400, "USAGE"),
        ("GET", "/v1/moves?state=null", None, 400, "USAGE"),
        ("POST", "/v1/moves", {}, 400, "USAGE"),
        ("POST", "/v1/moves", {"what": "drain", "nodes": ["node1"]}, 400, "USAGE"),
        ("POST", "/v1/moves", {"what": "migrate"}, 400, "USAGE"),
        ("POST", "/v1/moves", {**MIGRATE, "to": "node2"}, 400, "USAGE"),
        ("POST", "/v1/moves", {**MIGRATE, "options": {"bandwidth_mib_s": 0}}, 400, "USAGE"),
        ("POST", "/v1/moves", {**MIGRATE, "options": {"bandwidth_mib_s": "9"}}, 400, "USAGE"),
        ("POST", "/v1/moves", {**MIGRATE, "options": {"mode": "failover"}}, 400, "USAGE"),
        ("POST", "/v1/moves", {**MIGRATE, "options": {"iallocator": "/bin/sh"}}, 400, "USAGE"),
        ("POST", "/v1/moves", {**MIGRATE, "priority": "mine"}, 400, "USAGE"),
        ("POST", "/v1/drains", {"what": "drain", "nodes": []}, 400, "USAGE"),
        ("POST", "/v1/drains", {"what": "drain", "nodes": ["node1", "n" * 250]}, 404, "NODE_UNKNOWN"),
        ("POST", "/v1/drains", {"what": "drain", "nodes": ["node1"], "to": ["n9"]}, 404, "NODE_UNKNOWN"),
        ("POST", "/v1/cleanups", {"instance": "web1"}, 400, "USAGE"),
        ("POST", "/v1/cleanups", MIGRATE, 400, "USAGE"),
        ("POST", "/v1/nodes/node1/drain", {"wish": "pause"}, 404, "ERRAND_UNKNOWN"),
        ("POST", "/v1/checks", {**MIGRATE, "instance": "web9"}, 404, "INSTANCE_UNKNOWN"),
        ("POST", "/v1/checks", {**MIGRATE, "target": "node9"}, 404, "NODE_UNKNOWN"),
        ("POST", "/v1/checks", {**MIGRATE, "options": {"policy": "none such"}}, 400, "USAGE"),
        ("POST", "/v1/checks", {"what": "rehearse", "instance": "web1"}, 400, "USAGE"),
    ],
)
def test_mistakes(bench: Bench, method: str, path: str, body: Any, status: int, code: str) -> None:
    answer = bench.client().request(method, path, json=body)
    told = answer.json()
    assert (answer.status_code, told["code"]) == (status, code), told
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "detail", "hint", "exit_code"} <= told.keys()
    assert bench.ledger.unfinished() == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"what": "migrate", "instance": "' + b"a" * 300 + b'"}', b"null"]
)
def test_bodies_that_are_none(bench: Bench, body: bytes) -> None:
    answer = bench.client().post("/v1/moves", content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "USAGE")


def test_a_body_that_is_too_long_is_not_read(bench: Bench) -> None:
    read = 0

    def endless() -> Any:
        nonlocal read
        while read < 1000:
            read += 1
            yield b" " * 16_384

    answer = bench.client().post("/v1/moves", content=endless())
    assert (answer.status_code, answer.json()["code"]) == (413, "TOO_LARGE")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=200)
    | st.text().map(str.encode)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["what", "instance", "options"]), inner)
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_body_is_a_defect(bench: Bench, body: bytes) -> None:
    for path in ("/v1/moves", "/v1/drains", "/v1/checks"):
        assert bench.client().post(path, content=body).status_code in (400, 404, 409)


def test_a_defect_is_told_as_one(bench: Bench) -> None:
    bench.world.faults["domains", "node1"] = lambda: 1 / 0  # type: ignore[assignment]
    answer = bench.client().get("/v1/instances")
    assert (answer.status_code, answer.json()["code"], answer.json()["exit_code"]) == (500, "INTERNAL", 70)
    assert "Traceback" not in answer.text


HOSTILE = ["web1; reboot", "$(reboot)", "`reboot`", "web1 && true", "-rf", "--help", "..", "web1\u202e", "'\"", "%00"]


@pytest.fixture
def started() -> Iterator[list[object]]:
    """What processes have been started meanwhile, whatever started them."""
    found: list[object] = []
    _watched.append(found)
    assert subprocess.run(["true"], check=False).returncode == 0
    assert len(found) == 1, "it would see one"
    found.clear()
    yield found
    _watched.remove(found)


_watched: list[list[object]] = []


@sys.addaudithook
def _hear(event: str, words: tuple[object, ...]) -> None:
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"):
        for found in _watched:
            found.append(words)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_reach_no_shell(bench: Bench, started: list[object], name: str) -> None:
    """A guest's name only ever is what libvirt is asked for; a node's only ever one of the configuration's."""
    client = bench.client()
    answer = client.post("/v1/checks", json={**MIGRATE, "instance": name})
    assert answer.json()["code"] == "INSTANCE_UNKNOWN"
    for word in ({"target": name}, {"options": {"iallocator": name}}):
        answer = client.post("/v1/checks", json={**MIGRATE, **word})
        assert answer.json()["code"] in ("USAGE", "NODE_UNKNOWN", "ALLOCATOR_FAILED")
    assert {node for _, node in bench.world.calls} == set(NODES)
    assert started == []
    assert bench.world.running() == ["node1"]


@pytest.mark.parametrize("name", ["a\nb", "a\n", "a\x00b", "\x1b[31m", "a/b", ""])
def test_names_that_no_guest_has_are_not_even_asked_for(bench: Bench, name: str) -> None:
    before = list(bench.world.calls)
    answer = bench.client().post("/v1/checks", json={**MIGRATE, "instance": name})
    assert answer.json()["code"] == "USAGE"
    assert bench.world.calls == before


def test_every_code_has_a_status(bench: Bench) -> None:
    statuses = {problem._BY_CODE[code] for code in problem._BY_CODE}
    assert statuses <= set(range(400, 600))
    assert all(code in Code for code in problem._BY_CODE)
    assert len({route.name for route in ROUTES}) == len(ROUTES)


# ---- orders


def test_a_move_from_its_order_to_its_report(bench: Bench) -> None:
    answer = bench.client().post("/v1/moves", json=MIGRATE)
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/moves/{job['id']}"
    assert job["state"] in ("queued", "running")
    told = ended(bench, job)
    assert (told["state"], told["outcome"], told["exit_code"]) == ("ended", "OK", 0)
    assert (told["source"], told["target"], told["uuid"]) == ("node1", "node2", UUID)
    assert told["result"]["errand"] in [entry.id for entry in bench.cluster.history()]
    assert bench.world.running() == ["node2"]


def test_a_key_stands_for_one_order(bench: Bench) -> None:
    client = bench.client()
    key = {"Idempotency-Key": "drain-2026-11-28/web1"}
    first = client.post("/v1/moves", json=MIGRATE, headers=key)
    again = client.post("/v1/moves", json=MIGRATE, headers=key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    ended(bench, first.json())
    assert client.post("/v1/moves", json=MIGRATE, headers=key).json()["outcome"] == "OK"
    assert len(client.get("/v1/moves").json()["jobs"]) == 1
    other = client.post("/v1/moves", json={**MIGRATE, "target": "node1"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "KEY_REUSED")
    # Somebody else's key is another one.
    from lvmigrate.service.settings import Role  # noqa: PLC0415

    assert bench.client(Role.MOVE).post("/v1/moves", json=MIGRATE, headers=key).json()["id"] != first.json()["id"]
    assert client.post("/v1/moves", json=MIGRATE, headers={"Idempotency-Key": " "}).status_code in (202, 400)


def test_many_who_order_the_same_at_once_order_it_once(bench: Bench) -> None:
    go = hold(bench)
    ids: list[str] = []

    def order() -> None:
        ids.append(bench.client().post("/v1/moves", json=MIGRATE, headers={"Idempotency-Key": "one"}).json()["id"])

    threads = [threading.Thread(target=order) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    go.set()
    assert len(set(ids)) == 1
    assert len(ids) == 8


def test_an_abort_leaves_the_guest_whole(bench: Bench) -> None:
    hold(bench)
    client = bench.client()
    job = client.post("/v1/moves", json=MIGRATE).json()
    wait_for(lambda: "copy_memory" in {method for method, _ in bench.world.calls})
    answer = client.post(f"/v1/moves/{job['id']}/abort")
    assert (answer.status_code, answer.json()["wish"]) == (202, "abort")
    told = ended(bench, job)
    assert (told["outcome"], told["exit_code"], told["error"]["code"]) == ("ABORTED", 4, "ABORTED")
    assert bench.world.running() == ["node1"]
    assert bench.world.tokens == {}
    again = client.post(f"/v1/moves/{job['id']}/abort")
    assert (again.status_code, again.json()["code"]) == (409, "JOB_ENDED")


def test_what_waits_can_be_aborted(open_bench: Callable[[Settings], Bench], settings: Settings) -> None:
    bench = open_bench(msgspec.structs.replace(settings, at_once=1))
    go = hold(bench)
    client = bench.client()
    client.post("/v1/moves", json=MIGRATE)
    waits = client.post("/v1/moves", json={**MIGRATE, "instance": UUID}).json()
    told = client.post(f"/v1/moves/{waits['id']}/abort").json()
    assert (told["state"], told["outcome"]) == ("ended", "ABORTED")
    assert client.get("/v1/moves?state=ended").json()["jobs"][0]["id"] == waits["id"]
    go.set()


def test_the_queue_has_an_end(open_bench: Callable[[Settings], Bench], settings: Settings) -> None:
    bench = open_bench(msgspec.structs.replace(settings, at_once=1, queue=2))
    go = hold(bench)
    client = bench.client()
    client.post("/v1/moves", json=MIGRATE)
    wait_for(lambda: bench.world.tokens)
    statuses = [client.post("/v1/moves", json=MIGRATE).status_code for _ in range(3)]
    assert statuses == [202, 202, 503]
    full = client.post("/v1/moves", json=MIGRATE)
    assert full.json()["code"] == "QUEUE_FULL"
    assert full.headers["retry-after"]
    # What mends is not an exception: it waits in the same queue, and is told so.
    go.set()


def test_a_job_that_ended_badly_tells_why(bench: Bench) -> None:
    bench.world.faults["undefine", "node1"] = unreachable("node1")
    told = ended(bench, bench.client().post("/v1/moves", json=MIGRATE).json())
    assert (told["outcome"], told["exit_code"]) == ("LEFT_BEHIND", 8)
    assert told["error"]["leftovers"]
    assert told["result"] is None


def test_a_drain_and_back(bench: Bench) -> None:
    client = bench.client()
    job = client.post("/v1/drains", json={"what": "drain", "nodes": ["node1"], "reason": "new disks"}).json()
    wait_for(lambda: bench.jobs.one(job["id"]).over)
    told = client.get(f"/v1/drains/{job['id']}").json()
    assert (told["outcome"], [moved["name"] for moved in told["result"]["moved"]]) == ("OK", ["web1"])
    assert client.get("/v1/nodes").json()["nodes"][0]["closed"] == "is drained (new disks)"
    assert client.get(f"/v1/moves/{job['id']}").status_code == 404
    job = client.post("/v1/drains", json={"what": "return", "node": "node1"}).json()
    wait_for(lambda: bench.jobs.one(job["id"]).over)
    assert bench.world.running() == ["node1"]


def test_a_story_and_its_bundle_and_then_they_are_forgotten(bench: Bench) -> None:
    client = bench.client()
    told = ended(bench, client.post("/v1/moves", json=MIGRATE).json())
    errand = told["result"]["errand"]
    assert client.get(f"/v1/history/{errand}").json()["entry"]["id"] == errand
    assert client.get("/v1/history/last").json()["entry"]["id"] == errand
    bundle = client.get("/v1/history/last/bundle").json()
    assert bundle["folder"] == f"lvmigrate-bundle-{errand}"
    assert "report.txt" in bundle["files"]
    assert client.post("/v1/history/prune", json={"days": 1}).json() == {"forgotten": 0}


# ---- metrics


def test_metrics_keep_to_the_conventions(bench: Bench) -> None:
    ended(bench, bench.client().post("/v1/moves", json=MIGRATE).json())
    bench.client(None).get("/v1/nodes")
    answer = bench.client().get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = {line.split()[2]: line.split()[3] for line in answer.text.splitlines() if line.startswith("# TYPE")}
    helps = {
        line.split()[2] for line in answer.text.splitlines() if line.startswith("# HELP") and len(line.split()) > 3
    }
    own = {name: kind for name, kind in families.items() if name.startswith("lvmigrate_")}
    assert set(own) <= helps
    assert len(own) >= 12
    for name, kind in own.items():
        if name.endswith("_created"):
            continue
        assert (kind == "counter") is name.endswith("_total"), name
        if kind == "histogram":
            assert name.endswith(("_seconds", "_bytes")), name
        assert not name.endswith(("_ms", "_milliseconds", "_kib", "_mib", "_minutes", "_percent")), name
    assert 'lvmigrate_jobs_ended_total{outcome="OK",what="migrate"} 1.0' in answer.text
    assert 'lvmigrate_http_refused_total{code="UNAUTHENTICATED"} 1.0' in answer.text
    assert "lvmigrate_guests_moved_total 1.0" in answer.text
    assert 'lvmigrate_jobs{state="queued"} 0.0' in answer.text
    # What strangers make up is no label.
    bench.client().get("/v1/made/up")
    assert "made" not in bench.client().get("/metrics").text
