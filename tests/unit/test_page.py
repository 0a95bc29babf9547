"""The story of an errand as values, as a page, and by the command. The stories are those of moves in the simulator."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from lvmigrate import cli, cluster, convergence
from lvmigrate.cluster import Cluster
from lvmigrate.config import Config, Limits, load
from lvmigrate.convergence import Policy
from lvmigrate.errors import ExitCode, LvmigrateError, MoveFailed
from lvmigrate.journal import Entry, Kind, Row, Story
from lvmigrate.migrate import MigrateInstance
from lvmigrate.page import page, picture
from lvmigrate.plan import Options
from lvmigrate.simulator import Happening, World
from lvmigrate.sqlite_journal import DEFAULT_PATH, SqliteJournal
from lvmigrate.timeline import timeline
from tests.unit.fakes import NODES, node_of
from tests.unit.fakes import World as Small
from tests.unit.test_steering import stuck


def simulated(journal: SqliteJournal, fault: tuple[str, Happening] | None = None) -> Story:
    with World() as world:
        world.add_guest("web1", "node1")
        if fault is not None:
            world.faults.add(*fault)
        move = MigrateInstance(dataclasses.replace(world.controller("c1"), journal=journal), "web1")
        try:
            move.check_prereq()
            move.exec()
        except LvmigrateError:
            pass
    return journal.story("last")


@pytest.fixture
def journal(tmp_path: Path) -> SqliteJournal:
    return SqliteJournal(tmp_path / "journal.sqlite")


def test_the_windows_of_a_move(journal: SqliteJournal) -> None:
    story = simulated(journal)
    assert story.result is not None
    line = timeline(story)
    windows = {span.name: span for span in line.windows}
    assert set(windows) == {"two primaries allowed", "web1 dual-primary", "downtime"}
    assert windows["downtime"].seconds == pytest.approx(story.result["downtime_s"])
    assert windows["two primaries allowed"].seconds == pytest.approx(story.result["two_primaries_allowed_s"])
    # By the events' arrival; the watch's own figure is by the same events.
    assert windows["web1 dual-primary"].seconds == pytest.approx(story.result["dual_primary_s"], abs=0.2)
    assert not any(span.open or span.error for span in (*line.steps, *line.windows))
    roles = {lane.name: [span.name for span in lane.spans] for lane in line.lanes}
    assert roles["web1 on node1: role"] == ["Primary", "Secondary"]
    assert roles["web1 on node2: role"] == ["Secondary", "Primary"]
    assert roles["web1 on node1: connection"] == ["Established"]
    assert {tick.said_by for tick in line.ticks} == {"lvmigrate", "libvirt", "drbd"}
    (left,) = line.memory
    assert left.points[0][1] > left.points[-1][1]


def test_a_copy_that_did_not_arrive_is_no_downtime(journal: SqliteJournal) -> None:
    line = timeline(simulated(journal, ("transfer#1", Happening.DRBD_CUT_LONG)))
    windows = {span.name: span for span in line.windows}
    assert "downtime" not in windows
    assert windows["two primaries allowed"].open
    assert not windows["web1 dual-primary"].open
    assert [step.name for step in line.steps if step.error] == ["memory"]
    lanes = {lane.name: [span.name for span in lane.spans] for lane in line.lanes}
    assert lanes["web1 on node1: connection"][:2] == ["Established", "Connecting"]


def entry(**changes: object) -> Entry:
    values: dict[str, object] = {
        "id": "i",
        "tasklet": "migrate",
        "instance": "web1",
        "uuid": "u",
        "source": "node1",
        "target": "node2",
        "holder": "h",
        "began": 0.0,
        "seconds": None,
        "outcome": None,
        "sentence": "",
    }
    return Entry(**values | changes)  # type: ignore[arg-type]


def test_a_controller_that_died_leaves_open_ends() -> None:
    rows = (
        Row(at_s=0.0, kind=Kind.STEP, name="switch"),
        Row(at_s=1.0, kind=Kind.MARK, name="source stopped"),
        Row(at_s=3.0, kind=Kind.MOMENT, name="the last word"),
    )
    line = timeline(Story(entry=entry(), plan={}, result=None, rows=rows))
    assert [(s.name, s.begin_s, s.end_s, s.open) for s in line.steps] == [("switch", 0.0, 3.0, True)]
    assert [(s.name, s.begin_s, s.end_s, s.open) for s in line.windows] == [("downtime", 1.0, 3.0, True)]


class Balanced(HTMLParser):
    """Every element that is opened is closed, in order; nothing is fetched and nothing runs."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        assert not {"src", "href", "onload", "onclick"} & {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


EVIL = '"><script>alert(1)</script>&'


@pytest.mark.parametrize("fault", [None, ("transfer#1", Happening.DRBD_CUT_LONG)])
def test_the_page_stands_alone(journal: SqliteJournal, fault: tuple[str, Happening] | None) -> None:
    story = simulated(journal, fault)
    evil = dataclasses.replace(
        story,
        entry=dataclasses.replace(story.entry, instance=EVIL, sentence=EVIL, holder=EVIL),
        rows=(*story.rows, Row(at_s=1.0, kind=Kind.MOMENT, name=EVIL, data={"said_by": EVIL})),
    )
    text = page(evil)
    checked = Balanced()
    checked.feed(text)
    assert checked.open == []
    assert "http" not in text.replace(story.entry.id, "")
    assert "prefers-color-scheme: dark" in text
    drawing = ET.fromstring(re.search(r"<svg.*</svg>", text, re.DOTALL)[0])  # type: ignore[index]
    width = float(drawing.attrib["viewBox"].split()[2])
    for bar in drawing.iter("rect"):
        assert 0 <= float(bar.attrib["x"]) <= float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width
    words = " ".join(drawing.itertext())
    for name in ("two primaries allowed", "memory left", "dirtied", "web1 on node2: role", "libvirt says", "drbd says"):
        assert name in words


def unsettled(journal: SqliteJournal, policy: Policy) -> Story:
    """A move whose copy makes no progress, with what was told before it."""
    world = Small()
    stuck(world)
    nodes = {name: dataclasses.replace(node_of(name), link_mib_s=100) for name in NODES}
    context = dataclasses.replace(world.context(journal=journal), nodes=nodes)
    move = MigrateInstance(context, "web1", options=Options(policy=policy, forecast_s=1))
    move.check_prereq()
    with contextlib.suppress(MoveFailed):
        move.exec()
    return journal.story("last")


@pytest.mark.parametrize("policy", [convergence.FORCE, convergence.GENTLE], ids=["arrived", "given up"])
def test_the_rules_that_fired_and_when(journal: SqliteJournal, policy: Policy) -> None:
    story = unsettled(journal, policy)
    line = timeline(story)
    names = [rule.name.split(" to ")[0] for rule in line.rules]
    assert names == ["raise-downtime"] * 3 + ["pause" if policy is convergence.FORCE else "abort"]
    assert [rule.at_s for rule in line.rules] == sorted(rule.at_s for rule in line.rules)
    assert all(f"policy {policy.name}, rule " in rule.why for rule in line.rules)
    text, drawn = page(story), picture(line)
    assert "Convergence rules that fired" in text
    for rule in line.rules:
        assert rule.why in unescape(text)
    ET.fromstring(drawn)
    assert drawn.count("<circle") == len(line.rules)
    assert "rules that fired" in drawn


def test_the_forecast_against_the_outcome(journal: SqliteJournal) -> None:
    story = unsettled(journal, convergence.FORCE)
    assert story.result is not None
    told = timeline(story).told
    assert told is not None
    forecast = story.plan["forecast"]
    assert (told.seconds, told.downtime_s, told.passes) == (
        forecast["seconds"],
        forecast["downtime_s"],
        forecast["passes"],
    )
    assert (told.took_s, told.policy) == (story.result["copy_s"], "force")
    assert told.seconds is not None
    assert told.took_s is not None
    assert told.error_percent == pytest.approx(100 * abs(told.seconds - told.took_s) / told.took_s)
    text = page(story)
    assert "Forecast against outcome" in text
    assert f"{told.seconds:.2f} s" in text
    assert f"{told.took_s:.2f} s" in text
    assert f"{told.error_percent:.0f} % off" in text


def test_a_forecast_of_a_move_that_did_not_arrive_has_no_outcome(journal: SqliteJournal) -> None:
    told = timeline(unsettled(journal, convergence.GENTLE)).told
    assert told is not None
    assert told.seconds is not None
    assert (told.took_s, told.stood_s, told.error_percent) == (None, None, None)


def test_a_forecast_that_told_no_end() -> None:
    told = {"seconds": None, "downtime_s": None, "passes": None, "advised": "force"}
    story = Story(entry=entry(), plan={"forecast": told}, result=None, rows=())
    assert "no end without help" in page(story)
    ET.fromstring(picture(timeline(story)))


def test_nothing_is_said_of_a_forecast_that_was_not_asked_for(journal: SqliteJournal) -> None:
    story = simulated(journal)
    assert "Forecast" not in page(story)
    assert "rules that fired" not in page(story)


def test_an_errand_without_rows_is_drawn() -> None:
    story = Story(entry=entry(), plan={}, result=None, rows=())
    assert "no end was written" in page(story)
    ET.fromstring(picture(timeline(story)))


# ---- by the command


@pytest.fixture
def kept(journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch) -> SqliteJournal:
    def opened(_path: object = None) -> Cluster:
        context = Small().context()
        configuration = Config(path=Path("x"), nodes={}, ssh_config=None, defaults=Options(), limits=Limits())
        return Cluster(configuration, context.hypervisor, context.storage, journal)

    monkeypatch.setattr(cluster.Cluster, "open", opened)
    return journal


def test_history(kept: SqliteJournal, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["history"]) == ExitCode.OK
    assert "nothing was done yet" in capsys.readouterr().out
    first, second = simulated(kept), simulated(kept, ("transfer#1", Happening.DRBD_CUT_LONG))
    capsys.readouterr()
    assert cli.main(["history"]) == ExitCode.OK
    out = capsys.readouterr().out
    assert out.index(second.entry.id) < out.index(first.entry.id)
    assert "LEFT_BEHIND" in out
    assert cli.main(["history", "web1", "--most", "1", "--json"]) == ExitCode.OK
    assert [found["id"] for found in json.loads(capsys.readouterr().out)["errands"]] == [second.entry.id]


def test_pruning_the_history(kept: SqliteJournal, capsys: pytest.CaptureFixture[str]) -> None:
    simulated(kept)
    capsys.readouterr()
    assert cli.main(["history", "--prune", "1"]) == ExitCode.OK
    assert capsys.readouterr().out == "0 errands forgotten\n"
    assert cli.main(["history", "--prune", "0.0000001", "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == {"forgotten": 1}
    assert kept.history() == ()
    assert cli.main(["history", "--prune", "0"]) == ExitCode.USAGE


def test_report(kept: SqliteJournal, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    story = simulated(kept)
    assert cli.main(["report", "last"]) == ExitCode.OK
    out = capsys.readouterr().out
    assert "web1: migrate node1 -> node2\n  done after" in out
    assert re.search(r"drbd +\d+\.\d+ s  web1 on node2 is Primary", out)
    assert cli.main(["report", story.entry.id, "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["entry"]["id"] == story.entry.id
    target = tmp_path / "page.html"
    assert cli.main(["report", "last", "--html", str(target)]) == ExitCode.OK
    assert target.read_text() == page(story)
    assert cli.main(["report", "last", "--html", "-"]) == ExitCode.OK
    assert capsys.readouterr().out.endswith("</html>\n\n")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (lambda _: ["report", "nothing"], "ERRAND_UNKNOWN"),
        (lambda there: ["report", "last", "--html", str(there)], "USAGE"),
    ],
)
def test_mistakes(
    kept: SqliteJournal,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: Callable[[Path], list[str]],
    code: str,
) -> None:
    simulated(kept)
    capsys.readouterr()
    assert cli.main([*words(tmp_path), "--json"]) == ExitCode.USAGE
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("", DEFAULT_PATH), ('[journal]\npath = ""', None), ('[journal]\npath = "j.sqlite"', Path("j.sqlite"))],
)
def test_where_the_configuration_puts_it(tmp_path: Path, text: str, wanted: Path | None) -> None:
    (tmp_path / "cluster.toml").write_text(f"{text}\n[nodes.a]\n[nodes.b]\n")
    found = load(tmp_path / "cluster.toml").journal
    assert found == (None if wanted is None else tmp_path / wanted)
