"""What a guest has in files beside its disks, which no disk's replication brings to another node."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from lvmigrate.errors import Code
from lvmigrate.premises import Needs, tpm_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """One such file, or directory."""

    #: Of the findings about it.
    code: Code
    #: In words that follow "has".
    what: str
    path: str


def beside(uuid: str, needs: Needs) -> Iterator[Beside]:
    """The files of that guest: memory on its way takes them along, a guest that starts anew does not."""
    if needs.tpm == "emulator":
        yield Beside(code=Code.TPM, what="the state of its TPM", path=tpm_state(uuid))
    if needs.nvram:
        yield Beside(code=Code.NVRAM, what="its firmware's variables", path=needs.nvram)


def missing(uuid: str, needs: Needs, there: Collection[str]) -> Iterator[Beside]:
    """Those that a node lacks which has the paths ``there``."""
    return (one for one in beside(uuid, needs) if one.path not in there)
