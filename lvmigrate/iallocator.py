"""Ask a program of Ganeti's iallocator protocol, version 2, for a target; ``hail`` is one.

The request is a relocation of a guest whose disks are outside of the nodes: the program is to choose among the nodes
that have copies already, so every other node is told of as drained.  ``hail`` wants every key that is here, no other,
and figures that add up.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lvmigrate import balloon, program
from lvmigrate.domain import Domain, Host
from lvmigrate.errors import Code, Finding, LvmigrateError, Refused
from lvmigrate.node import Node

#: Where Ganeti and its packages keep them.
_DIRECTORIES: Final = (
    Path("/usr/lib/ganeti/iallocators"),
    Path("/usr/local/lib/ganeti/iallocators"),
    Path("/usr/share/ganeti/iallocators"),
)
_WITHIN_S: Final = 60.0
_MOST: Final = 1 << 20
#: The most that hail counts as a node's own.
_RESERVED_MIB: Final = 4096
_DISK_MIB: Final = 1 << 20
_NO_LIMIT: Final = 1_000_000
#: A disk template that lies outside of the nodes.
_TEMPLATE: Final = "ext"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One node as a program is told of it."""

    node: Node
    #: ``None``: it was not asked, or did not answer.
    host: Host | None
    #: Those that run there.
    guests: tuple[Domain, ...]


def request(domain: Domain, views: Sequence[NodeView], fitting: Collection[str]) -> dict[str, Any]:
    """The input of a relocation of ``domain`` to one of ``fitting``. Pure."""
    groups = {view.node.group for view in views}
    bounds = {"min": _spec(0), "max": _spec(_NO_LIMIT)}
    ipolicy = {
        "disk-templates": [_TEMPLATE],
        "minmax": [bounds],
        "std": _spec(1),
        "spindle-ratio": _NO_LIMIT,
        "vcpu-ratio": _NO_LIMIT,
    }
    guests = {guest.uuid: guest for view in views for guest in view.guests} | {domain.uuid: domain}
    return {
        "version": 2,
        "cluster_name": "lvmigrate",
        "cluster_tags": [],
        "enabled_hypervisors": ["kvm"],
        "ipolicy": ipolicy,
        "nodegroups": {
            group: {"name": group, "alloc_policy": "preferred", "ipolicy": ipolicy, "networks": [], "tags": []}
            for group in sorted(groups)
        },
        "nodes": {view.node.name: _node(view, source=domain.node, fitting=fitting) for view in views},
        "instances": {guest.uuid: _instance(guest) for guest in guests.values()},
        "request": {
            "type": "relocate",
            "name": domain.uuid,
            "disk_space_total": 0,
            "required_nodes": 1,
            "relocate_from": [domain.node],
        },
    }


def _spec(number: int) -> dict[str, int]:
    names = ("memory-size", "cpu-count", "disk-size", "disk-count", "nic-count", "spindle-use")
    return dict.fromkeys(names, number)


def _instance(guest: Domain) -> dict[str, Any]:
    return {
        "tags": [],
        "memory": balloon.current(guest) // 1024,
        "spindle_use": 0,
        "vcpus": guest.vcpus,
        "os": "",
        "nodes": [guest.node],
        "nics": [{"mac": nic.mac, "ip": None, "mode": nic.kind, "link": nic.link} for nic in guest.nics],
        "disks": [{"size": 0, "mode": "ro" if disk.read_only else "rw"} for disk in guest.disks],
        "disk_template": _TEMPLATE,
        "disk_space_total": 0,
        "hypervisor": "kvm",
        "admin_state": "up",
        "hv_state": {},
        "disk_state": {},
    }


def _node(view: NodeView, *, source: str, fitting: Collection[str]) -> dict[str, Any]:
    offline = view.node.offline is not None or view.host is None
    known: dict[str, Any] = {
        "tags": [],
        "primary_ip": view.node.name,
        "secondary_ip": view.node.migration_address,
        "offline": offline,
        "drained": view.node.name != source and view.node.name not in fitting,
        "master_candidate": False,
        "master_capable": False,
        "vm_capable": True,
        "group": view.node.group,
        "ndparams": {"spindle_count": 1, "exclusive_storage": False, "oob_program": ""},
        "hv_state": {},
        "disk_state": {},
    }
    if offline or view.host is None:
        return known
    used = sum(balloon.current(guest) // 1024 for guest in view.guests)
    free = view.host.free_memory_kib // 1024
    reserved = min(_RESERVED_MIB, max(0, view.host.memory_kib // 1024 - free - used))
    return known | {
        "total_memory": free + used + reserved,
        "reserved_memory": reserved,
        "free_memory": free,
        "total_disk": _DISK_MIB,
        "free_disk": _DISK_MIB,
        "total_spindles": 0,
        "free_spindles": 0,
        "total_cpus": view.host.cpus or 1,
        "reserved_cpus": 0,
        "i_pri_memory": used,
        "i_pri_up_memory": used,
    }


def ask(
    name: str, domain: Domain, views: Sequence[NodeView], fitting: Collection[str], *, cancel: threading.Event
) -> str:
    """The node that the program ``name`` chooses among ``fitting``. Raises `Refused` with what it says.

    It is ended when ``cancel`` is set, as one whose time is up.
    """
    path = _found(name, domain)
    try:
        with tempfile.TemporaryDirectory(prefix="lvmigrate-") as away:
            file = Path(away) / "request.json"
            file.write_text(json.dumps(request(domain, views, fitting)), encoding="utf-8")
            ended = program.run(
                [str(path), str(file)],
                env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
                within_s=_WITHIN_S,
                most_bytes=_MOST,
                cancel=cancel,
            )
    except LvmigrateError as error:
        raise _failed(domain, error.sentence, error.hint) from error
    except OSError as error:
        raise _failed(
            domain, f"{name} cannot be told of the nodes: {error}.", "Make room in the directory for temporary files."
        ) from error
    said = " ".join((ended.errors or ended.output).split())[:1000]
    if not ended.ok:
        raise _failed(
            domain, f"{name} {ended.how}: {said or 'it said nothing'}.", f"See `{path}`; or name it with --to."
        )
    try:
        answer = json.loads(ended.output)
        success, info, result = answer["success"], str(answer["info"]), answer["result"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _failed(
            domain, f"{name} did not answer as an iallocator program does ({error!r}).", f"Run `{path}` by hand."
        ) from error
    if success is not True:
        raise _failed(
            domain,
            f"{name} found no target for {domain.name}: {info.strip()}",
            "Name the target with --to, or leave --iallocator out.",
        )
    if not (isinstance(result, list) and len(result) == 1 and result[0] in fitting):
        raise _failed(
            domain,
            f"{name} chose {json.dumps(result)}; {domain.name} can go to {', '.join(fitting)}.",
            "Name the target with --to.",
        )
    return str(result[0])


def _found(name: str, domain: Domain) -> Path:
    candidates = [Path(name).absolute()] if "/" in name else [directory / name for directory in _DIRECTORIES]
    for path in candidates:
        if path.is_file():
            return path
    where = " and ".join(str(path.parent) for path in candidates)
    raise _failed(
        domain,
        f"There is no iallocator program {name} (looked for in {where}).",
        "Debian's ganeti-htools has hail; another program is named by its path.",
    )


def _failed(domain: Domain, sentence: str, hint: str) -> Refused:
    return Refused(domain.name, [Finding(code=Code.ALLOCATOR_FAILED, sentence=sentence, hint=hint)])
