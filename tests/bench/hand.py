"""The other ways to move a guest of the lab, command by command: the shortest correct sequence, and the seed's."""

from __future__ import annotations

import enum
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from tests.bench.trips import Counter, Trips
from vagrant.labkit.by_hand import ByHand
from vagrant.labkit.guests import Guest
from vagrant.labkit.lab import NODES, Lab, other

#: How often the seed asks while it waits for disks, and for a migration, in seconds.
_DISKS_S: Final = 1.0
_COPY_S: Final = 2.0
#: How long either may take.
_PATIENCE_S: Final = 300.0
#: How virsh tells what it was asked to time (``-t``): the call alone, without its own start and its connection.
_TIME: Final = re.compile(r"\(Time: ([\d.]+) ms\)")


#: When what systemd keeps ready acts, in seconds: no move of the lab takes as long.
_CLOSES_AFTER_S: Final = 60


class Care(enum.Enum):
    """How careful somebody is who does it by hand."""

    #: Acts, and looks at nothing.
    BLIND = enum.auto()
    #: Sees on both nodes what each act has done before the next one.
    LOOKS = enum.auto()
    #: Also keeps others away, has the guest arrive paused and lets it run once it is seen on the target alone, with its
    #: disks in step, and has systemd close what is open should the operator's machine die: what lvmigrate promises.
    GUARDED = enum.auto()


class HandFailedError(RuntimeError):
    """A move by hand did not come to its end; the guest is as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """One move. Seconds."""

    total: float
    #: Both nodes Primary, less libvirt's migrate call: from the moment it is made until it has returned.
    dual_beyond_copy: float
    trips: Trips


class Hand:
    """An operator with a shell on each node, over one kept connection each. ``trips`` counts what a move takes."""

    def __init__(self, lab: Lab, guest: Guest, trips: Counter | None = None) -> None:
        self._lab = lab
        self._guest = guest
        self._resource = str(guest.resource)
        self._words = ByHand.of(lab, guest)
        self._trips = trips
        self._demoted = 0.0

    def move(self, source: str, care: Care) -> Took:
        """Two primaries allowed, the target promoted, `virsh migrate`, the source demoted, two primaries forbidden.

        One command after the other, each of which fails if it cannot be done.
        """
        target = other(source)

        def before() -> None:
            self._arm(care)
            self._look(care, guest=True)
            self._options("yes")
            self._look(care)
            self._promote(target)

        def copy() -> float:
            # What is seen of the promotion is seen while both are Primary.
            self._look(care)
            return self._copied(source, paused=care is Care.GUARDED)

        def after() -> None:
            self._look(care, guest=True)
            if care is Care.GUARDED:
                self._run(target, f"virsh -q resume {self._guest.name}")
                self._look(care, guest=True)
            self._demote(source)
            self._look(care)
            self._options("no")
            self._look(care)
            self._disarm(care)

        return self._timed(source, before=before, after=after, copy=copy)

    def open_close_s(self, source: str, target: str, care: Care) -> float:
        """Seconds for a dual-primary without a move in it, opened and closed."""
        begin = time.monotonic()
        self._arm(care)
        for act in (
            partial(self._options, "yes"),
            partial(self._promote, target),
            partial(self._demote, source),
            partial(self._options, "no"),
        ):
            self._look(care)
            act()
        self._look(care)
        self._disarm(care)
        return time.monotonic() - begin

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

        return self._timed(source, before=before, after=after, copy=lambda: self._copied_asking(source))

    def _timed(
        self, source: str, *, before: Callable[[], object], after: Callable[[], object], copy: Callable[[], float]
    ) -> Took:
        if self._trips is not None:
            self._trips.begin()
        begin = time.monotonic()
        before()
        dual = time.monotonic()
        copy_s = copy()
        after()
        total = time.monotonic() - begin
        trips = Trips() if self._trips is None else self._trips.made()
        return Took(total=total, dual_beyond_copy=self._demoted - dual - copy_s, trips=trips)

    def _copied(self, source: str, *, paused: bool) -> float:
        """Seconds of the migrate call, whose end is waited for."""
        return _call_s(self._run(source, self._words.migrate(source, bandwidth_mib_s=2, timed=True, paused=paused)))

    def _copied_asking(self, source: str) -> float:
        """The same, as the seed does it: started, and asked for until it has ended. Raises `HandFailedError`."""
        words = self._words.migrate(source, bandwidth_mib_s=2, timed=True)
        self._run(
            source, f"rm -f /run/bench.rc; ({words} >/run/bench.log 2>&1; echo $? >/run/bench.rc) >/dev/null 2>&1 &"
        )
        deadline = time.monotonic() + _PATIENCE_S
        while not (ended := self._run(source, "cat /run/bench.rc 2>/dev/null; true").strip()):
            if time.monotonic() > deadline:
                raise HandFailedError(f"virsh migrate has no end within {_PATIENCE_S:g} s")
            time.sleep(_COPY_S)
        said = self._run(source, "cat /run/bench.log")
        if ended != "0":
            raise HandFailedError(f"virsh migrate failed with {ended}: {said.strip()}")
        return _call_s(said)

    def _look(self, care: Care, *, guest: bool = False) -> None:
        """Look on both nodes, at the guest as well if what becomes of it hangs on that."""
        if care is Care.BLIND:
            return
        at_guest = "virsh -q list --all; " if guest and care is Care.GUARDED else ""
        for node in NODES:
            self._run(node, f"{at_guest}drbdsetup status {self._resource}; drbdsetup show {self._resource}")

    def _arm(self, care: Care) -> None:
        if care is not Care.GUARDED:
            return
        for node in NODES:
            self._run(node, "set -C; echo me >/run/by-hand")
        for node in NODES:
            close = f"{self._words.secondary}; {self._words.two_primaries(node, 'no')}"
            later = f"--unit=by-hand --on-active={_CLOSES_AFTER_S}"
            self._run(node, f"systemd-run --quiet --collect {later} /bin/sh -c {shlex.quote(close)}")

    def _disarm(self, care: Care) -> None:
        if care is not Care.GUARDED:
            return
        for node in NODES:
            self._run(node, "systemctl stop by-hand.timer")
            self._run(node, "rm /run/by-hand")

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
        deadline = time.monotonic() + _PATIENCE_S
        while not all(
            text.count("UpToDate") == 2 * len(self._guest.disks)
            for text in [self._run(node, f"drbdsetup status {self._resource}") for node in NODES]
        ):
            if time.monotonic() > deadline:
                raise HandFailedError(f"{self._resource} is not in step within {_PATIENCE_S:g} s")
            time.sleep(_DISKS_S)

    def _run(self, node: str, command: str) -> str:
        return self._lab.run(node, command)


def _call_s(said: str) -> float:
    found = _TIME.search(said)
    if found is None:
        raise HandFailedError(f"virsh does not tell how long its call took: {said.strip()}")
    return float(found[1]) / 1000
