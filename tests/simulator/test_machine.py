"""One guest, two nodes, and whatever may come in whatever order: hypothesis draws the schedules.

Moves, cleanups, aborts, waiting, and every happening that the simulator knows, at once or in the middle of what a
controller does.  Nothing forbidden may happen at any time; and in the end, with everything mended, a cleanup leads back
to one copy with nothing left open, unless by the world's truth a person has to decide.
"""

from __future__ import annotations

import os
from typing import Any, Final

import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lvmigrate.errors import Code, LvmigrateError
from lvmigrate.migrate import MigrateInstance
from lvmigrate.plan import Switch
from lvmigrate.simulator import ControllerKilled, Guest, Happening, World
from tests.campaign.cases import VARIANTS, Case, Variant, scenario
from tests.campaign.run import Outcome, clean_up, cleanup

#: Long enough for every guard, boot, late call and resynchronisation.
_HEALED_S: Final = 400.0
#: Something that is to happen in a cleanup is sooner than this, in seconds.
_PLANNED_S: Final = 41.0
_MOST_CONTROLLERS: Final = 20


class Machine(RuleBasedStateMachine):
    """The rules."""

    world: World
    guest: Guest

    def __init__(self) -> None:
        super().__init__()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        self.controllers = 0
        self.entered = False

    @initialize(variant=st.sampled_from([v for v in VARIANTS if v.switch is Switch.STRICT]))
    def begin(self, variant: Variant) -> None:
        self.outcome = Outcome(case=Case(variant=variant, scenario=scenario("migrate")))
        self.options = variant.options
        self.world = World(settings=variant.settings)
        self.world.__enter__()
        self.entered = True
        self.guest = self.world.add_guest("web1", "node1", running=variant.running)
        self.world.timeline.advance(1.0)

    # ---- what controllers do, and what happens to them meanwhile

    @precondition(lambda self: self.controllers < _MOST_CONTROLLERS)
    @rule(after=st.lists(st.tuples(st.floats(0.0, 6.0), st.sampled_from(Happening)), max_size=2))
    def migrate(self, after: list[tuple[float, Happening]]) -> None:
        self.plan_for(after)
        context = self.world.controller(self.next_controller())

        def move() -> None:
            tasklet = MigrateInstance(context, "web1", options=self.options)
            tasklet.check_prereq()
            tasklet.exec()

        self.ended(move)

    @precondition(lambda self: self.controllers < _MOST_CONTROLLERS)
    @rule(
        after=st.lists(st.tuples(st.floats(0.0, _PLANNED_S - 1.0), st.sampled_from(Happening)), max_size=1),
        abort=st.booleans(),
    )
    def clean(self, after: list[tuple[float, Happening]], *, abort: bool) -> None:
        self.plan_for(after)
        cleanup(self.world, self.next_controller(), self.outcome, abort=abort)

    @rule(what=st.sampled_from(Happening))
    def happen(self, what: Happening) -> None:
        if self.world.controllers:
            self.world.faults.happen(what)

    @rule(seconds=st.sampled_from([0.5, 5.0, 40.0, 200.0]))
    def wait(self, seconds: float) -> None:
        self.world.timeline.advance(seconds)

    @rule()
    def heal(self) -> None:
        self.world.heal()

    # ---- what must hold

    @invariant()
    def nothing_forbidden_has_happened(self) -> None:
        if self.entered:
            assert self.world.violations == [], self.story()
            assert self.outcome.violations == [], self.story()

    def teardown(self) -> None:
        if not self.entered:
            return
        try:
            # What was planned last is to have happened: what breaks after the last healing stays broken.
            self.world.timeline.advance(_PLANNED_S)
            self.world.heal()
            self.world.timeline.advance(_HEALED_S)
            clean_up(self.world, self.guest, self.outcome, first=self.controllers + 1)
            self.nothing_forbidden_has_happened()
        finally:
            self.world.__exit__(None, None, None)

    # ---- how

    def next_controller(self) -> str:
        self.controllers += 1
        return f"c{self.controllers}"

    def plan_for(self, after: list[tuple[float, Happening]]) -> None:
        name = f"c{self.controllers + 1}"
        for seconds, what in after:
            self.world.timeline.after(seconds, lambda what=what: self.world.faults.happen(what, name))  # type: ignore[misc]

    def ended(self, work: Any) -> None:
        try:
            work()
        except LvmigrateError as error:
            assert error.code is not Code.INTERNAL, error
        except ControllerKilled:
            pass

    def story(self) -> str:
        lines = [f"{at_s:9.3f} {what}" for at_s, what in self.world.story]
        return "\n".join(["", *lines, *map(str, self.world.violations), *self.outcome.violations])


_LONG: Final = int(os.environ.get("LVMIGRATE_MACHINE_EXAMPLES", "0"))
TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=_LONG or 60,
    stateful_step_count=10,
    derandomize=not _LONG,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)


def test_a_person_gives_up_the_copy_that_the_guest_had_left() -> None:
    """The guest moved, both copies changed, and it died away from home: what counts is where it ran last."""
    machine = Machine()
    machine.begin(Variant.parse("8.4/strict/running"))
    machine.migrate([])
    machine.migrate([(1.0, Happening.DRBD_CUT_SHORT)])
    machine.migrate([(0.0, Happening.TARGET_QEMU_KILLED)])
    machine.teardown()
    assert machine.outcome.held.startswith("split-brain")
    assert [copy.node for copy in machine.world.copies(machine.guest)] == []  # it is lost, and told of
