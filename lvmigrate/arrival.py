"""A guest that has arrived: let it run, and see that it runs there and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from lvmigrate.clock import Clock
from lvmigrate.decision import Sight
from lvmigrate.disks import Disks
from lvmigrate.errors import GuestLost, LvmigrateError, OutcomeUnknown
from lvmigrate.settle import Settlement

#: A guest was seen to die on the target 60 ms after a successful move: look again after this long.
_STILL_S: Final = 0.3
#: How long a guest that waits is kept waiting for its disks to be whole again, before a person has to decide.
_WHOLE_S: Final = 30.0
_ASK_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """The end of the way: the source's copy is gone, by both nodes' word."""

    settlement: Settlement
    disks: Disks
    clock: Clock = field(default_factory=Clock)

    @property
    def expected(self) -> Sight:
        """How the guest is to be seen on the target."""
        return Sight.WAITS if self.settlement.ran is False else Sight.RUNS

    def let_run(self) -> None:
        """Let the guest run if it ran before: both kernels must say now that its disks hold the same data.

        Raises `OutcomeUnknown` when they do not say so in time: then the guest is held, and nothing was undone.
        """
        deadline = self.clock.now() + _WHOLE_S
        while doubts := self.disks.doubts_now():
            if self.clock.now() > deadline:
                raise self._held(doubts)
            self.clock.sleep(_ASK_S)
        if self.settlement.ran is not False:
            self.settlement.let_run(self.settlement.target)

    def alone(self) -> None:
        """As `seen_alone`, after the moment in which a guest that cannot live there has died."""
        self.clock.sleep(_STILL_S)
        self.seen_alone()

    def seen_alone(self) -> None:
        """Both nodes say that the guest is on the target as it should, and gone at the source.

        Raises `OutcomeUnknown` or `GuestLost`.
        """
        settlement = self.settlement
        name, (source, target) = settlement.instance, settlement.look_until_known()
        if (source, target) == (Sight.GONE, self.expected):
            return
        if (source, target) == (Sight.RUNS, Sight.RUNS):
            raise settlement.twice()
        if (source, target) == (Sight.GONE, Sight.GONE):
            raise GuestLost(
                f"{name} arrived on {settlement.target} and died there.",
                hint=f"See /var/log/libvirt/qemu/{name}.log on {settlement.target}.",
            )
        raise OutcomeUnknown(
            f"{name} arrived on {settlement.target}, but it is not proved that it {self.expected.value} there alone.",
            known=[f"{settlement.source}: {source.value}", f"{settlement.target}: {target.value}"],
            hint=f"`virsh domstate --reason {name}` on both nodes; nothing was undone. `lvmigrate cleanup {name}`"
            " finishes the move as soon as both nodes answer.",
        )

    def _held(self, doubts: list[str]) -> LvmigrateError:
        settlement = self.settlement
        name, source, target = settlement.instance, settlement.source, settlement.target
        sights = settlement.look()
        known = [*doubts, *(f"{name} on {n}: {s.value}" for n, s in zip(settlement.nodes, sights, strict=True))]
        if sights[1] is not Sight.WAITS:
            return OutcomeUnknown(
                f"{name} has arrived on {target} and may run there, but replication was not seen whole: each of the two"
                " disks may have writes that the other one lacks.",
                known=known,
                hint=f"Nothing was undone. Mend the link (`drbdsetup status` on both nodes), then `lvmigrate cleanup"
                f" {name}`. If both disks have changed, it says so, and a person must choose: what {name} has written"
                f" since it arrived is on {target} only; give up neither disk before that is known.",
            )
        return OutcomeUnknown(
            f"{name} has arrived on {target}, but replication was not seen whole, so {source} may have the newer disk.",
            known=known,
            hint=f"Nothing was undone; {name} waits on {target}. Mend the link (`drbdsetup status` on both nodes), then"
            f" `lvmigrate cleanup {name}` lets it run. If they do not connect again, one way is back: `virsh destroy"
            f" {name}` on {target}, give up its data there (`drbdadm connect --discard-my-data`), `virsh start {name}`"
            f" on {source}: the disk is whole there, as after a power cut.",
        )
