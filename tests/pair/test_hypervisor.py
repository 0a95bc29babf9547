"""``hv`` against two real libvirt daemons: what a move does on both, and what is seen when something breaks."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest

from hv import LibvirtHypervisor
from lvmigrate.domain import DomainState, JobKind
from lvmigrate.errors import CommandFailed, NodeUnreachable
from lvmigrate.plan import Options, Switch
from lvmigrate.protocols import CopyEnd
from tests.pair.bench import FAST, STRICT, Bench, Look, ended
from tests.pair.guest import CALM, Guest
from tests.pair.host import Host, wait_until
from tests.pair.pair import Pair

# ---- moves that succeed ----


def test_a_guest_arrives_paused_and_is_resumed(bench: Bench) -> None:
    copy = bench.start(STRICT)
    progress = copy.progress()
    assert progress is not None
    assert 0 < progress.remaining <= progress.total
    mark = bench.guest.ear.mark()
    bench.hurry()
    assert ended(copy).ok
    bench.sees(bench.pair.one, ("shut off", "migrated", "none"))
    bench.stays({"node1": ("shut off", "migrated", "none"), "node2": ("paused", "user", "none")}, 0.5)
    bench.hv.resume("node2", bench.guest.uuid)
    assert bench.look(bench.pair.two) == ("running", "unpaused", "none")
    bench.pair.whole(bench.guest, on=bench.pair.two)
    assert bench.guest.ear.longest_gap(mark) > 0.5  # the guest itself saw that it waited
    arrived = bench.hv.domain("node2", bench.guest.uuid)
    assert arrived is not None
    assert arrived.persistent  # and the source keeps its definition, for the caller to judge
    bench.hv.undefine("node1", bench.guest.uuid)
    assert bench.look(bench.pair.one) is None


def test_a_copy_that_fails_leaves_the_downtime_limit_as_it_was(bench: Bench) -> None:
    bench.pair.one.virsh("migrate-setmaxdowntime", bench.guest.name, "777")
    copy = bench.start(dataclasses.replace(STRICT, downtime_limit_s=0.123))
    copy.limit_downtime(0.2)  # as a policy would, in the middle: libvirt itself puts that back to what it was before
    assert bench.pair.one.virsh("migrate-getmaxdowntime", bench.guest.name).strip() == "200"
    copy.abort()
    assert not ended(copy).ok
    assert bench.pair.one.virsh("migrate-getmaxdowntime", bench.guest.name).strip() == "777"
    bench.pair.whole(bench.guest, on=bench.pair.one)


def test_the_fast_switch_starts_the_guest_on_the_target(bench: Bench) -> None:
    copy = bench.start(FAST)
    bench.hurry()
    assert ended(copy).ok
    bench.sees(bench.pair.one, ("shut off", "migrated", "none"))
    assert bench.look(bench.pair.two) == ("running", "migrated", "none")
    bench.pair.whole(bench.guest, on=bench.pair.two)


def test_a_transient_guest_is_transient_there_and_gone_here(pair: Pair, hypervisor: LibvirtHypervisor) -> None:
    guest = pair.guest("web1", on=pair.one, load=CALM, persistent=False)
    source = hypervisor.domain("node1", guest.uuid)
    assert source is not None
    assert not source.persistent
    assert ended(hypervisor.copy_memory(source, "node2", Options())).ok
    wait_until(lambda: hypervisor.domain("node1", guest.uuid) is None, "the source knows it no more")
    hypervisor.resume("node2", guest.uuid)
    target = hypervisor.domain("node2", guest.uuid)
    assert target is not None
    assert not target.persistent
    pair.whole(guest, on=pair.two)


@pytest.mark.parametrize("options", [STRICT, FAST], ids=["strict", "fast"])
def test_a_guest_that_was_paused_arrives_paused(bench: Bench, options: Options) -> None:
    bench.hv.suspend("node1", bench.guest.uuid)
    copy = bench.hv.copy_memory(bench.source(), "node2", options)
    bench.hurry()
    assert ended(copy).ok
    bench.sees(bench.pair.two, ("paused", "user", "none"))
    bench.hv.resume("node2", bench.guest.uuid)
    bench.pair.whole(bench.guest, on=bench.pair.two)


# ---- what is seen in every phase: the ground of every decision that is made by observation ----

SOURCE_PHASES: list[Look] = [
    ("running", "booted", "none"),
    ("running", "booted", "outgoing"),
    ("paused", "migration", "outgoing"),
    ("in shutdown", "0", "none"),
    ("shut off", "migrated", "outgoing"),
    ("shut off", "migrated", "none"),
]
TARGET_PHASES: dict[Switch, list[Look]] = {
    Switch.STRICT: [
        None,
        ("paused", "starting up", "incoming"),
        ("paused", "migration", "incoming"),
        ("paused", "user", "incoming"),
        ("paused", "user", "none"),
    ],
    Switch.FAST: [
        None,
        ("paused", "starting up", "incoming"),
        ("paused", "migration", "incoming"),
        ("running", "migrated", "incoming"),
        ("running", "migrated", "none"),
    ],
}


@pytest.mark.parametrize("options", [STRICT, FAST], ids=["strict", "fast"])
def test_every_phase_on_both_nodes(bench: Bench, options: Options) -> None:
    last = ("shut off", "migrated", "none")
    with bench.watched() as noted:
        copy = bench.start(options)
        bench.hurry()
        assert ended(copy).ok
        wait_until(lambda: noted()["node1"][-1] == last, "the source is off")
    seen = noted()
    # A phase may be too short to be seen; none is seen that is not known, and all in their order.
    assert seen["node1"] == [look for look in SOURCE_PHASES if look in seen["node1"]], seen
    assert seen["node2"] == [look for look in TARGET_PHASES[options.switch] if look in seen["node2"]], seen
    assert ("running", "booted", "outgoing") in seen["node1"]
    assert ("paused", "migration", "incoming") in seen["node2"]
    assert seen["node2"][-1] == TARGET_PHASES[options.switch][-1]


def test_a_copy_that_is_coming_in_is_described_at_once(bench: Bench) -> None:
    """libvirt gives no XML of it, and keeps whoever asks waiting for 30 s."""
    copy = bench.start(STRICT)
    begin = time.monotonic()
    incoming = bench.hv.domain("node2", bench.guest.uuid)
    listed = bench.hv.domains("node2")
    assert time.monotonic() - begin < 15
    assert copy.wait(0) is None
    source = bench.source()
    assert incoming is not None
    assert listed == (incoming,)
    assert (incoming.state, incoming.job, incoming.persistent) == (DomainState.PAUSED, JobKind.INCOMING, False)
    assert (incoming.name, incoming.memory_kib, incoming.vcpus) == (source.name, source.memory_kib, source.vcpus)
    assert [(d.target, d.source) for d in incoming.disks] == [(d.target, d.source) for d in source.disks]
    copy.abort()
    assert not ended(copy).ok


@pytest.mark.parametrize("options", [STRICT, FAST], ids=["strict", "fast"])
def test_events_of_both_nodes_in_their_order(bench: Bench, options: Options) -> None:
    heard: list[tuple[str, str]] = []
    with bench.hv.on_change(bench.guest.uuid, lambda node, event: heard.append((node, event))):
        bench.look(bench.pair.two)  # events come from nodes that are connected
        copy = bench.start(options)
        bench.hurry()
        assert ended(copy).ok
        wait_until(lambda: ("node1", "stopped migrated") in heard, lambda: f"the source's end is heard: {heard}")
    assert [event for node, event in heard if node == "node1"] == [
        "suspended migrated",
        "shutdown by host",
        "stopped migrated",
    ]
    assert [event for node, event in heard if node == "node2"] == [
        "started migrated",
        "defined added",
        "suspended paused" if options is STRICT else "resumed migrated",
    ]
    arrival = ("node2", "suspended paused" if options is STRICT else "resumed migrated")
    assert heard.index(("node1", "suspended migrated")) < heard.index(arrival)
    assert heard.index(arrival) < heard.index(("node1", "stopped migrated"))


# ---- the lost reply ----


def test_a_bare_move_whose_reply_is_lost_ends_with_two_running_copies(bench: Bench) -> None:
    """The disaster itself: what every other test of a lost reply must not become."""
    copy = bench.lose_the_reply(FAST)
    assert not ended(copy).ok
    two = {"node1": ("running", "migration canceled", "none"), "node2": ("running", "migrated", "none")}
    bench.sees(bench.pair.one, two["node1"])
    bench.stays(two)
    assert bench.pair.running(bench.guest) == ("node1", "node2")
    wait_until(lambda: len(bench.guest.ear.twice) > 10, "both are heard")
    # And the audits, which other tests trust, find it.
    assert any("announced twice" in fault for fault in bench.guest.faults())
    for host in bench.pair.hosts:
        other = bench.pair.other(host).name
        assert any(f"{other} says running" in found for found in bench.pair.violations(bench.guest, on=host))


def test_arriving_paused_a_lost_reply_leaves_one_running_copy(bench: Bench) -> None:
    copy = bench.lose_the_reply(STRICT)
    assert bench.look(bench.pair.one) == ("paused", "migration", "outgoing")
    assert not ended(copy).ok
    bench.sees(bench.pair.one, ("running", "migration canceled", "none"))
    bench.stays({"node1": ("running", "migration canceled", "none"), "node2": ("paused", "user", "none")})
    bench.hv.discard("node2", bench.guest.uuid)
    assert bench.look(bench.pair.two) == ("shut off", "destroyed", "none")
    with pytest.raises(CommandFailed, match="not paused"):
        bench.hv.discard("node1", bench.guest.uuid)
    bench.hv.discard("node2", bench.guest.uuid)  # nothing to do any more
    bench.pair.whole(bench.guest, on=bench.pair.one)


def test_the_sources_paused_copy_is_ended_before_its_daemon_resumes_it(bench: Bench) -> None:
    copy = bench.lose_the_reply(FAST)
    with pytest.raises(CommandFailed, match="not paused"):
        bench.hv.discard("node2", bench.guest.uuid)
    assert bench.look(bench.pair.one) == ("paused", "migration", "outgoing")
    begin = time.monotonic()
    bench.hv.discard("node1", bench.guest.uuid)
    took = time.monotonic() - begin
    assert copy.wait(0) is None  # its job still hung: libvirt did not wait for it
    assert took < 4  # the keepalive: later would be too late
    assert bench.look(bench.pair.one) == ("shut off", "destroyed", "none")
    assert not ended(copy).ok
    bench.stays({"node1": ("shut off", "destroyed", "none"), "node2": ("running", "migrated", "none")})
    bench.pair.whole(bench.guest, on=bench.pair.two)


def test_an_abort_in_the_last_phase_proves_nothing(bench: Bench) -> None:
    """libvirt takes it, and the target has the guest all the same."""
    copy = bench.lose_the_reply(STRICT)
    copy.abort()
    bench.hv.abort_job("node1", bench.guest.uuid)
    bench.stays({"node1": ("paused", "migration", "outgoing"), "node2": ("paused", "user", "none")}, 0.5)
    assert not ended(copy).ok
    bench.sees(bench.pair.one, ("running", "migration canceled", "none"))
    bench.hv.discard("node2", bench.guest.uuid)
    bench.pair.whole(bench.guest, on=bench.pair.one)


@pytest.mark.parametrize("options", [STRICT, FAST], ids=["strict", "fast"])
def test_a_source_daemon_killed_in_the_last_phase_leaves_the_decision_to_us(bench: Bench, options: Options) -> None:
    copy = bench.lose_the_reply(options)
    bench.pair.one.kill_daemon()
    assert not ended(copy).ok
    bench.pair.two.drop_long_replies(on=False)
    bench.pair.one.restart_daemon()
    arrived = ("paused", "user", "none") if options is STRICT else ("running", "migrated", "none")
    bench.stays({"node1": ("paused", "migration", "none"), "node2": arrived})
    bench.hv.discard("node1", bench.guest.uuid)
    if options is STRICT:
        bench.hv.resume("node2", bench.guest.uuid)
    bench.pair.whole(bench.guest, on=bench.pair.two)


# ---- jobs that outlive who started them ----


@contextmanager
def killed_client(bench: Bench) -> Iterator[None]:
    """A copy is under way, and the program that started it was killed with -9."""
    nodes = json.dumps({host.name: dataclasses.asdict(host.node) for host in bench.pair.hosts})
    with subprocess.Popen(
        [sys.executable, "-m", "tests.pair.client", nodes, "node1", "node2", bench.guest.uuid],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdout is not None
        try:
            assert "under way\n" in client.stdout  # behind whatever it logs
        finally:
            client.kill()
    yield


def test_a_job_whose_client_was_killed_is_adopted_and_ends(bench: Bench) -> None:
    with killed_client(bench):
        copy = bench.hv.adopt("node1", bench.guest.uuid)
        assert copy.wait(1.0) is None
        progress = copy.progress()
        assert progress is not None
        assert progress.total > 0
        bench.hurry()
        assert ended(copy) == CopyEnd(ok=True)
        assert bench.look(bench.pair.one) == ("shut off", "migrated", "none")
        bench.sees(bench.pair.two, ("paused", "user", "none"))
        last = copy.progress()
        assert last is not None
        assert last.processed >= progress.processed
        bench.hv.resume("node2", bench.guest.uuid)
        bench.pair.whole(bench.guest, on=bench.pair.two)


def test_an_adopted_job_can_be_aborted(bench: Bench) -> None:
    with killed_client(bench):
        copy = bench.hv.adopt("node1", bench.guest.uuid)
        copy.abort()
        assert ended(copy) == CopyEnd(ok=False, detail="the guest is running (booted) there")
        wait_until(lambda: bench.look(bench.pair.two) is None, "the target's copy is gone")
        bench.pair.whole(bench.guest, on=bench.pair.one)


def test_a_source_that_does_not_answer_is_no_end_of_an_adopted_job(bench: Bench) -> None:
    with killed_client(bench):
        copy = bench.hv.adopt("node1", bench.guest.uuid)
        with bench.pair.one.daemon_mute():
            begin = time.monotonic()
            assert copy.wait(1.0) is None
            copy.progress()
            copy.abort()
            assert time.monotonic() - begin < 30  # each within seconds
        assert ended(copy) == CopyEnd(ok=False, detail="the guest is running (booted) there")
        bench.pair.whole(bench.guest, on=bench.pair.one)


def test_an_adopted_job_whose_daemon_is_killed_ends_with_its_restart(bench: Bench) -> None:
    with killed_client(bench):
        copy = bench.hv.adopt("node1", bench.guest.uuid)
        assert copy.wait(0.5) is None
        bench.pair.one.kill_daemon()
        assert copy.wait(2.0) is None
        bench.pair.one.restart_daemon()
        assert ended(copy) == CopyEnd(ok=False, detail="the guest is running (booted) there")
        bench.pair.whole(bench.guest, on=bench.pair.one)


def test_an_adopted_job_that_hangs_in_the_last_phase_goes_on_until_the_daemon_gives_up(bench: Bench) -> None:
    bench.lose_the_reply(STRICT)
    copy = bench.hv.adopt("node1", bench.guest.uuid)
    assert copy.wait(1.0) is None
    assert ended(copy) == CopyEnd(ok=False, detail="the guest is running (migration canceled) there")
    bench.hv.discard("node2", bench.guest.uuid)
    bench.pair.whole(bench.guest, on=bench.pair.one)


def test_no_job_at_all_is_an_end(bench: Bench) -> None:
    assert ended(bench.hv.adopt("node1", bench.guest.uuid)) == CopyEnd(
        ok=False, detail="the guest is running (booted) there"
    )
    assert ended(bench.hv.adopt("node2", bench.guest.uuid)) == CopyEnd(ok=True)


# ---- what breaks during the copy ----


def test_an_abort_puts_everything_back(bench: Bench) -> None:
    copy = bench.start(STRICT)
    copy.abort()
    end = ended(copy)
    assert not end.ok
    assert "libvirt error 78" in end.detail
    bench.pair.whole(bench.guest, on=bench.pair.one)


def test_a_cancelled_job_is_there_until_its_last_phase_is_over(bench: Bench) -> None:
    copy = bench.start(STRICT)
    with bench.pair.two.daemon_mute():
        copy.abort()
        time.sleep(0.5)
        assert copy.wait(0) is None
        assert bench.look(bench.pair.one) == ("running", "booted", "outgoing")
    assert not ended(copy).ok
    bench.sees(bench.pair.one, ("running", "booted", "none"))
    bench.pair.whole(bench.guest, on=bench.pair.one)


def test_the_targets_daemon_is_killed(bench: Bench) -> None:
    copy = bench.start(STRICT)
    bench.pair.two.kill_daemon()
    assert not ended(copy).ok
    bench.sees(bench.pair.one, ("running", "booted", "none"))
    with pytest.raises(NodeUnreachable):
        bench.look(bench.pair.two)
    assert bench.pair.two.qemus("web1")  # nobody ends it while the daemon is away
    bench.pair.two.restart_daemon()
    wait_until(lambda: bench.look(bench.pair.two) is None, "the daemon ends what was coming in")
    bench.pair.whole(bench.guest, on=bench.pair.one)


def test_nothing_is_left_in_this_process_of_a_daemon_that_was_restarted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = libvirt.open
    made: list[weakref.ref[libvirt.virConnect]] = []

    def opened(uri: str) -> libvirt.virConnect:
        connection = really(uri)
        made.append(weakref.ref(connection))
        return connection

    def alive() -> list[bool]:
        gc.collect()
        return [one() is not None for one in made]

    def looked() -> bool:
        try:
            return bench.look(bench.pair.two) is None
        except NodeUnreachable:
            return False

    monkeypatch.setattr(libvirt, "open", opened)
    for _ in range(2):
        bench.pair.two.kill_daemon()
        bench.pair.two.restart_daemon()
        wait_until(looked, "the daemon answers again")
    wait_until(lambda: len(made) > 1 and alive() == [False] * (len(made) - 1) + [True], lambda: str(alive()))
    bench.pair.whole(bench.guest, on=bench.pair.one)


def test_the_sources_daemon_is_killed(bench: Bench) -> None:
    copy = bench.start(STRICT)
    bench.pair.one.kill_daemon()
    assert not ended(copy).ok
    wait_until(lambda: bench.look(bench.pair.two) is None, "the target ends what was coming in")
    bench.pair.one.restart_daemon()
    bench.sees(bench.pair.one, ("running", "booted", "none"))
    bench.pair.whole(bench.guest, on=bench.pair.one)


def test_the_targets_qemu_is_killed(bench: Bench) -> None:
    copy = bench.start(STRICT)
    bench.pair.two.kill_qemu("web1")
    assert not ended(copy).ok
    bench.sees(bench.pair.one, ("running", "booted", "none"))
    bench.pair.whole(bench.guest, on=bench.pair.one)


def test_the_sources_qemu_is_killed_and_the_guest_is_nowhere(bench: Bench) -> None:
    copy = bench.start(STRICT)
    bench.pair.one.kill_qemu("web1")
    assert not ended(copy).ok
    bench.sees(bench.pair.one, ("shut off", "crashed", "none"))
    wait_until(lambda: bench.look(bench.pair.two) is None, "the target ends what was coming in")
    assert bench.pair.running(bench.guest) == ()
    assert not bench.guest.verdict().faults  # its disk has every record


def test_a_link_that_is_cut_ends_the_copy_and_leaves_a_paused_one_behind(bench: Bench) -> None:
    copy = bench.start(STRICT)
    bench.pair.one.link(up=False)
    assert not ended(copy).ok
    bench.sees(bench.pair.one, ("running", "booted", "none"))
    # The target's daemon waits for a client that is gone, five times five seconds by default.
    assert bench.look(bench.pair.two) == ("paused", "migration", "incoming")
    bench.hv.discard("node2", bench.guest.uuid)
    assert bench.look(bench.pair.two) is None
    bench.pair.whole(bench.guest, on=bench.pair.one)


def test_a_link_that_comes_back_in_time_ends_nothing(bench: Bench) -> None:
    copy = bench.start(STRICT)
    bench.pair.one.link(up=False)
    time.sleep(1.0)
    bench.pair.one.link(up=True)
    bench.hurry()
    assert ended(copy).ok
    bench.hv.resume("node2", bench.guest.uuid)
    bench.pair.whole(bench.guest, on=bench.pair.two)


def test_an_incoming_copy_can_be_discarded_and_the_source_runs_on(bench: Bench) -> None:
    copy = bench.start(STRICT)
    assert bench.look(bench.pair.two) == ("paused", "migration", "incoming")
    bench.hv.discard("node2", bench.guest.uuid)
    assert not ended(copy).ok
    bench.sees(bench.pair.one, ("running", "booted", "none"))
    bench.pair.whole(bench.guest, on=bench.pair.one)


def test_a_daemon_that_is_mute_is_no_answer_and_is_met_again(pair: Pair) -> None:
    guest = pair.guest("web1", on=pair.one, load=CALM)
    hypervisor = LibvirtHypervisor({host.name: host.node for host in pair.hosts}, call_timeout_s=1.0)
    assert hypervisor.domain("node1", guest.uuid) is not None
    with pair.one.daemon_mute(), pytest.raises(NodeUnreachable):
        hypervisor.domain("node1", guest.uuid)
    wait_until(lambda: seen(hypervisor, guest) is DomainState.RUNNING, "it answers again")
    pair.one.kill_daemon()
    assert seen(hypervisor, guest) is None
    pair.one.restart_daemon()
    assert seen(hypervisor, guest) is DomainState.RUNNING  # on a new connection
    hypervisor.close()


def seen(hypervisor: LibvirtHypervisor, guest: Guest) -> DomainState | None:
    try:
        domain = hypervisor.domain("node1", guest.uuid)
    except NodeUnreachable:
        return None
    assert domain is not None
    assert domain.job is JobKind.NONE
    return domain.state


# ---- connections ----


def test_a_connection_whose_daemon_died_leaves_nothing_open(pair: Pair, hypervisor: LibvirtHypervisor) -> None:
    def files() -> list[str]:
        found = []
        for file in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # the one that the folder is read by
                found.append(str(file.readlink()).partition(":")[0])
        return sorted(found)

    def again() -> None:
        for host in pair.hosts:
            host.kill_daemon()
            host.restart_daemon()
            wait_until(lambda host=host: answers(host), f"{host.name} answers")  # type: ignore[misc]

    def answers(host: Host) -> bool:
        try:
            return hypervisor.domains(host.name) == ()
        except (CommandFailed, NodeUnreachable):
            return False

    again()
    before = files()
    for _ in range(2):
        again()
    # A thread of libvirt's that is just ending may still have one.
    wait_until(lambda: files() == before, lambda: f"{files()} is {before}", 20)
