"""What every code and every exit code means: what was changed when it is told, what to do, where it is written about.

``lvmigrate explain`` and docs/codes.md are made from these texts.

Long, because every code has its text here and nowhere else.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from lvmigrate.errors import Code, ExitCode, UsageError


class Told(enum.Enum):
    """On which occasion a code is told, and what lvmigrate guarantees of it then."""

    UNLOOKED = "The command line, the call or the configuration is wrong: nothing was looked at, nothing changed."
    REFUSED = "As a reason not to start (exit code 3): nothing was changed on any node."
    WARNED = "As a warning: it stops nothing."
    FOUND = "By a command that only looks: nothing was changed."
    ENDED = (
        "As the reason why something under way has ended: with exit code 1 or 4 everything was put back, the guest is"
        " where and as it was; with 5 nothing was undone; with 8 the guest is on one node, and what is left is listed;"
        " with 9 it runs nowhere."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One code explained."""

    code: str
    #: What is the matter.
    meaning: str
    #: What was, or was not, changed when it is told.
    changed: str
    #: The next thing to do.
    remedy: str
    #: File and section of the documentation, as ``docs/page.md#section``.
    where: str
    told: tuple[Told, ...] = ()


def explained(word: str) -> Explanation:
    """The explanation of a code by its name, in any case, or of an exit code by its number. Raises `UsageError`."""
    name = word.strip().upper().replace("-", "_")
    for one in (*EXITS.values(), *EXPLANATIONS.values()):
        if one.code == name:
            return one
    raise UsageError(f"There is no code {word}.", hint="`lvmigrate explain` lists every code; exit codes go by number.")


_USE: Final = "README.md#use-it-on-your-own-two-hosts"
_REACH: Final = "docs/start.md#1-what-the-hosts-need"
_NAMED: Final = "docs/start.md#3-name-your-hosts"
_JOURNAL: Final = "docs/guide/journal.md#what-was-done-the-journal"
_MOVE: Final = "docs/guide/what-a-migration-does.md#what-a-migration-does"
_DIES: Final = "docs/guide/when-the-command-dies.md#cleanup"
_OFF: Final = "docs/guide/failover.md#when-its-node-does-not-answer"
_MEMORY: Final = "docs/guide/how-memory-travels.md#how-memory-travels"
_GOES: Final = "docs/guide/where-it-goes.md#where-it-goes"
_HOOKS: Final = "docs/guide/hooks.md#hooks"
_CHECKED: Final = "docs/guide/what-is-checked-before-a-move.md#what-is-checked-before-a-move"
_DOCTOR: Final = "docs/guide/doctor.md#what-is-to-be-mended-the-doctor"
_NOT_YET: Final = "docs/guide/what-it-does-not-do-yet.md#what-it-does-not-do-yet"
_DECIDED: Final = "docs/decisions.md#what-follows-from-what-is-seen"
_PERSON: Final = "docs/decisions.md#when-a-person-must-decide"
_SERVE: Final = "docs/service.md#start-it"
_MAY: Final = "docs/service.md#who-may"
_ASK: Final = "docs/service.md#ask-it"
_JOBS: Final = "docs/service.md#jobs"
_REMOTE: Final = "docs/service.md#the-command-at-a-distance"

_UNLOOKED: Final = (Told.UNLOOKED,)
_REFUSED: Final = (Told.REFUSED,)
_WARNED: Final = (Told.WARNED,)
_FOUND: Final = (Told.FOUND,)
_ENDED: Final = (Told.ENDED,)
_BEFORE_OR_AMID: Final = (Told.REFUSED, Told.ENDED)


def _row(code: Code, told: tuple[Told, ...], meaning: str, remedy: str, where: str, *, also: str = "") -> Explanation:
    """``also``: what is to be said of changes beside what the occasions say."""
    changed = " ".join(filter(None, [*(occasion.value for occasion in told), also]))
    return Explanation(code=code.value, meaning=meaning, changed=changed, remedy=remedy, where=where, told=told)


_ROWS: Final = (
    _row(
        Code.USAGE,
        _UNLOOKED,
        "The command line, or the call from Python, is wrong; or several guests have the name that it says.",
        "`lvmigrate COMMAND --help` lists what there is; a guest's UUID stands for that one alone.",
        _USE,
    ),
    _row(
        Code.CONFIG_MISSING,
        _UNLOOKED,
        "There is no configuration file where it was looked for.",
        "Write /etc/lvmigrate/cluster.toml, or name another file with --config or LVMIGRATE_CONFIG.",
        _NAMED,
    ),
    _row(
        Code.CONFIG_INVALID,
        _UNLOOKED,
        "The configuration file cannot be read, or says something that makes no sense.",
        "Correct the line that the sentence names.",
        _NAMED,
    ),
    _row(
        Code.INSTANCE_UNKNOWN,
        (Told.REFUSED, Told.FOUND, Told.ENDED),
        "No node that answered knows a guest of that name or UUID.",
        "`lvmigrate status` lists the guests of all nodes.",
        _USE,
    ),
    _row(
        Code.INSTANCE_STOPPED,
        _REFUSED,
        "The guest is defined and does not run: there is no memory to move.",
        "Start it (`virsh start`), on whichever node it is to live.",
        _CHECKED,
    ),
    _row(
        Code.INSTANCE_STATE,
        (Told.REFUSED, Told.FOUND, Told.ENDED),
        "The guest is in a state in which it cannot be moved (it crashed, or stands after an I/O error), it changed its"
        " state meanwhile, or it waits paused where an unfinished move has brought it.",
        "`virsh domstate --reason GUEST` on its node; after an unfinished move `lvmigrate cleanup GUEST`.",
        _DIES,
    ),
    _row(
        Code.INSTANCE_TWICE,
        (Told.REFUSED, Told.FOUND),
        "More than one node has a live copy of the guest, and no copy of memory is under way between them.",
        "`lvmigrate cleanup --dry-run GUEST` says what follows; two copies that both ran are a person's matter.",
        _PERSON,
    ),
    _row(
        Code.INSTANCE_ON_TARGET,
        _BEFORE_OR_AMID,
        "The target has another guest of that name, or one of that UUID with another name.",
        "`virsh list --all --uuid --name` on both nodes shows which; rename or undefine the other one.",
        _CHECKED,
    ),
    _row(
        Code.NODE_UNKNOWN,
        (Told.UNLOOKED, Told.REFUSED),
        "The configuration names no such node.",
        "Use a name of a [nodes.NAME] section; it is the host's `uname -n`.",
        _NAMED,
    ),
    _row(
        Code.NODE_UNREACHABLE,
        (Told.REFUSED, Told.FOUND, Told.ENDED),
        "A node, its libvirt or its ssh gave no answer in time. That proves nothing of what happens there.",
        "Look at the node, `systemctl status libvirtd` and `ssh` there; then `lvmigrate status`. If it is dead:"
        " `lvmigrate failover`.",
        _OFF,
    ),
    _row(
        Code.TARGET_AMBIGUOUS,
        _REFUSED,
        "It is not clear between which two nodes a guest is to be mended or started: several could be meant, or none.",
        "Name the node (--to), or bring back the one that does not answer.",
        _GOES,
    ),
    _row(
        Code.TARGET_IS_SOURCE,
        _REFUSED,
        "The guest runs on the target already.",
        "Nothing, or choose another target.",
        _GOES,
    ),
    _row(
        Code.JOB_ACTIVE,
        _BEFORE_OR_AMID,
        "libvirt has a job for the guest: a migration, a save, a backup, a block job.",
        "Wait for it, or look with `virsh domjobinfo` (`virsh blockjob`); `lvmigrate cleanup GUEST` adopts a migration"
        " whose command died.",
        _DIES,
    ),
    _row(
        Code.NO_DISKS,
        _REFUSED,
        "The guest has no disk, so there is nothing that lvmigrate adds to libvirt.",
        "`virsh migrate` moves it.",
        _CHECKED,
    ),
    _row(
        Code.DISK_NOT_REPLICATED,
        _BEFORE_OR_AMID,
        "A disk of the guest is on no DRBD resource, nor on storage that several nodes are known to reach.",
        "Put it on DRBD or on shared storage, declare the directory in the configuration, or detach it.",
        _CHECKED,
    ),
    _row(
        Code.SHARED_DIFFERS,
        _REFUSED,
        "The same path leads to other storage on the target.",
        "Let the path lead to the same thing on both nodes, by the same name of the server.",
        _NOT_YET,
    ),
    _row(
        Code.SHARED_EXCLUSIVE,
        _REFUSED,
        "Only one node at a time can open the storage of a disk: an image mapped `exclusive`, or a reservation.",
        "Open it for sharing on both nodes.",
        _NOT_YET,
    ),
    _row(
        Code.REPLICA_MISSING,
        _BEFORE_OR_AMID,
        "The target has no copy of a disk, or does not reach it under that path.",
        "Bring it up there (`drbdadm up`, a mount), or choose another target.",
        _CHECKED,
    ),
    _row(
        Code.REPLICA_DIFFERS,
        _REFUSED,
        "The same device path leads to different volumes on the two nodes, or to one whose copy is on a third node.",
        "Use /dev/drbd/by-res/... in the guest's definition, or the same minors on both nodes; or name with --to the"
        " node that has the copy.",
        _CHECKED,
    ),
    _row(
        Code.RESOURCE_SHARED,
        _REFUSED,
        "Another guest uses a volume of the same DRBD resource; roles are per resource, so it would be moved too.",
        "Give each guest resources of its own.",
        _CHECKED,
    ),
    _row(
        Code.NOT_CONNECTED,
        _BEFORE_OR_AMID,
        "A resource has no working connection between the two nodes.",
        "`drbdsetup status` on both; `drbdadm connect`, or mend the network between them.",
        _CHECKED,
    ),
    _row(
        Code.SPLIT_BRAIN,
        _BEFORE_OR_AMID,
        "Both copies of a volume were written to while they were apart.",
        "A person chooses whose changes are given up; the hint has the commands. lvmigrate never does.",
        _PERSON,
        also="lvmigrate discards no data.",
    ),
    _row(
        Code.NOT_UPTODATE,
        _REFUSED,
        "A copy of a disk is not UpToDate, and no resynchronisation is under way that would make it so.",
        "`drbdsetup status`; bring the missing disk or peer back.",
        _CHECKED,
    ),
    _row(
        Code.COPY_OLD,
        (Told.WARNED, Told.ENDED),
        "The guest is started from a copy of its disk that lacks what was written later, because that was given up.",
        "Before the other node is switched on, keep it from starting the guest; then `lvmigrate cleanup`.",
        _OFF,
        also="A copy that was made Primary by force counts as UpToDate from then on, whatever follows.",
    ),
    _row(
        Code.COPY_CUT_OFF,
        _WARNED,
        "The guest is started from a copy of its disk that lost the dead node at the moment that is told. DRBD calls it"
        " UpToDate however long ago that was.",
        "If the dead node was at work after that moment, what it wrote then is only there: bring it back first, if that"
        " matters.",
        _OFF,
    ),
    _row(
        Code.NO_QUORUM,
        _REFUSED,
        "A volume has no quorum, so DRBD lets nobody write to it.",
        "Bring the other nodes of the resource back.",
        _CHECKED,
    ),
    _row(
        Code.SYNC_TIMEOUT,
        _ENDED,
        "The disks were not in step within --sync-timeout.",
        "See why the resynchronisation is slow (`drbdsetup status --statistics`), or give it longer.",
        _MOVE,
        also="Two primaries were never allowed: that comes after it.",
    ),
    _row(
        Code.SYNC_STALLED,
        _ENDED,
        "A resynchronisation has not come any further for --sync-stall seconds.",
        "The hint says what stands still: paused, suspended by another resource, or throttled to nothing.",
        _MOVE,
        also="Two primaries were never allowed: that comes after it.",
    ),
    _row(
        Code.DUAL_PRIMARY,
        (Told.REFUSED, Told.FOUND),
        "A resource is Primary where its guest does not run, or on two nodes at once.",
        "`lvmigrate cleanup GUEST` makes the unused end Secondary once nothing there has it open.",
        _DIES,
    ),
    _row(
        Code.SOURCE_NOT_PRIMARY,
        _REFUSED,
        "The source is not Primary although the guest runs there.",
        "`drbdsetup status` on both nodes: something else than this guest decides about the roles.",
        _CHECKED,
    ),
    _row(
        Code.TWO_PRIMARIES_ON,
        (Told.REFUSED, Told.FOUND),
        "Two primaries are allowed on a connection, and the configuration does not say so: an earlier move left it.",
        "`lvmigrate cleanup GUEST`. By hand, only while Connected and one end Secondary: `drbdsetup net-options"
        " RESOURCE PEER_NODE_ID --allow-two-primaries=no`.",
        _DIES,
    ),
    _row(
        Code.TWO_PRIMARIES_FOR_GOOD,
        (Told.WARNED, Told.FOUND),
        "The configuration of DRBD allows two primaries at any time: nothing keeps both nodes from writing.",
        "Take allow-two-primaries out of it, then `drbdadm adjust` on both nodes; lvmigrate allows it when it is due.",
        _MOVE,
        also="It is left as it is, during and after a move.",
    ),
    _row(
        Code.PROTOCOL_NOT_C,
        _WARNED,
        "The connection replicates by another protocol than C, which two primaries need.",
        "Nothing; expect writes to take a little longer during the move.",
        _MOVE,
        also="It is C during the move, and what it was afterwards.",
    ),
    _row(
        Code.THIRD_REPLICA,
        _WARNED,
        "A third node has a copy of the data too; DRBD is not reliable with two primaries and a third copy.",
        "Disconnect the third one for the time of the move, as the hint says.",
        _NOT_YET,
    ),
    _row(
        Code.SIZE_DIFFERS,
        _REFUSED,
        "A volume has another size on the other node.",
        "`drbdadm resize` once both backing devices are large enough.",
        _CHECKED,
    ),
    _row(
        Code.DRBD_TOO_OLD,
        (Told.REFUSED, Told.FOUND),
        "A node's DRBD is older than 8.4 and cannot change options of a connection in use.",
        "Run DRBD 8.4 or 9 there.",
        _CHECKED,
    ),
    _row(
        Code.DRBD_DIFFERS,
        (Told.WARNED, Told.FOUND),
        "The nodes do not run the same DRBD.",
        "They replicate by the older one's rules; bring both to one version when you can.",
        _CHECKED,
    ),
    _row(
        Code.OTHER_HANDS,
        (Told.WARNED, Told.FOUND),
        "LINSTOR, drbd-reactor or Pacemaker has the resource in its configuration, and may change it meanwhile.",
        "Have it leave the resource alone for the time of the move.",
        _CHECKED,
    ),
    _row(
        Code.DEVICE_HELD,
        _BEFORE_OR_AMID,
        "Something has a device open that must be closed: a process, a mount, another device on top of it.",
        "End what the sentence names: on the target anything, on the source anything but the guest itself. A device"
        " that is open is never demoted, and nothing is forced.",
        _MOVE,
    ),
    _row(
        Code.MEMORY_SHORT,
        _BEFORE_OR_AMID,
        "The target has too little free memory.",
        "Free some, choose another target, or let the guest give some back: --allow-runtime-changes.",
        _CHECKED,
    ),
    _row(
        Code.MEMORY_TIGHT,
        _WARNED,
        "The guest fits as it is, and would not if it took all the memory that it may use.",
        "Do not give it more while it is there.",
        _CHECKED,
    ),
    _row(
        Code.MEMORY_SHRINKS,
        _WARNED,
        "The guest gives memory back for the move, as --allow-runtime-changes allows.",
        "Nothing.",
        _CHECKED,
        also="The move makes it smaller before the copy, and gives it back afterwards what there is room for.",
    ),
    _row(
        Code.BALLOON_FAILED,
        _ENDED,
        "The guest was asked to give memory back, and did not.",
        "Load virtio_balloon in the guest; look with `virsh dommemstat`.",
        _CHECKED,
        also="Two primaries were never allowed: that comes after it.",
    ),
    _row(
        Code.HUGEPAGES_SHORT,
        _REFUSED,
        "The target has too few free huge pages of the guest's size.",
        "`virsh allocpages` (or vm.nr_hugepages) there.",
        _CHECKED,
    ),
    _row(
        Code.TOPOLOGY_MISSING,
        _REFUSED,
        "The guest is bound to NUMA nodes or CPUs that the target does not have.",
        "Take that out of <numatune>, <cputune> or <vcpu cpuset>.",
        _CHECKED,
    ),
    _row(
        Code.CPU_LACKS,
        (Told.REFUSED, Told.WARNED, Told.ENDED),
        "The target's CPU, or what its QEMU makes of it, lacks something that the guest was started with.",
        "Give the guest a CPU model that both nodes have (`virsh hypervisor-cpu-baseline`), and start it anew.",
        _CHECKED,
    ),
    _row(
        Code.MACHINE_UNKNOWN,
        _BEFORE_OR_AMID,
        "The target's emulator does not know the guest's machine type.",
        "Install the source's QEMU there, or choose another target; a running guest keeps its machine.",
        _CHECKED,
    ),
    _row(
        Code.EMULATOR_MISSING,
        _BEFORE_OR_AMID,
        "The target has no such emulator, or it cannot run guests of this type (KVM).",
        "Install it; `virsh domcapabilities` says whether the node has KVM.",
        _CHECKED,
    ),
    _row(
        Code.VERSION_OLDER,
        (Told.REFUSED, Told.WARNED, Told.FOUND),
        "A node's libvirt or QEMU is older than the one that a guest comes from. QEMU promises the way up only.",
        "Update it; --ignore-hvversions moves the guest all the same.",
        _CHECKED,
    ),
    _row(
        Code.NETWORK_MISSING,
        _BEFORE_OR_AMID,
        "A bridge, a network or an interface that the guest is connected to is not there on the target, or is off.",
        "Make it there under the same name, or `virsh net-start`.",
        _CHECKED,
    ),
    _row(
        Code.DISK_CACHED,
        (Told.REFUSED, Told.FOUND, Told.ENDED),
        "The host caches what the guest writes to a disk, so the two hosts could see different data.",
        "cache='none' (or directsync) in the disk's <driver>, and start the guest anew.",
        _CHECKED,
    ),
    _row(
        Code.MEDIA_MISSING,
        (Told.REFUSED, Told.WARNED),
        "What lies in the guest's CD or floppy drive is not there on the target.",
        "`virsh change-media GUEST DRIVE --eject`, or copy the file there.",
        _CHECKED,
    ),
    _row(
        Code.PASSTHROUGH,
        _BEFORE_OR_AMID,
        "The guest has a device of the node's to itself, which stays behind.",
        "Detach it for the time of the move (`virsh detach-device`).",
        _CHECKED,
    ),
    _row(
        Code.MEDIATED_DEVICE,
        _REFUSED,
        "The guest has a mediated device of the node's (a part of its GPU, say), which stays behind.",
        "Detach it for the time of the move (`virsh detach-device`).",
        _CHECKED,
    ),
    _row(
        Code.TPM,
        (Told.REFUSED, Told.WARNED),
        "The guest's TPM cannot go with it: it is the node's own, or the target lacks swtpm; or its state is in files"
        " that a failover leaves behind, or that a libvirt before 8.9 would delete with the definition left behind. A"
        " failover from a dead node is a warning: the guest starts with a new TPM.",
        "Use an emulated TPM, and install swtpm-tools on the target; move the guest while it runs, with"
        " --keep-definition where libvirt is older than 8.9.",
        _CHECKED,
    ),
    _row(
        Code.NVRAM,
        (Told.REFUSED, Told.WARNED),
        "The guest's firmware, or the file that its variables are made from, is not there on the target; or its"
        " variables are in a file that a failover leaves behind. A failover from a dead node is a warning: the guest"
        " starts with new ones.",
        "Install the source's firmware package (ovmf) on the target; move the guest while it runs.",
        _CHECKED,
    ),
    _row(
        Code.SNAPSHOTS,
        _BEFORE_OR_AMID,
        "The guest has snapshots, with which libvirt moves none.",
        "`virsh snapshot-delete` (--metadata keeps what is in the disks).",
        _CHECKED,
    ),
    _row(
        Code.CHECKPOINTS,
        _REFUSED,
        "The guest has checkpoints, which libvirt would lose without a word.",
        "`virsh checkpoint-delete`; the next backup is a full one then.",
        _CHECKED,
    ),
    _row(
        Code.SAVE_IMAGE,
        _REFUSED,
        "A saved image of the guest lies on a node: libvirt would start it over a disk that has changed since.",
        "`virsh managedsave-remove GUEST` there.",
        _CHECKED,
    ),
    _row(
        Code.PEER_UNREACHABLE,
        (Told.REFUSED, Told.FOUND, Told.ENDED),
        "A node's libvirt cannot connect to another node's, which a peer-to-peer move needs.",
        "Let `virsh -c PEER_URI list` succeed for root on that node, without a question: key, known hosts, firewall.",
        _REACH,
    ),
    _row(
        Code.PORTS_UNREACHABLE,
        (Told.REFUSED, Told.FOUND),
        "Memory would not reach the target: nothing comes back from its address.",
        "Open the ports for migrations there, or correct migration_address.",
        _CHECKED,
    ),
    _row(
        Code.PORTS_TAKEN,
        _BEFORE_OR_AMID,
        "Every port for migrations is taken on the target, or the one that was chosen.",
        "Wait for the moves under way, or widen the range (migration_ports, or qemu.conf).",
        _CHECKED,
    ),
    _row(
        Code.AUTOSTART_ORDER,
        (Told.WARNED, Told.FOUND),
        "A node starts a guest at boot, and what starts it is not ordered behind DRBD: it may fail, or find no disk.",
        "`systemctl edit libvirtd.service` (or virtqemud): [Unit] After=drbd.service.",
        _CHECKED,
    ),
    _row(
        Code.NOT_CHECKED,
        (Told.WARNED, Told.FOUND),
        "Something could not be checked; the sentence says what.",
        "See to it yourself, if it matters for this guest.",
        _CHECKED,
    ),
    _row(
        Code.QEMU_TCG_LOSES_MEMORY,
        (Told.WARNED, Told.FOUND),
        "QEMU before 9 is known to lose guest memory when it migrates a guest without KVM.",
        "Use QEMU 9 or later for guests without KVM.",
        _CHECKED,
    ),
    _row(
        Code.LOCKED,
        _BEFORE_OR_AMID,
        "Another move has the guest's token, or another command its lock on a node.",
        "Wait for that one; the token of a command that died runs out by itself.",
        _MOVE,
        also="Nothing was done to the guest against the other one.",
    ),
    _row(
        Code.TOKEN_LOST,
        _ENDED,
        "The move's token is not ours any more, or could not be renewed: somebody else may act on the guest.",
        "Look at what runs, and where (`lvmigrate status`), before anything else.",
        _DIES,
        also="Once the token was seen to be another's, nothing more was done or undone there.",
    ),
    _row(
        Code.GUARD_UNAVAILABLE,
        (Told.REFUSED, Told.FOUND, Told.ENDED),
        "No dead-man's guard can be armed on a node: it has no systemd, or lacks a program.",
        "Run systemd there and install what is missing, or accept with --no-guard that nobody closes after a dead"
        " command.",
        _DIES,
    ),
    _row(
        Code.UNGUARDED,
        _WARNED,
        "The move has no guard: its disks are shared and there is nothing to close, or --no-guard was given. The guest"
        " arrives paused, and only a command lets it run.",
        "If the command dies in mid-move: `lvmigrate cleanup GUEST`, soon. With --fast the guest runs as it arrives.",
        _DIES,
    ),
    _row(
        Code.PROMOTED_EXPLICITLY,
        _WARNED,
        "The target's QEMU opens its disks for reading first (libvirt before 10, or a disk that is not raw), which DRBD"
        " refuses beside a Primary: so the target is promoted by a command, though it would promote by itself.",
        "Nothing now. After the guest is shut down for good: `drbdadm secondary RESOURCE` there; a move away does it.",
        _MOVE,
    ),
    _row(
        Code.POST_COPY_UNMENDED,
        _WARNED,
        "The target's libvirt is 11.2 or 11.3, whose daemon dies when it is to connect a broken post-copy again, so it"
        " is not asked to; both ends would be held, half of the guest's memory at each.",
        "Update libvirt on the target to 11.4 or later (guests run on), also while both ends are held.",
        _MEMORY,
    ),
    _row(
        Code.GUARD_LOST,
        (Told.FOUND, Told.ENDED),
        "The guard on a node does not run, or does not acknowledge a renewal.",
        "`systemctl status 'lvmigrate-guard-*'` and the journal there; `lvmigrate cleanup GUEST`.",
        _DIES,
    ),
    _row(
        Code.PRIMARY_UNUSED,
        _FOUND,
        "A node is Primary, and nothing there has the device open: nobody else can write, and a crash costs a resync.",
        "`lvmigrate cleanup GUEST`, or `drbdadm secondary RESOURCE` there.",
        _DIES,
    ),
    _row(
        Code.AUTOSTART_ELSEWHERE,
        _FOUND,
        "A node would start a guest at boot that runs elsewhere.",
        "`virsh autostart --disable GUEST` there, or `lvmigrate cleanup GUEST`.",
        _DIES,
    ),
    _row(
        Code.KEEPALIVE_SHORT,
        (Told.REFUSED, Told.FOUND),
        "libvirt's keepalive on the source (interval x count) is below the 20 s that fast switch and post-copy need.",
        "Raise keepalive_interval and keepalive_count in its qemu.conf, or use the strict switch, which needs neither.",
        _OFF,
    ),
    _row(
        Code.PROGRAM_MISSING,
        _FOUND,
        "A node lacks a program that lvmigrate runs there.",
        "Install the package that the hint names.",
        _DOCTOR,
    ),
    _row(
        Code.SESSIONS_FEW,
        _FOUND,
        "sshd on a node lets one connection have fewer sessions than its own default; lvmigrate uses several at once.",
        "MaxSessions 10 or more in its sshd_config.",
        _DOCTOR,
    ),
    _row(
        Code.CLOCKS_APART,
        _FOUND,
        "The clocks of two nodes are far apart: logs cannot be compared, and certificates may count as not valid.",
        "Run chrony or systemd-timesyncd. Nothing of a move goes by these clocks.",
        _DOCTOR,
    ),
    _row(
        Code.COMMAND_FAILED,
        (Told.REFUSED, Told.FOUND, Told.ENDED),
        "A command failed on a node, or on this machine; what it said is shown.",
        "The hint names the next thing to look at.",
        _MOVE,
    ),
    _row(
        Code.HYPERVISOR_FAILED,
        (Told.REFUSED, Told.FOUND, Told.ENDED),
        "libvirt refused or failed in a way that has no code of its own; its words are shown.",
        "`journalctl -u libvirtd` and /var/log/libvirt/qemu/GUEST.log on that node.",
        _MOVE,
    ),
    _row(
        Code.HYPERVISOR_BUSY,
        _BEFORE_OR_AMID,
        "libvirt on a node is busy with the guest, and did not get to what was asked in time.",
        "`virsh domjobinfo GUEST` there, then the same again.",
        _MOVE,
    ),
    _row(
        Code.AUTH_FAILED,
        (Told.REFUSED, Told.FOUND, Told.ENDED),
        "A node's libvirt, or its ssh, does not let in who connects.",
        "ssh without a password (`ssh-copy-id`), and the right to use libvirt's socket there.",
        _REACH,
    ),
    _row(
        Code.HOST_KEY_UNKNOWN,
        (Told.REFUSED, Told.FOUND, Told.ENDED),
        "The ssh key of a node is not among the known hosts of root on the machine that connects, or has changed.",
        "Accept it once by hand, as root there: `ssh` to that host; after a change, find out why first.",
        _REACH,
    ),
    _row(
        Code.TLS_FAILED,
        _BEFORE_OR_AMID,
        "An encrypted connection could not be made.",
        "`lvmigrate check --tls GUEST` names what is wrong with the certificates, and where they are.",
        _MEMORY,
    ),
    _row(
        Code.NO_SPACE,
        _BEFORE_OR_AMID,
        "A node has no room on a file system.",
        "Make room there (`df -h /var /run`).",
        _MOVE,
    ),
    _row(
        Code.STORAGE_FAILED,
        (Told.REFUSED, Told.FOUND, Told.ENDED),
        "DRBD, or looking at it, refused or failed; the kernel's words are shown.",
        "`journalctl -k -g drbd` and `drbdsetup status` on that node.",
        _MOVE,
    ),
    _row(
        Code.REPLICATION_BROKE,
        _ENDED,
        "Replication did not stay whole, or could not be watched, while the guest was being moved.",
        "Mend the connection between the nodes, then try again.",
        _MOVE,
    ),
    _row(
        Code.COPY_FAILED,
        _ENDED,
        "libvirt did not move the guest; its words are shown.",
        "The hint, and /var/log/libvirt/qemu/GUEST.log on both nodes.",
        _MOVE,
    ),
    _row(
        Code.DISKS_DIFFER,
        _WARNED,
        "DRBD's online verify after the move (--verify-disks) counts blocks that differ between the two copies.",
        "The guest runs on the target's copy. Verify once more: what differs in the same places again is to be brought"
        " in step, as the hint says, and the disk of the other node to be looked at.",
        _MOVE,
    ),
    _row(
        Code.VERIFY_UNFINISHED,
        _WARNED,
        "The guest has moved; the online verify afterwards (--verify-disks) was not begun, or did not come to its end.",
        "`drbdadm verify RESOURCE` on the node that the guest runs on, once both copies are in step.",
        _MOVE,
    ),
    _row(
        Code.NO_FORECAST,
        _WARNED,
        "How long the copy will take could not be told.",
        "Set link_mib_s of the target, or move without a forecast.",
        _MEMORY,
    ),
    _row(
        Code.NOT_CONVERGING,
        _ENDED,
        "The guest dirties memory faster than it is sent, and its policy gave the copy up.",
        "Another --policy (force, post-copy), --auto-converge, more --bandwidth, or a quieter hour.",
        _MEMORY,
    ),
    _row(
        Code.OPTIONS_CONFLICT,
        _REFUSED,
        "The options asked for exclude each other.",
        "Leave one of those out that the sentence names.",
        _MEMORY,
    ),
    _row(
        Code.OPTION_UNSUPPORTED,
        _BEFORE_OR_AMID,
        "A node's libvirt or QEMU, or DRBD's configuration there, does not have what was asked for.",
        "Leave it out, or do as the sentence after it says.",
        _MEMORY,
    ),
    _row(
        Code.TLS_MISSING,
        _REFUSED,
        "A node has no certificate for encrypted migrations, or it cannot be read.",
        "Put it where the sentence says (qemu.conf: migrate_tls_x509_cert_dir), and install openssl to have it read.",
        _MEMORY,
    ),
    _row(
        Code.TLS_NAME,
        _REFUSED,
        "The target's certificate does not name the address that memory is sent to.",
        "A certificate with that name, or tls_name in the configuration.",
        _MEMORY,
    ),
    _row(
        Code.TLS_EXPIRED,
        _REFUSED,
        "A certificate has expired, or is not valid yet.",
        "Renew it; look at the node's clock too.",
        _MEMORY,
    ),
    _row(
        Code.TLS_ISSUER,
        _REFUSED,
        "A certificate was not signed by the authority that the other node trusts.",
        "One authority (ca-cert.pem) for all nodes.",
        _MEMORY,
    ),
    _row(
        Code.COPY_TIMEOUT,
        _ENDED,
        "The copy of memory was not done within --copy-timeout.",
        "Raise --downtime-limit, --bandwidth or --copy-timeout, or choose another --policy.",
        _MEMORY,
    ),
    _row(
        Code.ABORTED,
        _ENDED,
        "Somebody asked to stop: Ctrl-C, a signal, `virsh domjobabort`, a cleanup.",
        "Nothing is left to do.",
        _MOVE,
    ),
    _row(
        Code.LEFT_BEHIND,
        (Told.REFUSED, Told.FOUND, Told.ENDED),
        "The guest is on one node, and something of a move is still there: a guard, a token, a definition, options.",
        "`lvmigrate cleanup GUEST` (--dry-run says what it would do).",
        _DIES,
    ),
    _row(
        Code.GUEST_LOST,
        _ENDED,
        "Both nodes answered, and the guest runs on neither.",
        "Start it where the hint says: which disk is the newer one is in it.",
        _MOVE,
    ),
    _row(
        Code.OUTCOME_UNKNOWN,
        _ENDED,
        "What happened could not be proved on both nodes.",
        "`lvmigrate cleanup --dry-run GUEST` once both answer; let a copy run by hand only where the other has none.",
        _PERSON,
        also="Nothing was undone and nothing forced: both nodes are as they were when the proof was missing.",
    ),
    _row(
        Code.JOURNAL_UNUSABLE,
        (Told.REFUSED, Told.FOUND),
        "The journal cannot be written, or not be read.",
        'Mend the file that the sentence names, or another one: [journal] path; "" keeps none.',
        _JOURNAL,
    ),
    _row(
        Code.ERRAND_UNKNOWN,
        _FOUND,
        "The journal knows no such errand, or more than one whose id begins so.",
        "`lvmigrate history` lists them.",
        _JOURNAL,
    ),
    _row(
        Code.NODE_ALIVE,
        _BEFORE_OR_AMID,
        "A node still answers by libvirt, ssh or DRBD, and the guest was to be started elsewhere as if it were off.",
        "Fail over with it answering, or switch it off first.",
        _OFF,
    ),
    _row(
        Code.NOT_FENCED,
        _REFUSED,
        "Nothing says that a silent node is off: that it does not answer is no proof.",
        "Configure its fence_command, or switch it off and say so: --is-off NODE.",
        _OFF,
    ),
    _row(
        Code.FENCE_FAILED,
        _ENDED,
        "The fence command did not say that the node is off.",
        "Switch the node off by other means, then --is-off NODE.",
        _OFF,
        also="The guest was not started; the node may be on or off.",
    ),
    _row(
        Code.SHUTDOWN_TIMEOUT,
        _ENDED,
        "The guest did not shut down in time.",
        "Look at its console; give it longer (--shutdown-timeout), or --hard.",
        _OFF,
        also="It was asked to shut down, and may still do so.",
    ),
    _row(
        Code.START_FAILED,
        _ENDED,
        "The guest does not start.",
        "/var/log/libvirt/qemu/GUEST.log on that node.",
        _OFF,
    ),
    _row(
        Code.DEFINITION_MISSING,
        _BEFORE_OR_AMID,
        "No definition of the guest is at hand on the node that is to start it.",
        "`virsh define` it there from a copy, without starting it; --keep-definition leaves one with each move.",
        _OFF,
    ),
    _row(
        Code.DEFINITION_KEPT,
        _WARNED,
        "The guest is defined anew by what was kept of its definition, which may be older than its last change.",
        "Compare it with what you know of the guest; the warning says of when it is.",
        _OFF,
    ),
    _row(
        Code.DEFINITION_WRONG,
        _REFUSED,
        "What was kept, or named, is no definition of this guest.",
        "Name another file with --definition, or `virsh define` it on the target by hand.",
        _OFF,
    ),
    _row(
        Code.HOOK_FAILED,
        (Told.REFUSED, Told.WARNED),
        "A pre hook refused, or a post hook failed (a warning of the report), or the hooks cannot be listed.",
        "`lvmigrate report last` shows what it said.",
        _HOOKS,
        also="What a hook itself has done is its own.",
    ),
    _row(
        Code.HOOK_SKIPPED,
        _WARNED,
        "A file among the hooks is not executable, and was not run.",
        "`chmod +x` it, or take it away.",
        _HOOKS,
    ),
    _row(
        Code.NODE_DRAINED,
        _REFUSED,
        "The configuration says that no guest may come to the node.",
        "Choose another target, or take `drained` out.",
        _GOES,
    ),
    _row(
        Code.NODE_OFFLINE,
        _REFUSED,
        "The configuration says that the node is out of use.",
        "Choose another target, or take `offline` out.",
        _GOES,
    ),
    _row(
        Code.NO_TARGET,
        _REFUSED,
        "No node can take the guest; the sentence says why of each.",
        "Mend one of these reasons, or name a target with --to to see all that speaks against it.",
        _GOES,
    ),
    _row(
        Code.IPOLICY,
        (Told.REFUSED, Told.WARNED),
        "The guest does not keep the bounds that the target's policy sets.",
        "Another target, or --ignore-ipolicy.",
        _GOES,
    ),
    _row(
        Code.ALLOCATOR_FAILED,
        _REFUSED,
        "The program that was to choose the target failed, found none, or chose one that cannot be.",
        "Its words are shown; or name the target with --to.",
        _GOES,
    ),
    _row(
        Code.FAILOVER_INSTEAD,
        _WARNED,
        "The guest is shut down and started elsewhere, not moved while it runs, as was allowed or asked for.",
        "Leave out --allow-failover to be refused instead.",
        _GOES,
    ),
    _row(
        Code.EXTRA_MISSING,
        _UNLOOKED,
        "The Python packages of the service, which `serve` and `--server` need, are not installed.",
        "Install lvmigrate with its extra: `pip install 'lvmigrate[service]'`.",
        _SERVE,
    ),
    _row(
        Code.NOT_REMOTE,
        _UNLOOKED,
        "The command, or a word of it, makes no sense at a distance.",
        "Run it on the machine itself, without --server.",
        _REMOTE,
    ),
    _row(
        Code.SERVICE_UNREACHABLE,
        (Told.UNLOOKED, Told.ENDED),
        "The service gives no answer; a job that it was asked for (exit code 5) goes on, or is led to its end later.",
        "See that it runs and that the way to it is open. `lvmigrate --server URL status` tells where a guest is.",
        _REMOTE,
    ),
    _row(
        Code.SERVICE_DIFFERS,
        _UNLOOKED,
        "What answers is no lvmigrate service, or one of a version whose answers this one does not understand.",
        "Check the URL; install the same version at both ends.",
        _REMOTE,
    ),
    _row(
        Code.UNAUTHENTICATED,
        _UNLOOKED,
        "The service does not know who asks: no token, a wrong one, one that has expired, an unknown certificate.",
        "Give a token (LVMIGRATE_TOKEN) or a client certificate that the configuration of the service names.",
        _MAY,
    ),
    _row(
        Code.FORBIDDEN,
        _UNLOOKED,
        "Whoever asks is known, and has a role that does not allow this.",
        "Ask somebody whose role is move, or force, as the sentence says.",
        _MAY,
    ),
    _row(
        Code.RATE_LIMITED,
        _UNLOOKED,
        "More requests came than one may send in a minute.",
        "Wait as long as Retry-After says; follow events instead of asking again and again.",
        _MAY,
    ),
    _row(
        Code.SERVICE_BUSY,
        _UNLOOKED,
        "As many ask nodes, or follow events, as may at once; or what was asked for did not end in time.",
        "Ask again later, and for less at once; see with `lvmigrate doctor` which node is silent.",
        _ASK,
    ),
    _row(
        Code.TOO_LARGE,
        _UNLOOKED,
        "The body of the request is longer than the service reads.",
        "Send less, or raise body_kib in [service].",
        _MAY,
    ),
    _row(
        Code.ROUTE_UNKNOWN,
        _UNLOOKED,
        "The service has nothing at that address, or not by that method.",
        "/v1/openapi.json describes all that there is.",
        _ASK,
    ),
    _row(
        Code.KEY_REUSED,
        _UNLOOKED,
        "The idempotency key stands for another job already: the request differs from the first one with it.",
        "Make a new key for each thing that is wanted; repeat one only with the very same request.",
        _JOBS,
    ),
    _row(
        Code.QUEUE_FULL,
        _UNLOOKED,
        "As many jobs wait as the service lets wait.",
        "Wait until some have ended, abort some, or raise queue in [service].",
        _JOBS,
    ),
    _row(
        Code.STOPPING,
        _UNLOOKED,
        "The service was asked to stop: it takes no more jobs.",
        "Ask again when it has been started again.",
        _JOBS,
    ),
    _row(
        Code.JOB_UNKNOWN,
        _UNLOOKED,
        "The service knows no job of that id, or none of that kind.",
        "List them: GET /v1/moves, /v1/drains, /v1/cleanups.",
        _JOBS,
    ),
    _row(
        Code.JOB_ENDED,
        _UNLOOKED,
        "The job has ended already: it cannot be aborted, nor be told to go on in post-copy.",
        "See what became of it: its outcome, its result.",
        _JOBS,
    ),
    _row(
        Code.INTERRUPTED,
        _ENDED,
        "The service ended while the job was under way; when it was back, a cleanup put everything back.",
        "Ask for it again, if it is still wanted: it was not repeated.",
        _JOBS,
    ),
    _row(
        Code.INTERNAL,
        (Told.UNLOOKED, Told.ENDED),
        "A defect of lvmigrate.",
        "Report it, with the output of the same command under --log-level debug; then `lvmigrate audit`.",
        _DIES,
        also="With exit code 70 itself nothing is promised: `lvmigrate audit` tells.",
    ),
)

EXPLANATIONS: Final[Mapping[Code, Explanation]] = MappingProxyType({Code(row.code): row for row in _ROWS})


def _exit(code: ExitCode, meaning: str, changed: str, remedy: str, where: str) -> Explanation:
    return Explanation(code=str(code.value), meaning=meaning, changed=changed, remedy=remedy, where=where)


_EXIT_ROWS: Final = (
    _exit(
        ExitCode.OK,
        "Done as asked.",
        "What was asked for: a move ends with one running copy, single-primary, and nothing left behind.",
        "Nothing.",
        _MOVE,
    ),
    _exit(
        ExitCode.FAILED,
        "It failed.",
        "Everything was put back, and both nodes were looked at to see that: the guest is where and as it was, its"
        " disks single-primary.",
        "What the error's hint says; then the same again.",
        _MOVE,
    ),
    _exit(
        ExitCode.USAGE,
        "The command line was wrong.",
        "Nothing.",
        "`lvmigrate COMMAND --help`.",
        _USE,
    ),
    _exit(
        ExitCode.REFUSED,
        "The checks found reasons not to start (a node that gives no answer is one), or `doctor` a danger, each with a"
        " code.",
        "Nothing.",
        "Mend every reason that is named.",
        _CHECKED,
    ),
    _exit(
        ExitCode.ABORTED,
        "It was aborted as asked.",
        "Everything was put back: the guest is where and as it was, its disks single-primary.",
        "Nothing.",
        _MOVE,
    ),
    _exit(
        ExitCode.UNKNOWN,
        "The outcome could not be proved.",
        "Nothing was undone and nothing forced; two primaries may still be allowed, and a guard closes what it can.",
        "`lvmigrate cleanup --dry-run GUEST` once both nodes answer.",
        _PERSON,
    ),
    _exit(
        ExitCode.CONFIGURATION,
        "The configuration file or the journal is missing or wrong.",
        "Nothing.",
        "What the sentence names.",
        _NAMED,
    ),
    _exit(
        ExitCode.UNREACHABLE,
        "A node gave no answer.",
        "Nothing by a command that only looks; what happens on that node is not known.",
        "Look at the node; `lvmigrate failover` if it is dead.",
        _OFF,
    ),
    _exit(
        ExitCode.LEFT_BEHIND,
        "Something of a move was left behind, or `audit` or `doctor` found something of one.",
        "What is listed is still there. After a move: the guest is on one node all the same.",
        "`lvmigrate cleanup GUEST`.",
        _DIES,
    ),
    _exit(
        ExitCode.LOST,
        "The guest runs nowhere.",
        "The disks are as the error says.",
        "Start it on the node that the hint names.",
        _DECIDED,
    ),
    _exit(
        ExitCode.INTERNAL,
        "A defect of lvmigrate itself.",
        "Nothing is promised.",
        "`lvmigrate audit`, and report it.",
        _DIES,
    ),
)

EXITS: Final[Mapping[ExitCode, Explanation]] = MappingProxyType({ExitCode(int(row.code)): row for row in _EXIT_ROWS})
