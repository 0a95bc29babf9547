"""One link of the lab cut and not another: rules of a node's own firewall, which drop what comes in."""

from __future__ import annotations

import contextlib
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence

from vagrant.labkit.guests import Guest
from vagrant.labkit.lab import Lab, other

#: What marks each rule, by which it is found again whoever made it.
MARK = "-m comment --comment lvmigrate-lab"


def address(lab: Lab, node: str) -> str:
    """Where the other node reaches ``node``."""
    nodes = tomllib.loads(lab.config.read_text(encoding="utf-8"))["nodes"]
    return str(nodes[node]["migration_address"])


def from_peer(lab: Lab, node: str, *ports: str) -> list[str]:
    """Rules for ``node``: what its peer sends from or to these ports."""
    peer = address(lab, other(node))
    return [f"-s {peer} -p tcp --{end} {port}" for port in ports for end in ("dport", "sport")]


def of_drbd(lab: Lab, guest: Guest, node: str) -> list[str]:
    """Rules for ``node``: the replication of ``guest``'s disks, and nothing else."""
    shown = lab.run(node, f"drbdsetup show {guest.resource}")
    return from_peer(lab, node, shown.split("ipv4", 1)[1].split(";")[0].rsplit(":", 1)[1].strip())


def long_replies(lab: Lab, node: str) -> list[str]:
    """Rules for ``node``: what its peer answers by ssh in packets of 200 bytes and more.

    The nodes' libvirts talk by ssh. A keepalive message is shorter, and the last answer of a migration longer.
    """
    return [f"-s {address(lab, other(node))} -p tcp --sport 22 -m length --length 200:65535"]


def adding(rules: Sequence[str]) -> str:
    """A script that puts the rules in place."""
    return "; ".join(f"iptables -w -I INPUT {rule} {MARK} -j DROP" for rule in rules)


def deleting(rules: Sequence[str]) -> str:
    """A script that takes them away; one that is not there is no error."""
    return "; ".join(f"iptables -w -D INPUT {rule} {MARK} -j DROP" for rule in rules) + "; true"


@contextlib.contextmanager
def dropped(lab: Lab, of: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """By node: its rules, for as long as the context lasts."""
    for node, rules in of.items():
        lab.run(node, adding(rules))
    try:
        yield
    finally:
        for node, rules in of.items():
            lab.run(node, deleting(rules))


def dropped_packets(lab: Lab, node: str) -> int:
    """How many packets the rules in place on ``node`` have dropped."""
    lines = lab.run(node, "iptables -w -nvxL INPUT").splitlines()
    return sum(int(line.split()[0]) for line in lines if "lvmigrate-lab" in line)


def mended(lab: Lab) -> None:
    """No rule of this kind is left on any node, nor here, whoever made it."""
    delete = "iptables-save | sed -n '/lvmigrate-lab/s/^-A/-w -D/p' | while read -r rule; do eval iptables $rule; done"
    subprocess.run(["sh", "-c", delete], check=True, capture_output=True)
    lab.both(delete)
