"""A guest's longest standstill at the end of a copy, which stays set at its QEMU when the copy has failed."""

from __future__ import annotations

from collections.abc import Callable

import libvirt


def limited(domain: libvirt.virDomain, milliseconds: int) -> Callable[[], None]:
    """Set it for the next copy; what sets it as it was. Raises what libvirt raises.

    At a job's end libvirt puts every parameter back to what it was as the job began (qemuMigrationParamsReset), which
    undoes what is set in the middle of a copy, and not this.
    """
    try:
        before = domain.migrateGetMaxDowntime()
    except libvirt.libvirtError as error:
        # A libvirt before 3.7, or a QEMU that does not tell.
        if error.get_error_code() not in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_INVALID):
            raise
        before = milliseconds
    domain.migrateSetMaxDowntime(milliseconds)

    def put_back() -> None:
        if before != milliseconds:
            domain.migrateSetMaxDowntime(before)

    return put_back
