"""What is checked before its turn: when that counts, and when the move is checked anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from lvmigrate.ahead import GOOD_S, Ahead
from lvmigrate.domain import Domain, DomainState
from lvmigrate.drain_move import Ears, made, move
from lvmigrate.errors import Code, LvmigrateError, Refused
from lvmigrate.manner import Manner
from lvmigrate.plan import Options
from lvmigrate.progress import MemoryProgress
from lvmigrate.protocols import CopyEnd
from lvmigrate.report import Report
from lvmigrate.tasklet import Context
from lvmigrate.together import in_turn
from lvmigrate.traffic import Departure
from tests.unit.fakes import UUID, FakeCopy, FakeHypervisor, World, unreachable

DEPARTURE = Departure(
    uuid=UUID, name="web1", source="node1", target="node2", memory_kib=1, bandwidth_mib_s=7, seconds=1.0
)
#: What only a check asks for.
CHECKED = "premises"


@dataclass
class Turn:
    """A guest that was checked ahead, for a share of 5 MiB/s."""

    world: World = field(default_factory=World)
    options: Options = field(default_factory=Options)
    ahead: Ahead = field(default_factory=Ahead)

    def __post_init__(self) -> None:
        self.context = self.world.context()

    def begin(self, *, target: str = "node2") -> None:
        domain = self.world.domains["node1"]
        options = replace(self.options, bandwidth_mib_s=5)
        make = partial(made, self.context, UUID, target, Manner(), options, ears=Ears())
        self.ahead.begin(self.context, domain, target, make)

    def ended(self) -> None:
        """Wait for the check, and forget what it has asked."""
        for check in self.ahead._checks.values():  # nobody else waits for one without taking it
            check.outcome.put(check.outcome.get())
        self.world.calls.clear()

    def move(self, context: Context | None = None) -> Report:
        manner = Manner(options=lambda _domain: self.options)
        domain = self.world.domains["node1"]
        return move(context or self.context, DEPARTURE, manner, domain, ears=Ears(), ahead=self.ahead)

    @property
    def checked_anew(self) -> bool:
        return CHECKED in {method for method, _ in self.world.calls}


def test_what_was_checked_ahead_sets_out_at_once_and_with_its_share_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[int | None] = []
    copy_memory = FakeHypervisor.copy_memory

    def noted(self: FakeHypervisor, domain: Domain, target: str, options: Options) -> FakeCopy:
        rates.append(options.bandwidth_mib_s)
        return copy_memory(self, domain, target, options)

    monkeypatch.setattr(FakeHypervisor, "copy_memory", noted)
    turn = Turn()
    turn.begin()
    turn.ended()
    assert turn.move().target == "node2"
    assert (turn.checked_anew, rates) == (False, [7])
    assert list(turn.world.violations()) == []


def test_a_check_that_is_under_way_is_waited_for() -> None:
    turn = Turn()
    turn.begin()
    turn.move()
    assert [method for method, _ in turn.world.calls].count(CHECKED) == 2  # one on each node


@pytest.mark.parametrize("old", [False, True])
def test_it_is_checked_again_ahead_only_once_the_check_is_old(*, old: bool) -> None:
    turn = Turn()
    turn.begin()
    turn.ended()
    turn.world.time += GOOD_S if old else 0.0
    turn.begin()
    assert turn.ahead.take(UUID, "node2", turn.context.nodes) is not None
    assert turn.checked_anew is old


def _autostart(turn: Turn) -> None:
    turn.world.set("node1", autostart=False)


def _paused(turn: Turn) -> None:
    turn.world.set("node1", state=DomainState.PAUSED, reason="user")


def _disk(turn: Turn) -> None:
    turn.world.set("node1", disks=tuple(replace(disk, target="vdb") for disk in turn.world.domains["node1"].disks))


def _old(turn: Turn) -> None:
    turn.world.time += GOOD_S


@pytest.mark.parametrize("change", [_autostart, _paused, _disk, _old])
def test_what_has_changed_since_and_what_is_old_is_checked_anew(change: Callable[[Turn], None]) -> None:
    turn = Turn()
    turn.begin()
    turn.ended()
    change(turn)
    assert turn.move().running is (change is not _paused)
    assert turn.checked_anew
    assert turn.world.domains["node2"].autostart is (change is not _autostart)


def test_a_node_that_takes_nobody_since_then_takes_nobody() -> None:
    turn = Turn()
    turn.begin()
    turn.ended()
    nodes = {name: replace(node, drained="by hand") for name, node in turn.context.nodes.items()}
    with pytest.raises(Refused) as caught:
        turn.move(replace(turn.context, nodes=nodes))
    assert caught.value.code is Code.NODE_DRAINED


def test_a_guest_that_is_to_go_elsewhere_is_checked_for_there() -> None:
    turn = Turn()
    turn.begin(target="node1")
    turn.ended()
    turn.move()
    assert turn.checked_anew


def _defect() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("fault", [unreachable("node2"), _defect])
def test_what_was_against_it_then_is_not_against_it_now(fault: Callable[[], None]) -> None:
    turn = Turn()
    turn.world.faults[CHECKED, "node2"] = fault
    turn.begin()
    turn.ended()
    turn.world.faults.clear()
    assert turn.move().target == "node2"
    assert turn.checked_anew


def test_what_is_against_it_still_is_said_by_the_check_at_its_turn() -> None:
    turn = Turn()
    turn.world.faults[CHECKED, "node2"] = unreachable("node2")
    turn.begin()
    turn.ended()
    with pytest.raises(LvmigrateError) as caught:
        turn.move()
    assert caught.value.code is Code.NODE_UNREACHABLE
    assert turn.checked_anew


def test_a_guest_that_is_to_be_shut_down_is_checked_at_its_turn() -> None:
    turn = Turn(options=Options(always_failover=True))
    turn.begin()
    assert turn.ahead.take(UUID, "node2", turn.context.nodes) is None


def test_where_nothing_is_beside_anything_else_nothing_is_checked_ahead() -> None:
    turn = Turn()
    token = in_turn.set(True)
    try:
        turn.begin()
    finally:
        in_turn.reset(token)
    assert turn.world.calls == []


def test_a_move_tells_once_that_its_copy_ends_soon_and_that_its_memory_is_there() -> None:
    """The latter before the guest runs there: from then on it needs nothing that others wait for."""
    told: list[str] = []

    def progress(left: int) -> MemoryProgress:
        return MemoryProgress(
            elapsed_s=1.0, total=1000, remaining=10 * left, processed=0, rate=1, dirty_rate=0, iteration=1,
            expected_downtime_s=0.0, percent=0.0,
        )  # fmt: skip

    def arrive(world: World) -> CopyEnd:
        told.append("copied")
        return world.arrive()

    world = World(looks=4, progress=progress, ending=arrive)
    world.faults["resume", "node2"] = lambda: told.append("runs")
    ears = Ears(ends_soon=lambda: told.append("ends soon"), landed=lambda: told.append("landed"))
    move(world.context(), DEPARTURE, Manner(), world.domains["node1"], ears=ears)
    assert told == ["ends soon", "copied", "landed", "runs"]
