"""Everything that can go wrong, as types, codes and sentences.

::

    LvmigrateError                 has a code, one sentence, and the next thing to do
    ├── UsageError                 the command or the call was wrong; nothing was looked at
    ├── ConfigurationError         the configuration file was wrong; nothing was looked at
    ├── NodeUnreachable            a node, its libvirt or its ssh gave no answer: its state is not known
    ├── CommandFailed              a node answered, and said no
    ├── TokenLost                  another move took this guest over; nothing more is done to it
    ├── Refused                    the checks found reasons not to start; nothing was changed
    ├── MoveFailed                 the move failed; every undo succeeded, the guest runs where it ran
    │   └── MoveAborted            the same, because somebody asked for it
    ├── LeftBehind                 the guest is on one node, but something of the move could not be undone or closed
    ├── GuestLost                  the guest runs nowhere
    └── OutcomeUnknown             proof could not be had from both sides: nothing was undone, nothing forced

Adapters raise only these.  A foreign exception (``libvirtError``, ``sh.ErrorReturnCode``) is turned into one of them in
a single place per adapter, with the foreign words kept in ``detail``.

Long, because every code stands here.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class ExitCode(enum.IntEnum):
    """What the command ``lvmigrate`` tells its caller."""

    #: Done as asked.
    OK = 0
    #: The move failed and everything was put back: the guest runs where it ran, its disks are single-primary.
    FAILED = 1
    #: The command line was wrong.
    USAGE = 2
    #: The checks refused to start, or a look at the nodes found a danger; nothing was changed.
    REFUSED = 3
    #: The move was aborted as asked and everything was put back.
    ABORTED = 4
    #: The outcome could not be proved; nothing was undone. A person (or a later command) has to look.
    UNKNOWN = 5
    #: The configuration file is missing or wrong.
    CONFIGURATION = 6
    #: A node gave no answer.
    UNREACHABLE = 7
    #: The guest runs on one node, but something of the move was left behind (or a look has found something of one).
    LEFT_BEHIND = 8
    #: The guest runs nowhere.
    LOST = 9
    #: A defect of lvmigrate itself.
    INTERNAL = 70


class Code(enum.StrEnum):
    """Stable names of everything lvmigrate refuses or reports. Programs may compare them; sentences may change."""

    #: The command line was wrong.
    USAGE = "USAGE"
    #: There is no configuration file where it was looked for.
    CONFIG_MISSING = "CONFIG_MISSING"
    #: The configuration file cannot be read, or says something that makes no sense.
    CONFIG_INVALID = "CONFIG_INVALID"
    #: No node knows a guest of that name or UUID.
    INSTANCE_UNKNOWN = "INSTANCE_UNKNOWN"
    #: The guest is defined and does not run.
    INSTANCE_STOPPED = "INSTANCE_STOPPED"
    #: The guest is in a state in which it cannot be moved, or changed its state meanwhile.
    INSTANCE_STATE = "INSTANCE_STATE"
    #: More than one node has a live copy.
    INSTANCE_TWICE = "INSTANCE_TWICE"
    #: The target has another guest of that name.
    INSTANCE_ON_TARGET = "INSTANCE_ON_TARGET"
    #: The configuration names no such node.
    NODE_UNKNOWN = "NODE_UNKNOWN"
    #: A node, its libvirt or its ssh gave no answer.
    NODE_UNREACHABLE = "NODE_UNREACHABLE"
    #: Several nodes could be the target, or none.
    TARGET_AMBIGUOUS = "TARGET_AMBIGUOUS"
    #: The guest runs on the target already.
    TARGET_IS_SOURCE = "TARGET_IS_SOURCE"
    #: libvirt has a job for the guest.
    JOB_ACTIVE = "JOB_ACTIVE"
    #: The guest has no disk.
    NO_DISKS = "NO_DISKS"
    #: A disk of the guest is on no DRBD resource.
    DISK_NOT_REPLICATED = "DISK_NOT_REPLICATED"
    #: A path leads to other storage on the target.
    SHARED_DIFFERS = "SHARED_DIFFERS"
    #: Only one node at a time can open the storage of a disk.
    SHARED_EXCLUSIVE = "SHARED_EXCLUSIVE"
    #: The target has no copy of a disk.
    REPLICA_MISSING = "REPLICA_MISSING"
    #: The same device path leads to different volumes on the two nodes.
    REPLICA_DIFFERS = "REPLICA_DIFFERS"
    #: Another guest uses the same resource.
    RESOURCE_SHARED = "RESOURCE_SHARED"
    #: A resource has no working connection between the two nodes.
    NOT_CONNECTED = "NOT_CONNECTED"
    #: Both copies of a volume have changed while they were apart; a person chooses which is given up.
    SPLIT_BRAIN = "SPLIT_BRAIN"
    #: A copy of a disk is not UpToDate, or not in step.
    NOT_UPTODATE = "NOT_UPTODATE"
    #: The guest is started from a copy that lacks writes, because somebody gave them up (a warning).
    COPY_OLD = "COPY_OLD"
    #: The guest is started from a copy that has what had reached it when it lost the dead node (a warning).
    COPY_CUT_OFF = "COPY_CUT_OFF"
    #: A volume has no quorum.
    NO_QUORUM = "NO_QUORUM"
    #: The disks were not in step in time.
    SYNC_TIMEOUT = "SYNC_TIMEOUT"
    #: A resynchronisation does not get on.
    SYNC_STALLED = "SYNC_STALLED"
    #: The target is Primary already.
    DUAL_PRIMARY = "DUAL_PRIMARY"
    #: The source is not Primary although the guest is there.
    SOURCE_NOT_PRIMARY = "SOURCE_NOT_PRIMARY"
    #: Two primaries are allowed already.
    TWO_PRIMARIES_ON = "TWO_PRIMARIES_ON"
    #: Two primaries are allowed by the configuration, for good: they are left so (a warning).
    TWO_PRIMARIES_FOR_GOOD = "TWO_PRIMARIES_FOR_GOOD"
    #: The connection replicates by another protocol than C; it is C during the move (a warning).
    PROTOCOL_NOT_C = "PROTOCOL_NOT_C"
    #: A third node has a copy of the data too (a warning).
    THIRD_REPLICA = "THIRD_REPLICA"
    #: A volume has another size on the other node.
    SIZE_DIFFERS = "SIZE_DIFFERS"
    #: A node's DRBD is too old to change options while connected.
    DRBD_TOO_OLD = "DRBD_TOO_OLD"
    #: The two nodes run DRBD 8 and 9 (a warning).
    DRBD_DIFFERS = "DRBD_DIFFERS"
    #: Another program acts on the resource too (a warning).
    OTHER_HANDS = "OTHER_HANDS"
    #: Something has a device open that must be closed.
    DEVICE_HELD = "DEVICE_HELD"
    #: The target has too little free memory.
    MEMORY_SHORT = "MEMORY_SHORT"
    #: The guest fits as it is, and would not if it took all the memory that it may use (a warning).
    MEMORY_TIGHT = "MEMORY_TIGHT"
    #: The guest gives memory back for the move, as was allowed (a warning).
    MEMORY_SHRINKS = "MEMORY_SHRINKS"
    #: The guest was asked to give memory back, and did not.
    BALLOON_FAILED = "BALLOON_FAILED"
    #: The target has too few free huge pages.
    HUGEPAGES_SHORT = "HUGEPAGES_SHORT"
    #: The guest is bound to NUMA nodes or CPUs that the target does not have.
    TOPOLOGY_MISSING = "TOPOLOGY_MISSING"
    #: The target's CPU, or what its QEMU makes of it, lacks something that the guest was started with.
    CPU_LACKS = "CPU_LACKS"
    #: The target's emulator does not know the guest's machine type.
    MACHINE_UNKNOWN = "MACHINE_UNKNOWN"
    #: The target has no such emulator, or it cannot run guests of this type (KVM).
    EMULATOR_MISSING = "EMULATOR_MISSING"
    #: The target's libvirt or QEMU is older than the source's.
    VERSION_OLDER = "VERSION_OLDER"
    #: A bridge, a network or an interface that the guest is connected to is not there on the target, or is off.
    NETWORK_MISSING = "NETWORK_MISSING"
    #: The host caches what the guest writes to a disk.
    DISK_CACHED = "DISK_CACHED"
    #: What lies in the guest's CD or floppy drive is not there on the target.
    MEDIA_MISSING = "MEDIA_MISSING"
    #: The guest has a device of the node's to itself.
    PASSTHROUGH = "PASSTHROUGH"
    #: The guest has a mediated device of the node's (a part of its GPU, say).
    MEDIATED_DEVICE = "MEDIATED_DEVICE"
    #: The guest's TPM cannot go with it.
    TPM = "TPM"
    #: The guest's firmware, or the file for its variables, is not there on the target.
    NVRAM = "NVRAM"
    #: The guest has snapshots, with which libvirt moves none.
    SNAPSHOTS = "SNAPSHOTS"
    #: The guest has checkpoints, which libvirt would lose without a word.
    CHECKPOINTS = "CHECKPOINTS"
    #: A saved image of the guest lies on a node.
    SAVE_IMAGE = "SAVE_IMAGE"
    #: The source's libvirt cannot connect to the target's.
    PEER_UNREACHABLE = "PEER_UNREACHABLE"
    #: Memory would not reach the target: nothing comes back from its address.
    PORTS_UNREACHABLE = "PORTS_UNREACHABLE"
    #: Every port for migrations is taken on the target, or the one that was chosen.
    PORTS_TAKEN = "PORTS_TAKEN"
    #: The target starts the guest at boot, and its libvirt is not ordered behind DRBD (a warning).
    AUTOSTART_ORDER = "AUTOSTART_ORDER"
    #: Something could not be checked (a warning).
    NOT_CHECKED = "NOT_CHECKED"
    #: This QEMU is known to lose guest memory when it migrates without KVM (a warning).
    QEMU_TCG_LOSES_MEMORY = "QEMU_TCG_LOSES_MEMORY"
    #: Another move has the guest's token, or another command its lock.
    LOCKED = "LOCKED"
    #: The move's token is not ours any more, or could not be renewed.
    TOKEN_LOST = "TOKEN_LOST"  # noqa: S105 -- the name of a code, no password
    #: No dead-man's guard can be armed on a node.
    GUARD_UNAVAILABLE = "GUARD_UNAVAILABLE"
    #: Nothing lets the guest run that arrives paused, if the command dies in mid-move (a warning).
    UNGUARDED = "UNGUARDED"
    #: The target is made Primary by a command, and stays so when the guest is shut down (a warning).
    PROMOTED_EXPLICITLY = "PROMOTED_EXPLICITLY"
    #: A post-copy whose link breaks could not be connected again, by the libvirt of the target (a warning).
    POST_COPY_UNMENDED = "POST_COPY_UNMENDED"
    #: The guard on a node does not run, or does not acknowledge a renewal.
    GUARD_LOST = "GUARD_LOST"
    #: A node is Primary, and nothing there has the device open.
    PRIMARY_UNUSED = "PRIMARY_UNUSED"
    #: A node would start a guest at boot that runs elsewhere.
    AUTOSTART_ELSEWHERE = "AUTOSTART_ELSEWHERE"
    #: The fast switch was asked for, and libvirt's keepalive on the source is too short for it.
    KEEPALIVE_SHORT = "KEEPALIVE_SHORT"
    #: A node lacks a program that lvmigrate runs there.
    PROGRAM_MISSING = "PROGRAM_MISSING"
    #: sshd on a node lets one connection have few sessions.
    SESSIONS_FEW = "SESSIONS_FEW"
    #: The clocks of two nodes are far apart.
    CLOCKS_APART = "CLOCKS_APART"
    #: A command failed on a node.
    COMMAND_FAILED = "COMMAND_FAILED"
    #: libvirt refused or failed.
    HYPERVISOR_FAILED = "HYPERVISOR_FAILED"
    #: libvirt on a node is busy with the guest, and did not get to what was asked in time.
    HYPERVISOR_BUSY = "HYPERVISOR_BUSY"
    #: A node's libvirt, or its ssh, does not let us in.
    AUTH_FAILED = "AUTH_FAILED"
    #: The key of a node is not among the known hosts of the one that connects.
    HOST_KEY_UNKNOWN = "HOST_KEY_UNKNOWN"
    #: An encrypted connection could not be made.
    TLS_FAILED = "TLS_FAILED"
    #: A node has no room on a file system.
    NO_SPACE = "NO_SPACE"
    #: DRBD refused or failed.
    STORAGE_FAILED = "STORAGE_FAILED"
    #: Replication did not stay whole during the copy.
    REPLICATION_BROKE = "REPLICATION_BROKE"
    #: libvirt did not move the guest.
    COPY_FAILED = "COPY_FAILED"
    #: DRBD's online verify after the move found what differs between the two copies (a warning).
    DISKS_DIFFER = "DISKS_DIFFER"
    #: The online verify after the move could not be begun, or did not come to its end (a warning).
    VERIFY_UNFINISHED = "VERIFY_UNFINISHED"
    #: How long the copy will take could not be told (a warning).
    NO_FORECAST = "NO_FORECAST"
    #: The copy of memory makes no progress, and its policy gave it up.
    NOT_CONVERGING = "NOT_CONVERGING"
    #: The options asked for exclude each other.
    OPTIONS_CONFLICT = "OPTIONS_CONFLICT"
    #: A node's libvirt or QEMU, or DRBD's configuration there, does not have what was asked for.
    OPTION_UNSUPPORTED = "OPTION_UNSUPPORTED"
    #: A node has no certificate for encrypted migrations, or it cannot be read.
    TLS_MISSING = "TLS_MISSING"
    #: The target's certificate does not name the address that memory is sent to.
    TLS_NAME = "TLS_NAME"
    #: A certificate has expired, or is not valid yet.
    TLS_EXPIRED = "TLS_EXPIRED"
    #: A certificate was not signed by the authority that the other node trusts.
    TLS_ISSUER = "TLS_ISSUER"
    #: The copy of memory took too long.
    COPY_TIMEOUT = "COPY_TIMEOUT"
    #: Somebody asked to stop.
    ABORTED = "ABORTED"
    #: The guest runs on one node, and something of the move is still there.
    LEFT_BEHIND = "LEFT_BEHIND"
    #: The guest runs nowhere.
    GUEST_LOST = "GUEST_LOST"
    #: What happened could not be proved; nothing was undone.
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    #: The journal cannot be written, or not be read.
    JOURNAL_UNUSABLE = "JOURNAL_UNUSABLE"
    #: The journal knows no such errand, or more than one.
    ERRAND_UNKNOWN = "ERRAND_UNKNOWN"
    #: A node may be alive, and the guest was to be started elsewhere as if it were off.
    NODE_ALIVE = "NODE_ALIVE"
    #: Nothing says that a silent node is off.
    NOT_FENCED = "NOT_FENCED"
    #: The fence command did not say that the node is off.
    FENCE_FAILED = "FENCE_FAILED"
    #: The guest did not shut down in time.
    SHUTDOWN_TIMEOUT = "SHUTDOWN_TIMEOUT"
    #: The guest does not start.
    START_FAILED = "START_FAILED"
    #: No definition of the guest is at hand.
    DEFINITION_MISSING = "DEFINITION_MISSING"
    #: The guest is defined anew by what was kept of its definition, which may be old (a warning).
    DEFINITION_KEPT = "DEFINITION_KEPT"
    #: What was kept, or named, is no definition of this guest.
    DEFINITION_WRONG = "DEFINITION_WRONG"
    #: A pre hook refused (or a post hook failed, a warning), or the hooks cannot be listed.
    HOOK_FAILED = "HOOK_FAILED"
    #: A file among the hooks is not executable (a warning).
    HOOK_SKIPPED = "HOOK_SKIPPED"
    #: The configuration says that no guest may come to the node.
    NODE_DRAINED = "NODE_DRAINED"
    #: The configuration says that the node is out of use.
    NODE_OFFLINE = "NODE_OFFLINE"
    #: No node can take the guest.
    NO_TARGET = "NO_TARGET"
    #: The guest does not keep the bounds that the target's policy sets.
    IPOLICY = "IPOLICY"
    #: The program that was to choose the target failed, found none, or chose one that cannot be.
    ALLOCATOR_FAILED = "ALLOCATOR_FAILED"
    #: The guest is shut down and started elsewhere, not moved while it runs (a warning).
    FAILOVER_INSTEAD = "FAILOVER_INSTEAD"
    #: The Python packages that the service and its clients need are not installed.
    EXTRA_MISSING = "EXTRA_MISSING"
    #: This command, or this word of it, is not for a service.
    NOT_REMOTE = "NOT_REMOTE"
    #: The service gives no answer.
    SERVICE_UNREACHABLE = "SERVICE_UNREACHABLE"
    #: What answers is no lvmigrate, or one that speaks differently.
    SERVICE_DIFFERS = "SERVICE_DIFFERS"
    #: The service does not know who asks.
    UNAUTHENTICATED = "UNAUTHENTICATED"
    #: The role of whoever asks does not allow it.
    FORBIDDEN = "FORBIDDEN"
    #: Too many requests in too little time.
    RATE_LIMITED = "RATE_LIMITED"
    #: As much of that kind is under way as may be at once, or it did not end in time.
    SERVICE_BUSY = "SERVICE_BUSY"
    #: The request is longer than the service reads.
    TOO_LARGE = "TOO_LARGE"
    #: The service has nothing at that address, or not by that method.
    ROUTE_UNKNOWN = "ROUTE_UNKNOWN"
    #: An idempotency key was used before, for something else.
    KEY_REUSED = "KEY_REUSED"
    #: As many jobs wait as may wait.
    QUEUE_FULL = "QUEUE_FULL"
    #: The service is about to stop, and begins nothing.
    STOPPING = "STOPPING"
    #: The service knows no such job.
    JOB_UNKNOWN = "JOB_UNKNOWN"
    #: The job has ended: there is nothing to abort.
    JOB_ENDED = "JOB_ENDED"
    #: The service ended while the job was under way; the guest was cleaned up afterwards, and is where it was.
    INTERRUPTED = "INTERRUPTED"
    #: A defect of lvmigrate.
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing the checks found: a reason to refuse, or a warning.

    ``sentence`` says what is the matter, with names; ``hint`` says what to do about it.
    """

    code: Code
    sentence: str
    hint: str


class LvmigrateError(Exception):
    """The root. ``str()`` is one clear sentence without a line break; ``code``, ``hint`` and ``detail`` go with it."""

    code: Code = Code.INTERNAL
    exit_code: ExitCode = ExitCode.INTERNAL

    def __init__(self, sentence: str, *, hint: str, code: Code | None = None, detail: str = "") -> None:
        super().__init__(sentence)
        #: The next thing to do, as a sentence or a command.
        self.hint = hint
        #: Foreign words (libvirt's, drbdsetup's), when there are any.
        self.detail = detail
        if code is not None:
            self.code = code

    @property
    def sentence(self) -> str:
        """What happened, in one sentence."""
        return str(self.args[0])


class UsageError(LvmigrateError):
    """The command line or the call was wrong. Nothing was looked at."""

    code = Code.USAGE
    exit_code = ExitCode.USAGE


class ConfigurationError(LvmigrateError):
    """The configuration file is missing or wrong; the sentence names the file and the line. Nothing was looked at."""

    code = Code.CONFIG_INVALID
    exit_code = ExitCode.CONFIGURATION


class NodeUnreachable(LvmigrateError):
    """A node gave no answer, so what happens there is not known. Never a proof of anything."""

    code = Code.NODE_UNREACHABLE
    exit_code = ExitCode.UNREACHABLE

    def __init__(self, node: str, what: str, *, hint: str, detail: str = "", code: Code | None = None) -> None:
        super().__init__(f"{node} does not answer: {what}.", hint=hint, detail=detail, code=code)
        self.node = node


class CommandFailed(LvmigrateError):
    """A node answered and refused. ``status`` is the exit code of the command there, or libvirt's error number."""

    code = Code.COMMAND_FAILED
    exit_code = ExitCode.FAILED

    def __init__(
        self, node: str, what: str, *, status: int, hint: str, detail: str = "", code: Code | None = None
    ) -> None:
        super().__init__(f"{what} failed on {node}.", hint=hint, detail=detail, code=code)
        self.node = node
        self.status = status


class DeviceHeld(CommandFailed):
    """A demotion was not tried, or was refused, because something still has the device open."""


class TokenLost(LvmigrateError):
    """The node's token of this guest is not ours (any more). Nothing was done there."""

    code = Code.TOKEN_LOST
    exit_code = ExitCode.UNKNOWN


class Refused(LvmigrateError):
    """The checks found at least one reason not to start. Nothing was changed on any node."""

    exit_code = ExitCode.REFUSED

    def __init__(self, instance: str, findings: Sequence[Finding]) -> None:
        first = findings[0]
        more = f" ({len(findings) - 1} more reasons follow)" if len(findings) > 1 else ""
        super().__init__(first.sentence + more, hint=first.hint, code=first.code)
        self.instance = instance
        #: Every reason, in the order in which the checks are listed.
        self.findings = tuple(findings)


class MoveFailed(LvmigrateError):
    """The move failed; the guest is where and as it was, and every step was undone (confirmed by observation)."""

    code = Code.COPY_FAILED
    exit_code = ExitCode.FAILED


class MoveAborted(MoveFailed):
    """The move was stopped because somebody asked; otherwise as `MoveFailed`."""

    code = Code.ABORTED
    exit_code = ExitCode.ABORTED


class LeftBehind(LvmigrateError):
    """The guest runs on exactly one node, but ``leftovers`` of the move are still there."""

    code = Code.LEFT_BEHIND
    exit_code = ExitCode.LEFT_BEHIND

    def __init__(self, sentence: str, *, leftovers: Sequence[str], hint: str, detail: str = "") -> None:
        super().__init__(sentence, hint=hint, detail=detail)
        self.leftovers = tuple(leftovers)


class GuestLost(LvmigrateError):
    """Both nodes answered, and the guest runs on neither."""

    code = Code.GUEST_LOST
    exit_code = ExitCode.LOST


class OutcomeUnknown(LvmigrateError):
    """What happened could not be proved on both nodes. Nothing was undone and nothing forced; both stay as they are.

    ``known`` lists what was seen.  The hint names the commands to look with.
    """

    code = Code.OUTCOME_UNKNOWN
    exit_code = ExitCode.UNKNOWN

    def __init__(self, sentence: str, *, known: Sequence[str], hint: str, detail: str = "") -> None:
        super().__init__(sentence, hint=hint, detail=detail)
        self.known = tuple(known)
