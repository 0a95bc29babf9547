"""Removing a definition, and nothing else that libvirt keeps of the guest: variables of its firmware, a TPM's state."""

from __future__ import annotations

import libvirt

from hv import xml
from hv.version import version
from lvmigrate.errors import Code, CommandFailed
from lvmigrate.premises import KEEPS_TPM, tpm_state


def keeping(node: str, domain: libvirt.virDomain) -> int:
    """The flags of virDomainUndefineFlags that keep the rest. Raises what libvirt raises, and `CommandFailed`.

    A libvirt before 8.9 has no flag for the state of an emulated TPM, refuses the one that came later, and deletes the
    state's directory with the definition unless that says otherwise (qemuExtDevicesCleanupHost): on storage that both
    nodes share it is the very state that the guest uses where it is now.
    """
    flags = int(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
    if version(domain.connect().getLibVersion()) >= KEEPS_TPM:
        return flags | int(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM)
    if xml.loses_tpm(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)):
        raise CommandFailed(
            node,
            "Removing the guest's definition (libvirt there would delete the state of its TPM with it)",
            status=libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
            code=Code.TPM,
            hint=f"See that the guest's own node does not use {tpm_state(domain.UUIDString())} too, or copy it away;"
            f" then `virsh undefine --keep-nvram {domain.name()}` on {node}."
            f" libvirt {KEEPS_TPM[0]}.{KEEPS_TPM[1]} keeps it.",
        )
    return flags
