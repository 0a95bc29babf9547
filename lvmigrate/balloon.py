"""How small a guest must be to fit on the target, and how small it may be. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from lvmigrate.domain import Domain
from lvmigrate.survey import Survey


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The guest's memory against what the target has free, in KiB."""

    current_kib: int
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
    floor = survey.options.minimum_memory_mib
    least = now // 2 if floor is None else floor * 1024
    return Fit(
        current_kib=now,
        free_kib=survey.target.host.free_memory_kib,
        least_kib=min(now, least),
        may_shrink=survey.options.allow_runtime_changes and not survey.needs.hugepages_kib,
    )
