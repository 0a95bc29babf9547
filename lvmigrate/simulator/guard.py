"""The dead-man's guard of one guest on one node: it decides with `lvmigrate.guard.decide`, from what its node sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from lvmigrate import guard as decision
from lvmigrate.domain import DomainState
from lvmigrate.guard import Act, Link
from lvmigrate.replication import ConnectionState, ReplicationState, Role
from lvmigrate.simulator.drbd import KernelRefused, Replicated
from lvmigrate.simulator.host import Host
from lvmigrate.simulator.timeline import Event
from lvmigrate.simulator.truth import Truth
from lvmigrate.token import Guarded, GuardSeen

#: How often a guard looks, in seconds.
TICK_S: Final = 2.0
#: Acts in one look: each changes something, so there is an end.
_MOST_ACTS: Final = 10


@dataclass(slots=True, kw_only=True, eq=False)
class Guard:
    """It survives the controller that armed it, and dies with its node."""

    world: Truth
    host: Host
    uuid: str
    instance: str
    #: With the node's own names, as all that is on a node.
    guarded: tuple[Guarded, ...]
    #: Whether it may let the guest run at all, and whether the guest ran when it was armed.
    resume: bool
    ran: bool
    #: By the node's own name of a resource: the generation of the data when it was armed.
    generations: dict[str, str]
    #: Its service runs; one that was killed leaves its files.
    alive: bool = True
    says: str = ""
    _next: Event | None = field(default=None)
    #: What was so when it last had to wait.
    _waited: tuple[int, bool] | None = field(default=None)

    def start(self) -> None:
        """Look from now on."""
        self._next = self.world.timeline.after(TICK_S, self._tick)

    def end(self) -> None:
        """Do nothing more."""
        self.alive = False
        if self._next is not None:
            self._next.cancel()

    def seen(self) -> GuardSeen:
        """As a command finds it."""
        return GuardSeen(
            node=self.host.name,
            uuid=self.uuid,
            instance=self.instance,
            alive=self.alive,
            guarded=self.guarded,
            resume=self.resume and self.ran,
            says=self.says,
        )

    def _tick(self) -> None:
        if not self.alive:
            return
        if self._waited == (now := (self.world.changes, self._lives())):
            self.start()  # nothing has changed since it had to wait
            return
        with self.world.acting(f"guard on {self.host.name}"):
            for _ in range(_MOST_ACTS):
                if not self._act():
                    break
            else:
                now = (-1, False)
        self._waited = now if self.world.changes == now[0] else None
        if self.alive:
            self.start()

    def _lives(self) -> bool:
        file = self.host.tokens.get(self.uuid)
        return file is not None and file.deadline_s > self.host.uptime(self.world.timeline.now)

    def _is_to_run(self) -> bool:
        """By the token, whose word is the newer one, or else as it was when this guard was armed."""
        file = self.host.tokens.get(self.uuid)
        errand = None if file is None else file.token.errand
        return self.ran if errand is None else errand.ran

    def _act(self) -> bool:
        """Do one thing; whether something was done, so that another look is worth while."""
        alive = self._lives()
        copy = self._copy()
        # The links are looked at only where they matter, as the real one does.
        links = () if alive or copy in (decision.Copy.BUSY, decision.Copy.UNKNOWN) else self._links()
        act, number = decision.decide(copy, links, alive=alive, resume=self.resume and self._is_to_run())
        self.says = "" if act is Act.SLEEP else act.value
        guarded = None if number is None else self.guarded[number]
        try:
            match act:
                case Act.DEMOTE if guarded is not None:
                    self.world.demote(self.host.name, self._of(guarded).name)
                case Act.RESTORE if guarded is not None:
                    self.world.set_options(self.host.name, self._of(guarded).name, guarded.options)
                case Act.RESUME:
                    self.world.resume(self.host.name, self.uuid)
                case Act.DISARM:
                    # The token that ran out stays: it says what the move set out to do. Under another id: a command of
                    # its holder's that is late must not open again what nobody would close.
                    if (file := self.host.tokens.get(self.uuid)) is not None:
                        file.token = replace(file.token, id=f"over-{file.token.id.removeprefix('over-')}")
                    self.host.guards.pop(self.uuid, None)
                    self.end()
                    return False
                case _:
                    return False
        except KernelRefused as refusal:
            self.says = refusal.words
            return False
        return True

    def _copy(self) -> decision.Copy:
        copy = self.host.copies.get(self.uuid)
        if not self.host.daemon:
            return decision.Copy.UNKNOWN
        if self.uuid in self.host.jobs or (copy is not None and copy.incoming):
            return decision.Copy.BUSY
        if copy is None:
            definition = self.host.definitions.get(self.uuid)
            left = definition is None or definition.off == "migrated"
            return decision.Copy.LEFT if left else decision.Copy.NONE
        waits = copy.state is DomainState.PAUSED and copy.reason == "user"
        return decision.Copy.WAITS if waits else decision.Copy.LIVES

    def _links(self) -> Sequence[Link]:
        return [self._link(guarded) for guarded in self.guarded]

    def _of(self, guarded: Guarded) -> Replicated:
        here = (r for r in self.world.resources.values() if r.called.get(self.host.name) == guarded.resource)
        return next(here)

    def _link(self, guarded: Guarded) -> Link:
        resource = self._of(guarded)
        end, seen = resource.ends[self.host.name], resource.view(self.host.name)
        connection = None if seen is None else seen.towards(guarded.peer)
        connected = connection is not None and connection.state is ConnectionState.CONNECTED
        return Link(
            primary=end.role is Role.PRIMARY,
            held=bool(end.holds),
            connected=connected,
            peer_secondary=connection is not None and connected and connection.peer_role is Role.SECONDARY,
            in_step=seen is not None
            and seen.in_step_with(guarded.peer)
            and connection is not None
            and all(volume.replication is ReplicationState.ESTABLISHED for volume in connection.volumes),
            unbroken=end.generation == self.generations.get(guarded.resource),
            changed=connection is not None
            and (end.two_primaries, end.protocol)
            != (guarded.options.allow_two_primaries, guarded.options.protocol or "C"),
        )
