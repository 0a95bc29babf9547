"""What a domain's XML says: its disks and interfaces, the tombstone in it, and the guest that it describes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from xml.etree import ElementTree as ET
from xml.sax.saxutils import quoteattr

from lvmigrate.domain import Domain, DomainDisk, DomainState, JobKind, Nic
from lvmigrate.errors import Code, CommandFailed


def virt_type(text: str) -> str:
    """``kvm``, ``qemu``, ...: the domain element's type."""
    return ET.fromstring(text).get("type", "")  # noqa: S314 -- libvirt's own output, which it has parsed and written itself


def vcpus(text: str) -> int:
    """The most CPUs that the guest can have."""
    return int(ET.fromstring(text).findtext("vcpu", "1"))  # noqa: S314 -- as above


def disks(text: str) -> tuple[DomainDisk, ...]:
    """Every ``<disk>`` in the order of the XML (libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms)."""
    return tuple(_disk(element) for element in ET.fromstring(text).iterfind("./devices/disk"))  # noqa: S314 -- as above


def _elsewhere(source: ET.Element) -> bool:
    """Whether a network disk is the same from every node: none of its servers is this very machine."""
    hosts = source.findall("host")
    local = any(
        host.get("transport") == "unix" or re.fullmatch(r"localhost|127\..*|\[?::1\]?|", host.get("name", ""))
        for host in hosts
    )
    # Ceph's monitors may come from the node's own configuration.
    return not local and (bool(hosts) or source.get("protocol") == "rbd")


def _disk(element: ET.Element) -> DomainDisk:
    source = element.find("source")
    target = element.find("target")
    driver = element.find("driver")
    path = None if source is None else source.get("dev") or source.get("file")
    return DomainDisk(
        target="" if target is None else target.get("dev", ""),
        source=path,
        kind=element.get("type", ""),
        device=element.get("device", "disk"),
        network=element.get("type") == "network" and source is not None and _elsewhere(source),
        read_only=element.find("readonly") is not None,
        cache="" if driver is None else driver.get("cache", ""),
        format="" if driver is None else driver.get("type", ""),
        # libvirt.org/formatdomain.html: "requisite" may be missing where the guest arrives by a migration.
        optional=source is not None and source.get("startupPolicy") in ("optional", "requisite"),
        behind=tuple(_behind(element)),
    )


def _behind(element: ET.Element) -> Iterator[DomainDisk]:
    """The images behind a disk, and files with its data, as a running guest's XML has them."""
    target, device = element.find("target"), element.get("device", "disk")
    name = "" if target is None else target.get("dev", "")
    for tag, words in (("backingStore", "a base of"), ("dataStore", "the data of")):
        for store in element.iter(tag):
            source, kind = store.find("source"), store.find("format")
            if source is None:
                continue
            yield DomainDisk(
                target=f"{words} {name}",
                source=source.get("dev") or source.get("file"),
                kind=store.get("type", ""),
                device=device,
                network=store.get("type") == "network" and _elsewhere(source),
                read_only=tag == "backingStore",
                format="" if kind is None else kind.get("type", ""),
            )


def nics(text: str) -> tuple[Nic, ...]:
    """Every ``<interface>`` in the order of the XML (libvirt.org/formatdomain.html#network-interfaces)."""
    return tuple(_nic(element) for element in ET.fromstring(text).iterfind("./devices/interface"))  # noqa: S314 -- as above


def _nic(element: ET.Element) -> Nic:
    source, mac = element.find("source"), element.find("mac")
    kind = element.get("type", "")
    links = [] if source is None else [source.get(key, "") for key in (kind, "network", "bridge", "dev")]
    return Nic(
        mac="" if mac is None else mac.get("address", ""), kind=kind, link=next((link for link in links if link), "")
    )


#: The namespace of the tombstone among a definition's ``<metadata>`` (libvirt.org/formatdomain.html#general-metadata).
TOMBSTONE: Final = "urn:lvmigrate:tombstone:1"


def tombstone(left_on: str | None) -> str | None:
    """The element that says on which node a copy of the guest may have been left."""
    return None if left_on is None else f"<left on={quoteattr(left_on)}/>"


def left_on(text: str) -> str | None:
    """What the tombstone says; ``None``: there is none."""
    stone = ET.fromstring(text).find(f"./metadata/{{{TOMBSTONE}}}left")  # noqa: S314 -- as above
    return None if stone is None else stone.get("on")


#: libvirt's units of memory, in bytes (libvirt.org/formatdomain.html#memory-allocation); it writes KiB itself.
_UNITS: Final = {
    **dict.fromkeys(("b", "bytes"), 1),
    "KB": 10**3,
    **dict.fromkeys(("k", "KiB"), 2**10),
    "MB": 10**6,
    **dict.fromkeys(("M", "MiB"), 2**20),
    "GB": 10**9,
    **dict.fromkeys(("G", "GiB"), 2**30),
    "TB": 10**12,
    **dict.fromkeys(("T", "TiB"), 2**40),
}


def loses_tpm(text: str) -> bool:
    """Whether libvirt deletes the state of an emulated TPM with this definition where it is not told to keep it.

    A definition can say itself that it is to be kept (``persistent_state``, libvirt 7.0).
    """
    backends = ET.fromstring(text).iterfind("./devices/tpm/backend[@type='emulator']")  # noqa: S314 -- as above
    return any(backend.get("persistent_state") != "yes" for backend in backends)


def described(node: str, text: str) -> Domain:
    """The guest that a definition describes, off. Raises `CommandFailed`: the text is no definition of one."""
    try:
        return _parsed(node, text)
    except (ET.ParseError, ValueError) as error:
        raise CommandFailed(
            node,
            "Reading the guest's definition",
            status=0,
            hint="Use a file that `virsh dumpxml --inactive --security-info` has written.",
            detail=str(error),
            code=Code.DEFINITION_WRONG,
        ) from error


def _parsed(node: str, text: str) -> Domain:
    """Raises `ValueError` or `ET.ParseError`."""
    if "<!DOCTYPE" in text:  # libvirt writes none; the entities of one could be made to fill the memory
        raise ValueError("it has a document type")
    root = ET.fromstring(text)  # noqa: S314 -- no entities in it
    name, uuid = (root.findtext(key, "").strip() for key in ("name", "uuid"))
    memory = root.find("memory")
    unit = None if memory is None else _UNITS.get(memory.get("unit", "KiB"))
    if root.tag != "domain" or not name or not uuid or memory is None or unit is None:
        raise ValueError("it names no domain with its UUID and its memory")
    return Domain(
        node=node,
        name=name,
        uuid=uuid.lower(),
        state=DomainState.OFF,
        reason="",
        job=JobKind.NONE,
        persistent=True,
        autostart=False,
        virt_type=virt_type(text),
        memory_kib=int(memory.text or "") * unit // 1024,
        vcpus=vcpus(text),
        disks=disks(text),
        nics=nics(text),
        left_on=left_on(text),
        loses_tpm=loses_tpm(text),
    )
