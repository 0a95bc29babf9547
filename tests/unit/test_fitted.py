"""What is wider than a terminal is broken between words; what is to be copied is not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmigrate import cli
from lvmigrate.fitted import fitted

LINES = st.text(st.sampled_from("ab `#:"), max_size=120)


def test_an_error() -> None:
    told = (
        "lvmigrate: NODE_UNREACHABLE: a does not answer: no libvirt connection could be opened.\n"
        "      next: Try `virsh -c 'qemu+ssh://root@a/system' list`. libvirt says: Cannot recv data: Broken pipe"
    )
    assert fitted(told, 60).splitlines() == [
        "lvmigrate: NODE_UNREACHABLE: a does not answer: no libvirt",
        "  connection could be opened.",
        "      next: Try `virsh -c 'qemu+ssh://root@a/system' list`.",
        "            libvirt says: Cannot recv data: Broken pipe",
    ]
    assert "\n            `virsh -c 'qemu+ssh://root@a/system' list`.\n" in fitted(told, 40)


def test_a_column_stays_one() -> None:
    line = "  step 3        guard: arm a guard on both nodes that closes what a dead controller leaves"
    assert fitted(line, 60).splitlines() == [line[:60], " " * 16 + "what a dead controller leaves"]


def test_a_command_on_a_line_of_its_own_is_left_as_it_is() -> None:
    line = "    node1# virsh migrate web1 qemu+ssh://node2/system --p2p --abort-on-error --live --suspend"
    assert fitted(line, 40) == line


@given(text=st.lists(LINES, max_size=5).map("\n".join), width=st.integers(20, 100))
def test_no_word_is_lost_and_what_fits_is_not_touched(text: str, width: int) -> None:
    told = fitted(text, width)
    assert told.split() == text.split()
    assert [code for code in re.findall(r"`[^`\n]*`", text) if text.count("`") == 2 and code not in told] == []
    assert all(line in told.splitlines() for line in text.splitlines() if len(line) <= width)


@pytest.mark.parametrize(("terminal", "lines"), [(True, 3), (False, 1)])
def test_only_a_terminal_has_a_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, terminal: bool, lines: int
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    cli._print("a few words that are wider than forty columns are, and some of them even wider than twice forty")
    assert len(capsys.readouterr().out.splitlines()) == lines
    cli._print('{"one": "JSON object stays one line, however wide the terminal that shows it may be"}')
    cli._print("a page, or a file's lines, stay as they are: these are for another program than a terminal", raw=True)
    assert len(capsys.readouterr().out.splitlines()) == 2
