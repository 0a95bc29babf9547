"""The checks of whether a guest fits on the target: its CPU, machine, memory, networks, devices, files. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from lvmigrate import balloon
from lvmigrate.domain import Domain
from lvmigrate.errors import Code, Finding
from lvmigrate.premises import KEEPS_TPM, Match, dotted
from lvmigrate.survey import Survey

#: What may be written behind the guest's back stays in the host's cache; these two do not.
_UNCACHED: Final = ("none", "directsync")


def _emulated(survey: Survey) -> Iterator[Finding]:
    offer, needs, target = survey.offer, survey.needs, survey.target.node
    if offer.emulator is Match.NO:
        yield Finding(
            code=Code.EMULATOR_MISSING,
            sentence=f"{target} cannot run guests of type {needs.virt_type} with {needs.emulator}"
            f" ({offer.emulator_words}).",
            hint=f"Install that emulator on {target}, and see with `virsh domcapabilities` whether it has KVM.",
        )
    if offer.machine is Match.NO:
        yield Finding(
            code=Code.MACHINE_UNKNOWN,
            sentence=f"{needs.emulator} on {target} does not know the machine {needs.machine} of {survey.domain.name}"
            f" ({offer.machine_words}).",
            hint=f"Install the source's QEMU on {target}, or choose another target; a running guest keeps its machine.",
        )
    if offer.cpu is Match.NO and needs.cpu_checked:
        yield _cpu(survey)


def _cpu(survey: Survey) -> Finding:
    return Finding(
        code=Code.CPU_LACKS,
        sentence=f"{survey.target.node} does not have the CPU that {survey.domain.name} was started with"
        f" ({survey.offer.cpu_words}).",
        hint="Give the guest a CPU model that both nodes have (`virsh hypervisor-cpu-baseline`), and start it anew.",
    )


def _cpu_unchecked(survey: Survey) -> Iterator[Finding]:
    if survey.offer.cpu is Match.NO and not survey.needs.cpu_checked:
        yield _cpu(survey)


def _older(survey: Survey) -> Iterator[tuple[Finding, bool]]:
    """What is older on the target, and whether by more than a release that only mends."""
    source, target = survey.source.host, survey.target.host
    for what, here, there in (
        ("libvirt", source.libvirt_version, target.libvirt_version),
        ("QEMU", source.qemu_version, target.qemu_version),
    ):
        if (0, 0, 0) < there < here:
            finding = Finding(
                code=Code.VERSION_OLDER,
                sentence=f"{target.node} has {what} {dotted(there)}, older than {source.node}'s {dotted(here)}.",
                hint=f"Update {what} on {target.node} first; --ignore-hvversions moves the guest all the same.",
            )
            yield finding, there[:2] < here[:2]


def _version(survey: Survey) -> Iterator[Finding]:
    yield from (found for found, much in _older(survey) if much and not survey.options.ignore_hvversions)


def _version_said(survey: Survey) -> Iterator[Finding]:
    yield from (found for found, much in _older(survey) if not much or survey.options.ignore_hvversions)


def _memory(survey: Survey) -> Iterator[Finding]:
    yield from _hugepages(survey)
    plan = balloon.planned(survey)
    if plan.short:
        shrunk = f", and keeps {plan.least_kib // 1024} MiB in any case" if plan.may_shrink else ""
        more = "lower --minimum-memory" if plan.may_shrink else "let it give some back with --allow-runtime-changes"
        beside = " beside its huge pages" if survey.needs.pages else ""
        yield Finding(
            code=Code.MEMORY_SHORT,
            sentence=f"{survey.target.node} has {survey.target.host.free_memory_kib // 1024} MiB of memory free,"
            f" {survey.domain.name} has {plan.current_kib // 1024} MiB{beside}{shrunk}, and its QEMU takes"
            f" {balloon.overhead_kib(survey.domain) // 1024} MiB.",
            hint=f"Free memory there, choose another target, or {more}.",
        )


def _memory_tight(survey: Survey) -> Iterator[Finding]:
    domain, plan = survey.domain, balloon.planned(survey)
    if not survey.needs.pages and plan.current_kib <= plan.free_kib < domain.memory_kib:
        yield Finding(
            code=Code.MEMORY_TIGHT,
            sentence=f"{survey.target.node} has {plan.free_kib // 1024} MiB of memory free beside what QEMU takes:"
            f" enough for the {plan.current_kib // 1024} MiB that {domain.name} has, not for the"
            f" {domain.memory_kib // 1024} MiB that it may have.",
            hint=f"Do not give it more while it is on {survey.target.node}.",
        )


def _memory_shrinks(survey: Survey) -> Iterator[Finding]:
    plan = balloon.planned(survey)
    if plan.shrunk_kib is not None:
        yield Finding(
            code=Code.MEMORY_SHRINKS,
            sentence=f"{survey.domain.name} gives memory back before the move, from {plan.current_kib // 1024} to"
            f" {plan.shrunk_kib // 1024} MiB, which is what {survey.target.node} has free beside what QEMU takes.",
            hint=f"It gets it back afterwards, as far as {survey.target.node} has room by then.",
        )


def _hugepages(survey: Survey) -> Iterator[Finding]:
    """Pages of each size, on each set of NUMA nodes that some of them are bound to, and on all together."""
    offer, target = survey.offer, survey.target.node
    for size in sorted({pages.size_kib for pages in survey.needs.pages}):
        wanted = [pages for pages in survey.needs.pages if pages.size_kib == size]
        # Of the default size, which is one of those there, no more can be free than of the one with the most.
        sizes = offer.free_pages.values() if not size else [offer.free_pages.get(size, {})]
        for nodes in sorted({pages.nodes for pages in wanted} | {frozenset()}, key=sorted):
            if nodes and offer.numa_nodes and not nodes & offer.numa_nodes:
                continue  # `_topology` names them
            here = [pages.kib for pages in wanted if not nodes or (pages.nodes and pages.nodes <= nodes)]
            free = max((sum(k for node, k in by.items() if not nodes or node in nodes) for by in sizes), default=0)
            if free < sum(here):
                where = f" on NUMA node {', '.join(map(str, sorted(nodes)))}" if nodes else ""
                yield Finding(
                    code=Code.HUGEPAGES_SHORT,
                    sentence=f"{target} has {free // 1024} MiB free in huge pages of"
                    f" {f'{size} KiB' if size else 'the default size'}{where}, {survey.domain.name} needs"
                    f" {sum(here) // 1024} MiB.",
                    hint=f"`virsh allocpages` (or vm.nr_hugepages) on {target} makes more.",
                )
                if not nodes:
                    break  # wherever they are


def _topology(survey: Survey) -> Iterator[Finding]:
    for what, wanted, there in (
        ("NUMA node", survey.needs.numa_nodes, survey.offer.numa_nodes),
        ("CPU", survey.needs.cpus, survey.offer.cpus),
    ):
        lacking = sorted(wanted - there)
        if lacking and there:
            yield Finding(
                code=Code.TOPOLOGY_MISSING,
                sentence=f"{survey.domain.name} is bound to {what} {', '.join(map(str, lacking))}, which"
                f" {survey.target.node} does not have.",
                hint="Take it out of <numatune>, <cputune> or <vcpu cpuset> (`virsh numatune`, `vcpupin`, `emulatorpin`"
                " with --live --config).",
            )


def _networks(survey: Survey) -> Iterator[Finding]:
    name, target = survey.domain.name, survey.target.node
    for network in sorted(survey.needs.networks - survey.offer.networks):
        yield Finding(
            code=Code.NETWORK_MISSING,
            sentence=f"The network {network} of {name} is not there, or not active, on {target}.",
            hint=f"`virsh net-start {network}` on {target}, or `virsh net-define` it as on {survey.source.node} first.",
        )
    for interface in sorted(survey.needs.interfaces - survey.there.interfaces):
        yield Finding(
            code=Code.NETWORK_MISSING,
            sentence=f"{target} has no interface {interface}, on which {name} sits.",
            hint=f"Make a bridge (or interface) of that name on {target}, as on {survey.source.node}.",
        )


def _cached(survey: Survey) -> Iterator[Finding]:
    yield from cached(survey.domain)


def cached(domain: Domain) -> Iterator[Finding]:
    """Disks of the guest that its host caches."""
    for disk in domain.disks:
        cached = disk.cache is not None and disk.cache not in _UNCACHED
        if cached and not (disk.read_only or disk.network or disk.source is None):
            yield Finding(
                code=Code.DISK_CACHED,
                sentence=f"{domain.node} caches disk {disk.target} of {domain.name}"
                f" (cache='{disk.cache or 'default'}'): what lies in two hosts' caches can differ.",
                hint="Set cache='none' (or directsync) in the disk's <driver>, and start the guest anew.",
            )


def _media_missing(survey: Survey, *, optional: bool) -> Iterator[Finding]:
    for disk in survey.domain.disks:
        removable = disk.device in ("cdrom", "floppy") and not disk.network
        if removable and disk.source and disk.optional is optional and disk.source not in survey.there.paths:
            yield Finding(
                code=Code.MEDIA_MISSING,
                sentence=f"{survey.target.node} has no {disk.source}, which lies in the {disk.device} drive"
                f" {disk.target} of {survey.domain.name}" + (" (it arrives with an empty drive)." if optional else "."),
                hint=f"`virsh change-media {survey.domain.name} {disk.target} --eject`, or copy the file there.",
            )


def _media(survey: Survey) -> Iterator[Finding]:
    yield from _media_missing(survey, optional=False)


def _media_dropped(survey: Survey) -> Iterator[Finding]:
    yield from _media_missing(survey, optional=True)


def _devices(survey: Survey) -> Iterator[Finding]:
    name, needs = survey.domain.name, survey.needs
    for code, devices, what in (
        (Code.PASSTHROUGH, needs.passthrough, "a device of the node's to itself"),
        (Code.MEDIATED_DEVICE, needs.mediated, "a mediated device of the node's"),
    ):
        for words in devices:
            yield Finding(
                code=code,
                sentence=f"{name} has {what} ({words}), which stays behind.",
                hint="Detach it for the time of the move (`virsh detach-device`), or team it with a virtual one.",
            )
    if needs.tpm == "passthrough":
        yield Finding(
            code=Code.TPM,
            sentence=f"{name} uses the TPM of {survey.source.node} itself, whose secrets stay behind.",
            hint="Only an emulated TPM (<backend type='emulator'>) can go with a guest.",
        )
    yield from _tpm_forgotten(survey)
    for program in sorted(needs.programs - survey.there.programs):
        yield Finding(
            code=Code.TPM,
            sentence=f"{name} has an emulated TPM, and {survey.target.node} has no {program}.",
            hint=f"Install {program} (swtpm-tools) on {survey.target.node}.",
        )


def _tpm_forgotten(survey: Survey) -> Iterator[Finding]:
    """What it leaves behind could not be removed without the state of its TPM, which the target may share."""
    domain, source = survey.domain, survey.source
    leaves = domain.persistent and not survey.options.keep_definition
    if leaves and domain.loses_tpm and (0, 0, 0) < source.host.libvirt_version < KEEPS_TPM:
        yield Finding(
            code=Code.TPM,
            sentence=f"libvirt {dotted(source.host.libvirt_version)} on {source.node} cannot remove the definition of"
            f" {domain.name} without the state of its TPM.",
            hint=f"Update libvirt there (to {dotted(KEEPS_TPM)} or later), or let the definition stay with"
            " --keep-definition.",
        )


def _firmware(survey: Survey) -> Iterator[Finding]:
    needs, there, target = survey.needs, survey.there.paths, survey.target.node
    missing = sorted(needs.firmware - there)
    if needs.nvram and not {needs.nvram, needs.nvram_template} & there and needs.nvram_template:
        # The variables travel with the memory; the file that they are then written to is made from the template.
        missing.append(needs.nvram_template)
    for path in missing:
        yield Finding(
            code=Code.NVRAM,
            sentence=f"{target} has no {path}, from which the firmware of {survey.domain.name} is made.",
            hint=f"Install the source's firmware package (ovmf) on {target}.",
        )


def _kept_beside(survey: Survey) -> Iterator[Finding]:
    name, needs = survey.domain.name, survey.needs
    if needs.snapshots:
        yield Finding(
            code=Code.SNAPSHOTS,
            sentence=f"{name} has {needs.snapshots} snapshots: libvirt moves no guest with any.",
            hint=f"`virsh snapshot-list {name}`, then `virsh snapshot-delete`; --metadata keeps what is in the disks.",
        )
    if needs.checkpoints:
        yield Finding(
            code=Code.CHECKPOINTS,
            sentence=f"{name} has {needs.checkpoints} checkpoints, which libvirt would lose in a move: the next backup"
            " would have to be a full one.",
            hint=f"`virsh checkpoint-list {name}`, then `virsh checkpoint-delete` (--metadata).",
        )
    saved = [
        survey.source.node if survey.needs.saved else None,
        *(premises.node for premises in (survey.here, survey.there) if premises.saved),
    ]
    for node in sorted(set(filter(None, saved))):
        yield Finding(
            code=Code.SAVE_IMAGE,
            sentence=f"A saved image of {name} lies on {node}: libvirt would start the next guest of that name from"
            " it, over a disk that has changed since.",
            hint=f"`virsh managedsave-remove {name}` on {node}, or remove /var/lib/libvirt/qemu/save/{name}.save.",
        )
    for target in needs.block_jobs:
        yield Finding(
            code=Code.JOB_ACTIVE,
            sentence=f"Disk {target} of {name} has a block job (a copy, a commit, a backup).",
            hint=f"Wait for its end, or look with `virsh blockjob {name} {target}`.",
        )


def _reached(survey: Survey) -> Iterator[Finding]:
    source, target = survey.source, survey.target
    if survey.here.peer is Match.NO:
        yield Finding(
            code=Code.PEER_UNREACHABLE,
            sentence=f"libvirt on {source.node} cannot connect to {target.node}'s ({survey.here.peer_words}).",
            hint=f"Let `virsh -c '{survey.peer_uri}' list` succeed for root on {source.node}: keys, known hosts,"
            " firewall.",
        )
    if survey.here.memory is Match.NO:
        yield Finding(
            code=Code.PORTS_UNREACHABLE,
            sentence=f"Nothing comes back to {source.node} from {target.node}'s address for memory"
            f" ({survey.here.memory_words}).",
            hint=f"Open the ports {_range(survey)} on {target.node} for {source.node}, or correct migration_address.",
        )
    first, last = survey.there.ports
    usable = {*range(first, last + 1)} - {survey.there.spare_port}
    if usable and usable <= survey.there.listening:
        yield Finding(
            code=Code.PORTS_TAKEN,
            sentence=f"Every port for migrations ({_range(survey)}) is taken on {target.node}.",
            hint="Wait for the moves under way, or widen the range: migration_ports in the configuration, or where that"
            " names none, migration_port_min and _max in its qemu.conf.",
        )


def _range(survey: Survey) -> str:
    return "-".join(map(str, survey.there.ports))


def _autostart_order(survey: Survey) -> Iterator[Finding]:
    units = survey.there.after_drbd
    for unit in sorted(unit for unit, after in units.items() if not after):
        if survey.domain.autostart and survey.source.resources:
            yield autostart_order(survey.target.node, survey.domain.name, unit)


def autostart_order(node: str, instance: str, unit: str) -> Finding:
    """A service that starts a guest at boot, maybe before its disk is there."""
    return Finding(
        code=Code.AUTOSTART_ORDER,
        sentence=f"{node} is to start {instance} when it boots, and {unit} there does not wait for DRBD.",
        hint=f"`systemctl edit {unit}`: [Unit] After=drbd.service.",
    )


def _unchecked(survey: Survey) -> Iterator[Finding]:
    """What could not be found out is said."""
    offer, needs, source, target = survey.offer, survey.needs, survey.source, survey.target
    found = [
        *((source.node, words) for words in needs.unknown),
        *((target.node, words) for words in offer.unknown),
    ]
    if offer.emulator is Match.UNKNOWN:
        found.append((target.node, f"whether it has {needs.emulator} ({offer.emulator_words})"))
    elif offer.emulator is Match.YES and offer.machine is Match.UNKNOWN:
        found.append((target.node, f"whether it knows the machine {needs.machine} ({offer.machine_words})"))
    if offer.emulator is Match.YES and (offer.cpu is Match.UNKNOWN or (needs.cpu_mode and not needs.cpu)):
        words = f" ({offer.cpu_words})" if offer.cpu_words else ""
        found.append((target.node, f"whether it has the guest's CPU{words}"))
    if survey.here.peer is Match.UNKNOWN:
        found.append((source.node, "whether its libvirt reaches the target's (there is no virsh)"))
    if needs.tpm == "external":
        found.append((target.node, "whether the TPM that runs outside of libvirt is there too"))
    if needs.nvram and not needs.nvram_template and needs.nvram not in survey.there.paths:
        found.append((target.node, f"whether it can make {needs.nvram}, where the firmware's variables are kept"))
    if survey.domain.autostart and source.resources and not survey.there.after_drbd:
        found.append((target.node, "whether what starts guests at boot waits for DRBD (systemd does not say)"))
    for node, words in found:
        yield Finding(
            code=Code.NOT_CHECKED,
            sentence=f"It could not be told of {node} {words}.",
            hint="See to it yourself, if it matters for this guest.",
        )


REFUSALS: Final[tuple[Callable[[Survey], Iterator[Finding]], ...]] = (
    _emulated,
    _version,
    _memory,
    _topology,
    _networks,
    _cached,
    _media,
    _devices,
    _firmware,
    _kept_beside,
    _reached,
)

WARNINGS: Final[tuple[Callable[[Survey], Iterator[Finding]], ...]] = (
    _cpu_unchecked,
    _version_said,
    _memory_tight,
    _memory_shrinks,
    _media_dropped,
    _autostart_order,
    _unchecked,
)
