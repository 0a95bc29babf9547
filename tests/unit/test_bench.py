"""What the benchmarks are made of that measures nothing: the fit, the picture, what a soak's samples say."""

from __future__ import annotations

import shutil
import subprocess
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from lvmigrate.errors import Code, MoveFailed
from lvmigrate.report import Report
from tests.bench.fit import exponent, slope, steady
from tests.bench.moved import Mover
from tests.bench.picture import Points, draw, svg, ticks
from tests.bench.played import played
from tests.bench.soak import Sample, growth, per_hour, rise
from tests.bench.usage import Usage


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_is_the_power(power: float) -> None:
    assert exponent([(x, 3 * x**power) for x in (1, 4, 16, 64)]) == pytest.approx(power)


def test_what_is_there_without_any_hides_a_square_but_not_from_the_larger_sizes() -> None:
    points = [(x, 100 + x**2) for x in (1, 4, 16, 64)]
    assert exponent(points) < 1
    assert exponent(points[-2:]) > 1.2


def test_the_slope_is_what_one_more_adds() -> None:
    assert slope([(1, 12), (5, 20), (10, 30)]) == pytest.approx(2)


@pytest.mark.parametrize(("most", "last"), [(0, 1), (1, 1), (0.7, 0.8), (63.2, 80), (1000, 1000), (1001, 1500)])
def test_ticks_are_round_and_reach_over_all(most: float, last: float) -> None:
    found = ticks(most)
    assert found[0] == 0
    assert found[-1] == last >= most
    assert 2 <= len(found) <= 7


def test_a_picture_is_xml_with_every_point_within(tmp_path: Path) -> None:
    curves: dict[str, Points] = {"a < b": [(0, 0), (64, 7.25)], "c": [(1, 3), (16, 2)]}
    path = draw("x", "One & all", curves, across="disks", up="seconds", folder=tmp_path / "new")
    root = ET.parse(path).getroot()
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    circles = [node for node in root if node.tag.endswith("circle")]
    assert len(circles) == 4
    assert all(0 < float(c.attrib["cx"]) < width and 0 < float(c.attrib["cy"]) < height for c in circles)
    words = [node.text for node in root.iter() if node.tag.endswith("text")]
    assert {"One & all", "a < b", "c", "disks", "seconds"} <= set(words)
    assert "circle" not in svg("t", curves, across="x", up="y", marks=False)


def samples(values: list[float]) -> list[Sample]:
    usage = {"pss_mib": 0.0, "threads": 1, "fds": 1, "sockets": 0, "children": 0, "ssh": 0, "cpu_s": 0.0}
    return [Sample(at_s=36.0 * n, usage=Usage(rss_mib=value, **usage)) for n, value in enumerate(values)]  # type: ignore[arg-type]


def test_a_leak_is_seen_and_a_beginning_and_one_outlier_are_not() -> None:
    flat = [10.0, 30.0, *[50.0] * 8, 90.0, *[50.0] * 9]
    assert growth(samples(flat), "rss_mib") == 0
    leak = [50.0 + n for n in range(20)]
    assert growth(samples(leak), "rss_mib") == 8
    assert per_hour(samples(leak), "rss_mib") == pytest.approx(100)
    assert growth(samples([1.0]), "rss_mib") == 0


def test_a_slope_sees_what_the_two_ends_do_not() -> None:
    """Leaks that a restart of the allocator's arena, or a round in between, hides at the end of the run."""
    assert rise(samples([50.0 + n for n in range(20)]), "rss_mib") == pytest.approx(7.5)
    hidden = [50.0 + n for n in range(20)]
    hidden[-1] = hidden[4] = 50.0
    assert rise(samples(hidden), "rss_mib") == pytest.approx(7.5, abs=0.5)
    assert rise(samples([10.0, 30.0, *[50.0] * 8, 90.0, *[50.0] * 9]), "rss_mib") == 0
    assert rise(samples([7.0, 8.0] * 10), "rss_mib") == pytest.approx(0, abs=0.25)
    # One more every sixth round, which half of the rounds do not see.
    assert rise(samples([float(n // 6) for n in range(60)]), "rss_mib") > 3
    assert rise(samples([1.0]), "rss_mib") == 0
    assert rise([], "rss_mib") == 0


def test_one_point_says_nothing_of_a_steady_slope() -> None:
    assert steady([(0, 0), (1, 2), (2, 4), (3, 600), (4, 8)]) == pytest.approx(2)
    assert steady([(1, 1)]) == 0


def test_what_this_process_uses() -> None:
    usage = Usage.of()
    assert usage.rss_mib >= usage.pss_mib > 1
    assert usage.threads >= 1
    assert usage.fds >= 3
    assert usage.fds >= usage.sockets
    assert usage.files == usage.fds - usage.sockets


def test_ssh_s_processes_are_counted_by_their_name(tmp_path: Path) -> None:
    here = Usage.of()
    ssh = tmp_path / "ssh"
    ssh.symlink_to(shutil.which("sleep") or "sleep")
    with subprocess.Popen([ssh, "600"]) as process:
        try:
            deadline = time.monotonic() + 30
            while Usage.of().ssh == here.ssh:  # until it has become another program
                assert time.monotonic() < deadline
            assert (Usage.of().ssh, Usage.of().children) == (here.ssh + 1, here.children + 1)
        finally:
            process.kill()


def test_moves_between_played_nodes_arrive_and_those_that_are_cut_do_not() -> None:
    """What a reaction and the growth with disks are measured on: a play that is not up to date fails here."""
    with played(resources=2, volumes=2, seed=1) as nodes:
        mover = Mover(nodes, resources=2, volumes=2)
        arrived, _ = mover.move()
        assert isinstance(arrived, Report)
        told = [(note.what, note.came is None) for note in nodes.notes()[0]]
        assert told == [("in step", False), ("Primary", True), ("Secondary", False)]
        nodes.cut(on=True)
        cut, job = mover.move(cut=True)
        assert isinstance(cut, MoveFailed)
        assert cut.code is Code.REPLICATION_BROKE
        (note,) = [note for note in nodes.notes()[0] if note.what == "cut"]
        assert job.began_at < note.told < job.aborted_at
        mover.close()
