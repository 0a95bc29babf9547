"""The page's files, who is shown them and how; signing in; what the page needs of the API beside."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import lvmigrate.service
from lvmigrate.explanation import EXPLANATIONS
from lvmigrate.page import page
from lvmigrate.service import access
from lvmigrate.service.access import COOKIE, Peer
from lvmigrate.service.files import files
from lvmigrate.service.settings import Role, Settings
from tests.service.conftest import ADDRESS, TOKENS, Bench
from tests.service.support import wait_for

FOLDER = Path(lvmigrate.service.__file__).with_name("page")
FILES = files()
SOURCES = {path: file.body.decode() for path, file in FILES.items()}
MODULES = [path for path in FILES if path.endswith(".js")]
HERE = Peer(pid=os.getpid(), uid=os.getuid(), gid=os.getgid())
OWN = {"Origin": "http://testserver"}
MIGRATE = {"what": "migrate", "instance": "web1"}


# ---- the files


def test_every_file_is_served_as_what_it_is(bench: Bench) -> None:
    assert {path.rpartition("/")[2] or "index.html" for path in FILES} == {path.name for path in FOLDER.iterdir()}
    kinds = {"": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    client = bench.client(None)
    for path, file in FILES.items():
        answer = client.get(path)
        assert (answer.status_code, answer.content) == (200, file.body)
        ending = path.rpartition(".")[2] if "." in path else ""
        assert answer.headers["content-type"].partition(";")[0] == kinds[ending]
        assert client.head(path).headers["content-length"] == str(len(file.body))


def test_whatever_a_file_names_is_there() -> None:
    named = {
        path: re.findall(r'(?:from |import\()"(\./[^"]+)"', text) + re.findall(r'(?:src|href)="(/[^"]*)"', text)
        for path, text in SOURCES.items()
    }
    assert named["/"]
    reached = {"/"}
    for found in named.values():
        reached |= {f"/page/{name[2:]}" if name.startswith("./") else name for name in found}
    assert reached == FILES.keys()  # nothing is missing, and nothing is there that nobody needs


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_imports_is_exported(module: str) -> None:
    for words, name in re.findall(r'import \{([^}]*)\} from "\./([^"]+)"', SOURCES[module]):
        there = SOURCES[f"/page/{name}"]
        for word in filter(None, (each.strip().partition(" as ")[0] for each in words.split(","))):
            assert re.search(rf"^export (async )?(function|const|class) {word}\b", there, re.MULTILINE), (
                f"{name}: {word}"
            )
            used = re.search(rf"import \{{[^}}]*\b{word} as (\w+)", SOURCES[module])
            assert len(re.findall(rf"\b{used[1] if used else word}\b", SOURCES[module])) > 1, f"{word} is not used"


@pytest.mark.parametrize("path", FILES)
def test_nothing_is_asked_of_anybody_else_and_no_text_becomes_markup(path: str) -> None:
    text = SOURCES[path]
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"(?<!:)//[a-z0-9-]+\.[a-z]", re.sub(r"// .*", "", text))
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc|javascript:|@import|url\("
    )
    assert not re.search(forbidden, text)
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", text) or path.endswith(".js")


def test_a_browser_is_told_to_let_it_do_little(bench: Bench) -> None:
    for path in FILES:
        headers = bench.client(None).get(path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_a_browser_asks_whether_a_file_is_still_the_same(bench: Bench) -> None:
    client = bench.client(None)
    for path in FILES:
        first = client.get(path)
        assert first.headers["cache-control"] == "no-cache"
        again = client.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
        assert client.get(path, headers={"If-None-Match": '"another"'}).status_code == 200
    assert len({file.tag for file in FILES.values()}) == len(FILES)


@pytest.mark.parametrize(
    "path",
    ["/page/", "/page/nothing.js", "/page/../access.py", "/page/%2e%2e/access.py", "/page//etc/passwd", "/index.html"],
)
def test_nothing_else_is_served(bench: Bench, path: str) -> None:
    assert bench.client(None).get(path).status_code == 401
    assert bench.client(Role.FORCE).get(path).status_code == 404


def test_the_page_is_only_read(bench: Bench) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert bench.client(None).request(method, "/").status_code == 401
        assert bench.client(Role.FORCE).request(method, "/").status_code == 404


def test_who_loads_it_too_often_has_to_wait(open_bench: Callable[[Settings], Bench], settings: Settings) -> None:
    bench = open_bench(msgspec.structs.replace(settings, requests_per_minute=5))
    statuses = [bench.client(None).get("/").status_code for _ in range(7)]
    assert statuses == [200] * 5 + [429] * 2
    assert bench.client(None, Peer(address="192.0.2.99:1")).get("/").status_code == 200
    assert bench.client(Role.LOOK).get("/health").status_code == 200
    assert bench.ledger.trail(100) == []


def test_no_answer_may_be_run_or_put_into_a_frame(bench: Bench) -> None:
    for path in ("/v1/nodes", "/v1/nothing", "/health", "/metrics"):
        assert (
            bench.client().get(path).headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        )


# ---- signing in


def cookie_of(answer: Any) -> str:
    whole: str = answer.headers["set-cookie"]
    name, value = whole.partition(";")[0].split("=", 1)
    assert name == COOKIE
    assert {part.strip() for part in whole.split(";")[1:]} == {"Path=/", "Secure", "HttpOnly", "SameSite=Strict"}
    return value


def signed_in(bench: Bench, role: Role, value: str | None = None) -> Any:
    """Somebody whose browser keeps the token."""
    client = bench.client(None)
    kept = cookie_of(bench.client(role).post("/v1/session", headers=OWN)) if value is None else value
    client.headers["Cookie"] = f"{COOKIE}={kept}"
    return client


@pytest.mark.parametrize("role", list(Role))
def test_who_signs_in_is_known_by_a_cookie_from_then_on(bench: Bench, role: Role) -> None:
    answer = bench.client(role).post("/v1/session", headers=OWN)
    me = {"subject": f"token:with-{role.value}", "role": role.value, "signed_in": True}
    assert (answer.status_code, answer.json()) == (200, me)
    assert TOKENS[role][0] not in answer.headers["set-cookie"]
    client = signed_in(bench, role)
    assert client.get("/v1/whoami").json() == me
    assert client.get("/v1/nodes").status_code == 200
    assert client.get("/v1/trail").status_code == (200 if role is Role.FORCE else 403)


def test_what_a_browser_sends_by_itself_orders_nothing_for_another_page(bench: Bench) -> None:
    client = signed_in(bench, Role.FORCE)
    for headers in ({}, {"Origin": "null"}, {"Origin": "https://evil.example"}, {"Origin": "http://testserver:99"}):
        for method, path, body in (
            ("POST", "/v1/moves", MIGRATE),
            ("PUT", "/v1/nodes/node1/state", {"state": "drained"}),
            ("POST", "/v1/history/prune", {"days": 1}),
            ("DELETE", "/v1/session", None),
        ):
            answer = client.request(method, path, json=body, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN")
    assert bench.ledger.unfinished() == []
    job = client.post("/v1/moves", json=MIGRATE, headers=OWN)
    assert job.status_code == 202
    wait_for(lambda: bench.jobs.one(job.json()["id"]).over)
    assert bench.jobs.one(job.json()["id"]).subject == "token:with-force"


@pytest.mark.parametrize(
    "value",
    ["", "nothing", "bHZtX3dyb25n", "%", "é", TOKENS[Role.FORCE][1]],
    ids=["empty", "nothing", "wrong", "percent", "accent", "a hash"],
)
def test_a_cookie_that_is_not_valid_is_taken_away(bench: Bench, value: str) -> None:
    client = bench.client(None)
    answer = client.get("/v1/nodes", headers={b"Cookie": f"{COOKIE}={value}".encode()})
    assert answer.status_code == 401
    assert answer.headers["set-cookie"].startswith(f"{COOKIE}=; Max-Age=0; Path=/; Secure; HttpOnly")
    assert "set-cookie" not in client.get("/v1/nodes").headers


def test_signing_out(bench: Bench) -> None:
    answer = signed_in(bench, Role.LOOK).request("DELETE", "/v1/session", headers=OWN)
    assert answer.status_code == 200
    assert answer.headers["set-cookie"] == access.NO_COOKIE
    assert "Max-Age=0" in access.NO_COOKIE


def test_who_needs_no_token_is_told_to_keep_none(open_bench: Callable[[Settings], Bench], settings: Settings) -> None:
    bench = open_bench(msgspec.structs.replace(settings, certificates={"ci": Role.MOVE}))
    by_certificate = Peer(address="192.0.2.7:1", certificate="ci")
    for client, role in (
        (bench.client(None, HERE), "force"),
        (bench.client(Role.LOOK, HERE), "force"),  # the kernel's word goes before
        (bench.client(None, by_certificate), "move"),
    ):
        answer = client.post("/v1/session", headers=OWN)
        assert (answer.status_code, "set-cookie" in answer.headers) == (200, False)
        assert (answer.json()["role"], answer.json()["signed_in"]) == (role, False)
    # A cookie that is shown and is wrong is refused, whatever certificate comes with it.
    wrong = bench.client(None, by_certificate).get("/v1/nodes", headers={"Cookie": f"{COOKIE}=x"})
    assert wrong.status_code == 401


def test_no_token_is_kept_of_who_is_not_known(bench: Bench) -> None:
    answer = bench.client(None).post("/v1/session", headers={"Authorization": "Bearer lvm_wrong", **OWN})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert bench.ledger.trail(1)[0].path == "/v1/session"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7443", 200),
        ("lvmigrate", 200),
        ("127.0.0.1:7443", 200),
        ("[::1]:7443", 200),
        ("page.localhost", 200),
        ("evil.example", 403),
        ("evil.example:7443", 403),
        ("127.0.0.1.evil.example", 403),
    ],
)
def test_a_name_of_somebody_elses_does_not_lead_to_the_socket(bench: Bench, host: str, status: int) -> None:
    assert bench.client(None, HERE).get("/v1/nodes", headers={"Host": host}).status_code == status
    # Over TLS the certificate says what it may be called.
    assert bench.client(Role.LOOK, ADDRESS).get("/v1/nodes", headers={"Host": host}).status_code == 200


# ---- what else the page asks


def test_every_code_is_explained(bench: Bench) -> None:
    client = bench.client(Role.LOOK)
    for name in EXPLANATIONS:
        told = client.get(f"/v1/codes/{name.value}").json()
        assert told["code"] == name.value
        assert told["meaning"]
        assert told["remedy"]
    assert client.get("/v1/codes/5").json()["meaning"] == "The outcome could not be proved."
    assert client.get("/v1/codes/NOTHING").status_code == 400


def test_the_report_is_the_one_that_the_command_makes(bench: Bench) -> None:
    client = bench.client(Role.MOVE)
    job = client.post("/v1/moves", json=MIGRATE).json()["id"]
    wait_for(lambda: bench.jobs.one(job).over)
    errand = client.get("/v1/history").json()["errands"][0]["id"]
    answer = bench.client(Role.LOOK).get(f"/v1/history/{errand}/page")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text == page(bench.cluster.story(errand))
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert bench.client(Role.LOOK).get("/v1/history/nothing/page").status_code == 404


def test_what_is_left_open_is_found_however_much_came_later(bench: Bench) -> None:
    client = bench.client(Role.MOVE)
    left = client.post("/v1/moves", json=MIGRATE).json()["id"]
    wait_for(lambda: bench.jobs.one(left).over)
    bench.ledger.set(left, outcome="OUTCOME_UNKNOWN", exit_code=5)
    done = client.post("/v1/cleanups", json={"what": "cleanup", "instance": "web1"}).json()["id"]
    wait_for(lambda: bench.jobs.one(done).over)
    assert [job["id"] for job in client.get("/v1/moves?left_open=true").json()["jobs"]] == [left]
    assert client.get("/v1/cleanups?left_open=true").json()["jobs"] == []
    assert client.get("/v1/moves?left_open=perhaps").status_code == 400


def test_a_node_tells_what_memory_it_has(bench: Bench) -> None:
    told = bench.client(Role.LOOK).get("/v1/instances").json()["nodes"][0]
    assert told["host"]["free_memory_kib"] > 0
