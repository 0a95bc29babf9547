"""What libvirt says of one domain, as the core's `Domain`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypedDict

import libvirt

from hv import xml
from lvmigrate.domain import Domain, DomainDisk, DomainState, JobKind, Nic

_STATES: Final = {
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.IN_SHUTDOWN,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.SUSPENDED,
    libvirt.VIR_DOMAIN_SHUTOFF: DomainState.OFF,
}

#: virDomain*Reason of libvirt 11.3, in the order of their numbers, for the states whose reason tells a migration
#: something.  As measured: a copy that comes in is "starting up", then paused for "migration" until the end, and one
#: that arrived with VIR_MIGRATE_PAUSED is then paused by "user", as after a suspend.  A source in the last phase is
#: paused for "migration", with its job; without a job, its daemon was restarted in that phase and will do nothing more.
#: A source that its daemon resumed after a failed move: running, "migration canceled"; that it tried to and could
#: not: paused, "api error".
_REASONS: Final[Mapping[int, tuple[str, ...]]] = {
    libvirt.VIR_DOMAIN_RUNNING: (
        "unknown",
        "booted",
        "migrated",
        "restored",
        "from snapshot",
        "unpaused",
        "migration canceled",
        "save canceled",
        "woken up",
        "crashed",
        "post-copy",
        "post-copy failed",
    ),
    libvirt.VIR_DOMAIN_PAUSED: (
        "unknown",
        "user",
        "migration",
        "save",
        "dump",
        "i/o error",
        "watchdog",
        "from snapshot",
        "shutting down",
        "snapshot",
        "crashed",
        "starting up",
        "post-copy",
        "post-copy failed",
        "api error",
    ),
    libvirt.VIR_DOMAIN_SHUTOFF: (
        "unknown",
        "shutdown",
        "destroyed",
        "crashed",
        "migrated",
        "saved",
        "failed",
        "from snapshot",
        "daemon",
    ),
}

#: For how long a monitor is in use by one call before its QEMU is said not to answer, in milliseconds.
_OCCUPIED_MS: Final = 10_000

_JOB_KINDS: Final = {
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN: JobKind.INCOMING,
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT: JobKind.OUTGOING,
}


def job_of(domain: libvirt.virDomain) -> JobKind:
    """Which job libvirt has for the domain. Raises what libvirt raises."""
    if not domain.isActive():
        return JobKind.NONE
    try:
        statistics = domain.jobStats()
    except libvirt.libvirtError as error:
        code = error.get_error_code()
        if code == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
            return JobKind.INCOMING  # "migration statistics are available only on the source host"
        if code in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_SUPPORT):
            return JobKind.NONE  # it stopped meanwhile, or this driver has no jobs at all
        if code == libvirt.VIR_ERR_INTERNAL_ERROR and "no RAM info" in str(error):
            return JobKind.OUTGOING  # "migration was active, but no RAM info was set"
        raise
    # A job that failed or was cancelled is there, and holds the domain, until its last phase is over: measured up to a
    # keepalive later.
    if statistics.get("type", libvirt.VIR_DOMAIN_JOB_NONE) == libvirt.VIR_DOMAIN_JOB_NONE:
        return JobKind.NONE
    return _JOB_KINDS.get(statistics.get("operation", 0), JobKind.OTHER)


def one_of_many(node: str, domain: libvirt.virDomain) -> Domain:
    """The domain as it is now, also while its QEMU does not answer. Raises what libvirt raises.

    Of one that does not answer the job is `JobKind.OTHER`: nothing can be done with it.  The job of one that runs is
    not asked for.
    """
    try:
        if not _occupied(domain):
            # Only one that is paused can be coming in, and has no XML then.
            paused = domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
            return observed(node, domain, job_of(domain) if paused else JobKind.NONE)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_TIMEOUT:
            raise
    return observed(node, domain, JobKind.OTHER, answers=False)


def _occupied(domain: libvirt.virDomain) -> bool:
    """Whether a call has been waiting for the domain's QEMU for so long that the next would wait too: 30 s, each."""
    if not domain.isActive():
        return False
    try:
        state, _details, for_ms = domain.controlInfo()
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_INVALID):
            return False  # a driver without monitors, or it stopped meanwhile
        raise
    return bool(state == libvirt.VIR_DOMAIN_CONTROL_OCCUPIED and for_ms >= _OCCUPIED_MS)


def observed(node: str, domain: libvirt.virDomain, job: JobKind, *, answers: bool = True) -> Domain:
    """The domain as it is now. Raises what libvirt raises; ``answers``: whether its QEMU does."""
    persistent = bool(domain.isPersistent())
    content = _described(domain) if answers and job is not JobKind.INCOMING else _counted(domain)
    state, reason = domain.state()
    # Of a copy that comes in, libvirt would say so only after its end.
    current_kib = None if job is JobKind.INCOMING else domain.info()[2]
    return Domain(
        node=node,
        name=domain.name(),
        uuid=domain.UUIDString(),
        state=_STATES.get(state, DomainState.OFF if not domain.isActive() else DomainState.IN_SHUTDOWN),
        reason=_reason(state, reason),
        job=job,
        persistent=persistent,
        autostart=persistent and bool(domain.autostart()),
        memory_kib=domain.maxMemory(),
        current_kib=current_kib,
        **content,
    )


class _Content(TypedDict):
    """What of a `Domain` stands in its XML."""

    virt_type: str
    vcpus: int
    disks: tuple[DomainDisk, ...]
    nics: tuple[Nic, ...]
    left_on: str | None
    loses_tpm: bool


def _described(domain: libvirt.virDomain) -> _Content:
    text = domain.XMLDesc()
    return _Content(
        virt_type=xml.virt_type(text),
        vcpus=xml.vcpus(text),
        disks=xml.disks(text),
        nics=xml.nics(text),
        left_on=xml.left_on(text),
        loses_tpm=xml.loses_tpm(text),
    )


def _counted(domain: libvirt.virDomain) -> _Content:
    """As `_described`, of one whose XML cannot be had: a copy that comes in, or a guest whose QEMU does not answer.

    libvirt would give the XML only after the copy's end, or never (30 s).  The statistics need no job of libvirt's own;
    they do not tell the type, the interfaces, a TPM, nor whether a disk may be written.
    """
    wanted = libvirt.VIR_DOMAIN_STATS_BLOCK | libvirt.VIR_DOMAIN_STATS_VCPU
    found = domain.connect().domainListGetStats([domain], wanted, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
    values = found[0][1] if found else {}
    disks = tuple(
        DomainDisk(
            target=values.get(f"block.{number}.name", ""),
            source=values.get(f"block.{number}.path"),
            kind="",
            device="disk",
            read_only=False,
        )
        for number in range(values.get("block.count", 0))
    )
    return _Content(
        virt_type="", vcpus=values.get("vcpu.maximum", 1), disks=disks, nics=(), left_on=None, loses_tpm=False
    )


def _reason(state: int, reason: int) -> str:
    """The reason in words; numbers that a newer libvirt adds stay numbers."""
    known = _REASONS.get(state, ())
    return known[reason] if reason < len(known) else str(reason)
