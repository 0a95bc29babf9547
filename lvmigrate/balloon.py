"""How small a guest must be to fit on the target, how small it may be, and making it so."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Final

from lvmigrate import room
from lvmigrate.clock import Clock
from lvmigrate.domain import Domain, DomainState
from lvmigrate.errors import Code, MoveAborted, MoveFailed
from lvmigrate.protocols import Hypervisor, Storage
from lvmigrate.survey import Survey

#: How long a guest may take to give memory back, or to take it, and how often it is looked.
_BALLOON_S: Final = 60.0
_LOOK_S: Final = 0.2


#: What a guest's QEMU takes beside the guest's memory: so much for itself, and for page tables 8 bytes for each 4 KiB.
_QEMU_KIB: Final = 64 * 1024
_TABLES: Final = 512


def overhead_kib(domain: Domain) -> int:
    """What a node needs for the guest beside the guest's own memory."""
    return _QEMU_KIB + domain.memory_kib // _TABLES


def needed_kib(domain: Domain) -> int:
    """All that a node needs for the guest as it is."""
    return current(domain) + overhead_kib(domain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The guest's memory, but for huge pages, against what the target has free for it, in KiB."""

    current_kib: int
    #: Beside what its QEMU takes; below 0: not even that.
    free_kib: int
    #: What it keeps in any case.
    least_kib: int
    #: Whether it may be made smaller.
    may_shrink: bool

    @property
    def short(self) -> bool:
        """It does not fit, and cannot be made to."""
        return self.free_kib < (self.least_kib if self.may_shrink else self.current_kib)

    @property
    def shrunk_kib(self) -> int | None:
        """What it is to shrink to; ``None``: it fits as it is, or not at all."""
        return None if self.short or self.current_kib <= self.free_kib else self.free_kib


def current(domain: Domain) -> int:
    """What the guest has now, in KiB: at most what it may have."""
    return domain.memory_kib if domain.current_kib is None else domain.current_kib


def planned(survey: Survey) -> Fit:
    """The guest of ``survey`` on its target. In huge pages its memory is reserved as a whole: nothing is gained."""
    now = current(survey.domain)
    if survey.needs.pages:
        now = max(0, survey.domain.memory_kib - sum(pages.kib for pages in survey.needs.pages))
    floor = survey.options.minimum_memory_mib
    least = now // 2 if floor is None else floor * 1024
    return Fit(
        current_kib=now,
        free_kib=survey.target.host.free_memory_kib - overhead_kib(survey.domain),
        least_kib=min(now, least),
        # A guest that stands still does nothing, and one without a balloon cannot.
        may_shrink=survey.options.allow_runtime_changes
        and survey.needs.balloon
        and not survey.needs.pages
        and survey.domain.state is DomainState.RUNNING,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Balloon:
    """One guest's balloon, wherever the guest is. ``before_kib``: what it had before anybody changed that."""

    hypervisor: Hypervisor
    storage: Storage
    instance: str
    uuid: str
    before_kib: int
    clock: Clock = field(default_factory=Clock)

    def shrink(self, node: str, kib: int, cancel: threading.Event) -> None:
        """Let the guest on ``node`` give memory back. Guaranteed afterwards: it was seen to have no more than ``kib``.

        Raises `MoveFailed` when it has not within a minute, and `MoveAborted` when ``cancel`` is set.
        """
        self.hypervisor.set_memory(node, self.uuid, kib)
        deadline = self.clock.now() + _BALLOON_S
        while (has := self._has(node)) is None or has > kib:
            if cancel.is_set():
                raise MoveAborted("Aborted as asked.", hint="Nothing is left to do.")
            if self.clock.now() > deadline:
                raise MoveFailed(
                    f"{self.instance} did not give memory back within {_BALLOON_S:g} s"
                    f" ({'it is gone' if has is None else f'it has {has // 1024} MiB'}, not {kib // 1024} MiB).",
                    code=Code.BALLOON_FAILED,
                    hint="Load virtio_balloon in the guest, and look with"
                    f" `virsh dommemstat {self.instance}` on {node}.",
                )
            self.clock.sleep(_LOOK_S)

    def back(self, node: str) -> None:
        """Let it have again what it had, as far as ``node`` has room. Nothing if it is not there.

        Idempotent.  Guaranteed afterwards: libvirt was told so; a guest takes it when it gets to it.
        """
        has = self._has(node)
        if has is None:
            return
        # Also where it has all of it: it may have been told to shrink, and not have got to it.
        free = room.host(self.hypervisor, self.storage, node).free_memory_kib
        self.hypervisor.set_memory(node, self.uuid, min(self.before_kib, has + free))

    def _has(self, node: str) -> int | None:
        domain = self.hypervisor.domain(node, self.uuid)
        return None if domain is None or not domain.state.active else current(domain)
