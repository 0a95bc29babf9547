"""What a move opens, and leaves for others to close: how the target becomes Primary, and what nobody would finish."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lvmigrate import checks
from lvmigrate.domain import DomainState
from lvmigrate.errors import Code, Finding
from lvmigrate.own_names import own_name
from lvmigrate.plan import Switch
from lvmigrate.premises import RESUME_KILLS, dotted
from lvmigrate.survey import Survey

#: From this version on libvirt puts no format node on top of a raw disk (its commit "Stop using the 'raw' format driver
#: in cases when it's not needed", between 9.9 and 10.0).
_PLAIN: Final = (10, 0, 0)


def reads_first(survey: Survey) -> bool:
    """Whether the target's QEMU opens a disk for reading until the guest has arrived.

    libvirt gives the node of the device ``auto-read-only`` under one of a format, and QEMU writes through neither
    before it owns the disk (measured with libvirt 9.0; with 11.3 and a raw disk it is opened for writing at once).
    DRBD 9 promotes for a writer only, and lets nobody read on a Secondary beside a Primary (drbd_open, its
    ``ro_open_cond``).
    """
    disks = checks.replicated_disks(survey.domain)
    return survey.target.host.libvirt_version < _PLAIN or any(disk.format not in ("", "raw") for disk in disks)


def unguarded(survey: Survey) -> Iterator[Finding]:
    """What is said where no guard would let the guest run that arrives paused."""
    name, options = survey.domain.name, survey.options
    guarded = options.guard and bool(survey.source.resources)
    if not guarded and options.switch is Switch.STRICT and survey.domain.state is DomainState.RUNNING:
        yield Finding(
            code=Code.UNGUARDED,
            sentence=f"{name} has no guard: if this command dies in mid-move, it arrives on {survey.target.node} and"
            " waits paused there.",
            hint=f"Then `lvmigrate cleanup {name}` lets it run; with --fast it runs as it arrives.",
        )


def explicit(survey: Survey) -> Iterator[Finding]:
    """What is said of a target that would promote by itself, and has to be promoted explicitly all the same."""
    names = sorted(name for name, options in survey.target.options.items() if options.auto_promote)
    if names and reads_first(survey):
        node = survey.target.node
        yield Finding(
            code=Code.PROMOTED_EXPLICITLY,
            sentence=f"{', '.join(names)} is made Primary on {node} by a command, as its QEMU opens the disk for"
            " reading first: it stays Primary there when the guest is shut down.",
            hint=f"After a shutdown: `drbdadm secondary {own_name(names[0], node)}` on {node}; the next move away does"
            " so itself.",
        )


def unmended(survey: Survey) -> Iterator[Finding]:
    """What is said of a post-copy whose ends could not be connected again if its link broke."""
    first, mended = RESUME_KILLS
    if survey.options.may_post_copy_of(survey.domain) and first <= survey.target.host.libvirt_version < mended:
        version = dotted(survey.target.host.libvirt_version)
        yield Finding(
            code=Code.POST_COPY_UNMENDED,
            sentence=f"If its link breaks, a post-copy to {survey.target.node} cannot be connected again: libvirt"
            f" {version} there dies of it.",
            hint=f"Update libvirt on {survey.target.node} to {dotted(mended)} or later, or do without.",
        )


def warnings(survey: Survey) -> tuple[Finding, ...]:
    """All of these."""
    return (*explicit(survey), *unguarded(survey), *unmended(survey))
