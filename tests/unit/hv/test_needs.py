"""What a guest's XML asks of a node."""

from __future__ import annotations

import pytest

from hv.needs import needs, numbers

XML = """
<domain type='kvm'><name>x</name>
  <memoryBacking><hugepages><page size='2' unit='MiB' nodeset='0'/><page size='1' unit='G'/></hugepages></memoryBacking>
  <vcpu cpuset='0-3,^2'>2</vcpu>
  <cputune><vcpupin vcpu='0' cpuset='1'/><emulatorpin cpuset='6'/></cputune>
  <numatune><memory mode='strict' nodeset='0-1'/><memnode cellid='0' mode='strict' nodeset='3'/></numatune>
  <os firmware='efi'><type arch='x86_64' machine='pc-q35-9.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/f/code.fd</loader><nvram template='/f/vars.fd'>/n/x.fd</nvram></os>
  <cpu mode='custom' match='exact' check='full'><model>Nehalem</model></cpu>
  <devices><emulator>/usr/bin/qemu</emulator>
    <disk type='block'><target dev='vda' bus='virtio'/><mirror type='file' job='copy'/></disk>
    <disk type='block'><target dev='vdb' bus='virtio'/></disk>
    <interface type='bridge'><source bridge='br0'/></interface>
    <interface type='bridge'><source network='lan' bridge='br1'/></interface>
    <interface type='network'><source network='default' bridge='virbr0'/></interface>
    <interface type='direct'><source dev='eth1' mode='bridge'/></interface>
    <interface type='user'/>
    <interface type='hostdev'><source><address type='pci' bus='0x03'/></source><teaming type='transient'/></interface>
    <interface type='hostdev'><source><address type='pci' bus='0x04'/></source></interface>
    <hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/></source></hostdev>
    <hostdev mode='subsystem' type='mdev'><source><address uuid='c2'/></source></hostdev>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
  </devices></domain>"""


def test_everything_that_a_guest_may_need() -> None:
    found = needs(XML)
    assert (found.emulator, found.arch, found.machine, found.virt_type) == (
        "/usr/bin/qemu",
        "x86_64",
        "pc-q35-9.2",
        "kvm",
    )
    assert (found.cpu_mode, found.cpu_checked) == ("custom", True)
    assert "<model>Nehalem</model>" in found.cpu
    assert found.interfaces == {"br0", "eth1"}
    assert found.networks == {"lan", "default"}
    assert found.passthrough == ("usb subsystem", "hostdev type=pci bus=0x04")
    assert found.mediated == ("mdev subsystem uuid=c2",)
    assert found.tpm == "emulator"
    assert found.programs == {"swtpm"}
    assert found.firmware == {"/f/code.fd"}
    assert (found.nvram, found.nvram_template) == ("/n/x.fd", "/f/vars.fd")
    assert found.hugepages_kib == {2 << 10, 1 << 20}
    assert found.numa_nodes == {0, 1, 3}
    assert found.cpus == {0, 1, 3, 6}
    assert found.block_jobs == ("vda",)


def test_a_guest_that_needs_little() -> None:
    found = needs("<domain type='qemu'><os><type arch='i686' machine='pc'>hvm</type></os><devices/></domain>")
    assert found.interfaces | found.networks | found.firmware | found.programs == frozenset()
    assert (found.tpm, found.nvram, found.cpu, found.cpu_checked) == (None, None, "", False)
    assert found.hugepages_kib | found.numa_nodes | found.cpus == frozenset()
    assert found.passthrough + found.mediated + found.block_jobs == ()


@pytest.mark.parametrize(
    ("cpu", "checked"),
    [
        ("<cpu mode='custom' check='none'><model>qemu64</model></cpu>", False),
        ("<cpu mode='custom' check='partial'><model>qemu64</model></cpu>", True),
        ("<cpu mode='host-passthrough'/>", True),
    ],
)
def test_whether_libvirt_insists_on_the_cpu(cpu: str, *, checked: bool) -> None:
    assert needs(f"<domain type='kvm'>{cpu}</domain>").cpu_checked is checked


def test_huge_pages_of_the_default_size() -> None:
    text = "<domain><memoryBacking><hugepages/></memoryBacking></domain>"
    assert needs(text).hugepages_kib == {0}


@pytest.mark.parametrize(
    ("text", "found"),
    [("", set()), ("3", {3}), ("0-2,^1", {0, 2}), ("1, 4-5", {1, 4, 5}), ("auto", set())],
)
def test_lists_of_numbers(text: str, found: set[int]) -> None:
    assert set(numbers(text)) == found
