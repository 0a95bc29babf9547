"""What the lab's figures are made of, without a lab: trips, the call that is left out, and moves by hand that fail."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from tests.bench import hand as by_hand
from tests.bench.hand import Care, Hand, HandFailedError, Took
from tests.bench.lab import call_s, shown
from tests.bench.trips import Trips, counted
from vagrant.labkit.guests import WEB1

#: As libvirt 11.3 logs it.
LIBVIRT = """\
2026-11-29 13:03:32.088+0000: 8672: info : virNetClientSendInternal:2164 : RPC_CLIENT_MSG_TX_QUEUE: client=0x5 len=56 \
prog=536903814 vers=1 proc=1 type=0 status=0 serial=1
2026-11-29 13:03:32.097+0000: 8672: info : virNetClientCallDispatch:1296 : RPC_CLIENT_MSG_RX: client=0x5 len=28 \
prog=536903814 vers=1 proc=1 type=1 status=0 serial=1
2026-11-29 13:03:37.088+0000: 8672: info : virNetClientSendInternal:2164 : RPC_CLIENT_MSG_TX_QUEUE: client=0x5 len=28 \
prog=1801807216 vers=1 proc=1 type=2 status=0 serial=0
"""
LOG = """\
   0.1 s  5/8 memory: copy
{"node": "node1", "event": "copy_call_began", "level": "debug", "timestamp": "2026-11-29T13:00:01.250000Z"}
{"node": "node1", "what": "x", "event": "ran_on_node", "level": "debug", "timestamp": "2026-11-29T13:00:01.500000Z"}
{"node": "node1", "event": "copy_call_ended", "level": "debug", "timestamp": "2026-11-29T13:00:04.000000Z"}
"""


def test_trips_are_counted_in_the_same_way_for_whoever_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "ssh"
    fake.write_text('#!/bin/sh\necho "went to $*"\nexit 7\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LIBVIRT_LOG_OUTPUTS", "4:stderr")
    before = dict(os.environ)
    with counted() as trips:
        for words in (["node1", "--", "true"], ["-F", "x", "node2", "--", "virsh"], ["-O", "exit", "node1"]):
            done = subprocess.run(["ssh", *words], capture_output=True, text=True, check=False)
            assert (done.stdout, done.returncode) == (f"went to {' '.join(words)}\n", 7)
        Path(os.environ["LIBVIRT_LOG_OUTPUTS"].removeprefix("2:file:")).write_text(LIBVIRT)
        assert trips.made(LOG) == Trips(commands=2, lines=1, calls=1)
        assert trips.made(LOG).total == 4
        trips.begin()
        assert trips.made() == Trips()
    assert dict(os.environ) == before


def test_what_is_left_out_is_the_migrate_call_and_not_its_step() -> None:
    assert call_s(LOG) == 2.75


class Lab:
    """Two nodes with DRBD 9, in step; ``answers``: to a command with these words, in turn, the last for ever."""

    def __init__(self, answers: dict[str, list[str]] | None = None) -> None:
        self.answers = {word: list(said) for word, said in (answers or {}).items()}
        self.ran: list[str] = []

    def drbd_version(self) -> str:
        return "9.3.3"

    def run(self, _node: str, script: str) -> str:
        self.ran.append(script)
        for word, said in self.answers.items():
            if word in script:
                return said.pop(0) if len(said) > 1 else said[0]
        return "UpToDate UpToDate" if "status" in script else ""


class NoTrips:
    def begin(self) -> None:
        pass

    def made(self) -> Trips:
        return Trips()


class Clock:
    """Time that passes where somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.125
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(by_hand, "time", made)
    return made


def hand(lab: Lab) -> Hand:
    return Hand(cast("Any", lab), WEB1, cast("Any", NoTrips()))


def test_by_hand_the_call_alone_is_left_out(clock: Clock) -> None:
    lab = Lab({"migrate": ["\n(Time: 125.000 ms)\n\n"]})
    took = hand(lab).move("node1", Care.BLIND)
    # The clock goes on by 0.125 s at each look: begin, dual, demoted, end.
    assert took.dual_beyond_copy == 0.125 - 0.125
    assert took.total == 0.375
    assert any("-t migrate" in script for script in lab.ran)
    assert not any("status" in script for script in lab.ran)


def moved(care: Care) -> list[str]:
    lab = Lab({"migrate": ["(Time: 1.0 ms)"]})
    hand(lab).move("node1", care)
    return lab.ran


def test_with_looks_each_act_is_looked_at_on_both_nodes(clock: Clock) -> None:
    ran = moved(Care.LOOKS)
    assert [script for script in ran if "status" not in script] == moved(Care.BLIND)
    assert sum("status" in script for script in ran) == 2 * 6


def test_who_takes_care_lets_the_guest_run_once_it_is_seen_there_alone(clock: Clock) -> None:
    ran = moved(Care.GUARDED)
    acts = [script.split()[1:3] for script in ran if script.startswith("virsh") and "list" not in script]
    assert acts == [["-q", "-t"], ["-q", "resume"]]
    copied = next(number for number, script in enumerate(ran) if "migrate" in script)
    resumed = next(number for number, script in enumerate(ran) if "resume" in script)
    assert "--suspend" in ran[copied]
    assert ["virsh -q list" in script and "status" in script for script in ran[copied + 1 : resumed]] == [True, True]
    assert sum("systemd-run" in script for script in ran) == sum("systemctl stop" in script for script in ran) == 2
    assert "drbdsetup secondary web1" in ran[resumed + 3]


def test_the_seed_s_way_has_the_same_measure(clock: Clock) -> None:
    answers = {"rm -f": [""], "cat /run/bench.rc": ["", "", "0\n"], "cat /run/bench.log": ["(Time: 4000.0 ms)\n"]}
    lab = Lab(answers)
    took = hand(lab).as_the_seed("node1")
    assert took.dual_beyond_copy == pytest.approx(2 * 2.0 + 3 * 0.125 + 0.125 - 4.0, abs=0.126)


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        (
            {"cat /run/bench.rc": ["", "1\n"], "cat /run/bench.log": ["error: no route\n"]},
            "failed with 1: error: no route",
        ),
        ({"cat /run/bench.rc": [""]}, "no end within 300 s"),
        ({"status": ["Inconsistent"]}, "not in step within 300 s"),
        ({"cat /run/bench.rc": ["0\n"], "cat /run/bench.log": [""]}, "does not tell"),
    ],
)
def test_the_seed_s_way_ends_when_it_fails(clock: Clock, answers: dict[str, list[str]], says: str) -> None:
    lab = Lab({"rm -f": [""], **answers})
    with pytest.raises(HandFailedError, match=says):
        hand(lab).as_the_seed("node1")


def test_all_by_hand_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def took(beyond: float) -> Took:
        return Took(total=1.0, dual_beyond_copy=beyond, trips=Trips(commands=3))

    each = {
        "ours": [took(0.5)],
        "hand": [took(1.0)],
        "hand_with_looks": [took(2.0)],
        "hand_without_looks": [took(0.25)],
        "seed": [took(9.0)],
    }
    assert not shown(each, {name: [0.1] for name in each})  # 0.6 of the seed's total is not kept
    figures = {figure["name"]: figure for figure in map(json.loads, capsys.readouterr().out.splitlines())}
    told = {name: (figure["value"], figure["goal"], figure["holds"]) for name, figure in figures.items()}
    assert told == {
        "lab_move_ratio_to_hand": (1.0, 1.0, True),
        "lab_move_ratio_to_hand_with_looks": (1.0, None, True),
        "lab_move_ratio_to_hand_without_looks": (1.0, None, True),
        "lab_move_ratio_to_seed_way": (1.0, 0.6, False),
        "lab_dual_primary_beyond_copy_ratio_to_hand": (0.5, 0.7, True),
        "lab_dual_primary_beyond_copy_ratio_to_hand_with_looks": (0.25, None, True),
        "lab_dual_primary_beyond_copy_ratio_to_hand_without_looks": (2.0, None, True),
    }
    assert figures["lab_move_ratio_to_hand"]["detail"]["round_trips"]["ours"] == 3


@pytest.mark.parametrize(
    ("care", "ran"), [(Care.BLIND, 6), (Care.LOOKS, 6 + 5 * 2), (Care.GUARDED, 6 + 5 * 2 + 2 * 2 + 2 * 2)]
)
def test_opening_and_closing_by_hand(care: Care, ran: int) -> None:
    lab = Lab()
    hand(lab).open_close_s("node1", "node2", care)
    assert len(lab.ran) == ran
