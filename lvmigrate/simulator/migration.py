"""libvirt's peer-to-peer migration of one guest: a job of the source's daemon, which outlives whoever asked for it.

The phases are those of libvirt's protocol; what happens to each when a link is cut, a daemon or a QEMU is killed or a
node dies was measured (facts/libvirt.md).  The worst of it: a reply of the last phase that is lost leaves the target's
copy where it is and lets the source's daemon *resume its own copy*, a keepalive later.
"""

from __future__ import annotations

from typing import Final

from lvmigrate.domain import DomainState
from lvmigrate.plan import Switch
from lvmigrate.protocols import CopyEnd
from lvmigrate.simulator.drbd import KernelRefused
from lvmigrate.simulator.guests import Copy, Definition, Guest
from lvmigrate.simulator.host import Phase
from lvmigrate.simulator.timeline import Act, Event
from lvmigrate.simulator.truth import Truth

#: How long connecting to a target that does not answer takes, in seconds.
_CONNECT_S: Final = 4.3
_BEGIN_S: Final = 0.05
_PREPARE_S: Final = 0.2
_LAST_PASS_S: Final = 0.1
_REPLY_S: Final = 0.15
_ABORT_S: Final = 0.25
#: How long the target needs to end its copy after the source's connection has gone.
_CLEAN_S: Final = 1.0
_MIB: Final = 1 << 20


class Migration:
    """One job."""

    def __init__(self, world: Truth, guest: Guest, source: str, target: str, switch: Switch) -> None:
        self.world = world
        self.guest = guest
        self.source = source
        self.target = target
        self.switch = switch
        self.phase = Phase.BEGIN
        #: How the call of whoever asked ended, once it has.
        self.end: CopyEnd | None = None
        self.begun_at = world.timeline.now
        self._ran = self._copy(source).runs
        self._target_booted_at = world.hosts[target].booted_at_s
        self._aborted = False
        #: The source's daemon was killed, and has not come back yet.
        self._orphan = False
        #: How long the copy takes when nothing disturbs it.
        self._copy_s = world.settings.copy_s if guest.copy_s is None else guest.copy_s
        self._left_s = self._copy_s
        self._timer: Event | None = None
        #: When the present phase is over, if nothing stops it.
        self._due = 0.0
        self._act: Act | None = None
        self._keepalive: Event | None = None
        world.hosts[source].jobs[guest.uuid] = self
        world.migrations.append(self)
        self._enter(Phase.BEGIN, _BEGIN_S, self._prepare)

    # ---- the phases, in their order

    def _prepare(self) -> None:
        if not self._path():
            self._after(_CONNECT_S, lambda: self._fail("unable to connect to the target"))
            return
        self._enter(Phase.PREPARE, _PREPARE_S, self._receive)

    def _receive(self) -> None:
        """The target starts a QEMU that waits for the memory; it opens the disks, for reading or for writing."""
        if not self._path():
            self._after(_CONNECT_S, lambda: self._fail("the target does not answer"))
            return
        there = self.world.hosts[self.target]
        if self.guest.uuid in there.copies:
            self._fail("domain is already active as on the target")
            return
        copy = Copy(
            guest=self.guest,
            node=self.target,
            state=DomainState.PAUSED,
            reason="migration",
            memory={},
            incoming=True,
        )
        try:
            self.world.open_disks(copy, write=self.world.settings.incoming_writes)
        except KernelRefused as refusal:
            self._fail(f"Could not open '{self.guest.disks[0].path}': {refusal.words}")
            return
        there.copies[self.guest.uuid] = copy
        self._emit(self.target, "started migrated")
        self._enter(Phase.TRANSFER, self._left_s, self._suspend)

    def _suspend(self) -> None:
        self._left_s = 0.0
        here = self._copy(self.source)
        if here.runs:
            here.state, here.reason = DomainState.PAUSED, "migration"
            self._emit(self.source, "suspended migrated")
        self._enter(Phase.SUSPENDED, _LAST_PASS_S, self._finish)

    def _finish(self) -> None:
        here, there = self._copy(self.source), self._copy(self.target)
        try:
            self.world.open_disks(there, write=True)
        except KernelRefused as refusal:
            self._end_incoming("failed")
            self._fail(f"the target could not open the disk for writing: {refusal.words}")
            return
        there.memory = dict(here.memory)
        there.incoming = False
        there.reason = "user"
        if self.guest.persistent:
            self.world.hosts[self.target].definitions.setdefault(
                self.guest.uuid, Definition(guest=self.guest, autostart=False)
            )
        if self.switch is Switch.FAST and self._ran:
            with self.world.acting(f"libvirt on {self.target}"):
                self.world.run(there, "migrated")
                self._emit(self.target, "resumed migrated")
        self._enter(Phase.FINISHED, _REPLY_S, self._confirm)

    def _confirm(self) -> None:
        self.world.end_copy(self._copy(self.source), reason="migrated")
        self._done(CopyEnd(ok=True))
        self._emit(self.source, "stopped migrated")

    # ---- what others do to it

    def abort(self) -> bool:
        """``virDomainAbortJob``; whether libvirt accepts it."""
        if self.phase not in (Phase.BEGIN, Phase.PREPARE, Phase.TRANSFER) or self._orphan:
            return False
        if self._aborted:  # it is being given up already: asking again makes that no longer
            return True
        self._aborted = True
        if self._path():  # else the source's daemon waits for the target's answer, until the keepalive
            self._stop_timer()
            self._after(_ABORT_S, lambda: self._fail("operation aborted: canceled by client"))
        return True

    def path_changed(self) -> None:
        """The way between the two daemons went or came back, or the target's node did."""
        if self.phase is Phase.ENDED or self._orphan:
            return
        if self._path():
            if self._keepalive is not None:
                self._keepalive.cancel()
                self._keepalive = None
                if self.world.hosts[self.target].booted_at_s != self._target_booted_at:
                    self._after(0.1, lambda: self._fail("client socket is closed", incoming_ends=False))
                elif self._aborted:
                    self._after(_ABORT_S, lambda: self._fail("operation aborted: canceled by client"))
                elif self._act is not None:
                    self._after(max(0.0, self._left_s), self._act)
        elif self._keepalive is None and self.phase not in (Phase.BEGIN, Phase.PREPARE):
            if self._timer is not None and self._timer.due:
                self._left_s = max(0.0, self._due - self.world.timeline.now)
                self._timer.cancel()
            self._keepalive = self.world.timeline.after(self.world.settings.keepalive_s, self._lost)

    def _lost(self) -> None:
        """The source's daemon gives the target up; the target's daemon does the same some time later."""
        if self.phase is not Phase.FINISHED and self._incoming() is not None:
            self.world.timeline.after(self.world.settings.target_cleans_s, lambda: self._end_incoming("failed"))
        self._fail("the target does not answer (keepalive)", incoming_ends=False)

    def target_daemon_killed(self) -> None:
        """The source hears at once that the connection is closed."""
        if self.phase is Phase.ENDED or self._orphan or not self._path_but_daemon():
            return
        self._stop_timer()
        self._after(0.1, lambda: self._fail("client socket is closed", incoming_ends=False))

    def source_daemon_killed(self) -> None:
        """Nobody drives the job any more: the caller hears of it, the target ends what it was receiving."""
        if self.phase is Phase.ENDED:
            return
        self._orphan = True
        self._stop_timer()
        self.end = CopyEnd(ok=False, detail="End of file while reading data")
        if self.phase is not Phase.FINISHED:
            wait = _CLEAN_S if self._path() else self.world.settings.keepalive_s
            self.world.timeline.after(wait, lambda: self._end_incoming("failed"))

    def source_daemon_back(self) -> None:
        """A restarted daemon cancels a job that was copying; after the last pass it leaves the decision to others."""
        if not self._orphan or self.phase is Phase.ENDED:
            return
        resumes = self.phase not in (Phase.SUSPENDED, Phase.FINISHED)
        self._done(CopyEnd(ok=False, detail="End of file while reading data"))
        if resumes:
            self._resume_source()

    def resumed(self) -> None:
        """Somebody has let the source's copy run: the target's is to run as well (QEMU's own state travels)."""
        self._ran = True

    def copy_ended(self, node: str) -> None:
        """A QEMU of it died, or was ended."""
        if self.phase is Phase.ENDED or self._orphan:
            return
        if node == self.source:
            if self.phase is Phase.FINISHED:
                self._done(CopyEnd(ok=True))
            else:
                self._fail("domain is not running")
        elif self.phase in (Phase.TRANSFER, Phase.SUSPENDED):
            self._fail("Unable to write to socket", incoming_ends=False)

    def source_node_died(self) -> None:
        """The job is gone with its node; the target ends what it was receiving when it notices."""
        if self.phase is Phase.ENDED:
            return
        finished = self.phase is Phase.FINISHED
        self._done(CopyEnd(ok=False, detail="client socket is closed"))
        if not finished:
            self.world.timeline.after(self.world.settings.keepalive_s, lambda: self._end_incoming("failed"))

    # ---- what it says

    @property
    def total(self) -> int:
        """Bytes of memory."""
        return self.guest.memory_kib * 1024

    @property
    def remaining(self) -> int:
        """Bytes still to send."""
        if self.phase in (Phase.BEGIN, Phase.PREPARE):
            return self.total
        left_s = self._due - self.world.timeline.now if self.phase is Phase.TRANSFER else 0.0
        return int(self.total * min(1.0, max(0.0, left_s) / self._copy_s)) if self._copy_s else 0

    # ---- how

    def _copy(self, node: str) -> Copy:
        return self.world.hosts[node].copies[self.guest.uuid]

    def _incoming(self) -> Copy | None:
        copy = self.world.hosts[self.target].copies.get(self.guest.uuid)
        return copy if copy is not None and copy.incoming else None

    def _path_but_daemon(self) -> bool:
        return self.world.carries_libvirt(self.source, self.target) and self.world.hosts[self.target].powered

    def _path(self) -> bool:
        return self._path_but_daemon() and self.world.hosts[self.target].daemon

    def _enter(self, phase: Phase, seconds: float, act: Act) -> None:
        self.phase = phase
        self._after(seconds, act)
        self.world.phase_entered(self)
        if self.phase is phase and not self._path():
            self.path_changed()

    def _after(self, seconds: float, act: Act) -> None:
        self._act = act
        self._due = self.world.timeline.now + seconds

        def happen() -> None:
            if self.phase is not Phase.ENDED and not self._orphan:
                with self.world.acting(f"libvirt on {self.source}"):
                    act()

        self._timer = self.world.timeline.after(seconds, happen)

    def _stop_timer(self) -> None:
        for event in (self._timer, self._keepalive):
            if event is not None:
                event.cancel()

    def _done(self, end: CopyEnd) -> None:
        self._stop_timer()
        if self.phase is Phase.ENDED:
            return
        self.phase = Phase.ENDED
        if self.end is None:
            self.end = end
        self.world.hosts[self.source].jobs.pop(self.guest.uuid, None)
        self.world.phase_entered(self)

    def _fail(self, words: str, *, incoming_ends: bool = True) -> None:
        self._done(CopyEnd(ok=False, detail=words))
        if incoming_ends:
            self._end_incoming("failed")
        self._resume_source()

    def _resume_source(self) -> None:
        """Have libvirt let its own copy run again, if it was libvirt that stopped it."""
        here = self.world.hosts[self.source].copies.get(self.guest.uuid)
        if here is not None and here.state is DomainState.PAUSED and here.reason == "migration" and self._ran:
            with self.world.acting(f"libvirt on {self.source}"):
                self.world.run(here, "migration canceled")
                self._emit(self.source, "resumed migrated")

    def _end_incoming(self, why: str) -> None:
        copy = self._incoming()
        # A daemon that is down cannot; when it is back it finds a QEMU whose source is gone, and ends it.
        if copy is not None and self.world.hosts[self.target].answers_libvirt:
            self.world.end_copy(copy)
            self._emit(self.target, f"stopped {why}")

    def _emit(self, node: str, event: str) -> None:
        self.world.emit(node, self.guest.uuid, event)
