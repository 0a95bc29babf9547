"""What a policy does to a move on two nodes in memory; and post-copy, which nothing aborts."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import pytest

from lvmigrate import convergence, foretell
from lvmigrate.convergence import UNLIMITED_S, Policy, Rule, Then
from lvmigrate.domain import DomainState, JobKind
from lvmigrate.errors import Code, MoveFailed, NodeUnreachable, OutcomeUnknown
from lvmigrate.follow import ABORT_S
from lvmigrate.migrate import MigrateInstance
from lvmigrate.plan import Mode, Options
from lvmigrate.progress import MemoryProgress
from lvmigrate.protocols import CopyEnd
from lvmigrate.report import Report
from tests.unit.fakes import FakeCopy, World, guest

FAILED = CopyEnd(ok=False, detail="internal error: client socket is closed")


def migrate(world: World, options: Options, *, post_copy: threading.Event | None = None) -> Report:
    context = world.context(**({"post_copy": post_copy} if post_copy else {}))
    tasklet = MigrateInstance(context, "web1", options=options)
    tasklet.check_prereq()
    return tasklet.exec()


def stuck(world: World, looks: int = 40) -> None:
    """A copy whose passes do not shrink."""
    world.looks = looks

    def progress(left: int) -> MemoryProgress:
        return MemoryProgress(
            elapsed_s=3.0 * (looks - left),
            total=1 << 30,
            remaining=1 << 29,
            processed=0,
            rate=1 << 20,
            dirty_rate=1 << 20,
            iteration=looks - left,
            expected_downtime_s=1.0,
            percent=50.0,
            throttle_percent=20 if left < looks - 10 else 0,
        )

    world.progress = progress


def in_post_copy(world: World) -> None:
    """As both nodes say while the guest runs on the target and half of its memory is at the source."""
    world.domains["node2"] = dataclasses.replace(
        world.domains["node1"], node="node2", reason="post-copy", job=JobKind.INCOMING, autostart=False
    )
    world.set("node1", state=DomainState.PAUSED, reason="post-copy", job=JobKind.OUTGOING)


def all_arrived(world: World) -> CopyEnd:
    world.set("node1", state=DomainState.OFF, reason="migrated", job=JobKind.NONE)
    world.set("node2", state=DomainState.RUNNING, reason="migrated", job=JobKind.NONE)
    world.openers.update(node1=0, node2=1)
    return CopyEnd(ok=True)


def test_a_rule_gives_a_copy_up_and_everything_is_put_back() -> None:
    world = World()
    stuck(world)
    with pytest.raises(MoveFailed) as caught:
        migrate(world, Options(policy=convergence.GENTLE))
    assert caught.value.code is Code.NOT_CONVERGING
    assert "policy gentle" in caught.value.sentence
    assert world.downtime_limits == pytest.approx([0.45, 0.675, 1.0])
    assert world.running() == ["node1"]
    assert list(world.violations()) == []


def test_a_copy_that_a_rule_gave_up_is_not_waited_for_as_long_as_one_may_take() -> None:
    world = World(stubborn=True)
    stuck(world, looks=100_000)
    asked: list[float] = []
    world.on_look = lambda left: asked.append(world.time) if left == 0 else None
    with pytest.raises(OutcomeUnknown):
        migrate(world, Options(policy=convergence.GENTLE, copy_timeout_s=1e6))
    assert ABORT_S < world.time - asked[0] < 2 * ABORT_S


def test_an_abort_that_came_before_libvirt_had_a_job_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    stuck(world, looks=1000)
    aborts: list[float] = []
    abort = FakeCopy.abort

    def late(copy: FakeCopy) -> None:
        aborts.append(world.time)
        if len(aborts) > 1:
            abort(copy)

    monkeypatch.setattr(FakeCopy, "abort", late)
    with pytest.raises(MoveFailed) as caught:
        migrate(world, Options(policy=convergence.GENTLE, copy_timeout_s=1e6))
    assert caught.value.code is Code.NOT_CONVERGING
    assert len(aborts) == 2
    assert world.running() == ["node1"]
    assert list(world.violations()) == []


def test_the_report_says_which_rule_fired_when() -> None:
    world = World()
    stuck(world)
    report = migrate(world, Options(policy=convergence.FORCE))
    assert [firing.then for firing in report.fired] == [Then.RAISE_DOWNTIME] * 3 + [Then.PAUSE]
    assert world.downtime_limits[-1] == UNLIMITED_S
    assert [firing.at_s for firing in report.fired] == sorted(firing.at_s for firing in report.fired)
    assert report.throttle_percent == 20
    assert any("policy force, rule 2: pause" in moment.what for moment in report.timeline)


def test_a_limit_that_libvirt_refuses_is_noted_and_the_move_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    stuck(world)

    def refuse(_self: object, _seconds: float) -> None:
        raise NodeUnreachable("node1", "no answer", hint="")

    monkeypatch.setattr("tests.unit.fakes.FakeCopy.limit_downtime", refuse)
    report = migrate(world, Options(policy=convergence.FORCE))
    assert any("the downtime limit was not set" in moment.what for moment in report.timeline)


def test_what_a_rule_could_not_do_is_tried_again_in_the_next_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    stuck(world)
    limits: list[float] = []

    def once(_self: object, seconds: float) -> None:
        limits.append(seconds)
        if limits.count(UNLIMITED_S) == 1:
            raise NodeUnreachable("node1", "no answer", hint="")

    monkeypatch.setattr("tests.unit.fakes.FakeCopy.limit_downtime", once)
    migrate(world, Options(policy=convergence.FORCE))
    assert limits.count(UNLIMITED_S) == 2


@pytest.mark.parametrize("asked", [True, False])
def test_a_post_copy_that_could_not_be_begun_is_begun_in_the_next_pass(*, asked: bool) -> None:
    world = World()
    stuck(world)
    world.ending = all_arrived
    begun(world)

    def look(left: int) -> None:
        world.unwatched = left > 36

    world.on_look = look
    wish = threading.Event()
    if asked:
        wish.set()
    never = Policy(name="never", rules=(Rule(then=Then.POST_COPY, passes=1000),))
    options = Options(policy=never) if asked else Options(mode=Mode.POST_COPY)
    report = migrate(world, options, post_copy=wish)
    assert report.post_copy
    assert world.calls.count(("start_post_copy", "node1")) == 1
    assert 1 <= sum("replication is not whole" in moment.what for moment in report.timeline) <= 3


def test_a_post_copy_that_failed_before_it_began_says_why_and_hands_nothing_over() -> None:
    """libvirt was told to begin it: the copy failed in the pass before that."""
    world = World()
    asked = threading.Event()
    asked.set()
    world.ending = lambda _world: FAILED
    known: list[bool] = []

    def note() -> None:
        known.extend(token.errand.handed_over for token in world.tokens.values() if token.errand is not None)

    world.faults["drop_token", "node1"] = note
    with pytest.raises(MoveFailed) as caught:
        migrate(world, Options(policy=convergence.POST_COPY), post_copy=asked)
    assert ("start_post_copy", "node1") in world.calls
    assert caught.value.detail == FAILED.detail
    assert known == [False, False]
    assert list(world.violations()) == []


def begun(world: World, act: Callable[[], None] = lambda: None) -> None:
    """Once post-copy is asked for, both nodes say that it goes on."""

    def start() -> None:
        in_post_copy(world)
        act()

    world.late_faults["start_post_copy", "node1"] = start


def test_nothing_ends_a_post_copy() -> None:
    world = World()
    stuck(world)
    world.ending = all_arrived
    cancel = threading.Event()
    begun(world, cancel.set)
    context = world.context(cancel=cancel)
    tasklet = MigrateInstance(context, "web1", options=Options(policy=convergence.POST_COPY))
    tasklet.check_prereq()
    report = tasklet.exec()
    assert report.post_copy
    assert not world.abort_asked
    assert world.running() == ["node2"]
    assert list(world.violations()) == []
    assert sum("cannot be stopped" in moment.what for moment in report.timeline) == 1


def test_post_copy_is_not_begun_on_disks_that_are_not_whole() -> None:
    world = World()
    world.looks = 10
    asked = threading.Event()
    asked.set()
    world.unwatched = False

    def look(left: int) -> None:
        if left == 9:
            world.unwatched = True  # node2's events do not come
        if left == 7:
            world.unwatched = False

    world.on_look = look
    report = migrate(world, Options(policy=convergence.POST_COPY), post_copy=asked)
    assert not world.post_copied
    assert not report.post_copy
    assert any("no post-copy: replication is not whole" in moment.what for moment in report.timeline)


def test_a_copy_that_was_not_begun_for_it_is_no_post_copy() -> None:
    world = World()
    asked = threading.Event()
    asked.set()
    report = migrate(world, Options(), post_copy=asked)
    assert not world.post_copied
    assert any("not begun such that it can become one" in moment.what for moment in report.timeline)


def test_a_guest_that_stands_still_is_never_post_copied() -> None:
    world = World(domains={"node1": guest("node1", state=DomainState.PAUSED, reason="user")})
    asked = threading.Event()
    asked.set()
    report = migrate(world, Options(mode=Mode.POST_COPY), post_copy=asked)
    assert not world.post_copied
    assert world.domains["node2"].state is DomainState.PAUSED
    assert not report.running


def broken(world: World, *, target: str) -> Callable[[World], CopyEnd]:
    """The call ends without success; the target's QEMU says ``target`` of its stream."""

    def ending(world: World) -> CopyEnd:
        world.set("node1", reason="post-copy failed")
        world.set("node2", reason=target)
        return FAILED

    return ending


def breaking(target: str) -> tuple[World, threading.Event]:
    """A world in which that becomes of a post-copy, and the wish for one."""
    world, asked = World(), threading.Event()
    asked.set()
    begun(world)
    world.ending = broken(world, target=target)
    return world, asked


def test_a_broken_post_copy_whose_stream_goes_on_is_waited_for() -> None:
    world, asked = breaking("post-copy")
    # The job that is then followed comes to its end.
    world.late_faults["adopt", "node1"] = lambda: setattr(world, "ending", all_arrived)
    report = migrate(world, Options(policy=convergence.POST_COPY), post_copy=asked)
    assert report.running
    assert ("resume_post_copy", "node1") not in world.calls
    assert not world.abort_asked
    assert list(world.violations()) == []


def test_a_post_copy_that_was_mended_is_word_enough_that_the_guest_was_handed_over() -> None:
    world, asked = breaking("post-copy")

    def arrived(world: World) -> CopyEnd:
        end = all_arrived(world)
        world.set("node1", reason="unknown")  # its daemon was restarted
        return end

    world.late_faults["adopt", "node1"] = lambda: setattr(world, "ending", arrived)
    noted: list[bool] = []

    def note() -> None:
        errand = world.tokens["node1"].errand
        noted.append(errand is not None and errand.handed_over)

    world.faults["demote", "node1"] = note
    assert migrate(world, Options(policy=convergence.POST_COPY), post_copy=asked).running
    assert noted == [True]


def test_a_broken_post_copy_that_cannot_be_mended_is_held_and_nothing_is_undone() -> None:
    world, asked = breaking("post-copy failed")

    def endless() -> None:
        world.looks = 10_000

    world.faults["adopt", "node1"] = endless
    with pytest.raises(OutcomeUnknown) as caught:
        migrate(world, Options(policy=convergence.POST_COPY, recovery_timeout_s=300), post_copy=asked)
    assert "both ends are held" in caught.value.sentence
    again = (
        "`virsh migrate web1 qemu+ssh://node2/system --p2p --abort-on-error --live --postcopy --persistent"
        " --postcopy-resume --migrateuri tcp://node2`"
    )
    assert again in caught.value.hint
    assert any("connecting the ends again: libvirt: " in word for word in caught.value.known)
    tries = [call for call in world.calls if call == ("resume_post_copy", "node1")]
    assert 5 <= len(tries) <= 20  # less and less often
    after = world.calls[world.calls.index(("adopt", "node1")) :]
    assert {name for name, _ in after} <= {"adopt", "domain", "resume_post_copy", "renew_token"}
    assert not world.abort_asked
    assert {node: domain.state for node, domain in world.domains.items()} == {
        "node1": DomainState.PAUSED,
        "node2": DomainState.RUNNING,
    }


@pytest.mark.parametrize(
    ("answer", "words"),
    [(CopyEnd(ok=True), "connecting the ends again: the ends were connected again"), (None, "no answer")],
    ids=["for a while", "no answer"],
)
def test_what_each_try_to_connect_the_ends_came_to_is_told(
    monkeypatch: pytest.MonkeyPatch, answer: CopyEnd | None, words: str
) -> None:
    world, asked = breaking("post-copy failed")
    world.faults["adopt", "node1"] = lambda: setattr(world, "looks", 10_000)

    def resume(*_: object) -> FakeCopy:
        if answer is None:
            raise NodeUnreachable("node1", "no answer", hint="")
        return FakeCopy(world, lambda: answer, 0)

    monkeypatch.setattr("tests.unit.fakes.FakeHypervisor.resume_post_copy", resume)
    with pytest.raises(OutcomeUnknown) as caught:
        migrate(world, Options(policy=convergence.POST_COPY, recovery_timeout_s=300), post_copy=asked)
    assert any(words in word for word in caught.value.known)


def test_a_try_to_connect_the_ends_that_never_ends_does_not_keep_the_move_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, asked = breaking("post-copy failed")
    world.faults["adopt", "node1"] = lambda: setattr(world, "looks", 10_000)
    hanging = FakeCopy(world, lambda: FAILED, 1_000_000)
    monkeypatch.setattr("tests.unit.fakes.FakeHypervisor.resume_post_copy", lambda *_: hanging)
    begun = world.time
    with pytest.raises(OutcomeUnknown) as caught:
        migrate(world, Options(policy=convergence.POST_COPY, recovery_timeout_s=300), post_copy=asked)
    assert any("neither connected them nor given it up" in word for word in caught.value.known)
    assert hanging.looks > 0
    assert world.time - begun < 400


def test_what_is_left_of_a_mended_post_copy_has_the_time_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    world, asked = breaking("post-copy failed")
    world.faults["adopt", "node1"] = lambda: setattr(world, "looks", 10_000)

    def arriving(left: int) -> MemoryProgress:
        return MemoryProgress(
            elapsed_s=1.0,
            total=1 << 30,
            remaining=left << 10,
            processed=0,
            rate=1 << 10,
            dirty_rate=0,
            iteration=1,
            expected_downtime_s=0.0,
            percent=50.0,
        )

    def resume(*_: object) -> FakeCopy:
        def arrived() -> CopyEnd:
            world.ending = all_arrived
            ended = all_arrived(world)
            followed[0].looks = 0
            return ended

        world.progress = arriving
        return FakeCopy(world, arrived, 4000)  # half a second each: 2000 s

    followed: list[FakeCopy] = []

    def adopt(*_: object) -> FakeCopy:
        followed.append(FakeCopy(world, lambda: world.ending(world), 10_000))
        return followed[-1]

    monkeypatch.setattr("tests.unit.fakes.FakeHypervisor.adopt", adopt)
    monkeypatch.setattr("tests.unit.fakes.FakeHypervisor.resume_post_copy", resume)
    begun = world.time
    report = migrate(world, Options(policy=convergence.POST_COPY, recovery_timeout_s=300), post_copy=asked)
    assert report.running
    assert world.time - begun > 1900
    assert list(world.violations()) == []


def test_nothing_is_connected_again_while_the_target_does_not_say_that_it_is_broken() -> None:
    world, asked = breaking("post-copy")
    world.faults["adopt", "node1"] = lambda: setattr(world, "looks", 10_000)
    with pytest.raises(OutcomeUnknown):
        migrate(world, Options(policy=convergence.POST_COPY, recovery_timeout_s=300), post_copy=asked)
    assert ("resume_post_copy", "node1") not in world.calls


# ---- the forecast ----


def test_a_forecast_before_the_move_and_its_error_after() -> None:
    world = World()
    options = Options(bandwidth_mib_s=100, forecast_s=2)
    report = migrate(world, options)
    assert report.forecast is not None
    assert (report.forecast.link_rate, report.forecast.link_from) == (100 << 20, "the bandwidth limit")
    assert report.forecast.memory_bytes == 100 << 20
    assert report.forecast.advised == "gentle"


def test_without_the_links_speed_there_is_no_forecast_and_no_refusal() -> None:
    plan = MigrateInstance(World().context(), "web1", options=Options(forecast_s=2)).check_prereq()
    assert plan.forecast is None
    assert [warning.code for warning in plan.warnings] == [Code.NO_FORECAST]


def test_a_forecast_that_cannot_be_measured_is_no_refusal() -> None:
    world = World()

    def silent() -> None:
        raise NodeUnreachable("node1", "no dirty rate was measured", hint="Look.")

    world.faults["activity", "node1"] = silent
    options = Options(forecast_s=2, bandwidth_mib_s=1)
    plan = MigrateInstance(world.context(), "web1", options=options).check_prereq()
    assert [warning.code for warning in plan.warnings] == [Code.NO_FORECAST]
    assert isinstance(foretell.foretell(world.context(), plan, options), type(plan.warnings[0]))


def test_own_rules() -> None:
    world = World()
    stuck(world)
    own = Policy(name="own", rules=(Rule(then=Then.ABORT, after_s=30.0),))
    with pytest.raises(MoveFailed, match="30 s"):
        migrate(world, Options(policy=own))
