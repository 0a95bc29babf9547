"""The other ways to move a guest of the lab, command by command: the shortest correct sequence, and the seed's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from vagrant.labkit.by_hand import ByHand
from vagrant.labkit.guests import Guest
from vagrant.labkit.lab import NODES, Lab, other

#: How often the seed asks while it waits for disks, and for a migration, in seconds.
_DISKS_S = 1.0
_COPY_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """One move. Seconds."""

    total: float
    #: Both nodes Primary, less the time that libvirt took for the copy.
    dual_beyond_copy: float
    #: Commands that went to a node.
    commands: int


class Hand:
    """An operator with a shell on each node, over one kept connection each."""

    def __init__(self, lab: Lab, guest: Guest) -> None:
        self._lab = lab
        self._guest = guest
        self._resource = str(guest.resource)
        self._words = ByHand.of(lab, guest)
        self._commands = 0
        self._demoted = 0.0

    def shortest(self, source: str) -> Took:
        """Two primaries allowed, the target promoted, `virsh migrate`, the source demoted, two primaries forbidden.

        One command after the other; nothing is looked at in between, since each fails if it cannot be done.
        """
        target = other(source)

        def before() -> None:
            self._options("yes")
            self._promote(target)

        def after() -> None:
            self._demote(source)
            self._options("no")

        return self._timed(source, before=before, after=after)

    def as_the_seed(self, source: str) -> Took:
        """What `TLMigrateInstance._ExecMigration` does: one primary, apart, together with two, and all of it back."""
        target = other(source)

        def before() -> None:
            self._in_step()
            self._demote(target)
            self._apart_and_together(two="yes")
            self._in_step()
            self._promote(target)

        def after() -> None:
            self._demote(source)
            self._in_step()
            self._apart_and_together(two="no")
            self._in_step()

        return self._timed(source, before=before, after=after, poll_s=_COPY_S)

    def _timed(
        self, source: str, *, before: Callable[[], object], after: Callable[[], object], poll_s: float = 0
    ) -> Took:
        self._commands = 0
        begin = time.monotonic()
        before()
        dual = time.monotonic()
        copy_s = self._copy(source, poll_s)
        after()
        return Took(
            total=time.monotonic() - begin,
            dual_beyond_copy=self._demoted - dual - copy_s,
            commands=self._commands,
        )

    def _copy(self, source: str, poll_s: float) -> float:
        begin = time.monotonic()
        words = self._words.migrate(source, bandwidth_mib_s=2)
        if not poll_s:
            self._run(source, words)
            return time.monotonic() - begin
        # The seed starts it, and asks for its state until it has ended.
        self._run(
            source, f"({words} >/run/bench.log 2>&1; echo $? >/run/bench.rc) >/dev/null 2>&1 & rm -f /run/bench.rc"
        )
        while True:
            time.sleep(poll_s)
            said = self._run(
                source, f"virsh domjobinfo {self._guest.name} 2>/dev/null; cat /run/bench.rc 2>/dev/null; true"
            )
            if (code := said.split()[-1:]) and code[0].isdigit() and "Job" not in said:
                if code[0] != "0":
                    raise RuntimeError(f"virsh migrate failed: {said}")
                return time.monotonic() - begin

    def _options(self, allow: str) -> None:
        for node in NODES:
            self._run(node, self._words.two_primaries(node, allow))

    def _promote(self, node: str) -> None:
        self._run(node, self._words.primary)

    def _demote(self, node: str) -> None:
        self._run(node, self._words.secondary)
        self._demoted = time.monotonic()

    def _apart_and_together(self, *, two: str) -> None:
        for node in NODES:
            self._run(node, f"drbdadm disconnect {self._resource}")
        for node in NODES:
            if self._words.old:  # a connection that was disconnected has no options any more
                self._run(node, f"drbdadm connect --protocol=C --allow-two-primaries={two} {self._resource}")
            else:
                self._run(node, self._words.two_primaries(node, two))
                self._run(node, f"drbdadm connect {self._resource}")

    def _in_step(self) -> None:
        while not all(
            text.count("UpToDate") == 2 * len(self._guest.disks)
            for text in [self._run(node, f"drbdsetup status {self._resource}") for node in NODES]
        ):
            time.sleep(_DISKS_S)

    def _run(self, node: str, command: str) -> str:
        self._commands += 1
        return self._lab.run(node, command)
