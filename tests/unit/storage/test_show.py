from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import show
from storage.show import BadShow, Shown, ShownConnection

TRANSCRIPTS = Path(__file__).parents[2] / "transcripts"
FILES = sorted(p.relative_to(TRANSCRIPTS).as_posix() for p in TRANSCRIPTS.glob("*/*show*.txt"))


def read(name: str) -> str:
    return (TRANSCRIPTS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FILES)
def test_every_transcript_is_understood(name: str) -> None:
    (shown,) = show.parse(read(name))
    assert shown.name in {"r0", "r1"}
    assert shown.minors in (((0, 0),), ((0, 10), (1, 11)))
    assert not shown.auto_promote
    (connection,) = shown.connections
    ((local, remote),) = connection.paths
    assert local.startswith("ipv4:10.77.0.1:77")
    assert remote.startswith("ipv4:10.77.0.2:77")
    assert connection.protocol == ("C" if "defaults" in name else None)
    assert not connection.allow_two_primaries
    assert shown.towards("node2") is connection


def test_84() -> None:
    assert show.parse(read("drbd84/show.txt")) == (
        Shown(
            name="r0",
            minors=((0, 0),),
            auto_promote=False,
            connections=(
                ShownConnection(
                    peer=None,
                    peer_node_id=None,
                    paths=(("ipv4:10.77.0.1:7788", "ipv4:10.77.0.2:7788"),),
                    allow_two_primaries=False,
                    protocol=None,
                    verify_alg=None,
                ),
            ),
        ),
    )


def test_84_without_its_connection() -> None:
    text = "resource r0 { options { } _this_host { volume 0 { device minor 0; disk { } } } }"
    (shown,) = show.parse(text)
    assert (shown.minors, shown.connections, shown.towards("node2")) == (((0, 0),), (), None)


def test_what_a_move_sets_is_read_back() -> None:
    nine = read("drbd93/mv.show.txt").replace("net {", "net { protocol A; allow-two-primaries yes;")
    (shown,) = show.parse(nine.replace("auto-promote    \tno;", ""))
    assert shown.auto_promote
    assert (shown.connections[0].allow_two_primaries, shown.connections[0].protocol) == (True, "A")
    assert shown.connections[0].peer_node_id == 1
    assert shown.towards("node3") is None
    (shown,) = show.parse(read("drbd84/show.txt").replace("net {", "net {\n protocol B;\n allow-two-primaries yes;\n"))
    assert (shown.connections[0].allow_two_primaries, shown.connections[0].protocol) == (True, "B")


def test_quotes_comments_and_ipv6() -> None:
    (shown,) = show.parse(
        'resource "a \\"b\\" {" { _this_host { node-id 0; address ipv6 [fe80::1]:7788; } # a } brace\n'
        '_remote_host { address ipv6 [fe80::2]:7788; } net { shared-secret "x;y}z"; } }'
    )
    assert shown.name == 'a "b" {'
    assert [remote for _, remote in shown.connections[0].paths] == ["ipv6:[fe80::2]:7788"]


@pytest.mark.parametrize(
    "text",
    [
        "resource",
        "resource r0 {",
        "resource r0 { options { }",
        "}",
        "resource { }",
        'resource "r0',
        "resource r0 { _this_host { volume x { device minor 0; } } }",
        "resource r0 { a }",
        "{" * 1000,
        "resource r0 { connection { _peer_node_id; } }",
    ],
)
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(BadShow):
        show.parse(text)


def test_a_node_without_drbd_has_nothing() -> None:
    assert show.parse("# No currently configured DRBD found.\n") == ()


@given(st.text(alphabet='resource {};"\\#\n0_', max_size=200))
def test_any_text_is_a_configuration_or_refused(text: str) -> None:
    with contextlib.suppress(BadShow):
        show.parse(text)


def test_mutations_are_understood_or_refused() -> None:
    draw = random.Random(3)
    texts = [read(name) for name in FILES]
    for _ in range(2000):
        text = list(draw.choice(texts))
        for _ in range(draw.randint(1, 5)):
            at = draw.randrange(len(text))
            text[at : at + draw.randint(0, 30)] = draw.choice(["{", "}", ";", '"', "#", "\\", "\x00", " volume {"])
        with contextlib.suppress(BadShow):
            show.parse("".join(text))
