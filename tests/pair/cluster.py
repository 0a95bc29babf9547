"""lvmigrate's own `Cluster` on the pair: libvirt's real daemons, and tokens below each host's private /run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from hv import LibvirtHypervisor
from lvmigrate.cluster import Cluster
from lvmigrate.config import Config, Limits
from lvmigrate.ipolicy import NO_POLICY
from lvmigrate.node import Node
from lvmigrate.plan import Options
from storage import SharedStorage
from storage.shell import Shell
from tests.pair.pair import Pair

#: Where the guests' disks are, on each host.
DISKS: Final = "/run/disks"


class PairShell(Shell):
    """Runs scripts in the hosts' namespaces."""

    def __init__(self, inside: Mapping[str, Sequence[str]]) -> None:
        """``inside``: what to put before a command, by node."""
        super().__init__(ssh_config=None, connect_timeout_s=10.0)
        self._inside = inside

    def command(self, node: Node, script: str) -> list[str]:
        """How ``script`` is run on ``node``."""
        return [*self._inside[node.name], "/bin/sh", "-c", script]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """All that a controller needs to know of a pair; it passes through JSON to another process."""

    nodes: Mapping[str, Node]
    inside: Mapping[str, Sequence[str]]
    #: A controller that was killed is waited for no longer than this.
    lease_s: float = 12.0
    #: How long libvirt may take to answer.
    call_timeout_s: float = 15.0

    @classmethod
    def of(cls, pair: Pair) -> Description:
        """The description of this pair."""
        return cls(
            nodes={host.name: host.node for host in pair.hosts},
            inside={host.name: host.inside() for host in pair.hosts},
        )

    @classmethod
    def read(cls, text: str) -> Description:
        """The inverse of `written`."""
        said = json.loads(text)
        return cls(
            # A host of the pair has no policy of its own.
            nodes={name: Node(**{**node, "policy": NO_POLICY}) for name, node in said["nodes"].items()},
            inside=said["inside"],
            lease_s=said["lease_s"],
            call_timeout_s=said["call_timeout_s"],
        )

    def written(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self))

    def cluster(self) -> tuple[Cluster, LibvirtHypervisor]:
        """A new controller, and its adapter."""
        limits = Limits(lease_s=self.lease_s)
        hypervisor = LibvirtHypervisor(
            self.nodes, connect_timeout_s=limits.connect_s, call_timeout_s=self.call_timeout_s
        )
        configuration = Config(
            path=Path("/nonexistent"), nodes=self.nodes, ssh_config=None, defaults=Options(), limits=limits
        )
        storage = SharedStorage(self.nodes, [DISKS], shell=PairShell(self.inside))
        return Cluster(configuration, hypervisor, storage), hypervisor
