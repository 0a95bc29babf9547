"""What the domain's XML says about its disks and interfaces, and the tombstone in it."""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree as ET
from xml.sax.saxutils import quoteattr

from lvmigrate.domain import DomainDisk, Nic


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
        # libvirt.org/formatdomain.html: "requisite" may be missing where the guest arrives by a migration.
        optional=source is not None and source.get("startupPolicy") in ("optional", "requisite"),
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
