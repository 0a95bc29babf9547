"""What the XML of a running guest asks of the node that it runs on (libvirt.org/formatdomain.html)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final
from xml.etree import ElementTree as ET

from lvmigrate.premises import Needs, Pages

_KIB: Final = {
    "b": 1 / 1024, "bytes": 1 / 1024, "KB": 1000 / 1024, "k": 1, "KiB": 1, "": 1, "MB": 1e6 / 1024, "M": 1 << 10,
    "MiB": 1 << 10, "GB": 1e9 / 1024, "G": 1 << 20, "GiB": 1 << 20, "T": 1 << 30, "TiB": 1 << 30,
}  # fmt: skip
#: The modes of <numatune> by which memory is taken from the named nodes alone; "preferred" takes it elsewhere as well.
_BOUND: Final = ("strict", "restrictive", "interleave")
#: The interfaces that lie on one of the host's: where its name stands.
_ON_HOST: Final = {"bridge": "bridge", "direct": "dev"}


def needs(text: str) -> Needs:
    """What can be read from ``text``; counts of what libvirt keeps beside it are left at 0."""
    root = ET.fromstring(text)  # noqa: S314 -- libvirt's own output, which it has parsed and written itself
    kind = root.find("./os/type")
    cpu = root.find("./cpu")
    interfaces = root.findall("./devices/interface")
    found = list(_connected(interfaces))
    hostdevs = [*root.findall("./devices/hostdev"), *(i for i in interfaces if i.get("type") in ("hostdev", "vdpa"))]
    # QEMU unplugs the one device of a team and the guest goes on with the other.
    lasting = [device for device in hostdevs if _teamed(device) != "transient"]
    tpm = root.find("./devices/tpm/backend")
    loader, nvram = root.find("./os/loader"), root.find("./os/nvram")
    return Needs(
        emulator=root.findtext("./devices/emulator", ""),
        arch="" if kind is None else kind.get("arch", ""),
        machine="" if kind is None else kind.get("machine", ""),
        virt_type=root.get("type", ""),
        cpu_mode="" if cpu is None else cpu.get("mode", "custom"),
        cpu="" if cpu is None else ET.tostring(cpu, encoding="unicode").strip(),
        cpu_checked=cpu is not None and cpu.get("check") != "none",
        interfaces=frozenset(name for kind, name in found if kind == "interface"),
        networks=frozenset(name for kind, name in found if kind == "network"),
        passthrough=tuple(_words(device) for device in lasting if device.get("type") != "mdev"),
        mediated=tuple(_words(device) for device in lasting if device.get("type") == "mdev"),
        tpm=None if tpm is None else tpm.get("type", ""),
        firmware=frozenset(filter(None, ["" if loader is None else (loader.text or "").strip()])),
        nvram=None if nvram is None else _file(nvram),
        nvram_template=None if nvram is None else nvram.get("template"),
        pages=tuple(_pages(root)),
        balloon=(balloon := root.find("./devices/memballoon")) is not None and balloon.get("model") != "none",
        numa_nodes=frozenset().union(*(numbers(e.get("nodeset", "")) for e in root.iterfind("./numatune/*"))),
        cpus=frozenset().union(
            *(numbers(e.get("cpuset", "")) for e in root.iterfind("./cputune/*")),
            *(numbers(e.get("cpuset", "")) for e in root.findall("./vcpu")),
        ),
        block_jobs=tuple(
            target.get("dev", "")
            for disk in root.iterfind("./devices/disk")
            if disk.find("mirror") is not None and (target := disk.find("target")) is not None
        ),
    )


def numbers(text: str) -> Iterator[int]:
    """The numbers of a list in libvirt's notation (``1-4,^3,6``)."""
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, _, last = part.removeprefix("^").partition("-")
        if re.fullmatch(r"\d+", first) and re.fullmatch(r"\d*", last):
            several = range(int(first), int(last or first) + 1)
            found = found.difference(several) if part.startswith("^") else found.union(several)
    return iter(found)


def _connected(interfaces: Iterable[ET.Element]) -> Iterator[tuple[str, str]]:
    """What each lies on: a network of libvirt's, which each node resolves anew, or an interface of the host's."""
    for interface in interfaces:
        source = interface.find("source")
        if source is None:
            continue
        if network := source.get("network"):
            yield "network", network
        elif name := source.get(_ON_HOST.get(interface.get("type", ""), "")):
            yield "interface", name


def _teamed(device: ET.Element) -> str:
    teaming = device.find("teaming")
    return "" if teaming is None else teaming.get("type", "")


def _file(nvram: ET.Element) -> str | None:
    source = nvram.find("source")
    return (nvram.text or "").strip() or (None if source is None else source.get("file"))


def _words(device: ET.Element) -> str:
    kind = device.get("type", "")
    address = device.find("./source/address")
    where = "" if address is None else " ".join(f"{key}={value}" for key, value in address.attrib.items())
    return " ".join(filter(None, [kind, device.get("mode", ""), where]))


def _pages(root: ET.Element) -> Iterator[Pages]:
    """The memory in huge pages, by their size and by the host's NUMA nodes that it is bound to."""
    hugepages = root.find("./memoryBacking/hugepages")
    if hugepages is None:
        return
    found: dict[tuple[int, frozenset[int]], int] = {}
    for cell, kib, own in _cells(root):
        size = _size(hugepages.findall("page"), cell) if own is None else own
        if size is not None:
            key = size, _bound(root, cell)
            found[key] = found.get(key, 0) + kib
    for (size, nodes), kib in found.items():
        yield Pages(size_kib=size, kib=kib, nodes=nodes)


def _cells(root: ET.Element) -> Iterator[tuple[int, int, int | None]]:
    """Memory of the guest's: its NUMA node, KiB, and the size of its pages where it has one of its own."""
    cells = root.findall("./cpu/numa/cell")
    if not cells:
        memory = root.find("memory")
        yield 0, 0 if memory is None else _kib(memory.text, memory.get("unit")), None
    for number, cell in enumerate(cells):
        yield int(cell.get("id", number)), _kib(cell.get("memory"), cell.get("unit")), None
    for dimm in root.iterfind("./devices/memory[@model='dimm']"):
        size, page = dimm.find("./target/size"), dimm.find("./source/pagesize")
        if size is not None:
            own = None if page is None else _kib(page.text, page.get("unit"))
            yield int(dimm.findtext("./target/node", "0")), _kib(size.text, size.get("unit")), own


def _size(pages: list[ET.Element], cell: int) -> int | None:
    """The size of the pages of a NUMA node of the guest's; ``None``: ordinary ones."""
    if not pages:
        return 0
    for page in sorted(pages, key=lambda page: not page.get("nodeset")):  # what is said of one node goes before
        if not page.get("nodeset") or cell in numbers(page.get("nodeset", "")):
            return _kib(page.get("size"), page.get("unit"))
    return None


def _bound(root: ET.Element, cell: int) -> frozenset[int]:
    tuned = root.find(f"./numatune/memnode[@cellid='{cell}']")
    if tuned is None:
        tuned = root.find("./numatune/memory")
    if tuned is None or tuned.get("mode", "strict") not in _BOUND:
        return frozenset()
    return frozenset(numbers(tuned.get("nodeset", "")))


def _kib(number: str | None, unit: str | None) -> int:
    return round(int(number or "0") * _KIB.get(unit or "", 1))
