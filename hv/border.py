"""Where libvirt's errors become ours, in one table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import libvirt

from lvmigrate.errors import Code, CommandFailed, LvmigrateError, NodeUnreachable


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Which errors, by all that is given here, and what they are to us."""

    code: Code
    #: What to do next; ``{node}``: where it was met.
    hint: str
    numbers: frozenset[int] = frozenset()
    domains: frozenset[int] = frozenset()
    #: A regular expression for libvirt's words, where its numbers do not tell (it has 1, 9 and 38 for nearly all).
    said: str = ""
    #: The daemon or the way to it is gone: what it did last is not known.
    silent: bool = False

    def holds(self, number: int, domain: int, text: str) -> bool:
        """Whether the error of this number and domain, with these words, is meant."""
        return (
            (not self.numbers or number in self.numbers)
            and (not self.domains or domain in self.domains)
            and (not self.said or re.search(self.said, text, re.IGNORECASE) is not None)
        )


def _set(*numbers: int) -> frozenset[int]:
    return frozenset(numbers)


_TRANSPORT: Final = _set(libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE, libvirt.VIR_FROM_SSH, libvirt.VIR_FROM_LIBSSH)

# What libvirt says in more ways than one has one next step.
_ANOTHER_CPU: Final = (
    "Give the guest a CPU model that both nodes have (`virsh hypervisor-cpu-baseline`), and start it anew."
)
_BUSY: Final = "libvirt on {node} is busy with this guest: look with `virsh domjobinfo`, and try again."
_WHICH_IS_TWICE: Final = "`virsh list --all --uuid --name` on both nodes shows which name or UUID is there twice."

#: The first row that holds counts; what none holds for is `Code.HYPERVISOR_FAILED`.
TABLE: Final[tuple[Row, ...]] = (
    # Between this machine and the daemon, or between two daemons.
    Row(
        code=Code.HOST_KEY_UNKNOWN,
        said=r"host key verification failed|host key .*(not known|mismatch)|remote host identification has changed",
        silent=True,
        hint="Accept the key once by hand, as root on the machine that connects: `ssh` to that host.",
    ),
    Row(
        code=Code.AUTH_FAILED,
        numbers=_set(libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_CANCELLED, libvirt.VIR_ERR_AUTH_UNAVAILABLE),
        silent=True,
        hint="Be root, or in the group that may use the libvirt daemon there (libvirt); see its auth_* settings.",
    ),
    Row(
        code=Code.AUTH_FAILED,
        domains=_TRANSPORT,
        said=r"permission denied|authentication failed|publickey",
        silent=True,
        hint="Let ssh log in there without a password (`ssh-copy-id`), and be allowed to use libvirt's socket.",
    ),
    Row(
        code=Code.AUTH_FAILED,
        numbers=_set(libvirt.VIR_ERR_ACCESS_DENIED, libvirt.VIR_ERR_OPERATION_DENIED),
        hint="The daemon on {node} allows this connection to look only: see its access drivers and the URI.",
    ),
    Row(
        code=Code.TLS_FAILED,
        # The word itself, and not in a name or a path.
        said=r"(?<![\w./'\"-])certificates?\b(?![/.-]\w)|access credentials"
        r"|(set|initialize|start) tls (x509|session)|tls (channel|handshake)",
        hint="`lvmigrate check --tls` names what is wrong with the certificates, and where they are.",
    ),
    Row(
        code=Code.NODE_UNREACHABLE,
        numbers=_set(
            libvirt.VIR_ERR_RPC,
            libvirt.VIR_ERR_INTERNAL_ERROR,
            libvirt.VIR_ERR_SYSTEM_ERROR,
            libvirt.VIR_ERR_INVALID_CONN,
            libvirt.VIR_ERR_NO_CONNECT,
        ),
        domains=_TRANSPORT,
        silent=True,
        hint="Check `systemctl status libvirtd` on {node} and the way to it, then look with `lvmigrate status`.",
    ),
    Row(
        code=Code.PEER_UNREACHABLE,
        said=r"failed to connect to remote libvirt uri",
        hint="Let `virsh -c PEER_URI list` succeed for root on {node}: keys, known hosts, firewall.",
    ),
    Row(
        code=Code.NODE_UNREACHABLE,
        said=r"lost connection to destination host",
        silent=True,
        hint="See whether libvirtd answers on both nodes, then look with `lvmigrate status`.",
    ),
    # What keeps a guest from arriving, in the words of whichever end noticed it.
    Row(
        code=Code.PORTS_TAKEN,
        said=r"address already in use|unable to find an unused port",
        hint="Wait for the moves under way, or widen the range of ports (migration_ports, or qemu.conf).",
    ),
    Row(
        code=Code.CPU_LACKS,
        numbers=_set(libvirt.VIR_ERR_CPU_INCOMPATIBLE),
        hint=_ANOTHER_CPU,
    ),
    Row(
        code=Code.CPU_LACKS,
        domains=_set(libvirt.VIR_FROM_CPU),
        hint=_ANOTHER_CPU,
    ),
    Row(
        code=Code.CPU_LACKS,
        said=r"guest cpu (doesn't|does not) match|host doesn't support requested features|missing features:"
        r"|Property '\S+-cpu\.\S+' not found",
        hint=_ANOTHER_CPU,
    ),
    Row(
        code=Code.MACHINE_UNKNOWN,
        said=r"unsupported machine type|machine .* is not supported by emulator",
        hint="Bring both nodes to one version of QEMU; a running guest keeps its machine.",
    ),
    Row(
        code=Code.EMULATOR_MISSING,
        said=r"cannot check qemu binary|(virttype|domain type) .* is not supported|kvm is not available",
        hint="Install that emulator, and see with `virsh domcapabilities` whether the node has KVM.",
    ),
    Row(
        code=Code.NO_SPACE,
        said=r"no space left on device|disk quota exceeded",
        hint="Make room on {node} (`df -h /var /run`).",
    ),
    Row(
        code=Code.MEMORY_SHORT,
        said=r"cannot allocate memory|out of memory|failed to allocate memory|cannot set up guest memory",
        hint="Free memory on the node, or choose another target.",
    ),
    Row(
        code=Code.DISK_CACHED,
        numbers=_set(libvirt.VIR_ERR_MIGRATE_UNSAFE),
        said=r"cache",
        hint="Set cache='none' (or directsync) for every disk of the guest, and start it anew.",
    ),
    Row(
        code=Code.DISK_NOT_REPLICATED,
        numbers=_set(libvirt.VIR_ERR_MIGRATE_UNSAFE),
        hint="Put every disk and disc of the guest on storage that both nodes share, or eject what is in its drives.",
    ),
    Row(
        code=Code.REPLICA_MISSING,
        domains=_set(libvirt.VIR_FROM_STORAGE),
        said=r"cannot access storage file|no such file",
        hint="Bring the disk up on the other node under the same path, or eject what is in the guest's drives.",
    ),
    Row(
        code=Code.REPLICA_MISSING,
        said=r"open (file )?'/dev/[^']*': no such (file|device)",
        hint="Bring the disk up on the other node under the same path (`drbdadm up`).",
    ),
    # What DRBD answers to whoever opens a device for writing where it is Secondary, or may not become Primary.
    Row(
        code=Code.STORAGE_FAILED,
        said=r"open (file )?'/dev/[^']*': (wrong medium type|read-only file system)"
        r"|reopen file: (wrong medium type|read-only file system)",
        hint="The disk is not Primary there, and DRBD does not promote it: look with `drbdsetup status` on both nodes.",
    ),
    Row(
        code=Code.DEVICE_HELD,
        said=r"(open (file )?'/dev/[^']*'|reopen file): device or resource busy|failed to get \"[\w ]+\" lock",
        hint="`fuser -v` on the disk's device names what has it open there, on both nodes.",
    ),
    Row(
        code=Code.NETWORK_MISSING,
        numbers=_set(libvirt.VIR_ERR_NO_NETWORK, libvirt.VIR_ERR_NO_INTERFACE),
        hint="`virsh net-list --all` on both nodes; define and start it where it is missing.",
    ),
    Row(
        code=Code.NETWORK_MISSING,
        said=r"cannot get interface|unable to add bridge|network .* is not active",
        hint="Make a bridge (or interface) of that name on the other node too, or start the network there.",
    ),
    Row(
        code=Code.SNAPSHOTS,
        said=r"cannot migrate domain with \d+ snapshots",
        hint="`virsh snapshot-delete` (--metadata keeps what is in the disks).",
    ),
    Row(
        code=Code.PASSTHROUGH,
        said=r"cannot migrate (a )?domain with .*(hostdev|host device|passthrough|<interface)|migration blocker"
        r"|vfio .*migrat|vdpa devices cannot be migrated",
        hint="Detach the device for the time of the move (`virsh detach-device`).",
    ),
    Row(
        code=Code.INSTANCE_ON_TARGET,
        numbers=_set(libvirt.VIR_ERR_DOM_EXIST),
        hint=_WHICH_IS_TWICE,
    ),
    Row(
        code=Code.INSTANCE_ON_TARGET,
        said=r"domain '?\S+'? (already exists|is already (defined|active))",
        hint=_WHICH_IS_TWICE,
    ),
    # What the guest is doing.
    Row(
        code=Code.INSTANCE_UNKNOWN,
        numbers=_set(libvirt.VIR_ERR_NO_DOMAIN),
        hint="Look again with `lvmigrate status`.",
    ),
    Row(
        code=Code.JOB_ACTIVE,
        said=r"(another|other) (migration )?job|active block job|already in active|job is (already )?(active|running)",
        hint="Wait for it, or look with `virsh domjobinfo` (and `virsh blockjob`) on {node}.",
    ),
    Row(
        code=Code.HYPERVISOR_BUSY,
        numbers=_set(libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_RESOURCE_BUSY),
        hint=_BUSY,
    ),
    Row(
        code=Code.HYPERVISOR_BUSY,
        said=r"is already being (started|removed)|reports migration is still running",
        hint=_BUSY,
    ),
    Row(
        code=Code.ABORTED,
        numbers=_set(libvirt.VIR_ERR_OPERATION_ABORTED),
        hint="Somebody ended the job (`virsh domjobabort`, or a cleanup): ask who, then move the guest again.",
    ),
    Row(
        code=Code.INSTANCE_STATE,
        said=r"(domain|vm)( '[^']*')? (is )?(not|no longer|already)? ?(running|paused)\b|guest unexpectedly quit"
        r"|is not processing incoming migration|cannot migrate domain with i/o error",
        hint="Look at the guest on {node} with `virsh domstate --reason`.",
    ),
    Row(
        code=Code.OPTION_UNSUPPORTED,
        said=r"(parameter|option) '?[\w-]+'? expects|migration parameter '[^']*'",
        hint="Leave the option out, or give it a number that QEMU takes.",
    ),
    Row(
        code=Code.OPTION_UNSUPPORTED,
        numbers=_set(
            libvirt.VIR_ERR_NO_SUPPORT,
            libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
            libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
            libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        ),
        hint="Leave out what libvirt or QEMU on {node} does not have, or update it there.",
    ),
)


def words(error: libvirt.libvirtError) -> str:
    """Give libvirt's own words with its numbers: ``operation failed: ... (libvirt error 9, domain 10)``."""
    numbers = f"libvirt error {error.get_error_code()}, domain {error.get_error_domain()}"
    return f"{' '.join(str(error).split())} ({numbers})"


def row_of(error: libvirt.libvirtError) -> Row | None:
    """The row of the table for one of libvirt's errors."""
    number, domain = error.get_error_code(), error.get_error_domain()
    return next((row for row in TABLE if row.holds(number, domain, str(error))), None)


def meaning(error: libvirt.libvirtError, node: str) -> tuple[Code, str]:
    """The code of one of libvirt's errors, and what to do next."""
    row = row_of(error)
    if row is None:
        return Code.HYPERVISOR_FAILED, f"Look at libvirt's log on {node}: {words(error)}"
    return row.code, row.hint.format(node=node)


def translated(error: libvirt.libvirtError, node: str, what: str) -> LvmigrateError:
    """The error of ours for one of libvirt's, met on ``node`` while doing ``what`` (a noun phrase)."""
    row = row_of(error)
    code, hint = meaning(error, node)
    if row is not None and row.silent:
        return NodeUnreachable(node, "its libvirt daemon gave no answer", hint=hint, detail=words(error), code=code)
    return CommandFailed(node, what, status=error.get_error_code(), code=code, hint=hint, detail=words(error))


@contextmanager
def border(node: str, what: str) -> Iterator[None]:
    """Let nothing of libvirt's pass: raises `NodeUnreachable` or `CommandFailed` in place of ``libvirtError``."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise translated(error, node, what) from error
