"""Whether a guest fits on its target: each check both ways, and all of them named at once."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmigrate import balloon, checks
from lvmigrate.domain import DomainDisk, Host
from lvmigrate.errors import Code, Finding, Refused
from lvmigrate.migrate import MigrateInstance
from lvmigrate.plan import Options
from lvmigrate.premises import Match, Offer, Pages
from lvmigrate.survey import find, survey
from tests.unit.fakes import NEEDS, OFFER, PREMISES, World, guest, unreachable

CDROM = DomainDisk(
    target="sda", source="/srv/tools.iso", kind="file", device="cdrom", read_only=True, cache="", optional=False
)
MIB = 1024


def needing(**changes: Any) -> World:
    return World(needs=dataclasses.replace(NEEDS, **changes))


def offering(**changes: Any) -> World:
    return World(offer=dataclasses.replace(OFFER, **changes))


def on(node: str, **changes: Any) -> World:
    return World(premises=PREMISES | {node: dataclasses.replace(PREMISES[node], **changes)})


def having(*disks: DomainDisk, **changes: Any) -> World:
    return World(domains={"node1": guest("node1", disks=(*guest("node1").disks, *disks), **changes)})


def versions(node1: tuple[Any, Any], node2: tuple[Any, Any]) -> World:
    hosts = {
        node: Host(node=node, free_memory_kib=1 << 20, libvirt_version=libvirt, qemu_version=qemu)
        for node, (libvirt, qemu) in (("node1", node1), ("node2", node2))
    }
    return World(hosts=hosts)


def memory(free_mib: int, *, current_mib: int = 512, most_mib: int = 1024) -> World:
    host = Host(node="node2", free_memory_kib=free_mib * MIB, libvirt_version=(11, 3, 0), qemu_version=(10, 0, 0))
    domain = guest("node1", memory_kib=most_mib * MIB, current_kib=current_mib * MIB)
    return World(hosts={"node2": host}, domains={"node1": domain})


def paged(free: dict[int, dict[int, int]], *pages: tuple[int, ...], free_mib: int = 2048) -> World:
    """A guest of 1 GiB with (size in KiB, MiB, NUMA nodes...) in huge pages; on the target so many MiB are free."""
    world = memory(free_mib, current_mib=1024)
    wanted = tuple(Pages(size_kib=size, kib=mib * MIB, nodes=frozenset(nodes)) for size, mib, *nodes in pages)
    world.needs = dataclasses.replace(NEEDS, pages=wanted)
    there = {size: {node: mib * MIB for node, mib in by.items()} for size, by in free.items()}
    world.offer = dataclasses.replace(OFFER, free_pages=there, numa_nodes=frozenset({0, 1}))
    return world


def refusals(world: World, options: Options | None = None) -> list[Finding]:
    with pytest.raises(Refused) as caught:
        MigrateInstance(world.context(), "web1", options=options).check_prereq()
    return list(caught.value.findings)


def warned(world: World, options: Options | None = None) -> list[Code]:
    """The warnings of a move that nothing is against."""
    plan = MigrateInstance(world.context(), "web1", options=options).check_prereq()
    assert all(warning.sentence.endswith(".") and warning.hint for warning in plan.warnings)
    return [warning.code for warning in plan.warnings]


NO: dict[str, Any] = {"cpu": Match.NO, "cpu_words": "missing features: avx2"}
LATE = ((11, 3, 0), (10, 0, 2))


@pytest.mark.parametrize(
    ("world", "code", "said"),
    [
        (offering(emulator=Match.NO, emulator_words="no KVM"), Code.EMULATOR_MISSING, "no KVM"),
        (offering(machine=Match.NO, machine_words="not supported"), Code.MACHINE_UNKNOWN, "pc-i440fx-10.0"),
        (offering(**NO), Code.CPU_LACKS, "avx2"),
        (versions(LATE, ((10, 9, 0), (10, 0, 2))), Code.VERSION_OLDER, "libvirt 10.9.0"),
        (versions(LATE, ((11, 3, 0), (9, 2, 0))), Code.VERSION_OLDER, "QEMU 9.2.0"),
        (memory(511), Code.MEMORY_SHORT, "511 MiB"),
        (memory(512 + 65, current_mib=512), Code.MEMORY_SHORT, "its QEMU takes 66 MiB"),
        (paged({2048: {0: 1023}}, (2048, 1024)), Code.HUGEPAGES_SHORT, "1023 MiB free in huge pages of 2048 KiB, web1"),
        (paged({1048576: {0: 4096}}, (2048, 1024)), Code.HUGEPAGES_SHORT, "0 MiB free in huge pages of 2048 KiB"),
        (paged({2048: {0: 512}, 1048576: {0: 1000}}, (0, 1024)), Code.HUGEPAGES_SHORT, "1000 MiB free"),
        (paged({2048: {0: 4096, 1: 511}}, (2048, 512, 1)), Code.HUGEPAGES_SHORT, "NUMA node 1, web1 needs 512 MiB"),
        (paged({2048: {0: 700, 1: 400}}, (2048, 512, 0, 1), (2048, 300, 0), (2048, 300)), Code.HUGEPAGES_SHORT, "1112"),
        (paged({2048: {0: 700, 1: 300}}, (2048, 512, 0, 1), (2048, 512, 0, 1)), Code.HUGEPAGES_SHORT, "1024 MiB"),
        (paged({2048: {0: 1024}}, (2048, 1024), free_mib=65), Code.MEMORY_SHORT, "0 MiB beside its huge pages"),
        (paged({2048: {0: 1024}}, (2048, 512), free_mib=512 + 65), Code.MEMORY_SHORT, "512 MiB beside its huge pages"),
        (needing(numa_nodes=frozenset({0, 1})), Code.TOPOLOGY_MISSING, "NUMA node 1"),
        (needing(cpus=frozenset({1, 7, 8})), Code.TOPOLOGY_MISSING, "CPU 7, 8"),
        (needing(networks=frozenset({"lan"})), Code.NETWORK_MISSING, "network lan"),
        (needing(interfaces=frozenset({"br0"})), Code.NETWORK_MISSING, "interface br0"),
        (having(CDROM), Code.MEDIA_MISSING, "/srv/tools.iso"),
        (having(dataclasses.replace(CDROM, device="floppy", target="fda")), Code.MEDIA_MISSING, "floppy drive fda"),
        (needing(passthrough=("pci 0000:01:00.0",)), Code.PASSTHROUGH, "0000:01:00.0"),
        (needing(mediated=("mdev",)), Code.MEDIATED_DEVICE, "mdev"),
        (needing(tpm="passthrough"), Code.TPM, "secrets"),
        (needing(tpm="emulator"), Code.TPM, "no swtpm"),
        (needing(firmware=frozenset({"/usr/share/OVMF/CODE.fd"})), Code.NVRAM, "CODE.fd"),
        (needing(nvram="/n/web1.fd", nvram_template="/n/VARS.fd"), Code.NVRAM, "VARS.fd"),
        (needing(snapshots=2), Code.SNAPSHOTS, "2 snapshots"),
        (needing(checkpoints=1), Code.CHECKPOINTS, "1 checkpoints"),
        (needing(saved=True), Code.SAVE_IMAGE, "node1"),
        (on("node1", saved="/save/web1.save"), Code.SAVE_IMAGE, "node1"),
        (on("node2", saved="/save/web1.save"), Code.SAVE_IMAGE, "node2"),
        (needing(block_jobs=("vda",)), Code.JOB_ACTIVE, "Disk vda"),
        (on("node1", peer=Match.NO, peer_words="Host key verification failed"), Code.PEER_UNREACHABLE, "Host key"),
        (on("node1", memory=Match.NO, memory_words="no answer in time"), Code.PORTS_UNREACHABLE, "no answer"),
        (on("node2", ports=(50000, 50001), listening=frozenset({50000, 50001})), Code.PORTS_TAKEN, "50000-50001"),
        (on("node2", ports=(50000, 50001), spare_port=50001, listening=frozenset({50000})), Code.PORTS_TAKEN, "50000"),
    ],
    ids=lambda value: value.name if isinstance(value, Code) else "",
)
def test_a_reason_not_to_start(world: World, code: Code, said: str) -> None:
    (finding,) = refusals(world)
    assert finding.code is code
    assert said in finding.sentence
    assert finding.sentence.endswith(".")
    assert finding.hint


@pytest.mark.parametrize(
    "world",
    [
        World(),
        versions(LATE, ((12, 0, 0), (11, 0, 0))),
        versions(LATE, ((0, 0, 0), (0, 0, 0))),
        memory(1024 + 66),
        paged({2048: {0: 1024}}, (2048, 1024), free_mib=66),
        paged({2048: {0: 512}, 1048576: {0: 1024}}, (0, 1024)),
        paged({2048: {0: 700, 1: 324}}, (2048, 512, 0, 1), (2048, 512, 0)),
        paged({2048: {0: 512}}, (2048, 512), free_mib=512 + 66),
        needing(numa_nodes=frozenset({0}), cpus=frozenset({0, 1})),
        World(needs=dataclasses.replace(NEEDS, numa_nodes=frozenset({3})), offer=Offer(node="node2")),
        World(
            needs=dataclasses.replace(
                NEEDS, networks=frozenset({"lan"}), interfaces=frozenset({"br0"}), tpm="emulator"
            ),
            offer=dataclasses.replace(OFFER, networks=frozenset({"lan"})),
            premises=PREMISES
            | {
                "node2": dataclasses.replace(
                    PREMISES["node2"], interfaces=frozenset({"br0"}), programs=frozenset({"swtpm"})
                )
            },
        ),
        dataclasses.replace(having(CDROM), premises=on("node2", paths=frozenset({"/srv/tools.iso"})).premises),
        having(dataclasses.replace(CDROM, source=None)),
        World(
            needs=dataclasses.replace(NEEDS, nvram="/n/web1.fd", nvram_template="/n/VARS.fd"),
            premises=on("node2", paths=frozenset({"/n/VARS.fd"})).premises,
        ),
        World(
            needs=dataclasses.replace(NEEDS, nvram="/n/web1.fd"),
            premises=on("node2", paths=frozenset({"/n/web1.fd"})).premises,
        ),
        on("node2", ports=(50000, 50001), listening=frozenset({50000, 22})),
        on("node2", ports=(50000, 50002), spare_port=50002, listening=frozenset({50000, 50002})),
        on("node1", memory=Match.UNKNOWN),
    ],
)
def test_a_guest_that_fits(world: World) -> None:
    assert warned(world) == []


@pytest.mark.parametrize(
    ("world", "code"),
    [
        (
            World(needs=dataclasses.replace(NEEDS, cpu_checked=False), offer=dataclasses.replace(OFFER, **NO)),
            Code.CPU_LACKS,
        ),
        (versions(LATE, ((11, 3, 0), (10, 0, 1))), Code.VERSION_OLDER),
        (memory(1023 + 66), Code.MEMORY_TIGHT),
        (memory(512 + 66), Code.MEMORY_TIGHT),
        (having(dataclasses.replace(CDROM, optional=True)), Code.MEDIA_MISSING),
        (on("node2", after_drbd={"libvirtd.service": False}), Code.AUTOSTART_ORDER),
        (on("node2", after_drbd={}), Code.NOT_CHECKED),
        (on("node1", peer=Match.UNKNOWN), Code.NOT_CHECKED),
        (needing(unknown=("whether it has checkpoints",)), Code.NOT_CHECKED),
        (offering(unknown=("whether it has the network lan",)), Code.NOT_CHECKED),
        (offering(emulator=Match.UNKNOWN, machine=Match.UNKNOWN, cpu=Match.UNKNOWN), Code.NOT_CHECKED),
        (offering(machine=Match.UNKNOWN), Code.NOT_CHECKED),
        (offering(cpu=Match.UNKNOWN, cpu_words="no such driver"), Code.NOT_CHECKED),
        (needing(cpu_mode="host-passthrough"), Code.NOT_CHECKED),
        (needing(tpm="external"), Code.NOT_CHECKED),
        (needing(nvram="/n/web1.fd"), Code.NOT_CHECKED),
    ],
    ids=lambda value: value.name if isinstance(value, Code) else "",
)
def test_what_is_said_and_left_at_that(world: World, code: Code) -> None:
    assert warned(world) == [code]


def test_an_order_of_services_matters_to_what_starts_at_boot_from_drbd() -> None:
    for changes in ({"autostart": False}, {"autostart": True}):
        world = on("node2", after_drbd={"libvirtd.service": False, "virtqemud.service": True})
        world.domains = {"node1": guest("node1", **changes)}
        assert warned(world) == ([Code.AUTOSTART_ORDER] if changes["autostart"] else [])


@pytest.mark.parametrize(
    ("cache", "fits"),
    [("none", True), ("directsync", True), (None, True), ("", False), ("writeback", False), ("unsafe", False)],
)
def test_caches(cache: str | None, fits: bool) -> None:  # noqa: FBT001
    (disk,) = guest("node1").disks
    world = World(domains={"node1": guest("node1", disks=(dataclasses.replace(disk, cache=cache),))})
    if fits:
        assert warned(world) == []
    else:
        assert [finding.code for finding in refusals(world)] == [Code.DISK_CACHED]
    # Nobody writes to it, or the host has nothing of it to cache.
    for changes in ({"read_only": True}, {"network": True}):
        spared = dataclasses.replace(disk, cache=cache, **changes)  # type: ignore[arg-type]
        world = World(domains={"node1": guest("node1", disks=(spared,))})
        assert warned(world) == []


@pytest.mark.parametrize(
    ("version", "changes", "refused"),
    [
        ((8, 8, 0), {"loses_tpm": True}, True),
        ((8, 9, 0), {"loses_tpm": True}, False),
        ((0, 0, 0), {"loses_tpm": True}, False),
        ((8, 0, 0), {"loses_tpm": False}, False),
        ((8, 0, 0), {"loses_tpm": True, "persistent": False}, False),
    ],
)
def test_a_definition_that_could_not_go_without_its_tpms_state(
    version: tuple[int, int, int], changes: dict[str, Any], *, refused: bool
) -> None:
    world = versions((version, (10, 0, 2)), LATE)
    world.domains = {"node1": guest("node1", autostart=False, **changes)}
    if not refused:
        assert warned(world) == []
        return
    (finding,) = refusals(world)
    assert finding.code is Code.TPM
    assert "8.8.0" in finding.sentence
    assert warned(world, Options(keep_definition=True)) == []  # it stays, and so does the state


def test_versions_can_be_ignored() -> None:
    world = versions(LATE, ((10, 9, 0), (9, 2, 0)))
    assert [finding.code for finding in refusals(world)] == [Code.VERSION_OLDER] * 2
    assert warned(world, Options(ignore_hvversions=True)) == [Code.VERSION_OLDER] * 2


def test_a_uuid_that_another_guest_has() -> None:
    world = World(domains={"node1": guest("node1"), "node2": guest("node2", name="copy")})
    assert Code.INSTANCE_ON_TARGET in [finding.code for finding in refusals(world)]


def test_everything_at_once() -> None:
    world = World(
        needs=dataclasses.replace(
            NEEDS, snapshots=1, networks=frozenset({"lan"}), passthrough=("usb",), tpm="emulator"
        ),
        offer=dataclasses.replace(OFFER, machine=Match.NO, **NO),
        premises=on("node1", peer=Match.NO, peer_words="no").premises,
    )
    assert [finding.code for finding in refusals(world)] == [
        Code.MACHINE_UNKNOWN,
        Code.CPU_LACKS,
        Code.NETWORK_MISSING,
        Code.PASSTHROUGH,
        Code.TPM,
        Code.SNAPSHOTS,
        Code.PEER_UNREACHABLE,
    ]


def test_every_check_is_listed_once() -> None:
    assert len({*checks.REFUSALS, *checks.WARNINGS}) == len(checks.REFUSALS) + len(checks.WARNINGS)


@pytest.mark.parametrize("call", ["needs", "offer", "premises"])
@pytest.mark.parametrize("node", ["node1", "node2"])
def test_a_node_that_does_not_say_is_a_reason(call: str, node: str) -> None:

    world = World(faults={(call, node): unreachable(node)})
    if (call, node) in (("needs", "node2"), ("offer", "node1")):
        assert warned(world) == []  # not asked there
    else:
        assert [finding.code for finding in refusals(world)] == [Code.NODE_UNREACHABLE]


@given(
    current=st.integers(1, 4096),
    free=st.integers(0, 8192),
    least=st.none() | st.integers(1, 5000),
    allowed=st.booleans(),
)
def test_what_a_guest_shrinks_to(current: int, free: int, least: int | None, *, allowed: bool) -> None:
    world = memory(free, current_mib=current, most_mib=4096)
    context = world.context()
    (domain,) = find(context.hypervisor, tuple(context.nodes), "web1").active
    options = Options(allow_runtime_changes=allowed, minimum_memory_mib=least)
    seen = survey(context.hypervisor, context.storage, domain, context.nodes["node2"], options)
    fit = balloon.planned(seen)
    floor = min(current, least if least is not None else current / 2)
    free -= 64 + 4096 // 512  # for QEMU itself, and for page tables
    assert fit.short == (free < (floor if allowed else current))
    if fit.shrunk_kib is None:
        assert fit.short or free >= current
    else:
        assert allowed
        assert floor * MIB - 1 <= fit.shrunk_kib <= free * MIB
        assert fit.shrunk_kib < current * MIB
