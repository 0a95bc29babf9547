"""libvirt's errors, as they were met on real daemons, and what they become."""

from __future__ import annotations

import libvirt
import pytest

from hv.border import TABLE, row_of, translated, words
from lvmigrate.errors import Code, CommandFailed, NodeUnreachable

QEMU, RPC, REMOTE, CPU = (
    libvirt.VIR_FROM_QEMU,
    libvirt.VIR_FROM_RPC,
    libvirt.VIR_FROM_REMOTE,
    libvirt.VIR_FROM_CPU,
)
INTERNAL, FAILED, SYSTEM = (
    libvirt.VIR_ERR_INTERNAL_ERROR,
    libvirt.VIR_ERR_OPERATION_FAILED,
    libvirt.VIR_ERR_SYSTEM_ERROR,
)
INVALID = libvirt.VIR_ERR_OPERATION_INVALID
#: What libvirt puts before QEMU's last words, and before what a command came to.
CLOSED = "internal error: QEMU unexpectedly closed the monitor (vm='web1'): 2026-11-29T10:00:00Z qemu-system-x86_64: "
COMMAND = "internal error: unable to execute QEMU command '{}': "
OPENED = '-blockdev {"driver":"host_device","filename":"/dev/drbd1000"}: Could not open \'/dev/drbd1000\': '


def error(number: int, domain: int, text: str) -> libvirt.libvirtError:
    made = libvirt.libvirtError(text)
    made.err = (number, domain, text, libvirt.VIR_ERR_ERROR, "", "", "", -1, -1)
    return made


#: Number, domain and words as libvirt gives them.
MET = [
    (INTERNAL, RPC, "internal error: client socket is closed", Code.NODE_UNREACHABLE),
    (SYSTEM, RPC, "End of file while reading data: Input/output error", Code.NODE_UNREACHABLE),
    (SYSTEM, RPC, "unable to connect to server at 'node2:16509': Connection refused", Code.NODE_UNREACHABLE),
    (
        SYSTEM,
        RPC,
        "Cannot recv data: Host key verification failed.: Connection reset by peer",
        Code.HOST_KEY_UNKNOWN,
    ),
    (
        SYSTEM,
        RPC,
        "Cannot recv data: root@node2: Permission denied (publickey,password).: Connection reset by peer",
        Code.AUTH_FAILED,
    ),
    (libvirt.VIR_ERR_AUTH_FAILED, RPC, "authentication failed: Failed to verify peer's certificate", Code.AUTH_FAILED),
    (libvirt.VIR_ERR_AUTH_UNAVAILABLE, libvirt.VIR_FROM_POLKIT, "authentication unavailable", Code.AUTH_FAILED),
    (libvirt.VIR_ERR_OPERATION_DENIED, REMOTE, "operation forbidden: read only access", Code.AUTH_FAILED),
    (INTERNAL, QEMU, "Unable to access credentials /etc/pki/qemu/ca-cert.pem", Code.TLS_FAILED),
    (INTERNAL, QEMU, "The server certificate /etc/x.pem has expired", Code.TLS_FAILED),
    (FAILED, QEMU, "The certificate hasn't got a known issuer", Code.TLS_FAILED),
    (INTERNAL, QEMU, "qemu closed the monitor: Cannot read from TLS channel: Input/output error", Code.TLS_FAILED),
    (INTERNAL, QEMU, "Failed to bind socket: Address already in use", Code.PORTS_TAKEN),
    (INTERNAL, 0, "Unable to find an unused port in range 'migration' (49152-49215)", Code.PORTS_TAKEN),
    (libvirt.VIR_ERR_CPU_INCOMPATIBLE, CPU, "the CPU is incompatible with host CPU", Code.CPU_LACKS),
    (FAILED, CPU, "operation failed: guest CPU doesn't match specification: missing features: avx2", Code.CPU_LACKS),
    (FAILED, QEMU, "guest CPU doesn't match specification: missing features: avx2", Code.CPU_LACKS),
    (
        libvirt.VIR_ERR_INVALID_ARG,
        QEMU,
        "the machine 'pc-i440fx-99.0' is not supported by emulator '/usr/bin/qemu'",
        Code.MACHINE_UNKNOWN,
    ),
    (SYSTEM, QEMU, "Cannot check QEMU binary /usr/bin/qemu: No such file or directory", Code.EMULATOR_MISSING),
    (SYSTEM, QEMU, "cannot create directory '/run/x': No space left on device", Code.NO_SPACE),
    (INTERNAL, QEMU, "cannot set up guest memory 'pc.ram': Cannot allocate memory", Code.MEMORY_SHORT),
    (
        libvirt.VIR_ERR_MIGRATE_UNSAFE,
        QEMU,
        "Unsafe migration: Migration may lead to data corruption if disks use cache other than none or directsync",
        Code.DISK_CACHED,
    ),
    (
        libvirt.VIR_ERR_MIGRATE_UNSAFE,
        QEMU,
        "Unsafe migration: Migration without shared storage is unsafe",
        Code.DISK_NOT_REPLICATED,
    ),
    (
        SYSTEM,
        libvirt.VIR_FROM_STORAGE,
        "Cannot access storage file '/run/disks/web1': No such file or directory",
        Code.REPLICA_MISSING,
    ),
    (libvirt.VIR_ERR_NO_NETWORK, libvirt.VIR_FROM_NETWORK, "Network not found: no network 'lan'", Code.NETWORK_MISSING),
    (SYSTEM, 0, "Cannot get interface MTU on 'br0': No such device", Code.NETWORK_MISSING),
    (
        libvirt.VIR_ERR_OPERATION_INVALID,
        QEMU,
        "Requested operation is not valid: cannot migrate domain with 1 snapshots",
        Code.SNAPSHOTS,
    ),
    (FAILED, QEMU, "operation failed: domain 'web1' already exists with uuid 7b1c", Code.INSTANCE_ON_TARGET),
    (libvirt.VIR_ERR_NO_DOMAIN, QEMU, "Domain not found: no domain with matching uuid", Code.INSTANCE_UNKNOWN),
    (
        libvirt.VIR_ERR_OPERATION_INVALID,
        QEMU,
        "Requested operation is not valid: another migration job is already running for domain 'web1'",
        Code.JOB_ACTIVE,
    ),
    (libvirt.VIR_ERR_OPERATION_INVALID, QEMU, "domain has active block job", Code.JOB_ACTIVE),
    (
        libvirt.VIR_ERR_OPERATION_TIMEOUT,
        QEMU,
        "Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatch)",
        Code.HYPERVISOR_BUSY,
    ),
    (libvirt.VIR_ERR_RESOURCE_BUSY, QEMU, "resource busy", Code.HYPERVISOR_BUSY),
    (libvirt.VIR_ERR_OPERATION_ABORTED, QEMU, "operation aborted: migration out job: canceled by client", Code.ABORTED),
    (
        libvirt.VIR_ERR_OPERATION_INVALID,
        QEMU,
        "Requested operation is not valid: domain is not running",
        Code.INSTANCE_STATE,
    ),
    (libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED, QEMU, "argument unsupported: p2p", Code.OPTION_UNSUPPORTED),
    (FAILED, QEMU, "Unable to write to socket: Broken pipe", Code.HYPERVISOR_FAILED),
    # Whose source has died: the fault table.
    (FAILED, QEMU, "operation failed: domain is not running", Code.INSTANCE_STATE),
    (FAILED, QEMU, "operation failed: domain is no longer running", Code.INSTANCE_STATE),
    (FAILED, QEMU, "operation failed: domain 'web1' is not running", Code.INSTANCE_STATE),
    (FAILED, QEMU, "operation failed: domain is not running on destination host", Code.INSTANCE_STATE),
    (FAILED, QEMU, "operation failed: domain 'web1' is not processing incoming migration", Code.INSTANCE_STATE),
    (INTERNAL, QEMU, "internal error: guest unexpectedly quit", Code.INSTANCE_STATE),
    (INVALID, QEMU, "Requested operation is not valid: cannot migrate domain with I/O error", Code.INSTANCE_STATE),
    (INVALID, QEMU, "Requested operation is not valid: domain '7b1c' not paused", Code.INSTANCE_STATE),
    (INVALID, QEMU, "Requested operation is not valid: QEMU reports migration is still running", Code.HYPERVISOR_BUSY),
    (INVALID, QEMU, "Requested operation is not valid: domain 'web1' is already active", Code.INSTANCE_ON_TARGET),
    (INVALID, QEMU, "operation failed: domain 'web1' is already being started", Code.HYPERVISOR_BUSY),
    # A disk that DRBD does not give.
    (INTERNAL, QEMU, CLOSED + OPENED + "Wrong medium type", Code.STORAGE_FAILED),
    (INTERNAL, QEMU, CLOSED + OPENED + "Read-only file system", Code.STORAGE_FAILED),
    (INTERNAL, QEMU, CLOSED + OPENED + "Device or resource busy", Code.DEVICE_HELD),
    (INTERNAL, QEMU, CLOSED + OPENED + "No such file or directory", Code.REPLICA_MISSING),
    (INTERNAL, QEMU, CLOSED + OPENED + "No such device or address", Code.REPLICA_MISSING),
    (SYSTEM, 0, "Failed to open file '/dev/drbd1000': Wrong medium type", Code.STORAGE_FAILED),
    (INTERNAL, QEMU, COMMAND.format("cont") + "Could not reopen file: Read-only file system", Code.STORAGE_FAILED),
    (
        INTERNAL,
        QEMU,
        'Failed to get "write" lock Is another process using the image [/dev/drbd1000]?',
        Code.DEVICE_HELD,
    ),
    (
        SYSTEM,
        QEMU,
        "Unable to open file: /var/log/libvirt/qemu/web1.log: Read-only file system",
        Code.HYPERVISOR_FAILED,
    ),
    # Numbers that are checked before, as QEMU refuses them.
    (
        INTERNAL,
        QEMU,
        COMMAND.format("migrate-set-parameters")
        + "Parameter 'downtime_limit' expects an integer in the range of 0 to 2000 seconds",
        Code.OPTION_UNSUPPORTED,
    ),
    (
        INTERNAL,
        QEMU,
        COMMAND.format("migrate-set-parameters") + "Option multifd_channels expects a value between 1 and 255",
        Code.OPTION_UNSUPPORTED,
    ),
    (
        libvirt.VIR_ERR_OVERFLOW,
        QEMU,
        "numerical overflow: migration parameter 'bandwidth.postcopy' must be less than 17592186044416",
        Code.OPTION_UNSUPPORTED,
    ),
    # One daemon and the other.
    (
        FAILED,
        QEMU,
        "operation failed: Failed to connect to remote libvirt URI qemu+tcp://node2/system: no route",
        Code.PEER_UNREACHABLE,
    ),
    (FAILED, QEMU, "operation failed: Lost connection to destination host", Code.NODE_UNREACHABLE),
    (
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        QEMU,
        "Operation not supported: cannot migrate a domain with <interface type='vdpa'>",
        Code.PASSTHROUGH,
    ),
    # What has to do with certificates, and what only is called so.
    (SYSTEM, RPC, "Cannot read CA certificate '/etc/pki/CA/cacert.pem': No such file or directory", Code.TLS_FAILED),
    (
        SYSTEM,
        RPC,
        "Our own certificate /etc/pki/libvirt/servercert.pem failed validation against /etc/pki/CA/cacert.pem: x",
        Code.TLS_FAILED,
    ),
    (SYSTEM, RPC, "Certificate failed validation: The certificate has been revoked.", Code.TLS_FAILED),
    (INTERNAL, QEMU, CLOSED + "Certificate does not match the hostname node2", Code.TLS_FAILED),
    (INTERNAL, QEMU, "internal error: qemu: Cannot load certificate '/x.pem' & key '/k.pem': x", Code.TLS_FAILED),
    (
        FAILED,
        QEMU,
        "operation failed: TLS handshake failed: The TLS connection was non-properly terminated.",
        Code.TLS_FAILED,
    ),
    (SYSTEM, RPC, "Unable to set TLS x509 credentials: x", Code.TLS_FAILED),
    (
        SYSTEM,
        libvirt.VIR_FROM_STORAGE,
        "Cannot access storage file '/srv/certificates.iso': No such file or directory",
        Code.REPLICA_MISSING,
    ),
    (SYSTEM, 0, "Cannot get interface MTU on 'certificate': No such device", Code.NETWORK_MISSING),
    (
        libvirt.VIR_ERR_NO_DOMAIN,
        QEMU,
        "Domain not found: no domain with matching name 'x509-certificate-server'",
        Code.INSTANCE_UNKNOWN,
    ),
    (
        FAILED,
        QEMU,
        "operation failed: domain 'gnutls-certificates' already exists with uuid 7b1c",
        Code.INSTANCE_ON_TARGET,
    ),
]


@pytest.mark.parametrize(("number", "domain", "text", "code"), MET, ids=lambda value: getattr(value, "name", ""))
def test_an_error_becomes_the_most_specific_one(number: int, domain: int, text: str, code: Code) -> None:
    ours = translated(error(number, domain, text), "node1", "What was tried")
    assert ours.code is code
    assert ours.detail == f"{text} (libvirt error {number}, domain {domain})"
    assert ours.hint
    assert "{" not in ours.hint
    if isinstance(ours, CommandFailed):
        assert ours.status == number
    else:
        # Nothing is known of what it did last.
        assert isinstance(ours, NodeUnreachable)
        assert code in (Code.NODE_UNREACHABLE, Code.AUTH_FAILED, Code.HOST_KEY_UNKNOWN)


def test_every_row_is_met() -> None:
    met = [row_of(error(number, domain, text)) for number, domain, text, _ in MET]
    spared = {Code.PASSTHROUGH, Code.INSTANCE_ON_TARGET, Code.NETWORK_MISSING, Code.INSTANCE_STATE}
    assert {row.code for row in TABLE if row not in met} <= spared


def test_words_are_one_line() -> None:
    assert words(error(9, 10, "a\n  b")) == "a b (libvirt error 9, domain 10)"
