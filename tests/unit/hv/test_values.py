"""What libvirt says, as values: statistics, XML, events, errors. Without a daemon."""

from __future__ import annotations

import threading

import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hv import xml
from hv.border import border, words
from hv.bounded import within
from hv.connections import Connections, event_words
from hv.libvirt_kvm import LibvirtHypervisor
from hv.statistics import progress_of
from lvmigrate.domain import DomainState
from lvmigrate.errors import Code, CommandFailed, NodeUnreachable
from lvmigrate.node import Node
from lvmigrate.progress import MemoryProgress

MIB = 1 << 20
RUNNING = {
    "type": 2,
    "operation": 5,
    "time_elapsed": 1500,
    "downtime": 300,
    "memory_total": 64 * MIB,
    "memory_processed": 70 * MIB,
    "memory_remaining": 16 * MIB,
    "memory_bps": 12 * MIB,
    "memory_dirty_rate": 100,
    "memory_iteration": 3,
    "memory_page_size": 4096,
}


def test_statistics() -> None:
    progress = progress_of(RUNNING, before=None)
    assert progress == MemoryProgress(
        elapsed_s=1.5,
        total=64 * MIB,
        remaining=16 * MIB,
        processed=70 * MIB,
        rate=12 * MIB,
        dirty_rate=409600,
        iteration=3,
        expected_downtime_s=0.3,
        percent=75.0,
    )
    assert progress.eta_s == pytest.approx(16 * MIB / (12 * MIB - 409600))


def test_what_has_been_gone_through_counts_in_whatever_form_it_was_sent() -> None:
    progress = progress_of(
        RUNNING | {"memory_normal": 100, "memory_constant": 20, "compression_pages": 3, "memory_page_size": 4096},
        before=None,
    )
    assert progress is not None
    assert progress.passed == 123 * 4096


def test_nothing_is_said_before_the_transfer_starts() -> None:
    assert progress_of({"type": 0}, before=None) is None
    assert progress_of(RUNNING | {"memory_total": 0}, before=None) is None


def test_no_estimate_when_the_guest_is_faster_than_the_link() -> None:
    progress = progress_of(RUNNING | {"memory_dirty_rate": 1 << 20}, before=None)
    assert progress is not None
    assert progress.eta_s is None


@given(st.lists(st.integers(0, 80 * MIB), min_size=1))
def test_the_percent_never_falls_and_never_passes_99(remainders: list[int]) -> None:
    progress: MemoryProgress | None = None
    percents = []
    for remaining in remainders:
        progress = progress_of(RUNNING | {"memory_remaining": remaining}, before=progress)
        assert progress is not None
        percents.append(progress.percent)
    assert percents == sorted(percents)
    assert all(0 <= percent <= 99 for percent in percents)


XML = """
<domain type='qemu'><name>x</name><vcpu placement='static'>3</vcpu><devices>
  <disk type='block' device='disk'><source dev='/dev/drbd/by-res/r/0'/><target dev='vda' bus='virtio'/></disk>
  <disk type='block'><source dev='/dev/drbd1'/><target dev='vdb'/><readonly/></disk>
  <disk type='file' device='cdrom'><target dev='sda'/></disk>
  <disk type='file' device='disk'><source file='/var/x.img'/><target dev='vdc'/></disk>
  <disk type='network' device='disk'><source protocol='rbd' name='p/i'/><target dev='vdd'/></disk>
</devices></domain>"""


def test_disks_of_a_domain() -> None:
    found = [(d.target, d.source, d.kind, d.device, d.read_only) for d in xml.disks(XML)]
    assert found == [
        ("vda", "/dev/drbd/by-res/r/0", "block", "disk", False),
        ("vdb", "/dev/drbd1", "block", "disk", True),
        ("sda", None, "file", "cdrom", False),
        ("vdc", "/var/x.img", "file", "disk", False),
        ("vdd", None, "network", "disk", False),
    ]
    assert (xml.virt_type(XML), xml.vcpus(XML)) == ("qemu", 3)


@pytest.mark.parametrize(
    ("event", "detail", "said"),
    [
        (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED, "suspended migrated"),
        (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY, "suspended post-copy"),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED, "stopped migrated"),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED, "stopped failed"),
        (libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED, "resumed unpaused"),
        (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_MIGRATED, "started migrated"),
        (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_HOST, "shutdown by host"),
        (libvirt.VIR_DOMAIN_EVENT_CRASHED, libvirt.VIR_DOMAIN_EVENT_CRASHED_PANICKED, "crashed panicked"),
        (99, 7, "event 99 7"),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED, 99, "stopped 99"),
    ],
)
def test_events_have_libvirts_names(event: int, detail: int, said: str) -> None:
    assert event_words(event, detail) == said


def real_error() -> libvirt.libvirtError:
    """A libvirtError with its domain and code, as only libvirt itself makes them."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connection = libvirt.open("test:///default")
    try:
        with pytest.raises(libvirt.libvirtError) as caught:
            connection.lookupByName("nosuch")
    finally:
        connection.close()
    return caught.value


def test_an_answer_that_is_no_is_a_command_that_failed() -> None:
    with pytest.raises(CommandFailed) as caught, border("node1", "Looking for nosuch"):
        raise real_error()
    assert caught.value.status == libvirt.VIR_ERR_NO_DOMAIN
    assert "Looking for nosuch failed on node1." in str(caught.value)
    assert caught.value.detail == words(real_error()) == "Domain not found (libvirt error 42, domain 12)"
    assert caught.value.code is Code.INSTANCE_UNKNOWN


def node(name: str, uri: str) -> dict[str, Node]:
    return {name: Node(name=name, ssh=name, libvirt_uri=uri, peer_uri=uri, migration_address=name)}


def test_a_daemon_that_is_not_there_is_no_answer() -> None:
    hypervisor = LibvirtHypervisor(node("node1", "qemu+unix:///system?socket=/nonexistent"))
    with pytest.raises(NodeUnreachable) as caught:
        hypervisor.domain("node1", "web1")
    assert caught.value.node == "node1"
    assert "virsh -c" in caught.value.hint
    hypervisor.close()


def test_a_daemon_that_hangs_is_no_answer_after_the_deadline() -> None:
    hanging = node("node1", "qemu+ext://h/system?command=/bin/cat")  # answers with what it is told: never a reply
    connections = Connections(hanging, connect_timeout_s=0.5)
    with pytest.raises(NodeUnreachable), connections.calling("node1"):
        connections.to("node1")
    connections.close()


def test_a_call_that_libvirt_never_answers_ends_at_its_deadline() -> None:
    forever = threading.Event()
    with pytest.raises(NodeUnreachable, match=r"resuming had no answer from libvirt within 0\.1 s"):
        within(0.1, forever.wait, "node1", "Resuming")
    forever.set()
    assert within(30, lambda: 3, "node1", "Counting") == 3
    with pytest.raises(ZeroDivisionError):
        within(30, lambda: 1 // 0, "node1", "Dividing")


def test_guests_of_libvirts_own_test_driver() -> None:
    hypervisor = LibvirtHypervisor(node("node1", "test:///default"))
    found = hypervisor.domain("node1", "test")
    assert found is not None
    assert (found.name, found.state.value, found.persistent) == ("test", "running", True)
    assert hypervisor.domain("node1", found.uuid) == found
    assert hypervisor.domain("node1", "nosuch") is None
    assert [domain.name for domain in hypervisor.domains("node1")] == ["test"]
    hypervisor.suspend("node1", found.uuid)
    suspended = hypervisor.domain("node1", "test")
    assert suspended is not None
    assert (suspended.state.value, suspended.reason) == ("paused", "user")
    hypervisor.resume("node1", found.uuid)
    with pytest.raises(CommandFailed, match="not paused"):
        hypervisor.discard("node1", found.uuid)
    with pytest.raises(CommandFailed, match="active"):
        hypervisor.undefine("node1", found.uuid)
    hypervisor.undefine("node1", "8f4b1f6e-5a8c-4a0e-9d0c-7a1d0c3bffff")  # not known: nothing to do
    hypervisor.close()


@pytest.mark.parametrize(
    ("source", "elsewhere"),
    [
        ('protocol="rbd" name="vms/web1"', True),
        ('protocol="rbd" name="vms/web1"><host name="ceph1" port="6789"/', True),
        ('protocol="iscsi" name="iqn.2026-11.org:web1/0"><host name="filer" port="3260"/', True),
        ('protocol="nbd" name="web1"><host name="filer" port="10809"/', True),
        ('protocol="nbd" name="web1"><host name="127.0.0.1" port="10809"/', False),
        ('protocol="nbd" name="web1"><host name="::1" port="10809"/', False),
        ('protocol="nbd" name="web1"><host name="filer"/><host name="localhost"/', False),
        ('protocol="nbd"><host transport="unix" socket="/run/web1.sock"/', False),
        ('protocol="nbd" name="web1"', False),
    ],
)
def test_a_network_disk_is_elsewhere_unless_its_server_is_this_machine(source: str, *, elsewhere: bool) -> None:
    end = "></source>" if ">" in source else "/>"
    text = f'<disk type="network" device="disk"><source {source}{end}<target dev="vda"/></disk>'
    (disk,) = xml.disks(f"<domain><devices>{text}</devices></domain>")
    assert (disk.source, disk.kind, disk.network) == (None, "network", elsewhere)


def test_a_block_device_is_no_network_disk() -> None:
    text = '<domain><devices><disk type="block"><source dev="/dev/drbd0"/><target dev="vda"/></disk></devices></domain>'
    (disk,) = xml.disks(text)
    assert (disk.source, disk.network) == ("/dev/drbd0", False)


def test_interfaces_of_a_domain() -> None:
    text = """<domain><devices>
    <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/></interface>
    <interface type='network'><source network='default' bridge='virbr0'/></interface>
    <interface type='direct'><source dev='eth0' mode='bridge'/></interface>
    <interface type='user'/>
    </devices></domain>"""
    assert [(nic.mac, nic.kind, nic.link) for nic in xml.nics(text)] == [
        ("52:54:00:00:00:01", "bridge", "br0"),
        ("", "network", "default"),
        ("", "direct", "eth0"),
        ("", "user", ""),
    ]


@pytest.mark.parametrize(
    ("memory", "kib"),
    [
        ("<memory>2048</memory>", 2048),
        ("<memory unit='KiB'>2048</memory>", 2048),
        ("<memory unit='MiB'>24</memory>", 24 * 1024),
        ("<memory unit='G'>2</memory>", 2 << 20),
        ("<memory unit='GB'>1</memory>", 10**9 // 1024),
        ("<memory unit='bytes'>4096</memory>", 4),
    ],
)
def test_what_a_definition_describes(memory: str, kib: int) -> None:
    text = f"""<domain type='kvm'><name>web1</name><uuid>8F4B1F6E-5A8C-4A0E-9D0C-7A1D0C3B0009</uuid>{memory}
    <vcpu>3</vcpu><metadata><t:left xmlns:t='{xml.TOMBSTONE}' on='node9'/></metadata><devices>
    <disk type='block' device='disk'><source dev='/dev/drbd7'/><target dev='vda'/></disk>
    <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/></interface></devices></domain>"""
    found = xml.described("node2", text)
    assert (found.node, found.name, found.uuid) == ("node2", "web1", "8f4b1f6e-5a8c-4a0e-9d0c-7a1d0c3b0009")
    assert (found.memory_kib, found.vcpus, found.virt_type, found.left_on) == (kib, 3, "kvm", "node9")
    assert [disk.source for disk in found.disks] == ["/dev/drbd7"]
    assert [nic.link for nic in found.nics] == ["br0"]
    assert (found.state, found.persistent, found.autostart) == (DomainState.OFF, True, False)


#: As libvirt 11.3 writes it of a running guest: an overlay on an image, which lies on another.
CHAIN = """<domain><devices><disk type='block' device='disk'>
  <driver name='qemu' type='qcow2' cache='none'/><source dev='/dev/drbd10' index='1'/>
  <backingStore type='file' index='3'><format type='qcow2'/><source file='/srv/base.qcow2'/>
    <backingStore type='network' index='4'><format type='raw'/>
      <source protocol='rbd' name='vms/base'><host name='mon1'/></source><backingStore/></backingStore>
  </backingStore><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
  <source file='/srv/meta.qcow2'>
    <dataStore type='block'><format type='raw'/><source dev='/dev/sdc'/></dataStore></source>
  <backingStore/><target dev='vdb'/></disk></devices></domain>"""


def test_what_a_disk_is_read_through_is_told() -> None:
    chained, split = xml.disks(CHAIN)
    assert [(d.target, d.source, d.kind, d.network, d.format, d.cache) for d in chained.behind] == [
        ("a base of vda", "/srv/base.qcow2", "file", False, "qcow2", None),
        ("a base of vda", None, "network", True, "raw", None),
    ]
    assert [(d.target, d.source, d.kind, d.read_only) for d in split.behind] == [
        ("the data of vdb", "/dev/sdc", "block", False)
    ]
    assert (chained.source, split.source) == ("/dev/drbd10", "/srv/meta.qcow2")
