"""What a drain or a return did, guest by guest, as values; and who may look on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from lvmigrate.assignment import Stay
from lvmigrate.errors import Code, ExitCode, Finding, LvmigrateError, Refused
from lvmigrate.progress import StepProgress
from lvmigrate.traffic import Departure, Schedule

#: What does not pass by itself: the guest is not tried again on the same node.
FOR_GOOD: Final = frozenset(
    {
        *(Code.INTERNAL, Code.NOT_CONVERGING, Code.COPY_TIMEOUT, Code.SHUTDOWN_TIMEOUT, Code.NO_DISKS),
        *(Code.DISK_NOT_REPLICATED, Code.SHARED_DIFFERS, Code.SHARED_EXCLUSIVE, Code.REPLICA_MISSING),
        *(Code.REPLICA_DIFFERS, Code.RESOURCE_SHARED, Code.SIZE_DIFFERS, Code.SPLIT_BRAIN, Code.TWO_PRIMARIES_ON),
        *(Code.HUGEPAGES_SHORT, Code.TOPOLOGY_MISSING, Code.CPU_LACKS, Code.MACHINE_UNKNOWN, Code.EMULATOR_MISSING),
        *(Code.VERSION_OLDER, Code.NETWORK_MISSING, Code.DISK_CACHED, Code.MEDIA_MISSING, Code.PASSTHROUGH),
        *(Code.MEDIATED_DEVICE, Code.TPM, Code.NVRAM, Code.SNAPSHOTS, Code.CHECKPOINTS, Code.SAVE_IMAGE),
        *(Code.OPTIONS_CONFLICT, Code.OPTION_UNSUPPORTED, Code.TLS_MISSING, Code.TLS_NAME, Code.TLS_EXPIRED),
        *(Code.TLS_ISSUER, Code.HOOK_FAILED, Code.IPOLICY, Code.KEEPALIVE_SHORT, Code.DRBD_TOO_OLD),
        *(Code.NODE_DRAINED, Code.NODE_OFFLINE, Code.NO_TARGET),
    }
)
#: The same of a guest that was only looked for: one that is off is not waited for.
LASTING: Final = FOR_GOOD | {Code.INSTANCE_STOPPED}

#: What is said of a guest that has moved, and was not before.
AFTERWARDS: Final = frozenset({Code.DISKS_DIFFER, Code.VERIFY_UNFINISHED, Code.HOOK_FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A guest that is where it was to go.

    ``how``: live, non-live, post-copy, failover; cleanup, where somebody else's move was finished; or another, where
    somebody else has moved it.
    """

    uuid: str
    name: str
    source: str
    target: str
    how: str
    seconds: float
    downtime_s: float = 0.0
    #: What came up once it had moved (`AFTERWARDS`).
    warnings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stayed:
    """A guest that is not, and why: what its own move said, or its checks, or the plan."""

    uuid: str
    name: str
    source: str
    finding: Finding
    exit_code: ExitCode = ExitCode.REFUSED

    @classmethod
    def by_plan(cls, stay: Stay) -> Stayed:
        """As the plan says."""
        return cls(uuid=stay.uuid, name=stay.name, source=stay.source, finding=stay.finding)

    @classmethod
    def by_error(cls, uuid: str, name: str, source: str, error: LvmigrateError) -> Stayed:
        """As its move, its checks or its cleanup said."""
        return cls(uuid=uuid, name=name, source=source, finding=finding_of(error), exit_code=error.exit_code)


def finding_of(error: LvmigrateError) -> Finding:
    """An error as one finding: of several reasons the first in full, the others by their codes."""
    if not isinstance(error, Refused):
        return Finding(code=error.code, sentence=error.sentence, hint=error.hint)
    first, *more = error.findings
    codes = ", ".join(dict.fromkeys(finding.code.value for finding in more))
    also = f" Also: {codes}; `lvmigrate check` tells all." if more else ""
    return Finding(code=first.code, sentence=first.sentence, hint=f"{first.hint}{also}")


#: The worst that can happen to a guest comes first.
_WORST_FIRST: Final = (
    *(ExitCode.LOST, ExitCode.UNKNOWN, ExitCode.LEFT_BEHIND, ExitCode.INTERNAL, ExitCode.FAILED, ExitCode.UNREACHABLE),
    *(ExitCode.REFUSED, ExitCode.ABORTED),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReport:
    """What became of every guest. Seconds by the controller's clock."""

    #: ``drain`` or ``return``.
    what: str
    nodes: tuple[str, ...]
    seconds: float
    #: As the first plan told.
    forecast_s: float
    moved: tuple[Moved, ...]
    stayed: tuple[Stayed, ...]
    #: Guests that had not begun when it was asked to stop.
    not_begun: tuple[str, ...]
    #: Guests that are off: they stay defined where they are.
    off: tuple[str, ...]

    @property
    def exit_code(self) -> ExitCode:
        """The worst that happened to a guest; OK: all of them are where they were to go."""
        codes = {stayed.exit_code for stayed in self.stayed} | ({ExitCode.ABORTED} if self.not_begun else set())
        return next((code for code in _WORST_FIRST if code in codes), ExitCode.FAILED if codes else ExitCode.OK)

    @property
    def code(self) -> Code:
        """That of the guest that is the worst off."""
        return next((s.finding.code for s in self.stayed if s.exit_code is self.exit_code), Code.ABORTED)


class Onlooker(Protocol):
    """Told of everything; `progress` from each move's own thread, the rest from the drain's."""

    def planned(self, schedule: Schedule) -> None:
        """What is expected."""

    def begun(self, departure: Departure) -> None:
        """A guest sets out."""

    def progress(self, progress: StepProgress) -> None:
        """It gets on."""

    def moved(self, moved: Moved) -> None:
        """It has arrived."""

    def stays(self, stayed: Stayed, *, again: bool) -> None:
        """It does not go, or not now: with ``again`` it is tried once more."""

    def says(self, sentence: str) -> None:
        """Anything else."""


class Nobody:
    """Does not look."""

    def planned(self, schedule: Schedule) -> None:
        """Nothing."""

    def begun(self, departure: Departure) -> None:
        """Nothing."""

    def progress(self, progress: StepProgress) -> None:
        """Nothing."""

    def moved(self, moved: Moved) -> None:
        """Nothing."""

    def stays(self, stayed: Stayed, *, again: bool) -> None:
        """Nothing."""

    def says(self, sentence: str) -> None:
        """Nothing."""
