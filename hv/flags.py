"""What a move is asked for, as libvirt's flags and typed parameters. Pure.

Never passed: VIR_MIGRATE_UNDEFINE_SOURCE (libvirt returning OK is no proof, so the source's definition goes only when
the move has been verified); VIR_MIGRATE_NON_SHARED_* (the disks are replicated: libvirt would copy them over each
other); VIR_MIGRATE_UNSAFE; VIR_MIGRATE_TUNNELLED (excludes most of the rest, and TLS does what it was for).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import libvirt

from lvmigrate.domain import Domain
from lvmigrate.node import Node
from lvmigrate.plan import Compression, Mode, Options, Switch

_LEVELS: Final[Mapping[Compression, str]] = {
    Compression.MT: libvirt.VIR_MIGRATE_PARAM_COMPRESSION_MT_LEVEL,
    Compression.ZLIB: libvirt.VIR_MIGRATE_PARAM_COMPRESSION_ZLIB_LEVEL,
    Compression.ZSTD: libvirt.VIR_MIGRATE_PARAM_COMPRESSION_ZSTD_LEVEL,
}


def flags(domain: Domain, options: Options) -> int:
    """VIR_MIGRATE_* of a copy of ``domain``."""
    found: int = libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    if options.mode is not Mode.NON_LIVE:
        found |= libvirt.VIR_MIGRATE_LIVE
    if options.may_post_copy_of(domain):
        # libvirt refuses it with VIR_MIGRATE_PAUSED: the target's libvirt starts the guest, whatever the switch.
        found |= libvirt.VIR_MIGRATE_POSTCOPY
    elif options.switch is not Switch.FAST:
        found |= libvirt.VIR_MIGRATE_PAUSED
    if domain.persistent:
        found |= libvirt.VIR_MIGRATE_PERSIST_DEST
    for wanted, flag in (
        (options.throttles, libvirt.VIR_MIGRATE_AUTO_CONVERGE),
        (options.compression is not None, libvirt.VIR_MIGRATE_COMPRESSED),
        (options.connections is not None, libvirt.VIR_MIGRATE_PARALLEL),
        (options.tls, libvirt.VIR_MIGRATE_TLS),
    ):
        found |= flag if wanted else 0
    return found


def parameters(domain: Domain, options: Options, peer: Node, port: int | None) -> dict[str, Any]:
    """VIR_MIGRATE_PARAM_* of a copy of ``domain`` to ``peer``; ``port``: where its QEMU is to listen."""
    found: dict[str, Any] = {libvirt.VIR_MIGRATE_PARAM_URI: uri(peer, port)}
    chosen = {
        libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: options.bandwidth_mib_s,
        libvirt.VIR_MIGRATE_PARAM_LISTEN_ADDRESS: peer.listen_address,
        libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS: options.connections,
        libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION: peer.tls_name if options.tls else None,
    }
    if options.may_post_copy_of(domain):
        chosen[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY] = options.postcopy_bandwidth_mib_s
    if options.throttles:
        chosen[libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INITIAL] = options.throttle_initial
        chosen[libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INCREMENT] = options.throttle_increment
    if options.compression is not None:
        chosen[libvirt.VIR_MIGRATE_PARAM_COMPRESSION] = options.compression.value
        if options.compression in _LEVELS:
            chosen[_LEVELS[options.compression]] = options.compression_level
    return found | {key: value for key, value in chosen.items() if value is not None}


def uri(peer: Node, port: int | None) -> str:
    """Where memory is sent to."""
    address = f"[{peer.migration_address}]" if ":" in peer.migration_address else peer.migration_address
    return f"tcp://{address}" + ("" if port is None else f":{port}")
