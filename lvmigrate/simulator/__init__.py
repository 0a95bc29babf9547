"""Hosts, their libvirt and their DRBD in memory, with time under control: for trying what must never go wrong.

It fulfils both Protocols of `lvmigrate.protocols`, knows what libvirt and DRBD were measured to do, can have anything
fail anywhere, and notes what must not happen at the moment at which it does.  It ships with the package, so that what
is built on lvmigrate can be tested on it, too.

A whole migration, and what is so afterwards:

    >>> from lvmigrate.migrate import MigrateInstance
    >>> from lvmigrate.simulator import World, audit
    >>> with World() as world:
    ...     guest = world.add_guest("web1", "node1")
    ...     move = MigrateInstance(world.controller("c1"), "web1")
    ...     plan = move.check_prereq()
    ...     report = move.exec()
    >>> report.target, world.running(guest), world.violations, audit(world)
    ('node2', ['node2'], [], ())

The same with DRBD's link cut for five minutes in the middle of the copy:

    >>> from lvmigrate.errors import MoveFailed
    >>> from lvmigrate.simulator import Happening
    >>> with World() as world:
    ...     guest = world.add_guest("web1", "node1")
    ...     world.faults.add("transfer#1", Happening.DRBD_CUT_LONG)
    ...     move = MigrateInstance(world.controller("c1"), "web1")
    ...     plan = move.check_prereq()
    ...     try:
    ...         report = move.exec()
    ...     except Exception as error:
    ...         print(type(error).__name__)
    LeftBehind
    >>> world.running(guest), world.violations
    (['node1'], [])
"""

from lvmigrate.simulator.audit import Finding, Wrong, audit
from lvmigrate.simulator.calls import Call, Kind, Place
from lvmigrate.simulator.controller import Controller, ControllerKilled
from lvmigrate.simulator.drbd import KernelRefused, Pace, Version
from lvmigrate.simulator.faults import Faults, Happening, Moment
from lvmigrate.simulator.guests import Guest
from lvmigrate.simulator.host import Phase
from lvmigrate.simulator.migration import Migration
from lvmigrate.simulator.settings import Settings
from lvmigrate.simulator.truth import DRBD, LIBVIRT
from lvmigrate.simulator.violations import Breach, Violation
from lvmigrate.simulator.world import World

__all__ = [
    "DRBD",
    "LIBVIRT",
    "Breach",
    "Call",
    "Controller",
    "ControllerKilled",
    "Faults",
    "Finding",
    "Guest",
    "Happening",
    "KernelRefused",
    "Kind",
    "Migration",
    "Moment",
    "Pace",
    "Phase",
    "Place",
    "Settings",
    "Version",
    "Violation",
    "World",
    "Wrong",
    "audit",
]
