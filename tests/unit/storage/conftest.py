"""A node that is this machine, with a drbdsetup that plays a part, and the recorded lines of real ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lvmigrate.node import Node
from storage.drbd import DrbdStorage
from storage.shell import Shell

TRANSCRIPTS = Path(__file__).parents[2] / "transcripts"
_LINE = re.compile(r"(\d{4}-\d\d-\d\dT\S+ )?(exists|create|change|rename|destroy|call|response) (\S+-\S+|-|\w+)( |$)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a device: mounts and loop devices are everybody's, so that those tests have one process."""
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker("devices")


def here(name: str) -> Node:
    return Node(name=name, ssh=None, libvirt_uri="test:///", peer_uri="test:///", migration_address="127.0.0.1")


@pytest.fixture(scope="session")
def lines() -> Callable[[str], list[str]]:
    """The lines of events2 in a transcript, such as ``drbd84/net-cut.node1``."""

    def read(name: str) -> list[str]:
        text = (TRANSCRIPTS / f"{name}.txt").read_text(encoding="utf-8")
        return [line for line in text.splitlines() if _LINE.match(line)]

    return read


@pytest.fixture
def node() -> Node:
    return here("node1")


@pytest.fixture
def shell() -> Iterator[Shell]:
    made = Shell(ssh_config=None, connect_timeout_s=5)
    yield made
    made.close()


class FakeNode:
    """A directory that plays a node's root, with a ``drbdsetup`` that answers from files and notes what it was told.

    Its kernel's answers are real ones; it changes its mind only where a program ``react`` does it.
    """

    _PROGRAM = """#!/bin/sh
here={here}
case "$*" in
    *--now*) [ "$#" -le 3 ] || exit 20; cat "$here/dump"; exit 0 ;;
    events2*) cat "$here/dump" "$here/events"; cat >/dev/null <"$here/more"; exit "$(cat "$here/status")" ;;
    show*) cat "$here/show"; exit 0 ;;
    get-gi*) cat "$here/gi"; exit 0 ;;
esac
[ ! -x "$here/react" ] || "$here/react" "$@"
echo "$*" >>"$here/told"
cat "$here/said" >&2
exit "$(cat "$here/status")"
"""

    def __init__(self, root: Path, version: str) -> None:
        self.root = root
        (root / "bin").mkdir()
        program = root / "bin" / "drbdsetup"
        program.write_text(self._PROGRAM.format(here=root))
        program.chmod(0o755)
        (root / "sys/module/drbd").mkdir(parents=True)
        (root / "sys/module/drbd/version").write_text(f"{version}\n")
        for name in ("dump", "events", "show", "told", "said", "gi"):
            (root / name).write_text("")
        self.status = 0
        os.mkfifo(root / "more")

    def put(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    @property
    def status(self) -> int:
        return int((self.root / "status").read_text())

    @status.setter
    def status(self, number: int) -> None:
        self.put("status", f"{number}")

    @property
    def told(self) -> list[str]:
        return (self.root / "told").read_text().splitlines()

    @property
    def tokens(self) -> Path:
        return self.root / "run/lvmigrate"


@pytest.fixture
def fake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Callable[[str], list[str]]
) -> Callable[[str], FakeNode]:
    """Make this machine a node with DRBD ``drbd84`` (r0, one volume) or ``drbd93`` (r1, two volumes)."""

    def make(version: str) -> FakeNode:
        made = FakeNode(tmp_path, {"drbd84": "8.4.11", "drbd93": "9.3.3"}[version])
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        dump, show = {
            "drbd84": ("drbd84/events2-now-stat-ts-initial", "drbd84/show"),
            "drbd93": ("drbd93/mv.events2-now-stat-ts", "drbd93/mv.show"),
        }[version]
        made.put("dump", "".join(f"{line.partition(' ')[2]}\n" for line in lines(dump)))
        made.put("show", (TRANSCRIPTS / f"{show}.txt").read_text(encoding="utf-8"))
        return made

    return make


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[DrbdStorage]:
    made = DrbdStorage({name: here(name) for name in ("node1", "node2")}, command_timeout_s=20, root=str(tmp_path))
    yield made
    made.close()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A block device nobody uses."""
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.fail("these tests need root and losetup")
    image = tmp_path / "image"
    image.write_bytes(bytes(8 << 20))
    made = subprocess.run(["losetup", "-f", "--show", str(image)], capture_output=True, text=True, check=True)
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "-d", made.stdout.strip()], check=True)
