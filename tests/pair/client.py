"""A program that starts a copy and then dies: ``python -m tests.pair.client NODES SOURCE TARGET UUID`` (JSON of nodes).

Prints a line once the copy is under way, and lives until it is killed.
"""

from __future__ import annotations

import json
import sys
import time

from hv import LibvirtHypervisor
from lvmigrate.node import Node
from lvmigrate.plan import Options
from tests.pair.guest import SLOW_MIB_S


def main() -> None:
    """See above."""
    nodes, source, target, uuid = sys.argv[1:]
    hypervisor = LibvirtHypervisor({name: Node(**node) for name, node in json.loads(nodes).items()})
    domain = hypervisor.domain(source, uuid)
    assert domain is not None
    copy = hypervisor.copy_memory(domain, target, Options(bandwidth_mib_s=SLOW_MIB_S))
    while copy.progress() is None:
        assert copy.wait(0.01) is None
    print("under way", flush=True)
    time.sleep(1000)


if __name__ == "__main__":
    main()
