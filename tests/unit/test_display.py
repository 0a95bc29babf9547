"""What people see, from values."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lvmigrate import display
from lvmigrate.migrate import MigrateInstance
from lvmigrate.progress import MemoryProgress, StepProgress, SyncProgress
from tests.unit.fakes import World

MIB = 1 << 20
MEMORY = MemoryProgress(
    elapsed_s=12,
    total=64 * MIB,
    remaining=16 * MIB,
    processed=64 * MIB,
    rate=8 * MIB,
    dirty_rate=4 * MIB,
    iteration=2,
    expected_downtime_s=0.1,
    percent=75,
)
SYNC = SyncProgress(out_of_sync_kib=2048, percent=50, waiting_for=("r0/0 on node1 is SyncSource to node2",))


def step(**changes: object) -> StepProgress:
    values = {
        "instance": "web1",
        "source": "node1",
        "target": "node2",
        "step": "memory",
        "number": 4,
        "steps": 7,
        "sentence": "copy the guest's memory",
        "elapsed_s": 12.0,
    }
    return StepProgress(**values | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "words"), [(0.0432, "43 ms"), (1.84, "1.8 s"), (119, "119.0 s"), (725, "12 min 5 s")]
)
def test_durations(value: float, words: str) -> None:
    assert display.seconds(value) == words


def test_memory_in_one_line() -> None:
    words = display.memory_words(MEMORY)
    assert words == "75 %, 16.0 MiB of 64.0 MiB to go, 8.0 MiB/s, pass 2, about 4.0 s left"


def test_plain_output_speaks_at_each_step_and_every_ten_seconds() -> None:
    stream = io.StringIO()
    with display.PlainDisplay(stream) as plain:
        for second in range(25):
            plain.progress(step(elapsed_s=float(second), memory=MEMORY))
        plain.progress(step(step="sync", number=2, elapsed_s=40.0, sync=SYNC))
        plain.progress(step(step="sync", number=2, elapsed_s=55.0, sync=SYNC))
    lines = stream.getvalue().splitlines()
    assert [line.split(" s")[0].strip() for line in lines] == ["0.0", "10.0", "20.0", "40.0", "55.0"]
    assert "copy the guest's memory" in lines[0]
    assert "75 %" in lines[1]
    assert "SyncSource" in lines[4]


def test_the_live_display_shows_steps_and_bar_and_ends_with_the_whole_list() -> None:
    plan = MigrateInstance(World().context(), "web1").check_prereq()
    stream = io.StringIO()
    with display.LiveDisplay(Console(file=stream, force_terminal=True, width=120)) as live:
        live.plan(plan)
        for number, (name, sentence) in enumerate(plan.steps, 1):
            live.progress(
                step(step=name, number=number, sentence=sentence, memory=MEMORY if name == "memory" else None)
            )
        assert live._draw() is not None
    text = stream.getvalue()
    assert "web1: node1 -> node2, live" in text
    final = text.rsplit("web1: node1 -> node2, live", 1)[1]
    assert final.count("✓") == len(plan.steps)


def test_the_live_display_marks_the_step_that_failed() -> None:
    plan = MigrateInstance(World().context(), "web1").check_prereq()
    stream = io.StringIO()
    with (
        pytest.raises(KeyError),
        display.LiveDisplay(Console(file=stream, force_terminal=True, width=120)) as live,
    ):
        live.plan(plan)
        live.progress(step(memory=MEMORY))
        raise KeyError
    final = stream.getvalue().rsplit("web1: node1 -> node2, live", 1)[1]
    assert (final.count("✓"), final.count("✗")) == (3, 1)
