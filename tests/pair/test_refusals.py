"""What keeps a guest from fitting on the other host, with real daemons: refused before anything starts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hv import LibvirtHypervisor
from lvmigrate.cluster import Cluster
from lvmigrate.errors import Code, Finding, Refused
from lvmigrate.plan import Plan
from tests.pair.cluster import Description
from tests.pair.guest import CALM, Guest
from tests.pair.pair import Pair

pytestmark = pytest.mark.long

#: An emulator of this test's own: the same path on both hosts, and whatever it puts there.
EMULATOR = "/run/qemu"
USUAL = "/usr/bin/qemu-system-x86_64"
NIC = "<interface type='{kind}'><source {kind}='{name}'/><model type='virtio'/></interface>"


@pytest.fixture
def cluster(pair: Pair) -> Iterator[Cluster]:
    cluster, _ = Description.of(pair).cluster()
    with cluster:
        yield cluster


def with_device(xml: str, device: str) -> str:
    return xml.replace("</devices>", f"{device}</devices>")


def fits(cluster: Cluster) -> Plan:
    return cluster.check("web1", target="node2")


def findings(cluster: Cluster) -> tuple[Finding, ...]:
    with pytest.raises(Refused) as caught:
        cluster.check("web1", target="node2")
    return caught.value.findings


def refused(cluster: Cluster) -> list[Code]:
    return [finding.code for finding in findings(cluster)]


def moves(pair: Pair, cluster: Cluster, guest: Guest) -> None:
    """What is found to fit does arrive."""
    cluster.migrate(guest.name, target="node2")
    pair.whole(guest, on=pair.two)


def warned(cluster: Cluster) -> list[Code]:
    """What is said of a guest that fits."""
    return [warning.code for warning in fits(cluster).warnings]


def test_a_guest_that_fits_is_warned_of_nothing_but_the_guard_that_the_pair_has_not(
    pair: Pair, cluster: Cluster
) -> None:
    pair.guest("web1", on=pair.one, load=CALM)
    assert warned(cluster) == [Code.UNGUARDED]


def test_a_bridge_and_a_network(pair: Pair, cluster: Cluster, tmp_path: Path) -> None:
    one, two = pair.hosts
    (tmp_path / "lan.xml").write_text("<network><name>lan</name><forward mode='bridge'/><bridge name='br1'/></network>")
    for name in ("br0", "br1"):
        one.run(f"ip link add {name} type bridge && ip link set {name} up")
    one.virsh("net-define", str(tmp_path / "lan.xml"))
    one.virsh("net-start", "lan")
    nics = NIC.format(kind="bridge", name="br0") + NIC.format(kind="network", name="lan")
    guest = pair.guest("web1", on=one, load=CALM, change=lambda xml: with_device(xml, nics))
    said = " ".join(finding.sentence for finding in findings(cluster))
    assert "network lan" in said
    assert "interface br0" in said
    two.virsh("net-define", str(tmp_path / "lan.xml"))
    two.run("ip link add br0 type bridge && ip link set br0 up")
    assert refused(cluster) == [Code.NETWORK_MISSING]  # defined, and not active
    two.run("ip link add br1 type bridge && ip link set br1 up")
    two.virsh("net-start", "lan")
    fits(cluster)
    moves(pair, cluster, guest)


@pytest.mark.parametrize("policy", ["mandatory", "optional"])
def test_a_disc_in_the_drive(pair: Pair, cluster: Cluster, policy: str) -> None:
    one = pair.one
    one.run("mkdir -p /run/media && head -c 1M /dev/zero >/run/media/tools.iso")
    drive = (
        "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>"
        f"<source file='/run/media/tools.iso' startupPolicy='{policy}'/>"
        "<target dev='hdc' bus='ide'/><readonly/></disk>"
    )
    guest = pair.guest("web1", on=one, load=CALM, change=lambda xml: with_device(xml, drive))
    if policy == "optional":
        assert warned(cluster) == [Code.MEDIA_MISSING, Code.UNGUARDED]
        return
    assert refused(cluster) == [Code.MEDIA_MISSING]
    one.virsh("change-media", guest.name, "hdc", "--eject")
    assert warned(cluster) == [Code.UNGUARDED]
    moves(pair, cluster, guest)


def renamed(file: Path, to: Path, names: dict[bytes, bytes]) -> None:
    """A copy of an emulator that calls some things by other names, of the same length: it does not know the usual."""
    text = file.read_bytes()
    for name, another in names.items():
        assert len(name) == len(another)
        assert text.count(name) > 0, name
        text = text.replace(name, another)
    to.write_bytes(text)
    to.chmod(0o755)


def test_an_emulator_its_machines_and_its_cpu(pair: Pair, cluster: Cluster) -> None:
    one, two = pair.hosts
    shutil.copy(USUAL, pair.folder / "qemu")
    one.run(f"cp {pair.folder}/qemu {EMULATOR}")

    def change(xml: str) -> str:
        cpu = "<cpu mode='custom' match='exact'><model>Nehalem</model><feature name='avx2' policy='require'/></cpu>"
        return xml.replace(USUAL, EMULATOR).replace("<features>", f"{cpu}<features>")

    guest = pair.guest("web1", on=one, load=CALM, change=change)
    assert refused(cluster) == [Code.EMULATOR_MISSING]
    (machine,) = re.findall(r"machine='([^']*)'", one.virsh("dumpxml", "web1"))
    names = {machine.encode(): machine[:-1].encode() + b"x", b"\0avx2\0": b"\0avy2\0"}
    renamed(Path(USUAL), pair.folder / "another", names)
    two.run(f"cp {pair.folder}/another {EMULATOR}")
    there = {finding.code: finding.sentence for finding in findings(cluster)}
    assert there.keys() == {Code.MACHINE_UNKNOWN, Code.CPU_LACKS}
    assert machine in there[Code.MACHINE_UNKNOWN]
    assert "avx2" in there[Code.CPU_LACKS]
    two.run(f"cp {pair.folder}/qemu {EMULATOR}.new && mv {EMULATOR}.new {EMULATOR}")
    fits(cluster)
    moves(pair, cluster, guest)


def test_a_name_that_is_taken(pair: Pair, cluster: Cluster, tmp_path: Path) -> None:
    guest = pair.guest("web1", on=pair.one, load=CALM)
    another = tmp_path / "another.xml"
    another.write_text(guest.xml.replace(guest.uuid, "7b1c9a40-0000-4000-8000-000000000009"))
    pair.two.virsh("define", str(another))
    assert refused(cluster) == [Code.INSTANCE_ON_TARGET]
    pair.two.virsh("undefine", guest.name)
    another.write_text(guest.xml.replace("<name>web1<", "<name>web1-copy<"))
    pair.two.virsh("define", str(another))
    assert refused(cluster) == [Code.INSTANCE_ON_TARGET]
    pair.two.virsh("undefine", "web1-copy")
    moves(pair, cluster, guest)


@pytest.mark.parametrize("on", ["node1", "node2"])
def test_a_saved_image(pair: Pair, cluster: Cluster, on: str) -> None:
    guest = pair.guest("web1", on=pair.one, load=CALM)
    host = next(host for host in pair.hosts if host.name == on)
    image = f"/var/lib/libvirt/qemu/save/{guest.name}.save"
    host.run(f"mkdir -p {Path(image).parent} && echo >{image}")
    (finding,) = findings(cluster)
    assert finding.code is Code.SAVE_IMAGE
    assert on in finding.sentence
    host.run(f"rm {image}")
    moves(pair, cluster, guest)


def test_a_snapshot_a_checkpoint_and_a_block_job(pair: Pair, cluster: Cluster, tmp_path: Path) -> None:
    guest = pair.guest("web1", on=pair.one, load=CALM)
    described = pair.one.virsh("dumpxml", guest.name)
    snapshot = tmp_path / "snapshot.xml"
    snapshot.write_text(
        "<domainsnapshot><name>before</name><state>disk-snapshot</state><creationTime>1700000000</creationTime>"
        f"<disks><disk name='vda' snapshot='external'><source file='/run/over'/></disk></disks>{described}"
        "</domainsnapshot>"
    )
    pair.one.virsh("snapshot-create", guest.name, str(snapshot), "--redefine")
    assert refused(cluster) == [Code.SNAPSHOTS]
    pair.one.virsh("snapshot-delete", guest.name, "before", "--metadata")
    checkpoint = tmp_path / "checkpoint.xml"
    checkpoint.write_text(
        "<domaincheckpoint><name>monday</name><creationTime>1700000000</creationTime>"
        f"<disks><disk name='vda' checkpoint='bitmap' bitmap='monday'/></disks>{described}</domaincheckpoint>"
    )
    pair.one.virsh("checkpoint-create", guest.name, str(checkpoint), "--redefine")
    assert refused(cluster) == [Code.CHECKPOINTS]
    pair.one.virsh("checkpoint-delete", guest.name, "monday", "--metadata")
    pair.one.virsh("blockcopy", guest.name, "vda", "/run/copy", "--format", "raw", "--transient-job")
    assert refused(cluster) == [Code.JOB_ACTIVE]
    pair.one.virsh("blockjob", guest.name, "vda", "--abort")
    moves(pair, cluster, guest)


def test_memory_that_is_not_there(pair: Pair, cluster: Cluster) -> None:
    (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    most = int(line.split()[1]) // 1024 - 64  # never all of it is free
    pair.guest("web1", on=pair.one, load=CALM, memory_mib=most)
    assert refused(cluster) == [Code.MEMORY_SHORT]


def test_a_cache(pair: Pair, cluster: Cluster) -> None:
    pair.guest("web1", on=pair.one, load=CALM, change=lambda xml: xml.replace("cache='none'", "cache='writeback'"))
    assert refused(cluster) == [Code.DISK_CACHED]


def test_firmware_and_its_variables(pair: Pair, cluster: Cluster) -> None:
    one, two = pair.hosts
    make = (
        "mkdir -p /run/fw && cp /usr/share/seabios/bios-256k.bin /run/fw/code && head -c 128K /dev/zero >/run/fw/vars"
    )
    one.run(make)
    firmware = (
        "<loader readonly='yes' type='pflash'>/run/fw/code</loader>"
        "<nvram template='/run/fw/vars'>/run/fw/web1.vars</nvram>"
    )
    guest = pair.guest("web1", on=one, load=CALM, change=lambda xml: xml.replace("</type>", f"</type>{firmware}"))
    assert refused(cluster) == [Code.NVRAM, Code.NVRAM]
    two.run(make)
    fits(cluster)
    moves(pair, cluster, guest)
    # The variables' file was made there, and none is left behind that a later start would read.
    assert two.run("wc -c </run/fw/web1.vars").strip() == str(128 << 10)


def test_devices_of_the_hosts_own(pair: Pair, hypervisor: LibvirtHypervisor, tmp_path: Path) -> None:
    guest = pair.guest("web1", on=pair.one, load=CALM)
    devices = (
        "<hostdev mode='subsystem' type='pci' managed='yes'><source>"
        "<address domain='0' bus='1' slot='0' function='0'/></source></hostdev>"
        "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source>"
        "<address uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/></source></hostdev>"
        "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>"
    )
    file = tmp_path / "web2.xml"
    text = guest.xml.replace("<name>web1<", "<name>web2<")
    text = text.replace(guest.uuid, "7b1c9a40-0000-4000-8000-000000000009")
    text = text.replace("<features>", "<numatune><memory mode='strict' nodeset='0-1'/></numatune><features>")
    text = text.replace("<vcpu>", "<memoryBacking><hugepages/></memoryBacking><vcpu cpuset='0,7'>")
    file.write_text(with_device(text, devices))
    pair.one.virsh("define", str(file))
    needs = hypervisor.needs("node1", "web2")
    assert len(needs.passthrough) == 1
    assert "bus=0x01" in needs.passthrough[0]
    assert len(needs.mediated) == 1
    assert needs.tpm == "passthrough"
    assert needs.numa_nodes == {0, 1}
    assert needs.cpus == {0, 7}
    assert [(pages.size_kib, sorted(pages.nodes)) for pages in needs.pages] == [(0, [0, 1])]
    offer = hypervisor.offer("node2", needs)
    assert 0 in offer.numa_nodes
    assert 0 in offer.cpus
    assert all(0 in by_node for by_node in offer.free_pages.values())


def test_what_a_firewall_keeps_away(pair: Pair, cluster: Cluster) -> None:
    guest = pair.guest("web1", on=pair.one, load=CALM)
    rule = "INPUT -i eth0 -p tcp --dport {} -j {}"
    pair.two.run(f"iptables -I {rule.format(16509, 'REJECT')}")
    assert refused(cluster) == [Code.PEER_UNREACHABLE]
    pair.two.run(f"iptables -D {rule.format(16509, 'REJECT')}")
    pair.two.run(f"iptables -I {rule.format('49152:49215', 'DROP')}")
    assert refused(cluster) == [Code.PORTS_UNREACHABLE]
    pair.two.run(f"iptables -D {rule.format('49152:49215', 'DROP')}")
    moves(pair, cluster, guest)


def test_ports_that_are_all_taken(pair: Pair, cluster: Cluster) -> None:
    pair.guest("web1", on=pair.one, load=CALM)
    conf = pair.two.folder / "etc/qemu.conf"
    conf.write_text(conf.read_text() + "migration_port_min = 50000\nmigration_port_max = 50001\n")
    code = "import socket; s = [socket.create_server(('', p)) for p in (50000, 50001)]; print(flush=True); input()"
    with subprocess.Popen(
        pair.two.inside(sys.executable, "-c", code), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert refused(cluster) == [Code.PORTS_TAKEN]
        holder.communicate(b"\n")
    fits(cluster)
