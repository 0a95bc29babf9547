"""The core on the pair: whatever breaks, one running copy at the end, with whole memory and records."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from hv import LibvirtHypervisor
from lvmigrate import convergence
from lvmigrate.cluster import Cluster
from lvmigrate.convergence import Policy, Rule, Then
from lvmigrate.errors import Code, GuestLost, MoveAborted, MoveFailed, OutcomeUnknown, Refused
from lvmigrate.plan import Mode, Options, Switch
from lvmigrate.progress import StepProgress
from lvmigrate.report import Report
from tests.pair.cluster import Description
from tests.pair.controller import COPYING, HANDING_OVER, MOMENTS
from tests.pair.guest import BUSY, CALM, SLOW_MIB_S, Guest, Load
from tests.pair.host import Host, wait_until
from tests.pair.pair import Pair

STRICT = Options(bandwidth_mib_s=SLOW_MIB_S, poll_s=0.1)
FAST = Options(bandwidth_mib_s=SLOW_MIB_S, poll_s=0.1, switch=Switch.FAST)
#: Enough for the daemon, and not for a QEMU with a guest of 512 MiB (measured: it wants 1.7 to 1.9 GiB of addresses).
_SHORT_BYTES = 1400 << 20
#: The fast switch wants a keepalive of 20 s at the least.
PATIENT = (5, 4)
patient = pytest.mark.parametrize("keepalive", [PATIENT], ids=["keepalive 20 s"])


@dataclass(frozen=True, kw_only=True)
class Controlled:
    """A pair with a guest on its first host, and controllers."""

    pair: Pair
    guest: Guest
    cluster: Cluster
    pool: ThreadPoolExecutor
    cancel: threading.Event

    def start(self, options: Options) -> Future[Report]:
        """A move to the second host whose copy is under way, and goes on until `hurry`."""
        under_way = threading.Event()

        def on_progress(progress: StepProgress) -> None:
            if progress.memory is not None:
                under_way.set()

        move = self.pool.submit(
            self.cluster.migrate,
            self.guest.name,
            target="node2",
            options=options,
            on_progress=on_progress,
            cancel=self.cancel,
        )
        wait_until(lambda: under_way.is_set() or move.done(), "the copy is under way")
        if move.done():
            move.result()
        return move

    def hurry(self) -> None:
        self.pair.hurry(self.guest, on=self.pair.one)

    def lose_the_reply(self, options: Options) -> Future[Report]:
        """A move whose last reply from the target is lost: the target has finished, the source does not know."""
        move = self.start(options)
        self.pair.two.drop_long_replies(on=True)
        self.hurry()
        wanted = "running (migrated)" if options is FAST else "paused (user)"
        wait_until(lambda: self.pair.states(self.guest)["node2"] == wanted, f"the target says {wanted}")
        return move

    def whole(self, host: Host) -> None:
        """One copy, on ``host``, whole; nothing is left; and nothing was ever announced by two copies."""
        self.pair.whole(self.guest, on=host)
        audit = self.cluster.audit()
        assert (audit.findings, audit.silent, audit.under_way) == ((), (), ())
        assert self.cluster.cleanup(self.guest.name).acts == ()
        other = self.pair.other(host)
        assert self.pair.states(self.guest)[other.name] == "-"  # and its definition is on one host only


@pytest.fixture
def load() -> Load:
    """What the guest does."""
    return BUSY


@pytest.fixture
def controlled(pair: Pair, load: Load) -> Iterator[Controlled]:
    cluster, _ = Description.of(pair).cluster()
    cancel = threading.Event()
    with ExitStack() as stack:
        stack.callback(cluster.close)
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=2))
        stack.callback(cancel.set)  # a test that failed leaves no move behind
        yield Controlled(
            pair=pair, guest=pair.guest("web1", on=pair.one, load=load), cluster=cluster, pool=pool, cancel=cancel
        )


@patient
@pytest.mark.parametrize("options", [STRICT, FAST], ids=["strict", "fast"])
def test_a_move(controlled: Controlled, options: Options) -> None:
    mark = controlled.guest.ear.mark()
    move = controlled.start(options)
    controlled.hurry()
    report = move.result(60)
    assert (report.source, report.target, report.running) == ("node1", "node2", True)
    controlled.guest.runs()
    silence_s = controlled.guest.ear.longest_gap(mark)
    print(f"downtime {report.downtime_s:.3f} s, the guest's longest silence {silence_s:.3f} s")
    assert 0 < report.downtime_s < 10
    controlled.whole(controlled.pair.two)


def test_there_and_back(controlled: Controlled) -> None:
    for target in ("node2", "node1", "node2"):
        # Fast enough for this guest without anybody's help.
        controlled.cluster.migrate(controlled.guest.name, target=target)
    controlled.whole(controlled.pair.two)


def test_the_fast_switch_is_refused_where_it_could_not_keep_its_promise(controlled: Controlled) -> None:
    with pytest.raises(Refused) as caught:
        controlled.cluster.migrate(controlled.guest.name, target="node2", options=FAST)
    assert caught.value.code is Code.KEEPALIVE_SHORT
    controlled.whole(controlled.pair.one)


# ---- the disaster (tests/pair/test_hypervisor.py proves that it is one) ----


def test_strict_when_the_reply_is_lost_the_guest_stays_and_never_runs_twice(controlled: Controlled) -> None:
    move = controlled.lose_the_reply(STRICT)
    with pytest.raises(MoveFailed) as caught:
        move.result(120)
    assert caught.value.code is Code.NODE_UNREACHABLE
    controlled.whole(controlled.pair.one)


@patient
def test_fast_when_the_reply_is_lost_the_sources_copy_is_ended_in_time(controlled: Controlled) -> None:
    move = controlled.lose_the_reply(FAST)
    # Long before its daemon would let it run again, which is 20 s from now at the least.
    begin = time.monotonic()
    wait_until(lambda: controlled.pair.states(controlled.guest)["node1"] == "shut off (destroyed)", "it is ended", 10)
    print(f"the source's copy was ended {time.monotonic() - begin:.1f} s after the target's was seen to run")
    assert not move.done()
    report = move.result(120)
    assert report.running
    controlled.whole(controlled.pair.two)


def test_strict_when_the_sources_daemon_dies_in_the_last_phase(controlled: Controlled) -> None:
    move = controlled.lose_the_reply(STRICT)
    controlled.pair.one.kill_daemon()
    controlled.pair.two.drop_long_replies(on=False)
    controlled.pair.one.restart_daemon()
    with pytest.raises(MoveFailed):
        move.result(180)
    controlled.whole(controlled.pair.one)


@patient
def test_fast_when_the_sources_daemon_dies_in_the_last_phase(controlled: Controlled) -> None:
    move = controlled.lose_the_reply(FAST)
    controlled.pair.one.kill_daemon()
    controlled.pair.two.drop_long_replies(on=False)
    controlled.pair.one.restart_daemon()
    assert move.result(180).running
    controlled.whole(controlled.pair.two)


# ---- what breaks during the copy ----


def daemon_of(name: str) -> Callable[[Pair], None]:
    def kill(pair: Pair) -> None:
        host = next(host for host in pair.hosts if host.name == name)
        host.kill_daemon()
        host.restart_daemon()

    return kill


def cut(pair: Pair) -> None:
    pair.one.link(up=False)


FAULTS: dict[str, Callable[[Pair], None]] = {
    "the source's daemon is killed": daemon_of("node1"),
    "the target's daemon is killed": daemon_of("node2"),
    "the target's QEMU is killed": lambda pair: pair.two.kill_qemu("web1"),
    "the link is cut": cut,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_what_breaks_during_the_copy_puts_everything_back(
    controlled: Controlled, fault: Callable[[Pair], None]
) -> None:
    move = controlled.start(STRICT)
    fault(controlled.pair)
    with pytest.raises(MoveFailed) as caught:
        move.result(180)
    assert not isinstance(caught.value, MoveAborted)
    controlled.whole(controlled.pair.one)


def test_a_link_that_comes_back_in_time_ends_nothing(controlled: Controlled) -> None:
    move = controlled.start(STRICT)
    controlled.pair.one.link(up=False)
    threading.Event().wait(1.0)
    controlled.pair.one.link(up=True)
    controlled.hurry()
    assert move.result(60).running
    controlled.whole(controlled.pair.two)


def test_the_sources_qemu_is_killed(controlled: Controlled) -> None:
    move = controlled.start(STRICT)
    controlled.pair.one.kill_qemu("web1")
    with pytest.raises(GuestLost):
        move.result(180)
    assert controlled.pair.running(controlled.guest) == ()
    assert controlled.guest.faults() == ()
    controlled.pair.one.virsh("start", "web1")  # as the error tells to
    controlled.whole(controlled.pair.one)


def test_an_abort_puts_everything_back(controlled: Controlled) -> None:
    move = controlled.start(STRICT)
    controlled.cancel.set()
    with pytest.raises(MoveAborted):
        move.result(60)
    controlled.whole(controlled.pair.one)


def test_a_daemon_that_is_mute_for_a_while(controlled: Controlled) -> None:
    move = controlled.start(STRICT)
    with controlled.pair.two.daemon_mute():
        threading.Event().wait(2.0)
    controlled.hurry()
    assert move.result(120).running
    controlled.whole(controlled.pair.two)


# ---- guests that arrive, and die ----


@pytest.mark.parametrize("options", [STRICT, FAST], ids=["strict", "fast"])
@patient
def test_a_guest_that_dies_on_the_target_right_after_it_was_resumed(
    controlled: Controlled, hypervisor: LibvirtHypervisor, options: Options
) -> None:
    """The call has said that all is well; and the source's copy was ended in that belief."""
    pair, guest = controlled.pair, controlled.guest

    def kill(node: str, event: str) -> None:
        if node == "node2" and event.startswith("resumed"):
            pair.two.kill_qemu(guest.name)

    assert hypervisor.domain("node2", guest.uuid) is None  # its events are heard from now on
    with hypervisor.on_change(guest.uuid, kill):
        move = controlled.start(options)
        controlled.hurry()
        with pytest.raises(GuestLost) as caught:
            move.result(120)
    lost_and_started(controlled, caught.value)


def test_a_target_whose_memory_is_short_when_the_guest_is_to_arrive(pair: Pair) -> None:
    """Nothing that can be asked before tells how much a process may have."""
    (daemon,) = pair.two.daemons()
    resource.prlimit(daemon, resource.RLIMIT_AS, (_SHORT_BYTES, _SHORT_BYTES))
    guest = pair.guest("web1", on=pair.one, load=CALM, memory_mib=512)
    cluster, _ = Description.of(pair).cluster()
    with cluster:
        with pytest.raises(MoveFailed) as caught:
            cluster.migrate(guest.name, target="node2")
        assert caught.value.code is Code.MEMORY_SHORT, caught.value
        pair.whole(guest, on=pair.one)
        assert cluster.audit().findings == ()


def lost_and_started(controlled: Controlled, lost: GuestLost) -> None:
    """The guest is nowhere, its disk has every record, and starting it as the error tells makes all well."""
    pair, guest = controlled.pair, controlled.guest
    assert pair.running(guest) == ()
    assert guest.faults() == ()
    assert "start it on node1" in lost.hint
    pair.one.virsh("start", guest.name)
    controlled.whole(pair.one)


# ---- controllers that are killed ----

#: Before libvirt has a job: the guest stays. Later the job goes on without its client, and arrives.
STAYS = frozenset({"lock", "sync", "guard", "open", "memory"})


def killed(controlled: Controlled, moment: str, options: Options) -> None:
    """A controller was killed with -9 at ``moment``."""
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.pair.controller",
            Description.of(controlled.pair).written(),
            controlled.guest.uuid,
            moment,
            options.switch.value,
        ],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    ) as controller:
        assert controller.stdout is not None
        hurried = moment == COPYING
        for line in controller.stdout:
            if line == "under way\n" and not hurried:
                controlled.hurry()
                hurried = True
    assert controller.returncode == -signal.SIGKILL


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_controller_that_was_killed_is_cleaned_up_after(controlled: Controlled, moment: str) -> None:
    killed(controlled, moment, STRICT)
    cleanup = controlled.pool.submit(controlled.cluster.cleanup, controlled.guest.name)
    if moment == COPYING:
        # The job went on without its client; it is followed, not ended.
        ours = f"pid {os.getpid()}"
        wait_until(
            lambda: any(ours in held.holder for held in controlled.cluster.audit().under_way),
            "the cleanup has the token",
        )
        assert controlled.pair.running(controlled.guest) == ("node1",)
        assert not cleanup.done()
        controlled.hurry()
    report = cleanup.result(120)
    assert report.node == ("node1" if moment in STAYS else "node2")
    assert report.running
    if moment == COPYING:
        assert "adopted the copy from node1 to node2" in report.acts
    controlled.whole(controlled.pair.one if moment in STAYS else controlled.pair.two)


def test_a_cleanup_can_end_the_copy_of_a_controller_that_was_killed(controlled: Controlled) -> None:
    killed(controlled, COPYING, STRICT)
    report = controlled.cluster.cleanup(controlled.guest.name, abort=True)
    assert (report.node, report.running) == ("node1", True)
    controlled.whole(controlled.pair.one)


@patient
@pytest.mark.parametrize("moment", [COPYING, HANDING_OVER, "switch"])
def test_fast_a_controller_that_was_killed_is_cleaned_up_after(controlled: Controlled, moment: str) -> None:
    killed(controlled, moment, FAST)
    if moment == COPYING:
        controlled.hurry()  # it arrives, and runs, with nobody watching
    report = controlled.cluster.cleanup(controlled.guest.name)
    assert (report.node, report.running) == ("node2", True)
    controlled.whole(controlled.pair.two)


def test_two_running_copies_are_suspended(controlled: Controlled) -> None:
    """A bare move of somebody else's made them; what they wrote meanwhile is for a person to judge."""
    pair, guest = controlled.pair, controlled.guest
    bare = subprocess.Popen(
        ["virsh", "-q", "-c", pair.one.uri, "migrate", "--live", "--p2p", "--persistent", "--bandwidth", "4",
         guest.uuid, pair.two.node.peer_uri],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: "Memory total" in pair.one.virsh("domjobinfo", guest.uuid), "the copy is under way")
    pair.two.drop_long_replies(on=True)
    pair.hurry(guest, on=pair.one)
    bare.wait(60)
    wait_until(lambda: pair.running(guest) == ("node1", "node2"), lambda: str(pair.states(guest)))
    assert [finding.code for finding in controlled.cluster.audit().findings] == [Code.INSTANCE_TWICE]
    with pytest.raises(OutcomeUnknown):
        controlled.cluster.cleanup(guest.name)
    assert pair.states(guest) == {"node1": "paused (user)", "node2": "paused (user)"}


# ---- modes, and copies that do not come to their end ----


@pytest.mark.parametrize("mode", [Mode.NON_LIVE, Mode.POST_COPY], ids=["non-live", "post-copy"])
@patient
def test_a_move_in_another_mode(controlled: Controlled, mode: Mode) -> None:
    options = dataclasses.replace(STRICT, mode=mode)
    report = controlled.cluster.migrate(controlled.guest.name, target="node2", options=options)
    assert (report.target, report.running, report.mode) == ("node2", True, mode.value)
    assert report.post_copy is (mode is Mode.POST_COPY)
    assert report.downtime_s > 0
    controlled.whole(controlled.pair.two)


#: With `HOPELESS`, more remains at the end of each pass than is sent in the two seconds that "force" asks for at most.
hopeless = pytest.mark.parametrize("load", [Load(mib=20, rate=8000)], ids=["20 MiB at 31 MiB/s"])
HOPELESS = Options(bandwidth_mib_s=8, poll_s=0.1)


@hopeless
@pytest.mark.parametrize("policy", [convergence.FORCE, convergence.POST_COPY], ids=lambda policy: policy.name)
@patient
def test_a_load_that_never_converges_arrives(controlled: Controlled, policy: Policy) -> None:
    options = dataclasses.replace(HOPELESS, policy=policy)
    report = controlled.cluster.migrate(controlled.guest.name, target="node2", options=options)
    print([f"{firing.at_s:.1f} s: {firing.then.value}: {firing.why}" for firing in report.fired])
    assert report.policy == policy.name
    assert policy is convergence.FORCE or [firing.then for firing in report.fired] == [Then.POST_COPY]
    assert report.post_copy is (policy is convergence.POST_COPY)
    assert (report.throttle_percent > 0) is policy.auto_converge
    controlled.whole(controlled.pair.two)


@hopeless
def test_a_policy_of_ones_own_and_a_guest_that_stands_still_for_the_rest(controlled: Controlled) -> None:
    policy = Policy(name="own", rules=(Rule(then=Then.PAUSE, stalled_passes=2),))
    report = controlled.cluster.migrate(
        controlled.guest.name, target="node2", options=dataclasses.replace(HOPELESS, policy=policy)
    )
    assert [(firing.policy, firing.rule, firing.then) for firing in report.fired] == [("own", 1, Then.PAUSE)]
    assert report.running
    assert report.downtime_s > 0
    controlled.whole(controlled.pair.two)


@hopeless
def test_a_load_that_never_converges_is_given_up_in_time(controlled: Controlled) -> None:
    begin = time.monotonic()
    with pytest.raises(MoveFailed) as caught:
        controlled.cluster.migrate(controlled.guest.name, target="node2", options=HOPELESS)
    assert caught.value.code is Code.NOT_CONVERGING
    assert 60 <= time.monotonic() - begin < 100
    controlled.whole(controlled.pair.one)


# ---- post-copy ----

#: A post-copy that has work for some seconds: memory that nobody waits for is sent slowly.
SLOWLY = Options(
    mode=Mode.POST_COPY, bandwidth_mib_s=SLOW_MIB_S, postcopy_bandwidth_mib_s=1, poll_s=0.1, recovery_timeout_s=100.0
)
much_memory = pytest.mark.parametrize("load", [Load(mib=20, rate=4000)], ids=["20 MiB"])


def post_copy_under_way(controlled: Controlled, options: Options) -> Future[Report]:
    """A move whose guest runs on the target already, with much of its memory still at the source."""
    move = controlled.start(options)
    both = {"node1": "paused (post-copy)", "node2": "running (post-copy)"}
    wait_until(
        lambda: move.done() or controlled.pair.states(controlled.guest) == both,
        lambda: f"it is in post-copy: {controlled.pair.states(controlled.guest)}",
    )
    if move.done():
        move.result()
    return move


@much_memory
@patient
def test_a_post_copy_is_never_aborted(controlled: Controlled, hypervisor: LibvirtHypervisor) -> None:
    move = post_copy_under_way(controlled, SLOWLY)
    hypervisor.abort_job("node1", controlled.guest.uuid)  # which libvirt refuses
    controlled.cancel.set()
    report = move.result(120)
    assert report.post_copy
    assert any("cannot be stopped" in moment.what for moment in report.timeline)
    controlled.whole(controlled.pair.two)


@much_memory
@patient
def test_somebody_asks_for_post_copy_in_mid_move(controlled: Controlled) -> None:
    options = dataclasses.replace(STRICT, policy=convergence.POST_COPY)
    asked = threading.Event()
    move = controlled.pool.submit(
        controlled.cluster.migrate,
        controlled.guest.name,
        target="node2",
        options=options,
        on_progress=lambda progress: asked.set() if progress.memory else None,
        post_copy=asked,
    )
    report = move.result(120)
    assert report.post_copy
    assert report.fired == ()  # no rule: by hand
    controlled.whole(controlled.pair.two)


@much_memory
@patient
def test_a_post_copy_whose_link_comes_back_goes_on(controlled: Controlled) -> None:
    """The daemons give each other up, the call fails, and QEMU's own stream goes on once the link is there again."""
    move = post_copy_under_way(controlled, SLOWLY)
    controlled.pair.one.link(up=False)
    wait_until(
        lambda: controlled.pair.states(controlled.guest)["node1"] == "paused (post-copy failed)",
        lambda: str(controlled.pair.states(controlled.guest)),
    )
    assert not move.done()
    controlled.pair.one.link(up=True)
    report = move.result(200)
    assert report.running
    assert any("the post-copy broke" in moment.what for moment in report.timeline)
    controlled.whole(controlled.pair.two)


@much_memory
@patient
def test_a_post_copy_that_cannot_be_mended_is_held_at_both_ends(controlled: Controlled) -> None:
    options = dataclasses.replace(SLOWLY, recovery_timeout_s=5.0)
    move = post_copy_under_way(controlled, options)
    controlled.pair.one.link(up=False)
    with pytest.raises(OutcomeUnknown) as caught:
        move.result(200)
    assert "both ends are held" in caught.value.sentence
    assert controlled.pair.states(controlled.guest) == {
        "node1": "paused (post-copy failed)",
        "node2": "running (post-copy)",
    }
    # A cleanup changes nothing of that either.
    with pytest.raises(OutcomeUnknown):
        controlled.cluster.cleanup(controlled.guest.name)
    assert controlled.pair.states(controlled.guest)["node1"] == "paused (post-copy failed)"
    # Nothing was lost: with the link there again, QEMU's own stream brings the rest, and a cleanup finishes the move.
    controlled.pair.one.link(up=True)
    wait_until(
        lambda: controlled.pair.states(controlled.guest)["node1"].startswith("shut off"),
        lambda: str(controlled.pair.states(controlled.guest)),
        300.0,  # TCP tries again after a time that grows with that of the cut
    )
    controlled.cluster.cleanup(controlled.guest.name)
    controlled.whole(controlled.pair.two)


@much_memory
@patient
def test_a_post_copy_whose_stream_is_gone_is_connected_again_or_held(controlled: Controlled) -> None:
    """QEMU has given the stream up: libvirt is asked to connect the ends again, if it can be.

    The daemon of libvirt 11.2 and 11.3 on the target would die of it. Then both ends are held, and it is said why.
    """
    move = post_copy_under_way(controlled, dataclasses.replace(SLOWLY, recovery_timeout_s=15.0))
    pair, guest = controlled.pair, controlled.guest
    pair.one.link(up=False)
    wait_until(lambda: pair.states(guest)["node1"] == "paused (post-copy failed)", lambda: str(pair.states(guest)))
    pair.one.virsh("domjobabort", "--postcopy", guest.uuid)
    pair.one.link(up=True)
    daemon = pair.two.daemons()
    try:
        report = move.result(200)
    except OutcomeUnknown as error:
        assert any("connecting the ends again" in word and "dies of it" in word for word in error.known), error.known
        assert pair.two.daemons() == daemon
        assert pair.states(guest) == {"node1": "paused (post-copy failed)", "node2": "running (post-copy failed)"}
        assert [len(host.qemus(guest.name)) for host in pair.hosts] == [1, 1]
    else:
        assert report.running
        controlled.whole(pair.two)
