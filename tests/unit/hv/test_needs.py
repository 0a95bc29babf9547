"""What a guest's XML asks of a node."""

from __future__ import annotations

import pytest

from hv.needs import needs, numbers
from lvmigrate.premises import Pages

XML = """
<domain type='kvm'><name>x</name><memory unit='GiB'>8</memory>
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
    assert found.pages == (Pages(size_kib=2 << 10, kib=8 << 20, nodes=frozenset({3})),)
    assert found.numa_nodes == {0, 1, 3}
    assert found.cpus == {0, 1, 3, 6}
    assert found.block_jobs == ("vda",)


def test_a_guest_that_needs_little() -> None:
    found = needs("<domain type='qemu'><os><type arch='i686' machine='pc'>hvm</type></os><devices/></domain>")
    assert found.interfaces | found.networks | found.firmware | found.programs == frozenset()
    assert (found.tpm, found.nvram, found.cpu, found.cpu_checked) == (None, None, "", False)
    assert found.pages == ()
    assert found.numa_nodes | found.cpus == frozenset()
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
    text = "<domain><memory unit='KiB'>4096</memory><memoryBacking><hugepages/></memoryBacking></domain>"
    assert needs(text).pages == (Pages(size_kib=0, kib=4096),)


CELLS = """<domain><memory unit='KiB'>11534336</memory>
  <memoryBacking><hugepages>{pages}</hugepages></memoryBacking>{tuned}
  <cpu><numa><cell id='0' cpus='0' memory='4194304' unit='KiB'/><cell id='1' cpus='1' memory='4' unit='GiB'/>
    <cell id='2' cpus='2' memory='2097152'/></numa></cpu>
  <devices><memory model='dimm'><target><size unit='MiB'>512</size><node>1</node></target></memory>
    <memory model='dimm'><source><pagesize unit='KiB'>4</pagesize></source>
      <target><size unit='KiB'>524288</size><node>2</node></target></memory></devices></domain>"""
BIG, GIGANTIC, GIB = 2 << 10, 1 << 20, 1 << 20
ON_ONE = "<numatune><memory mode='{}' nodeset='1'/></numatune>"
APART = "<memory mode='strict' nodeset='0-1'/><memnode cellid='1' mode='strict' nodeset='2'/>"


@pytest.mark.parametrize(
    ("pages", "tuned", "found"),
    [
        # Said of two NUMA nodes of the guest's, and of the rest nothing: that has ordinary pages.
        (
            "<page size='2048' nodeset='0'/><page size='1' unit='GiB' nodeset='1'/>",
            "",
            {(BIG, ()): 4.0, (GIGANTIC, ()): 4.5, (4, ()): 0.5},
        ),
        # Of one, and of all others.
        ("<page size='2048'/><page size='1' unit='GiB' nodeset='1-2'/>", "", {(BIG, ()): 4.0, (GIGANTIC, ()): 6.5}),
        # All alike, where the node says.
        ("<page size='2048'/>", ON_ONE.format("strict"), {(BIG, (1,)): 10.5}),
        ("<page size='2048'/>", ON_ONE.format("preferred"), {(BIG, ()): 10.5}),
        ("<page size='2048'/>", f"<numatune>{APART}</numatune>", {(BIG, (0, 1)): 6.0, (BIG, (2,)): 4.5}),
        ("", ON_ONE.format("interleave"), {(0, (1,)): 10.5}),
    ],
)
def test_huge_pages_by_their_size_and_by_the_nodes_that_they_are_bound_to(
    pages: str, tuned: str, found: dict[tuple[int, tuple[int, ...]], float]
) -> None:
    read = needs(CELLS.format(pages=pages, tuned=tuned)).pages
    seen = {(one.size_kib, tuple(sorted(one.nodes))): one.kib / GIB for one in read if one.size_kib != 4}
    assert seen == {key: gib for key, gib in found.items() if key[0] != 4}


@pytest.mark.parametrize(
    ("text", "found"),
    [("", set()), ("3", {3}), ("0-2,^1", {0, 2}), ("1, 4-5", {1, 4, 5}), ("auto", set())],
)
def test_lists_of_numbers(text: str, found: set[int]) -> None:
    assert set(numbers(text)) == found
