"""The unit of the Debian package on a node: as its own user, by sudo's rule, watched by systemd, no root by ssh."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from tests.lab.faults import wait_until
from tests.lab.package import HOME, Packaged
from tests.lab.support import Running
from vagrant.labkit import links
from vagrant.labkit.guests import WEB1
from vagrant.labkit.lab import HERE, NODES, Lab, other

pytestmark = pytest.mark.long
AWAY: Final = other(HOME)
SOCKET: Final = "unix:/run/lvmigrate-service/api.sock"
#: An emulated node needs longer deadlines.
CONFIGURATION: Final = f"""\
[limits]
connect_s = 60
command_s = 60
lease_s = 60
[service]
stop = "wait"
stop_deadline_s = 300
[nodes.{HOME}]
ssh = "mover@{HOME}"
sudo = true
[nodes.{AWAY}]
ssh = "mover@{AWAY}"
sudo = true
"""
#: The watchdog is tried with less patience than the package's.
DROP_IN: Final = "[Service]\nWatchdogSec=20\nTimeoutAbortSec=5\n"


def documented(language: str) -> str:
    """The block of that language in the page about rights."""
    page = (HERE.parent / "docs" / "howto" / "rights.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return str(block)


MAKE_MOVER: Final = f"""
getent group libvirt >/dev/null
useradd --system --create-home --shell /bin/sh --password '*' --groups libvirt mover
cat >/etc/sudoers.d/lvmigrate <<'END'
{documented("text")}END
chmod 440 /etc/sudoers.d/lvmigrate
visudo -cq
# As Debian's own configuration has it: whoever is in the group, and nobody else.
chgrp libvirt /run/libvirt/libvirt-sock
chmod 660 /run/libvirt/libvirt-sock
install -d -m 700 -o mover /home/mover/.ssh
"""
UNMAKE_MOVER: Final = """
chown root:root /run/libvirt/libvirt-sock; chmod 666 /run/libvirt/libvirt-sock
pkill -KILL -u mover; userdel --remove mover 2>/dev/null; rm -f /etc/sudoers.d/lvmigrate; true
"""


@pytest.fixture(scope="module")
def mover(packaged: Packaged, lab: Lab) -> Iterator[None]:
    """The page's user on both nodes, its rule, and the keys of the service and of the other node's root."""
    for node in NODES:
        packaged.also(node, "sudo")
    try:
        lab.both(f"set -e\n{MAKE_MOVER}")
        lab.run(
            HOME,
            "set -e; S=/var/lib/lvmigrate; install -d -m 700 -o lvmigrate -g lvmigrate $S $S/.ssh;"
            " ssh-keygen -q -t ed25519 -N '' -f $S/.ssh/id_ed25519; cp /root/.ssh/known_hosts $S/.ssh/known_hosts;"
            " chown -R lvmigrate:lvmigrate $S/.ssh",
        )
        service = lab.run(HOME, "cat /var/lib/lvmigrate/.ssh/id_ed25519.pub").strip()
        for node in NODES:
            peer = lab.run(other(node), "ssh-keygen -y -f /root/.ssh/id_ed25519").strip()
            lines = (
                f'restrict,from="{links.address(lab, HOME)}" {service}',
                f'restrict,from="{links.address(lab, other(node))}",command="virt-ssh-helper qemu:///system" {peer}',
            )
            text = "\n".join(lines)
            lab.run(node, f"cat >/home/mover/.ssh/authorized_keys <<'END'\n{text}\nEND\nchown mover /home/mover/.ssh/*")
        yield
    finally:
        lab.both(UNMAKE_MOVER, check=False)
        lab.run(HOME, "rm -rf /var/lib/lvmigrate")


@pytest.fixture
def unit(mover: None, lab: Lab) -> Iterator[Callable[[str], str]]:
    """The service, started; asks systemd for a property of it."""
    lab.run(
        HOME,
        f"set -e; cat >/etc/lvmigrate/cluster.toml <<'END'\n{CONFIGURATION}END\n"
        "chgrp lvmigrate /etc/lvmigrate/cluster.toml; chmod 640 /etc/lvmigrate/cluster.toml\n"
        f"mkdir -p /run/systemd/system/lvmigrate.service.d\n"
        f"cat >/run/systemd/system/lvmigrate.service.d/test.conf <<'END'\n{DROP_IN}END\n"
        "systemctl daemon-reload; systemctl start lvmigrate",
        timeout_s=200,
    )

    def show(name: str) -> str:
        return lab.run(HOME, f"systemctl show -p {name} --value lvmigrate").strip()

    yield show
    print(lab.run(HOME, "journalctl -q -u lvmigrate -n 60 --no-pager -o cat", check=False))
    lab.run(
        HOME,
        "systemctl stop lvmigrate; systemctl reset-failed lvmigrate; rm -rf /etc/lvmigrate/cluster.toml"
        " /run/systemd/system/lvmigrate.service.d /var/lib/lvmigrate/[!.]*; systemctl daemon-reload; true",
        check=False,
        timeout_s=400,
    )


def asked(lab: Lab, *words: str) -> Any:
    """What the command says over the service's socket."""
    text = lab.run(HOME, f"lvmigrate --server {SOCKET} {' '.join(words)} --json", check=False, timeout_s=600)
    return json.loads(text)


def test_a_move_without_root(unit: Callable[[str], str], running: Callable[..., Running], lab: Lab) -> None:
    it = running(WEB1, HOME)
    assert (unit("ActiveState"), unit("User"), unit("StatusText")) == ("active", "lvmigrate", "Serving: nothing to do")
    assert lab.run(HOME, "ps -o user= -p $(systemctl show -p MainPID --value lvmigrate)").strip() == "lvmigrate"
    assert lab.run(HOME, "systemctl is-enabled lvmigrate", check=False).strip() == "disabled"
    report = asked(lab, "migrate", "web1", "--to", AWAY)
    assert (report.get("target"), report.get("running")) == (AWAY, True), report
    it.whole_on(AWAY)
    assert asked(lab, "audit")["findings"] == []
    # The rights are the user's own: without the group and the rule there are none.
    refused = lab.run(HOME, "setpriv --reuid mover --clear-groups virsh -c qemu:///system list 2>&1", check=False)
    assert "Permission denied" in refused
    lab.run(HOME, "systemctl reload lvmigrate")
    wait_until(lambda: unit("ActiveState") == "active", "it was reloaded", every_s=0.5, timeout_s=30)


def test_a_stop_waits_for_the_move(unit: Callable[[str], str], running: Callable[..., Running], lab: Lab) -> None:
    it = running(WEB1, HOME)
    words = lab.ssh(HOME, f"lvmigrate --server {SOCKET} migrate web1 --to {AWAY} --json")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as move:
        wait_until(
            lambda: "Unbounded" in lab.run(HOME, "virsh domjobinfo web1 2>/dev/null; true"),
            "the copy is under way",
            every_s=0.2,
        )
        assert unit("StatusText") == "Serving: 1 under way"
        lab.run(HOME, "systemctl stop --no-block lvmigrate")
        wait_until(lambda: unit("StatusText") == "Stopping: 1 under way", "it stops", every_s=0.2, timeout_s=20)
        assert unit("ActiveState") == "deactivating"
        said, _ = move.communicate(timeout=300)
    wait_until(lambda: unit("ActiveState") == "inactive", "it has stopped", every_s=0.5, timeout_s=60)
    assert unit("Result") == "success"
    report = json.loads(said)
    assert (report.get("target"), report.get("running")) == (AWAY, True), report
    it.whole_on(AWAY)


def test_one_that_hangs_is_started_anew(unit: Callable[[str], str], lab: Lab) -> None:
    before = unit("MainPID")
    begin = time.monotonic()
    lab.run(HOME, f"kill -STOP {before}")
    wait_until(
        lambda: unit("MainPID") not in {before, "0"} and unit("ActiveState") == "active", "it is back", timeout_s=120
    )
    assert 10 < time.monotonic() - begin < 110
    assert unit("NRestarts") == "1"
    assert "watchdog" in lab.run(HOME, "journalctl -q -u lvmigrate -n 100 --no-pager -o cat").lower()
    assert asked(lab, "status")["nodes"]


def test_what_it_could_do_to_the_machine_is_little(packaged: Packaged, lab: Lab) -> None:
    told = lab.run(HOME, "systemd-analyze security --no-pager lvmigrate.service", check=False)
    (score,) = re.findall(r"Overall exposure level for lvmigrate.service: ([\d.]+)", told)
    assert float(score) < 2, told
