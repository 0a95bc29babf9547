"""Who may do what. Every route is tried: one that is added is tried, too."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from contextlib import redirect_stderr
from datetime import date, timedelta
from typing import Any

import msgspec
import pytest
import structlog
from starlette.requests import Request

from lvmigrate import log
from lvmigrate.service.access import Access, Peer, Subject, allow, digest, new_token
from lvmigrate.service.problem import NotDone
from lvmigrate.service.routes import ROUTES, Route
from lvmigrate.service.settings import Role, Settings, TokenEntry
from lvmigrate.service.visitors import Visitors
from tests.service.conftest import TOKENS, Bench
from tests.service.support import wait_for

HERE = Peer(pid=os.getpid(), uid=os.getuid(), gid=os.getgid())
NAMES = {"node": "node1", "instance": "web1", "id": "x", "code": "LOCKED"}
BODIES: dict[str, Any] = {
    "/v1/moves": {"what": "migrate", "instance": "web1"},
    "/v1/drains": {"what": "drain", "nodes": ["node1"]},
    "/v1/cleanups": {"what": "cleanup", "instance": "web1"},
    "/v1/checks": {"what": "migrate", "instance": "web1"},
    "/v1/nodes/{node}/state": {"state": "drained"},
    "/v1/nodes/{node}/drain": {"wish": "pause"},
    "/v1/history/prune": {"days": 9},
}


def ask(client: Any, route: Route) -> Any:
    path = re.sub(r"\{(\w+)\}", lambda found: NAMES[found[1]], route.path)
    return client.request(route.method, path, json=BODIES.get(route.path) if route.body is not None else None)


def everything(bench: Bench) -> tuple[Any, ...]:
    """What would be different if somebody had done something."""
    return bench.world.calls[:], bench.ledger.unfinished(), bench.cluster.node_states()


@pytest.mark.parametrize(
    "credentials",
    [None, "Bearer wrong", "Bearer ", "Basic eDp5", TOKENS[Role.FORCE][1]],
    ids=["nothing", "another", "empty", "another kind", "the digest"],
)
def test_every_route_refuses_who_is_not_known(bench: Bench, credentials: str | None) -> None:
    before = everything(bench)
    client = bench.client(None)
    if credentials is not None:
        client.headers["Authorization"] = credentials
    for route in ROUTES:
        answer = ask(client, route)
        assert answer.status_code == 401, route.name
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["code"] == "UNAUTHENTICATED"
    assert everything(bench) == before


@pytest.mark.parametrize("role", [Role.LOOK, Role.MOVE])
def test_a_role_that_is_not_enough_changes_nothing(bench: Bench, role: Role) -> None:
    before = everything(bench)
    client = bench.client(role)
    beyond = [route for route in ROUTES if route.role > role]
    assert len(beyond) >= 2
    for route in beyond:
        answer = ask(client, route)
        assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN"), route.name
        assert f"needs {route.role.value}" in answer.json()["detail"]
    assert everything(bench) == before


def test_every_route_that_changes_something_needs_more_than_to_look() -> None:
    only_looks = {"check", "sign_in", "sign_out"}
    assert {r.name for r in ROUTES if r.method != "GET" and r.role is Role.LOOK} == only_looks


@pytest.mark.parametrize(
    ("path", "order"),
    [
        ("moves", {"what": "migrate", "instance": "web1", "options": {"guard": False}}),
        ("moves", {"what": "migrate", "instance": "web1", "options": {"switch": "fast"}}),
        ("moves", {"what": "rehearse", "instance": "web1", "options": {"ignore_ipolicy": True}}),
        ("moves", {"what": "migrate", "instance": "web1", "options": {"ignore_hvversions": True}}),
        ("moves", {"what": "failover", "instance": "web1", "options": {"is_off": "node1"}}),
        ("moves", {"what": "failover", "instance": "web1", "options": {"hard": True}}),
        ("moves", {"what": "failover", "instance": "web1", "options": {"ignore_consistency": True}}),
        ("moves", {"what": "failover", "instance": "web1", "options": {"definition": "kept"}}),
        ("moves", {"what": "failover", "instance": "web1", "definition_text": "<domain/>"}),
        ("drains", {"what": "drain", "nodes": ["node1"], "options": {"guard": False}}),
        ("drains", {"what": "return", "node": "node1", "options": {"ignore_ipolicy": True}}),
    ],
)
def test_what_gives_up_a_safeguard_needs_force(bench: Bench, path: str, order: Any) -> None:
    answer = bench.client(Role.MOVE).post(f"/v1/{path}", json=order)
    assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN")
    assert bench.ledger.unfinished() == []


def test_who_may_move_moves(bench: Bench) -> None:
    answer = bench.client(Role.MOVE).post("/v1/moves", json=BODIES["/v1/moves"])
    assert answer.status_code == 202
    wait_for(lambda: bench.jobs.one(answer.json()["id"]).over)
    assert bench.world.running() == ["node2"]


def test_a_path_that_there_is_not_is_not_told_to_strangers(bench: Bench) -> None:
    assert bench.client(None).get("/v1/nothing").status_code == 401
    assert bench.client(Role.LOOK).get("/v1/nothing").status_code == 404


def test_another_sites_page_orders_nothing(bench: Bench) -> None:
    client = bench.client(Role.FORCE)
    for origin in ("https://evil.example", "null", "https://[", "https://[x]:y", "//"):
        answer = client.post("/v1/moves", json=BODIES["/v1/moves"], headers={"Origin": origin})
        assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN")
        hostless = client.post("/v1/moves", json=BODIES["/v1/moves"], headers={"Origin": origin, "Host": ""})
        assert hostless.status_code == 403
    assert [line.status for line in bench.ledger.trail(99)] == [403] * 10
    same = client.post("/v1/checks", json=BODIES["/v1/checks"], headers={"Origin": "http://testserver"})
    assert same.status_code == 200


# ---- who is known


NET = Peer(address="192.0.2.1:1")


def known(settings: Settings, peer: Peer = NET, authorization: str = "") -> Subject:
    return Access(settings).subject(peer, authorization)


def test_whoever_can_open_the_socket_has_its_role_or_their_own() -> None:
    name = "root" if os.getuid() == 0 else os.environ["USER"]
    assert known(Settings(), HERE) == Subject(f"user:{name}", Role.FORCE)
    assert known(Settings(socket_role=Role.LOOK), HERE).role is Role.LOOK
    assert known(Settings(users={name: Role.MOVE}), HERE).role is Role.MOVE
    assert known(Settings(socket_role=Role.LOOK), Peer(pid=1, uid=4_000_000, gid=1)).name == "user:4000000"


def test_a_token_is_known_by_its_hash() -> None:
    token, kept = new_token()
    assert kept == hashlib.sha256(token.encode()).hexdigest() == digest(token)
    assert len(token) > 40
    entries = {"a": TokenEntry(sha256=digest("other")), "nagios": TokenEntry(sha256=kept, role=Role.MOVE)}
    assert known(Settings(tokens=entries), authorization=f"bearer {token}") == Subject("token:nagios", Role.MOVE)
    assert token not in repr(Settings(tokens=entries))


@pytest.mark.parametrize(("days", "valid"), [(-1, False), (0, False), (1, True)])
def test_a_token_expires(days: int, valid: bool) -> None:  # noqa: FBT001 -- a case
    token, kept = new_token()
    entry = TokenEntry(sha256=kept, expires=date.today() + timedelta(days=days))  # noqa: DTZ011 -- tests run in UTC
    if valid:
        assert known(Settings(tokens={"x": entry}), authorization=f"Bearer {token}").role is Role.LOOK
    else:
        with pytest.raises(NotDone):
            known(Settings(tokens={"x": entry}), authorization=f"Bearer {token}")


def test_a_certificate_is_known_by_its_name_alone() -> None:
    settings = Settings(certificates={"ci": Role.MOVE})
    assert known(settings, Peer(address="192.0.2.1:1", certificate="ci")) == Subject("certificate:ci", Role.MOVE)
    for peer in (Peer(address="192.0.2.1:1", certificate="other"), Peer(address="192.0.2.1:1")):
        with pytest.raises(NotDone):
            known(settings, peer)
    # A token that is wrong is not made good by a certificate.
    with pytest.raises(NotDone):
        known(settings, Peer(address="192.0.2.1:1", certificate="ci"), "Bearer wrong")


def test_roles_are_a_ladder() -> None:
    assert Role.LOOK < Role.MOVE < Role.FORCE
    allow(Subject("x", Role.FORCE), Role.LOOK)
    with pytest.raises(NotDone):
        allow(Subject("x", Role.LOOK), Role.MOVE)


@pytest.mark.parametrize(
    ("role", "days", "holds"),
    [(Role.MOVE, 9, True), (Role.LOOK, 9, True), (None, 9, False), (Role.MOVE, 0, False), (Role.MOVE, 1, True)],
    ids=["nothing has changed", "less, and enough", "taken back", "its last day is over", "on its last day"],
)
def test_who_was_let_in_is_looked_at_again(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    role: Role | None,
    days: int,
    holds: bool,  # noqa: FBT001 -- a case
) -> None:
    today = date(2027, 6, 1)
    monkeypatch.setattr("lvmigrate.service.access._today", lambda: today)
    token, kept = new_token()

    def with_role(role: Role | None) -> Settings:
        entry = TokenEntry(sha256=kept, role=role or Role.LOOK, expires=date(2027, 7, 1))
        return msgspec.structs.replace(settings, tokens={} if role is None else {"x": entry})

    access = Access(with_role(Role.MOVE))
    visitors = Visitors(settings, access)
    headers = [(b"authorization", f"Bearer {token}".encode())]
    scope = {"type": "http", "method": "GET", "headers": headers, "state": {"peer": NET}}
    stands = visitors.standing(Request(scope), Subject("token:x", Role.MOVE), Role.LOOK)
    assert stands()
    access.change(with_role(role))
    today = date(2027, 7, 1) - timedelta(days=days)
    assert stands() is holds
    access.change(with_role(Role.FORCE))
    today = date(2027, 6, 1)
    assert stands() is holds, "what has ended does not begin again"


# ---- how often


def test_who_asks_too_often_has_to_wait(open_bench: Callable[[Settings], Bench], settings: Settings) -> None:
    bench = open_bench(msgspec.structs.replace(settings, requests_per_minute=5))
    client = bench.client(Role.LOOK)
    answers = [client.get("/health") for _ in range(8)]
    assert {answer.status_code for answer in answers[:5]} == {200}
    assert answers[-1].status_code == 429
    assert answers[-1].json()["code"] == "RATE_LIMITED"
    assert int(answers[-1].headers["retry-after"]) > 0
    # Nobody else has to.
    assert bench.client(Role.MOVE).get("/health").status_code == 200


def test_guessing_is_slow(open_bench: Callable[[Settings], Bench], settings: Settings) -> None:
    bench = open_bench(msgspec.structs.replace(settings, requests_per_minute=5))
    client = bench.client(None)
    statuses = [client.get("/health", headers={"Authorization": f"Bearer {n}"}).status_code for n in range(8)]
    assert statuses == [401] * 5 + [429] * 3
    # The trail does not grow with it.
    assert len(bench.ledger.trail(100)) == 5
    assert bench.client(None, Peer(address="192.0.2.99:1")).get("/health").status_code == 401


def test_who_comes_to_the_socket_by_another_name_asks_no_more_often_than_others(
    open_bench: Callable[[Settings], Bench], settings: Settings
) -> None:
    bench = open_bench(msgspec.structs.replace(settings, requests_per_minute=5))
    client = bench.client(None, HERE)
    statuses = [client.get("/v1/nodes", headers={"Host": "evil.example"}).status_code for _ in range(9)]
    assert statuses == [403] * 5 + [429] * 4
    assert len(bench.ledger.trail(100)) == 5
    # A page in somebody's browser does not keep that user's own programs from asking.
    assert client.get("/v1/nodes", headers={"Host": "localhost"}).status_code == 200


def test_a_network_of_ipv6_counts_as_one(open_bench: Callable[[Settings], Bench], settings: Settings) -> None:
    bench = open_bench(msgspec.structs.replace(settings, requests_per_minute=5))

    def guesses(addresses: list[str]) -> list[int]:
        peers = [Peer(address=address) for address in addresses]
        wrong = {"Authorization": "Bearer x"}
        return [bench.client(None, peer).get("/health", headers=wrong).status_code for peer in peers]

    assert guesses([f"2001:db8::{number:x}:4711" for number in range(8)]) == [401] * 5 + [429] * 3
    assert guesses(["2001:db8:0:1::1:4711", "::ffff:192.0.2.1:1", "192.0.2.2:1"]) == [401] * 3
    assert guesses(["fe80::1%eth0:4711"] * 6)[-1] == 429
    assert guesses(["fe80::2%eth0:4711"]) == [429]


# ---- what is written down


def test_the_trail_tells_who_asked_for_what(bench: Bench) -> None:
    move = bench.client(Role.MOVE)
    job = move.post("/v1/moves", json=BODIES["/v1/moves"]).json()["id"]
    move.get("/v1/moves")
    bench.client(Role.LOOK).post("/v1/moves", json=BODIES["/v1/moves"])
    bench.client(None).get("/v1/nodes")
    trail = bench.client(Role.FORCE).get("/v1/trail").json()["asked"]
    assert [(line["subject"], line["method"], line["path"], line["status"], line["code"]) for line in trail] == [
        ("", "GET", "/v1/nodes", 401, "UNAUTHENTICATED"),
        ("token:with-look", "POST", "/v1/moves", 403, "FORBIDDEN"),
        ("token:with-move", "POST", "/v1/moves", 202, ""),
    ]
    assert trail[-1]["job"] == job
    assert trail[-1]["via"] == "tls 192.0.2.7:4711"
    assert bench.jobs.one(job).subject == "token:with-move"


def test_no_secret_is_in_the_log_or_in_the_trail(bench: Bench, tmp_path: Any) -> None:
    token, secret = TOKENS[Role.FORCE][0], "s3cret-of-vnc"
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            log.configure(level="debug", json=True)
            client = bench.client(Role.FORCE)
            client.get(f"/v1/nodes?token={token}")
            order = {"what": "failover", "instance": "web1", "definition_text": f"<graphics passwd='{secret}'/>"}
            job = client.post("/v1/moves", json=order, headers={"Idempotency-Key": "k"}).json()
            client.post("/v1/checks", json=order)
            client.post("/v1/moves", content=secret.encode())
            wait_for(lambda: bench.jobs.one(job["id"]).over)
            told = client.get(f"/v1/moves/{job['id']}").text
    finally:
        structlog.reset_defaults()
    lines = [json.loads(line) for line in said.getvalue().splitlines()]
    assert any(line["event"] == "request" and line.get("job") == job["id"] for line in lines)
    in_files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for where in (said.getvalue(), told, str(bench.ledger.trail(100)), in_files.decode("latin-1")):
        assert token not in where
        assert secret not in where
