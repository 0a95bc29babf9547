"""What node.sh's ``premises``, ``vitals`` and ``evidence`` say, as values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from lvmigrate.node import Node
from lvmigrate.premises import PORTS, Match, Premises
from lvmigrate.vitals import Vitals

#: The status of timeout(1) whose command took too long, and of a shell that has no such command.
_TOO_LONG: Final = 124
_NO_SUCH_COMMAND: Final = 127


def ports(text: str) -> tuple[int, int]:
    """The ports for migrations by a node's qemu.conf."""
    first, _, last = _facts(text).get("ports", ["-"])[0].partition("-")
    return _number(first, PORTS[0]), _number(last, PORTS[1])


def premises(node: Node, text: str) -> Premises:
    """What was said by ``node``, whose ports for migrations the configuration may name."""
    facts = _facts(text)
    there: dict[str, set[str]] = {"path": set(), "interface": set(), "program": set()}
    for thing in facts.get("has", ()):
        kind, _, name = thing.partition(":")
        there.setdefault(kind, set()).add(name)
    peer, peer_words = _answer(facts.get("peer"))
    memory, memory_words = _answer(facts.get("memory"))
    if "refused" in memory_words:  # by the address itself: only the port is closed, as it should be
        memory, memory_words = Match.YES, ""
    return Premises(
        node=node.name,
        paths=frozenset(there["path"]),
        interfaces=frozenset(there["interface"]),
        programs=frozenset(there["program"]),
        saved=facts.get("saved", [None])[0],
        after_drbd=dict(_units(facts.get("unit", ()))),
        ports=node.migration_ports or ports(text),
        spare_port=node.spare_port,
        listening=frozenset(int(port, 16) for port in facts.get("listening", ())),
        peer=peer,
        peer_words=peer_words,
        memory=memory,
        memory_words=memory_words,
    )


def vitals(node: str, text: str, *, begun: float, ended: float) -> Vitals:
    """``begun``, ``ended``: when the node was asked and its answer was there, by the controller's monotonic clock."""
    facts = _facts(text)
    # The node told the time when it had done all else: between that and ``ended`` is the answer's way, which is at most
    # what the whole took beyond the node's own work.
    way = max(0.0, ended - begun - int(facts["took"][0]) / 100)
    sessions = facts.get("sessions", [""])[0]
    return Vitals(
        node=node,
        clock_s=float(facts["at"][0]) - (ended - way / 2),
        clock_error_s=way / 2,
        module=facts.get("module", [""])[0],
        utils=facts.get("utils", [""])[0],
        max_sessions=int(sessions) if sessions.isdecimal() else None,
        lacking=frozenset(facts.get("lacks", ())),
        after_drbd=dict(_units(facts.get("unit", ()))),
    )


def evidence(text: str) -> Mapping[str, str]:
    """Sections begin with ``= NAME``; each line of one has a space before it."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("= "):
            found[line[2:]] = []
        elif line.startswith(" ") and found:
            found[next(reversed(found))].append(line[1:])
    return {name: "\n".join(lines) + "\n" for name, lines in found.items() if lines}


def _facts(text: str) -> Mapping[str, list[str]]:
    facts: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        facts.setdefault(key, []).append(value.strip())
    return facts


def _number(text: str, usual: int) -> int:
    found = re.fullmatch(r"\s*(\d+)\s*", text)
    return usual if found is None else int(found[1])


def _answer(said: list[str] | None) -> tuple[Match, str]:
    """The status of what was tried, and its words."""
    if said is None:
        return Match.UNKNOWN, ""
    status, _, words = said[0].partition(" ")
    number, words = int(status), words.strip()
    if number == _NO_SUCH_COMMAND:
        return Match.UNKNOWN, words
    if number == _TOO_LONG:
        return Match.NO, "no answer in time"
    return (Match.NO if number else Match.YES), words


def _units(lines: list[str] | tuple[()]) -> Iterator[tuple[str, bool]]:
    """Of each of libvirt's services that starts at boot or runs: whether it is ordered behind anything of DRBD's."""
    unit: dict[str, str] = {}
    for line in [*lines, ""]:
        if line:
            key, _, value = line.partition("=")
            unit[key] = value
            continue
        if unit.get("ActiveState") == "active" or unit.get("UnitFileState") == "enabled":
            yield unit.get("Id", ""), any(name.startswith("drbd") for name in unit.get("After", "").split())
        unit = {}
