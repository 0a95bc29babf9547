"""Opening and closing the dual-primary of one resource, with every act confirmed by observation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from lvmigrate.clock import Clock
from lvmigrate.errors import Code, CommandFailed, DeviceHeld, MoveFailed
from lvmigrate.lease import Lease
from lvmigrate.own_names import on_each
from lvmigrate.plan import ResourcePlan
from lvmigrate.protocols import Storage, Watch
from lvmigrate.replication import ConnectionOptions, ConnectionState, Resource, Role
from lvmigrate.together import together

#: How long a confirmation may take, in seconds: a node that lost its peer needs some for noticing.
_CONFIRM_S: Final = 30.0
#: How long to wait for the last process to close a device, in seconds.
_HELD_S: Final = 60.0
_HELD_AGAIN_S: Final = 0.3
#: How often two primaries are allowed if other hands forbid them before the target is promoted.
_TRIES: Final = 3

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class DualPrimary:
    """The dual-primary of one resource between the source and the target of a move.

    Both methods are idempotent.  What they guarantee is seen in the kernels' events of both nodes, not taken from an
    exit code.
    """

    storage: Storage
    watch: Watch
    #: Whose token every act carries.
    lease: Lease
    plan: ResourcePlan
    source: str
    target: str
    clock: Clock = field(default_factory=Clock)

    def open(self) -> None:
        """Allow two primaries, and promote the target unless opening the device there does so by itself.

        Guaranteed afterwards: both ends allow it, are Connected, Established and UpToDate, and the target was seen
        Primary if it was promoted here.  Raises `MoveFailed` when that is not seen in time.
        """
        name = self.plan.name
        promoted = self.plan.promotes
        for left in reversed(range(_TRIES)):
            try:
                self._allow()
                if promoted:
                    self.storage.promote(self.target, name, self.lease.token, beside=self.source)
                break
            except CommandFailed as error:
                # Other hands may have set it back in between, as drbdadm adjust does: then once more.
                if not left or self._allowed():
                    raise
                _log.warning("two_primaries_set_back", resource=name, error=str(error))

        def opened() -> bool:
            ends = self._ends()
            return ends is not None and all(
                here.in_step_with(peer) and (not promoted or self._says(here, peer, self.target, Role.PRIMARY))
                for here, peer in ends
            )

        if not self.watch.wait(opened, _CONFIRM_S):
            raise MoveFailed(
                f"{name} was not seen dual-primary and in step within {_CONFIRM_S:.0f} s.",
                code=Code.STORAGE_FAILED,
                hint=f"Look with {self._on_each('drbdsetup status {}')}.",
                detail="; ".join(self.watch.breaks()),
            )

    def _allow(self) -> None:
        found = together(
            [
                partial(self.storage.allow_two_primaries, node, self.plan.name, peer, self.lease.token)
                for node, peer in self._directions()
            ]
        )
        self._have_options(
            found,
            [ConnectionOptions(allow_two_primaries=True, protocol="C")] * 2,
            "Allowing two primaries for",
            hint=f"Look with {self._on_each('drbdsetup show {}')}.",
        )

    def _allowed(self) -> bool:
        """Whether two primaries are allowed at both ends now."""
        found = together(
            [partial(self.storage.options, node, self.plan.name, peer) for node, peer in self._directions()]
        )
        return all(now.allow_two_primaries for now in found)

    def close(self, loser: str) -> None:
        """Demote ``loser`` and forbid two primaries again.

        Guaranteed afterwards: ``loser`` was seen Secondary by both nodes, and both ends have exactly the options they
        had before.  Two primaries are forbidden only after that, while Connected: turned off during a cut with two
        Primaries it would end in StandAlone.  Raises `CommandFailed`, `DeviceHeld`, `NodeUnreachable` or `TokenLost`.
        """
        name = self.plan.name
        self._demote(loser)

        def demoted() -> bool:
            ends = self._ends()
            return ends is not None and all(self._says(here, peer, loser, Role.SECONDARY) for here, peer in ends)

        if not self.watch.wait(demoted, _CONFIRM_S):
            raise CommandFailed(
                loser,
                f"Seeing {name} Secondary, with its connection up,",
                status=0,
                code=Code.STORAGE_FAILED,
                hint=f"Once {self._on_each('drbdsetup status {}')} says Connected and one Primary:"
                f" {self._on_each('drbdadm net-options --allow-two-primaries=no {}')}.",
            )
        found = together(
            [
                partial(self.storage.restore_options, node, name, peer, before, self.lease.token)
                for (node, peer), before in zip(self._directions(), self.plan.options, strict=True)
            ]
        )
        self._have_options(
            found,
            self.plan.options,
            "Forbidding two primaries for",
            hint=f"{self._on_each('drbdadm net-options --allow-two-primaries=no {}')}.",
        )

    def _have_options(
        self, found: Sequence[ConnectionOptions], wanted: Sequence[ConnectionOptions], what: str, *, hint: str
    ) -> None:
        """Both ends have what is ``wanted`` there. An option at its default is not shown, so C and unset are one."""
        for (node, _), now, there in zip(self._directions(), found, wanted, strict=True):
            if (now.allow_two_primaries, now.protocol or "C") != (there.allow_two_primaries, there.protocol or "C"):
                raise CommandFailed(node, f"{what} {self.plan.name}", status=0, code=Code.STORAGE_FAILED, hint=hint)

    def _demote(self, node: str) -> None:
        """Demote as soon as nothing holds the device: udev and a QEMU that is just ending do for a moment."""
        deadline = self.clock.now() + _HELD_S
        while True:
            here = self.watch.resource(node, self.plan.name)
            if here is not None and here.role is Role.SECONDARY:
                return
            try:
                self.storage.demote(node, self.plan.name, self.lease.token)
            except DeviceHeld:
                if self.clock.now() > deadline:
                    raise
                self.clock.sleep(_HELD_AGAIN_S)
            else:
                return

    def _on_each(self, command: str) -> str:
        return on_each(command, self.plan.name, (self.source, self.target))

    def _directions(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return (self.source, self.target), (self.target, self.source)

    def _ends(self) -> tuple[tuple[Resource, str], ...] | None:
        found = [(self.watch.resource(node, self.plan.name), peer) for node, peer in self._directions()]
        known = tuple((resource, peer) for resource, peer in found if resource is not None)
        return known if len(known) == len(found) else None

    @staticmethod
    def _says(here: Resource, peer: str, of: str, role: Role) -> bool:
        """Whether ``here`` is Connected, and says that the node ``of`` (itself or its peer) has ``role``."""
        connection = here.towards(peer)
        if connection is None or connection.state is not ConnectionState.CONNECTED:
            return False
        return (here.role if here.node == of else connection.peer_role) is role
