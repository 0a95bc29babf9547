"""Storage that several nodes reach: what a path leads to, in words that are equal where it is the same thing.

The proof is what the storage itself calls it: an NFS server's export and the file in it, a Ceph image, the world-wide
identifier of a SCSI or NVMe logical unit (iSCSI, Fibre Channel, NVMe over fabrics), an NBD export, the UUID of a
logical volume that lvmlockd guards; and of a device its size, since a node may not have noticed that it has grown.  A
directory that the operator declares to be the same everywhere needs less: a file's place in it and its inode number, a
device's size.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

from lvmigrate.replication import Reach
from storage.remote import Remote

#: The file systems that several nodes can have mounted, by the kernel's name of them -> what people call them.
_NETWORK: Final[Mapping[str, str]] = MappingProxyType(
    {"nfs": "NFS", "nfs4": "NFS", "ceph": "CephFS", "fuse.glusterfs": "GlusterFS", "lustre": "Lustre"}
)
#: The kinds of devices that say what they are.
_DEVICES: Final[Mapping[str, str]] = MappingProxyType(
    {"rbd": "Ceph RBD", "scsi": "SCSI", "nvme": "NVMe", "mpath": "multipath", "nbd": "NBD", "lvm": "shared LVM"}
)


def look(remote: Remote, node: str, paths: Collection[str], directories: Collection[str]) -> Mapping[str, Reach]:
    """Those of ``paths`` that lead to storage which other nodes can reach too, and what it is."""
    wanted = tuple(path for path in paths if path.isprintable())
    if not wanted:
        return {}
    out = remote.ask(node, "Looking where the disks lie", "reach", *wanted, *directories).out
    said: dict[int, dict[str, str]] = {}
    for line in out.splitlines():
        number, _, rest = line.partition(" ")
        key, _, words = rest.partition(" ")
        if number.isdigit():
            said.setdefault(int(number), {})[key] = words
    ends = [said[i]["path"] for i in range(len(wanted), len(wanted) + len(directories)) if i in said]
    found = {path: _reach(said[i], ends) for i, path in enumerate(wanted) if i in said}
    return {path: reach for path, reach in found.items() if reach is not None}


def _reach(said: Mapping[str, str], directories: Collection[str]) -> Reach | None:
    for kind, title in _DEVICES.items():
        if kind in said:
            size = f" ({said['block']} sectors)" if said.get("block") else ""
            return Reach(what=f"{title} {said[kind]}{size}", exclusive=said.get("exclusive", ""))
    inside = max((d for d in directories if said["path"].startswith(d.rstrip("/") + "/")), key=len, default=None)
    if "block" in said:
        if inside is None:
            return None
        place = posixpath.relpath(said["path"], inside)
        return Reach(what=f"{place} in a declared directory ({said['block'] or '?'} sectors)")
    file = said.get("file", "").split(" ", 4)
    if len(file) != 5 or (inside is None and file[1] not in _NETWORK):  # noqa: PLR2004 -- as node.sh prints it
        return None
    inode, kind, source, root, rest = file
    if kind in _NETWORK:
        where = posixpath.normpath(f"{root}/{rest}")
        return Reach(what=f"{_NETWORK[kind]} {source} {where} (inode {inode})")
    return Reach(what=f"{posixpath.relpath(said['path'], inside)} in a declared directory (inode {inode})")
