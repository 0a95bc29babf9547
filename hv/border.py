"""Where libvirt's errors become ours, in one table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import libvirt

from lvmigrate.errors import Code, CommandFailed, LvmigrateError, NodeUnreachable

#: The daemon or the way to it is gone: what it did last is not known.
_NO_ANSWER: Final = frozenset(
    {
        (libvirt.VIR_ERR_RPC, libvirt.VIR_FROM_RPC),
        (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC),
        (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC),
        (libvirt.VIR_ERR_INVALID_CONN, libvirt.VIR_FROM_RPC),
        (libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_FROM_RPC),
        (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_REMOTE),
        (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_REMOTE),
        (libvirt.VIR_ERR_RPC, libvirt.VIR_FROM_REMOTE),
    }
)

_HINTS: Final = {
    libvirt.VIR_ERR_AUTH_FAILED: "Be root, or in the group that may use the libvirt daemon there (libvirt).",
    libvirt.VIR_ERR_OPERATION_TIMEOUT: "libvirt is busy with this guest; look with `virsh domjobinfo` and try again.",
    libvirt.VIR_ERR_MIGRATE_UNSAFE: "Use cache='none' for every disk of the guest.",
    libvirt.VIR_ERR_NO_DOMAIN: "Look again with `lvmigrate status`.",
}


def words(error: libvirt.libvirtError) -> str:
    """Give libvirt's own words with its number: ``operation failed: ... (libvirt error 9)``."""
    return f"{' '.join(str(error).split())} (libvirt error {error.get_error_code()})"


def translated(error: libvirt.libvirtError, node: str, what: str) -> LvmigrateError:
    """The error of ours for one of libvirt's, met on ``node`` while doing ``what`` (a noun phrase)."""
    kind = (error.get_error_code(), error.get_error_domain())
    if kind in _NO_ANSWER:
        return NodeUnreachable(
            node,
            "its libvirt daemon gave no answer",
            hint=f"Check `systemctl status libvirtd` on {node} and the way to it, then look with `lvmigrate status`.",
            detail=words(error),
        )
    return CommandFailed(
        node,
        what,
        status=kind[0],
        code=Code.HYPERVISOR_FAILED,
        hint=_HINTS.get(kind[0], f"Look at libvirt's log on {node}: {words(error)}"),
        detail=words(error),
    )


@contextmanager
def border(node: str, what: str) -> Iterator[None]:
    """Let nothing of libvirt's pass: raises `NodeUnreachable` or `CommandFailed` in place of ``libvirtError``."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise translated(error, node, what) from error
