"""The Debian package on a node: installed there, it moves a guest to the other node and back, and is removed again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.package import HOME, Packaged
from tests.lab.support import Running
from vagrant.labkit.guests import WEB1
from vagrant.labkit.lab import NODES, Lab, other

#: What an operator writes: on one of the hosts its own table is empty. An emulated node needs longer deadlines.
CONFIGURATION = f"""\
[limits]
connect_s = 60
command_s = 60
lease_s = 60
[nodes.{HOME}]
[nodes.{other(HOME)}]
"""
pytestmark = pytest.mark.long


@pytest.fixture
def installed(packaged: Packaged, lab: Lab) -> Iterator[Callable[..., Any]]:
    """Runs the packaged command on a node, as its root, and returns what it says as JSON."""
    lab.run(HOME, f"cat >/etc/lvmigrate/cluster.toml <<'END'\n{CONFIGURATION}END")

    def command(*words: str) -> Any:
        return json.loads(lab.run(HOME, f"lvmigrate {' '.join(words)} --json", check=False, timeout_s=600))

    yield command
    lab.run(HOME, "rm -rf /etc/lvmigrate/cluster.toml /var/lib/lvmigrate")


def test_there_and_back(installed: Callable[..., Any], running: Callable[..., Running], lab: Lab) -> None:
    it = running(WEB1, HOME)
    assert lab.run(HOME, "lvmigrate --version").startswith("lvmigrate ")
    assert [node["node"] for node in installed("status")["nodes"]] == list(NODES)
    assert installed("check", "web1")["target"] == other(HOME)
    for target in (other(HOME), HOME):
        report = installed("migrate", "web1", "--to", target)
        assert (report["target"], report["running"]) == (target, True)
        it.whole_on(target)
    errands = installed("history", "web1")["errands"]
    assert [(one["source"], one["target"]) for one in errands] == [(other(HOME), HOME), (HOME, other(HOME))]
    assert installed("audit")["findings"] == []


def test_the_completion_there(installed: Callable[..., Any], lab: Lab) -> None:
    assert installed("explain", "LOCKED")["code"] == "LOCKED"
    script = (
        "source /usr/share/bash-completion/completions/lvmigrate; COMP_WORDS=(lvmigrate mig); COMP_CWORD=1;"
        ' _shtab_lvmigrate; echo "${COMPREPLY[@]}"'
    )
    assert lab.run(HOME, f"bash -c '{script}'").split() == ["migrate"]
