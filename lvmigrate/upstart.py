"""Start a guest from its disks on one node, and see that it runs there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from lvmigrate.clock import Clock
from lvmigrate.decision import Sight, sight_of
from lvmigrate.errors import Code, LvmigrateError, MoveFailed, OutcomeUnknown
from lvmigrate.protocols import Hypervisor, Storage
from lvmigrate.token import Token

_log = structlog.get_logger()

#: A guest was seen to die soon after its start: look again after this long.
_STILL_S: Final = 0.3
#: How long an answer that does not come is asked for again.
_ANSWER_S: Final = 90.0
_ASK_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstart:
    """One guest that is off, on a node that has its definition, whose peer is Secondary or gone."""

    hypervisor: Hypervisor
    storage: Storage
    instance: str
    uuid: str
    node: str
    #: By resource: whether opening its device promotes by itself.
    promotes: Mapping[str, bool]
    token: Callable[[], Token]
    #: Raises `TokenLost` if somebody else took the guest over.
    confirm: Callable[[], None]
    #: The resources whose old copies are taken for good, because the operator has given up what they lack.
    forced: frozenset[str] = frozenset()
    clock: Clock = field(default_factory=Clock)

    def promote(self) -> None:
        """Make the node Primary for every resource that would not become so by itself."""
        for name, by_itself in self.promotes.items():
            if name in self.forced:
                self.storage.promote_by_force(self.node, name, self.token())
            elif not by_itself:
                self.storage.promote(self.node, name, self.token())

    def start(self) -> None:
        """Start it; guaranteed afterwards: it was seen running, and still running a little later.

        Raises `MoveFailed` when the node says that it does not run, and `OutcomeUnknown` when it says nothing.
        """
        self.confirm()
        error: LvmigrateError | None = None
        try:
            self.hypervisor.start(self.node, self.uuid)
        except LvmigrateError as caught:
            error = caught
            _log.warning("start_failed", node=self.node, error=str(caught), detail=caught.detail)
        sight = self.sight()
        if sight is Sight.RUNS:
            self.clock.sleep(_STILL_S)
            sight = self.sight()
        if sight is Sight.RUNS:
            return
        if sight is Sight.GONE:
            raise MoveFailed(
                f"{self.instance} does not start on {self.node}.",
                code=Code.START_FAILED,
                hint=f"See /var/log/libvirt/qemu/{self.instance}.log there."
                if error is None or error.detail in ("", error.hint)
                else f"libvirt says: {error.detail}",
                detail="" if error is None else error.detail or str(error),
            ) from error
        raise OutcomeUnknown(
            f"{self.instance} was to be started on {self.node}, and nobody says whether it runs; nothing was undone.",
            known=[f"{self.instance} on {self.node}: {sight.value}"],
            hint=f"`lvmigrate cleanup {self.instance}` when {self.node} answers.",
        )

    def sight(self) -> Sight:
        """The node's word about its copy, asked again for a while if there is none."""
        deadline = self.clock.now() + _ANSWER_S
        while True:
            try:
                return sight_of(self.hypervisor.domain(self.node, self.uuid))
            except LvmigrateError:
                if self.clock.now() > deadline:
                    return Sight.UNKNOWN
            self.clock.sleep(_ASK_S)
