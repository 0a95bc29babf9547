"""What of the lab's campaign needs no lab: its cases and their order, its sums, and what a fault came to."""

from __future__ import annotations

import contextlib
import importlib
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lvmigrate import ExitCode, config
from lvmigrate.plan import Options
from tests.lab import faults
from tests.lab.campaign import Campaign, _told, drawn, in_order, meet, with_deadlines
from tests.lab.deadlines import BLINK_S, DEADLINES, DRBD, LIMITS, LONG_S, PATIENCE, SHORT_S, STOPPED_S
from tests.lab.faults import Case, Fault, KernelRefusedError, NotMetError, Play, case, cases, given_up, is_detached
from tests.lab.tally import TRIES, Outcome, Tally, rounds_played, whatever_ends_it
from tests.lab.under import NAMES, EndlessError, Under
from vagrant.labkit.guests import WEB1
from vagrant.labkit.lab import LabError

ROOT = Path(__file__).resolve().parents[2]

# ---- the cases


@pytest.mark.parametrize(
    "fault",
    [
        *("kill", "stop", "rival"),
        *(f"{link}-cut-{word}" for link in ("drbd", "libvirt", "both", "controller") for word in ("blink", "long")),
    ],
)
def test_every_step_has_its_turn(fault: str) -> None:
    assert {one.step for one in cases() if one.fault.name == fault} == set(NAMES)


def test_each_case_is_drawn_once_and_what_both_guests_meet_alone() -> None:
    rounds = drawn(cases(), seed=7)
    assert Counter(str(one) for two in rounds for one in two) == Counter(map(str, cases()))
    assert all(len(two) == 1 for two in rounds if any(one.fault.shared for one in two))
    assert rounds != drawn(cases(), seed=8)
    assert [len(two) for two in in_order([case("kill@open"), case("stop@open"), case("source-power@memory")])] == [2, 1]


# ---- how long a cut is

#: What no cut of a link runs into: what QEMU takes for no limit, an opening that hangs again and again, a day.
_ENDLESS = {"UNLIMITED_S", "_MOST_PATIENCE_S", "_DAY_S"}
#: What a move and what mends it are made of; the rest is imported from there.
_MOVES = ("lvmigrate.cluster", "hv.libvirt_kvm", "storage.drbd")


def waits() -> Iterator[tuple[str, float]]:
    """Everything in seconds that a module of a move has decided."""
    for name in _MOVES:
        importlib.import_module(name)
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] not in {"lvmigrate", "hv", "storage"} or ".simulator" in name or ".service" in name:
            continue
        for word, value in vars(module).items():
            if word.endswith("_S") and isinstance(value, int | float) and word not in _ENDLESS:
                yield f"{name}.{word}", float(value)


def test_a_long_cut_is_longer_than_everything_that_is_waited_for() -> None:
    found = dict(waits())
    assert {"lvmigrate.follow.ABORT_S", "lvmigrate.dual_primary._HELD_S", "hv.line._PATIENCE_S"} <= set(found)
    assert {name: value for name, value in found.items() if value >= LONG_S} == {}
    assert max(*DEADLINES.values(), *DRBD.values()) < LONG_S
    by_option = {one.name: getattr(Options(), one.name) for one in fields(Options)}
    patience = {
        name: PATIENCE.get(name, value)
        for name, value in by_option.items()
        if name.endswith(("_timeout_s", "_stall_s"))
    }
    assert set(PATIENCE) < set(patience)
    assert max(patience.values()) < LONG_S


def test_a_short_cut_is_noticed_by_drbd_alone_and_a_blink_by_nobody() -> None:
    assert min(*DEADLINES.values(), *DRBD.values()) > BLINK_S
    assert max(DRBD.values()) < SHORT_S < min(DEADLINES.values())
    assert LIMITS.lease_s < STOPPED_S


def test_the_lab_s_own_deadlines_are_the_campaign_s(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    text = (
        '[ssh]\nconfig = "x"\n\n[limits]\nconnect_s = 6\nlease_s = 60\n\n[nodes.a]\nssh = "a"\n\n[nodes.b]\nssh = "b"\n'
    )
    file.write_text(with_deadlines(text))
    (tmp_path / "x").touch()
    loaded = config.load(file)
    assert loaded.limits == LIMITS
    assert {key: getattr(loaded.defaults, key) for key in PATIENCE} == PATIENCE
    assert set(loaded.nodes) == {"a", "b"}


# ---- what a fault came to


def played(*, code: int = 0, said: str = "", begins: bool = True, lab: object = None) -> Play:
    under = SimpleNamespace(until=lambda _step: begins, end=lambda: code, said=said)
    it = SimpleNamespace(guest=SimpleNamespace(name="web1", resource="web1"), home="node1")
    return Play(lab=cast("Any", lab), it=cast("Any", it), under=cast("Any", under), config=Path("none"))


def raising(error: Exception) -> Callable[[Play], None]:
    def act(_play: Play) -> None:
        raise error

    return act


def met(act: Callable[[Play], None], *, begins: bool = True) -> Outcome:
    outcome = Outcome(case="x@open", guest="web1")
    meet(played(begins=begins), Case(fault=Fault(name="x", act=act), step="open"), outcome)
    return outcome


def ended_by(error: Exception) -> tuple[Outcome, list[str]]:
    done: list[str] = []
    play = played()
    under = cast("Any", play.under)
    under.alive, under.kill = True, lambda: done.append("killed")
    one = Case(fault=Fault(name="x", act=raising(error)), step="open")
    return Campaign.__new__(Campaign)._one(play, one, leads=True), done


def test_what_fails_in_a_fault_is_an_error_of_its_case_and_a_hang_a_violation() -> None:
    failed, done = ended_by(LabError("no route"))
    assert (failed.errors, failed.violations, done) == (["LabError: no route"], [], ["killed"])
    hung, done = ended_by(EndlessError("no end"))
    assert (hung.errors, hung.violations, done) == ([], ["EndlessError: no end"], ["killed"])


def test_what_does_not_come_in_time_afterwards_is_a_violation_and_what_else_fails_an_error() -> None:
    def after(error: Exception) -> Outcome:
        def act(_play: Play, _one: Case, _outcome: Outcome) -> None:
            raise error

        outcome = Outcome(case="x@open", guest="web1")
        _told(act, played(), case("kill@open"), outcome)
        return outcome

    assert after(TimeoutError("the guards do not end")).violations == ["in vain: the guards do not end"]
    assert after(LabError("no route")).errors == ["LabError: no route"]
    assert after(KeyError("node")).errors == ["KeyError: 'node'"]


def test_a_fault_that_could_not_be_done_is_neither_met_nor_left_to_a_person() -> None:
    assert met(lambda _play: None) == Outcome(case="x@open", guest="web1")
    assert met(lambda _play: None, begins=False).not_met == "open did not begin"
    late = met(raising(NotMetError("too late")))
    assert (late.not_met, late.held) == ("too late", [])
    refused = met(raising(KernelRefusedError("no")))
    assert (refused.not_met, refused.refused) == ("", "no")


@dataclass
class Node:
    """Answers a detach as a kernel does."""

    events: str
    done: list[str] = field(default_factory=list)

    def run(self, _node: str, script: str) -> str:
        self.done.append(script)
        return self.events if "events2" in script else "(-10) State change was refused by peer node\n"


@pytest.mark.parametrize(
    ("disks", "gone"), [(["Diskless"], True), (["UpToDate"], False), (["Diskless", "UpToDate"], False), ([], False)]
)
def test_a_detach_counts_when_the_disk_is_gone(
    monkeypatch: pytest.MonkeyPatch, disks: Sequence[str], *, gone: bool
) -> None:
    monkeypatch.setattr("tests.lab.faults.time.sleep", lambda _seconds: None)
    lines = [f"exists device name:web1 volume:{n} minor:{n} disk:{disk} size:9" for n, disk in enumerate(disks)]
    events = "\n".join(["exists resource name:web1 role:Primary", *lines, "exists peer-device disk:Diskless"])
    assert is_detached(events) == gone
    node = Node(events)
    act = faults.case("source-disk@memory").fault.act
    with contextlib.nullcontext() if gone else pytest.raises(KernelRefusedError, match="refused by peer node"):
        act(played(lab=node))
    assert "attach" in node.done[-1]


def test_a_load_is_met_when_its_policy_has_given_the_copy_up() -> None:
    with pytest.raises(NotMetError):
        given_up(played(), ExitCode.OK)
    play = played(said="lvmigrate: NOT_CONVERGING: The copy of memory does not come to its end")
    given_up(play, ExitCode.FAILED)
    assert not play.wrong
    for code, said in ((ExitCode.FAILED, "COPY_TIMEOUT: ..."), (ExitCode.UNKNOWN, "NOT_CONVERGING: ...")):
        play = played(said=said)
        given_up(play, code)
        assert play.wrong


@pytest.mark.parametrize("step", ["lock", "memory"])
def test_a_command_that_hangs_is_given_up_wherever_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    fake = tmp_path / "lvmigrate"
    fake.write_text(f"#!/bin/sh\necho '1/{len(NAMES)} lock: take' >&2\nexec sleep 600\n")
    fake.chmod(0o755)
    monkeypatch.setattr("tests.lab.under.LVMIGRATE", fake)
    monkeypatch.setattr("tests.lab.under._END_S", 2.0)
    under = Under(WEB1, tmp_path / "none")
    try:
        with pytest.raises(EndlessError, match="lock: take"):
            assert under.until(step)
            under.end()
    finally:
        under.kill()
    assert under.killed


# ---- the sums


@dataclass
class Stage:
    """Plays rounds by what it is given for each case, one after the other."""

    comes_to: dict[str, list[Outcome | Exception]]
    healed: int = 0
    kept: list[str] = field(default_factory=list)
    fails_to_heal: int = 0

    def play(self, chosen: Sequence[Case]) -> list[Outcome]:
        found = [self.comes_to[str(one)].pop(0) for one in chosen]
        for one in found:
            if isinstance(one, Exception):
                raise one
        return [one for one in found if isinstance(one, Outcome)]

    def heal(self) -> None:
        self.healed += 1
        if self.healed <= self.fails_to_heal:
            raise OSError("node1 is off")

    def bundle(self, outcomes: Sequence[Outcome]) -> Path:
        self.kept.append(outcomes[0].case)
        return Path("kept")


def outcome(name: str, **words: Any) -> Outcome:
    return Outcome(case=name, guest="web1", ended="OK", **words)


def tally_of(stage: Stage) -> Tally:
    tally = Tally()
    rounds_played(stage, [[case(name)] for name in list(stage.comes_to)], tally, more=lambda: True)
    assert not any(stage.comes_to.values())
    return tally


def test_a_round_that_fails_is_told_kept_healed_and_not_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage({"kill@open": [OSError("no route")], "stop@open": [outcome("stop@open")]}, fails_to_heal=1)
    tally = tally_of(stage)
    assert tally.failed
    assert (tally.sums["errors"], tally.sums["violations"], tally.sums["cases"]) == (1, 0, 2)
    assert (stage.kept, stage.healed) == (["kill@open"], 2)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["case"], line["errors"]) for line in lines] == [
        ("kill@open", ["OSError: no route"]),
        ("stop@open", []),
    ]


def test_what_cannot_be_healed_twice_ends_it() -> None:
    stage = Stage({"kill@open": [OSError("no route")]}, fails_to_heal=2)
    with pytest.raises(OSError, match="is off"):
        tally_of(stage)


def test_a_fault_that_is_never_met_fails_the_campaign_and_is_not_called_held() -> None:
    name = "kill@open"
    tally = tally_of(Stage({name: [outcome(name, not_met="too late") for _ in range(TRIES)]}))
    assert tally.not_met == [name]
    assert tally.failed
    assert (tally.sums["not met"], tally.sums["held for a person"]) == (1, 0)


def test_a_fault_that_is_met_the_second_time_is_met() -> None:
    name = "kill@open"
    tally = tally_of(Stage({name: [outcome(name, not_met="too late"), outcome(name, held=["a person"])]}))
    assert not tally.failed
    assert (tally.sums["not met"], tally.sums["held for a person"], tally.sums["cases"]) == (0, 1, 2)


def test_a_violation_and_what_the_kernel_refused_are_sums_of_their_own() -> None:
    name, other = "kill@open", "source-disk@sync"
    stage = Stage({name: [outcome(name, violations=["two copies"])], other: [outcome(other, refused="no")]})
    tally = tally_of(stage)
    assert tally.failed
    assert (tally.sums["violations"], tally.sums["refused by the kernel"], tally.sums["errors"]) == (1, 1, 0)
    assert (stage.kept, stage.healed) == ([name], 1)
    assert not tally_of(Stage({other: [outcome(other, refused="no")]})).failed
    assert Tally().failed  # nothing was shown


_INTERRUPTED = """
import json, sys, threading
from tests.lab.tally import Tally, whatever_ends_it
tally, stopped = Tally(), threading.Event()
def work():
    print("begun", flush=True)
    stopped.wait()
    print("taken down", flush=True)
whatever_ends_it(tally, work, tell=lambda: print(json.dumps(tally.sums), flush=True), stop=stopped.set)
sys.exit(128 + tally.signal)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_sums_are_told_at_once_when_somebody_ends_it(number: signal.Signals) -> None:
    """And before what is under way has come to its end, which may take minutes."""
    with subprocess.Popen([sys.executable, "-c", _INTERRUPTED], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert json.loads(process.stdout.readline())["ended by"] == number.name
        assert process.stdout.read() == "taken down\n"
    assert process.returncode == 128 + number


def test_the_sums_are_told_when_an_error_ends_it() -> None:
    tally, said = Tally(), list[str]()

    def work() -> None:
        raise OSError("no lab")

    with pytest.raises(OSError, match="no lab"):
        whatever_ends_it(tally, work, tell=lambda: said.append(tally.ended_by), stop=said.clear)
    assert said == ["OSError: no lab"]
    assert tally.failed


def test_the_sums_are_told_at_the_end() -> None:
    tally, said = Tally(), list[str]()
    whatever_ends_it(tally, lambda: said.append("worked"), tell=lambda: said.append("told"), stop=said.clear)
    assert said == ["worked", "told"]
    assert not tally.ended_by
