"""A bundle for a report of a defect: what is in it, and that no secret is, wherever one stood."""

from __future__ import annotations

import io
import json
import stat
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from lvmigrate import cli, cluster
from lvmigrate.cluster import Cluster
from lvmigrate.config import load
from lvmigrate.errors import ExitCode
from lvmigrate.journal import Kind, Opening
from lvmigrate.redaction import GONE, redacted, redacted_value, secrets_of
from lvmigrate.sqlite_journal import SqliteJournal
from tests.unit.fakes import NODES, World, unreachable

#: Whatever comes out with one of these in it is a leak.
SECRET = "s3cr3t"

#: Places in which a secret stands in texts, and what must stay of them.
TEXTS = {
    f"<graphics type='vnc' port='5900' passwd='{SECRET}1' listen='0.0.0.0'/>": "port='5900' passwd='***'",
    f'<graphics type="spice" passwd="{SECRET}1 x" passwdValidTo="2026">': 'passwd="***"',
    f"<secret usage='x'>{SECRET}==</secret>": "usage='x'>***</secret>",
    f"<auth username='a'><password>{SECRET}</password></auth>": "<password>***</password>",
    f'    shared-secret "{SECRET} with words";  cram-hmac-alg "sha1";': 'shared-secret ***;  cram-hmac-alg "sha1";',
    f'cut off: password="{SECRET} with words': 'cut off: password="***',
    f"cut off: passwd='{SECRET} with words": "cut off: passwd='***",
    f"    shared-secret {SECRET}; max-buffers 8;": "shared-secret ***; max-buffers 8;",
    f'    shared-secret "a\\"{SECRET}"; max-buffers 8;': "shared-secret ***; max-buffers 8;",
    f'    shared-secret "a\\\\"; after "b"; password "{SECRET}': 'shared-secret ***; after "b"; password ***',
    f"Authorization: Bearer {SECRET}abc-d_e.f~g+h/== and more": "Bearer *** and more",
    f"curl -H 'Authorization: Bearer lvm_{SECRET}abcdef' http://x": "Bearer ***' http://x",
    f'{{"Authorization": "Basic {SECRET}abc=="}}': '"Authorization": "Basic ***"',
    f"the token lvm_{SECRET}-_abcdef is wrong": "the token *** is wrong",
    f"-object secret,id=masterKey0,format=base64,data={SECRET}0==,iv=abc": "base64,data=***,iv=abc",
    f'-object {{"qom-type":"secret","id":"m","data":"{SECRET}"}}': '"id":"m","data":"***"',
    f'-object {{\\"qom-type\\":\\"secret\\",\\"data\\":\\"{SECRET}\\"}}': '\\"data\\":\\"***\\"',
    f"fence_ipmilan --ip=10.0.0.1 --password={SECRET} --lanplus": "--ip=10.0.0.1 --password=*** --lanplus",
    f"fence_ipmilan --password {SECRET} --lanplus": "--password *** --lanplus",
    f"qemu+tcp://root:{SECRET}@node1/system": "qemu+tcp://root:***@node1/system",
    f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n{SECRET}\n-----END RSA PRIVATE KEY-----\nmore": "KEY-----\nmore",
    f"-----BEGIN PRIVATE KEY-----\n{SECRET} and the file ends": "-----BEGIN PRIVATE KEY-----***",
    f'{{"api_key": "{SECRET}", "port": 22}}': '"api_key": "***", "port": 22',
    f'{{"password": "a\\"{SECRET}", "x": 1}}': '"x": 1',
    f"api-key: {SECRET}": "api-key: ***",
    f"CEPH_SECRET={SECRET} PATH=/bin": "CEPH_SECRET=*** PATH=/bin",
    f"db_passwd = '{SECRET} 2'": "db_passwd = '***'",
}

CONFIGURATION = f"""
# the ipmi password is {SECRET}-comment
[nodes.node1]
fence_command = "fence_ipmilan --ip=10.9.8.7 --username admin --password {SECRET}-fence node1"
[nodes.node2]
peer_uri = "qemu+tcp://root:{SECRET}-uri@node2/system"
fence_command = "FENCE_KEY={SECRET}-key sh -c 'off -p {SECRET}-word'"
[journal]
path = "j.sqlite"
"""


@pytest.mark.parametrize(("text", "stays"), TEXTS.items())
def test_a_secret_is_taken_out_and_what_is_around_it_stays(text: str, stays: str) -> None:
    assert SECRET in text
    for shown in (redacted(text), redacted(redacted(text))):
        assert SECRET not in shown
        assert stays in shown


@pytest.mark.parametrize(
    "text",
    [
        "the token of web1 ran out 10 s ago (root@host pid 1)",
        "exists connection name:r0 peer-node-id:1 conn-name:node2 connection:Connected role:Secondary",
        "qemu+ssh://root@node1/system",
        "<disk type='block' device='disk'><source dev='/dev/drbd7'/></disk>",
        "keepalive_interval = 5",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("word", [".", "-", "x"])
def test_a_long_line_without_an_end_takes_no_time(word: str) -> None:
    """As a hook's progress in dots: as much of it as the journal keeps."""
    text = word * (64 << 10)
    begin = time.monotonic()
    assert redacted(text) == text
    assert time.monotonic() - begin < 20


def test_values_go_by_their_keys() -> None:
    value = {"nodes": {"a": {"fence_command": f"ipmi {SECRET}", "ssh": "root@a"}}, "tls_key": SECRET, "n": [f"x={1}"]}
    assert redacted_value(value) == {
        "nodes": {"a": {"fence_command": "ipmi ***", "ssh": "root@a"}},
        "tls_key": GONE,
        "n": ["x=1"],
    }
    known = secrets_of(value, names=())
    assert known == {SECRET}
    assert redacted(f"sh: {SECRET}: not found", known) == "sh: ***: not found"


@pytest.mark.parametrize(
    ("command", "secret"),
    [
        ("ipmitool -H ipmi -Uadmin -Ps3cretPW chassis power off", "s3cretPW"),
        ("fence_x -pABC_def", "ABC_def"),
        ("curl -u admin:hunter22 http://pdu/off", "hunter22"),
        ("sh -c 'curl -u admin:hunter22 http://pdu/off'", "hunter22"),
    ],
)
def test_a_secret_that_a_command_has_in_one_word_with_another(command: str, secret: str) -> None:
    assert secret in secrets_of({"fence_command": command}, names=())


def test_a_long_option_with_one_dash_is_no_secret() -> None:
    assert secrets_of({"fence_command": "/usr/sbin/off -reboot -now -f"}, names=()) == set()


def test_the_name_of_a_node_is_no_secret_though_a_command_has_it() -> None:
    value = {"fence_command": "off node1 -x 'unbalanced"}
    assert secrets_of(value, names={"node1"}) == {"'unbalanced"}
    # An option is none either: it is what a secret is called.
    assert secrets_of({"fence_command": "/usr/sbin/off --password hidden"}, names=()) == {"hidden"}


class Written(Cluster):
    """With the configuration and the journal of real files, over nodes in memory."""

    def __init__(self, world: World, path: Path) -> None:
        configuration = load(path)
        context = world.context()
        assert configuration.journal is not None
        super().__init__(configuration, context.hypervisor, context.storage, SqliteJournal(configuration.journal))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    path = tmp_path / "cluster.toml"
    path.write_text(CONFIGURATION)
    monkeypatch.setattr(cluster.Cluster, "open", lambda _path=None: Written(world, path))
    monkeypatch.chdir(tmp_path)
    opening = Opening(
        tasklet="migrate",
        instance="web1",
        uuid="u",
        source="node1",
        target="node2",
        holder="me",
        plan={"xml": next(iter(TEXTS)), "vnc_password": SECRET},
    )
    record = SqliteJournal(tmp_path / "j.sqlite").begin(opening, now=lambda: 0.0)
    record.add(Kind.MOMENT, f"fence_ipmilan: {SECRET}-fence refused", {"said_by": "lvmigrate"})
    for text in TEXTS:
        record.add(Kind.MOMENT, text, {"said": text, "deep": [{"text": text}]})
    record.end("COPY_FAILED", f"it said --password={SECRET}", {"sentence": "x", "detail": f"passwd='{SECRET}'"})
    for node in NODES:
        world.evidence[node] = {"qemu": "\n".join(TEXTS), "kernel": f"drbd r0: {SECRET}-word; all else is here"}
    return world


def unpacked(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        files: dict[str, Any] = {entry.name: archive.extractfile(entry) for entry in archive.getmembers()}
        assert {entry.mode for entry in archive.getmembers()} == {0o600}
        return {name: file.read().decode() for name, file in files.items()}


def test_the_bundle(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bundle", "last"]) == ExitCode.OK
    path = tmp_path / capsys.readouterr().out.strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    files = unpacked(path)
    folder = path.name.removesuffix(".tar.gz")
    assert {name.removeprefix(f"{folder}/") for name in files} == {
        *("README.txt", "report.txt", "journal.json", "configuration.json", "versions.json"),
        *(f"{node}/{name}.txt" for node in NODES for name in ("qemu", "kernel")),
    }
    for name, text in files.items():
        assert SECRET not in text, name
    journal = json.loads(files[f"{folder}/journal.json"])
    assert len(journal["rows"]) == len(TEXTS) + 1
    assert journal["plan"]["vnc_password"] == GONE
    assert "web1: migrate node1 -> node2" in files[f"{folder}/report.txt"]
    configuration = json.loads(files[f"{folder}/configuration.json"])
    assert configuration["nodes"]["node1"]["fence_command"] == "fence_ipmilan ***"
    assert configuration["nodes"]["node2"]["peer_uri"] == "qemu+tcp://root:***@node2/system"
    versions = json.loads(files[f"{folder}/versions.json"])
    assert versions["node1"]["drbd"] == "9.3.3"
    assert versions["node1"]["libvirt"]["qemu_version"] == [10, 0, 0]
    assert versions["lvmigrate"]
    assert "all else is here" in files[f"{folder}/node2/kernel.txt"]
    # Nothing was changed anywhere.
    assert {method for method, _ in world.calls} == {"vitals", "evidence", "host"}


def test_of_a_drain_every_node_is_asked(world: World, tmp_path: Path) -> None:
    opening = Opening(
        tasklet="drain", instance="node2", uuid="", source="node2, node9", target="node1, node8", holder="me", plan={}
    )
    SqliteJournal(tmp_path / "j.sqlite").begin(opening, now=lambda: 0.0).end("OK", "", {})
    with cluster.Cluster.open() as here:
        files = here.bundle("last").files
    assert {f"{node}/kernel.txt" for node in NODES} <= set(files)


def test_nothing_is_overwritten(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "b.tar.gz"
    there.write_text("mine")
    assert cli.main(["bundle", "last", "--output", str(there)]) == ExitCode.USAGE
    assert "is there already" in capsys.readouterr().err
    assert there.read_text() == "mine"
    assert cli.main(["bundle", "last", "--output", str(tmp_path / "no/b")]) == ExitCode.USAGE
    assert cli.main(["bundle", "nosuch"]) == ExitCode.USAGE


def test_a_silent_node_is_told_of(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.faults["evidence", "node2"] = unreachable("node2")
    assert cli.main(["bundle", "last", "--json"]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert told["silent"] == ["node2"]
    files = unpacked(Path(told["file"]))
    (text,) = (text for name, text in files.items() if name.endswith("node2/no-answer.txt"))
    assert json.loads(text)["code"] == "NODE_UNREACHABLE"
    assert any(name.endswith("node1/qemu.txt") for name in files)


def test_an_archive_opens_with_any_tar(world: World) -> None:
    opened = cluster.Cluster.open()
    made = opened.bundle("last")
    with tarfile.open(fileobj=io.BytesIO(made.archive())) as archive:
        assert all(name.startswith(f"{made.folder}/") for name in archive.getnames())
