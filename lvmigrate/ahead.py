"""The checks of those who set out next, made while the memory of others is copied: no place has to wait for them.

A check only looks, so that nothing is held, promised or undone for one that is not used.  It is used where it refuses
nothing, is young, and nothing that was asked about is known to have changed; else the move is checked when its turn
comes, and what is against it is said by that check alone.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from lvmigrate.aside import aside
from lvmigrate.domain import Domain
from lvmigrate.migrate import MigrateInstance
from lvmigrate.node import Node
from lvmigrate.plan import Mode, Plan
from lvmigrate.tasklet import Context
from lvmigrate.together import in_turn

#: For how long a check holds, in seconds: as long as a pre hook may take between it and the move.  What takes longer to
#: copy can wait for a new one, which takes a second.
GOOD_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Check:
    tasklet: MigrateInstance
    context: Context
    nodes: Mapping[str, Node]
    began: float
    outcome: queue.SimpleQueue[Callable[[], Plan]]


class Ahead:
    """The checks under way, and those that have ended. `take` may be called from any thread."""

    def __init__(self) -> None:
        #: By UUID and target.
        self._checks: dict[tuple[str, str], _Check] = {}

    def begin(self, context: Context, domain: Domain, target: str, make: Callable[[], MigrateInstance]) -> None:
        """Check what ``make`` makes, unless that was begun a short time ago."""
        if in_turn.get():
            return  # there is nothing beside anything else
        key, now = (domain.uuid, target), context.clock.now()
        before = self._checks.get(key)
        if before is not None and now - before.began < GOOD_S:
            return
        tasklet = make()
        outcome = aside(tasklet.check_prereq, f"check-{domain.name}")
        self._checks[key] = _Check(
            tasklet=tasklet, context=context, nodes=dict(context.nodes), began=now, outcome=outcome
        )

    def take(self, uuid: str, target: str, nodes: Mapping[str, Node]) -> MigrateInstance | None:
        """What was checked and can set out as it is, waited for; ``None``: it is to be checked now.

        ``nodes``: as they are by now.
        """
        check = self._checks.pop((uuid, target), None)
        if check is None or check.nodes != dict(nodes):
            return None
        try:
            plan = check.outcome.get()()
            # What it was found to be decides what is done with it: its autostart, its state, its disks.
            same = check.context.hypervisor.domain(plan.source, uuid) == plan.domain
        except Exception:  # noqa: BLE001 -- whatever it is, the check that counts says it
            return None
        young = check.context.clock.now() - check.began < GOOD_S
        # One that is shut down instead of moved is down for whatever the check did not see.
        return check.tasklet if young and same and plan.mode is not Mode.FAILOVER else None
