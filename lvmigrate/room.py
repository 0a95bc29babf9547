"""What a node has for another guest: its libvirt's word, and of its memory its kernel's, too."""

from __future__ import annotations

from dataclasses import replace

from lvmigrate.domain import Host
from lvmigrate.protocols import Hypervisor, Storage


def host(hypervisor: Hypervisor, storage: Storage, node: str) -> Host:
    """The node now, with no more memory free than its kernel would give without swapping.

    libvirt tells free, buffers and cached memory, and the last one holds what cannot be dropped: tmpfs, and the memory
    of guests that share it (memfd, as virtiofs and vhost-user want).  The kernel's MemAvailable leaves that out
    (Documentation/filesystems/proc.rst).
    """
    found = hypervisor.host(node)
    available = storage.available_kib(node)
    return found if available is None else replace(found, free_memory_kib=min(found.free_memory_kib, available))
