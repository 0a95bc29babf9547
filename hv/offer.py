"""What a node's libvirt has for a guest that is to come."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final
from xml.etree import ElementTree as ET

import libvirt

from hv.border import words
from hv.needs import needs
from lvmigrate.premises import Match, Needs, Offer

#: The modes whose CPU stands in the XML of a running guest as it was made.
_SPELT_OUT: Final = ("custom", "")


def needed(connection: libvirt.virConnect, domain: libvirt.virDomain) -> Needs:
    """What the running guest needs, and what libvirt keeps of it beside its XML. Raises what libvirt raises."""
    read = needs(domain.XMLDesc())
    unknown: list[str] = []
    read = replace(
        read,
        cpu=_spelt_out(connection, read),
        cpu_checked=read.cpu_checked or read.cpu_mode not in _SPELT_OUT,
        saved=bool(domain.hasManagedSaveImage()),
        snapshots=domain.snapshotNum(),
        block_jobs=read.block_jobs or tuple(_block_jobs(domain)),
    )
    try:
        read = replace(read, checkpoints=len(domain.listAllCheckpoints()))
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:  # a libvirt before 5.6 has none
            unknown.append(f"whether it has checkpoints ({words(error)})")
    return replace(read, unknown=tuple(unknown))


def _block_jobs(domain: libvirt.virDomain) -> Iterator[str]:
    if not domain.isActive():
        return
    for target in re.findall(r"<target dev='([^']*)' bus=", domain.XMLDesc()):
        try:
            if domain.blockJobInfo(target):
                yield target
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_OPERATION_UNSUPPORTED):
                raise  # an empty drive has no jobs


def _spelt_out(connection: libvirt.virConnect, read: Needs) -> str:
    """The guest's CPU for a comparison: of host-passthrough and maximum, what the node itself has."""
    if read.cpu_mode in _SPELT_OUT or not read.cpu:
        return read.cpu
    try:
        told = connection.getDomainCapabilities(read.emulator, read.arch, None, read.virt_type)
    except libvirt.libvirtError:
        return ""
    model = ET.fromstring(told).find("./cpu/mode[@name='host-model']")  # noqa: S314 -- libvirt's own output
    if model is None or model.get("supported") != "yes":
        return ""
    model.tag = "cpu"
    model.attrib.clear()
    model.attrib.update(mode="custom", match="exact")
    return ET.tostring(model, encoding="unicode").strip()


def offered(node: str, connection: libvirt.virConnect, wanted: Needs) -> Offer:
    """What the node has of ``wanted``. Raises what libvirt raises for a reason of its own."""
    offer = _emulated(Offer(node=node), connection, wanted)
    unknown = list(offer.unknown)
    networks = set()
    for name in wanted.networks:
        try:
            if connection.networkLookupByName(name).isActive():
                networks.add(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                unknown.append(f"whether it has the network {name} ({words(error)})")
                networks.add(name)
            elif error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
                raise
    cells = _cells(connection)
    return replace(
        offer,
        networks=frozenset(networks),
        free_pages=_free_pages(connection, wanted, cells),
        numa_nodes=frozenset(int(cell.get("id", "0")) for cell in cells),
        cpus=frozenset(int(cpu.get("id", "0")) for cell in cells for cpu in cell.iterfind("./cpus/cpu")),
        unknown=tuple(unknown),
    )


def _emulated(offer: Offer, connection: libvirt.virConnect, wanted: Needs) -> Offer:
    base: tuple[Any, ...] = (wanted.emulator, wanted.arch, None, wanted.virt_type)
    try:
        connection.getDomainCapabilities(*base)
    except libvirt.libvirtError as error:
        return replace(
            offer, emulator=_no(error), machine=Match.UNKNOWN, cpu=Match.UNKNOWN, emulator_words=words(error)
        )
    try:
        connection.getDomainCapabilities(wanted.emulator, wanted.arch, wanted.machine, wanted.virt_type)
    except libvirt.libvirtError as error:
        offer = replace(offer, machine=_no(error), machine_words=words(error))
    if not wanted.cpu:
        return offer
    try:
        connection.compareHypervisorCPU(*base, wanted.cpu, libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE)
    except libvirt.libvirtError as error:
        lacks = error.get_error_code() == libvirt.VIR_ERR_CPU_INCOMPATIBLE
        return replace(offer, cpu=Match.NO if lacks else Match.UNKNOWN, cpu_words=words(error))
    return offer


def _no(error: libvirt.libvirtError) -> Match:
    """What libvirt means by an error: that there is none, or that it cannot tell."""
    no = (libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_CONFIG_UNSUPPORTED)
    return Match.NO if error.get_error_code() in no else Match.UNKNOWN


def _cells(connection: libvirt.virConnect) -> list[ET.Element]:
    return ET.fromstring(connection.getCapabilities()).findall("./host/topology/cells/cell")  # noqa: S314 -- as above


def _free_pages(connection: libvirt.virConnect, wanted: Needs, cells: list[ET.Element]) -> dict[int, dict[int, int]]:
    """KiB that are free on each NUMA node, in pages of each size asked for; for the default size, in all huge ones."""
    there = {int(p.get("size", "0")) for cell in cells for p in cell.iterfind("pages")}
    asked = {pages.size_kib for pages in wanted.pages}
    sizes = sorted(there - {min(there)} if 0 in asked and there else there & asked)
    if not sizes:
        return {}
    last = max(int(cell.get("id", "0")) for cell in cells)
    found = connection.getFreePages(sizes, 0, last + 1)
    return {size: {int(node): free.get(size, 0) * size for node, free in found.items()} for size in sizes}
