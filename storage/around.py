"""What node.sh's ``premises`` says, as `lvmigrate.premises.Premises`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from lvmigrate.premises import PORTS, Match, Premises

#: The status of timeout(1) whose command took too long, and of a shell that has no such command.
_TOO_LONG: Final = 124
_NO_SUCH_COMMAND: Final = 127


def premises(node: str, text: str, configured: tuple[int, int] | None) -> Premises:
    """``configured``: the ports that lvmigrate's configuration names for ``node``."""
    facts: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        facts.setdefault(key, []).append(value.strip())
    there: dict[str, set[str]] = {"path": set(), "interface": set(), "program": set()}
    for thing in facts.get("has", ()):
        kind, _, name = thing.partition(":")
        there.setdefault(kind, set()).add(name)
    first, _, last = facts.get("ports", ["-"])[0].partition("-")
    peer, peer_words = _answer(facts.get("peer"))
    memory, memory_words = _answer(facts.get("memory"))
    if "refused" in memory_words:  # by the address itself: only the port is closed, as it should be
        memory, memory_words = Match.YES, ""
    return Premises(
        node=node,
        paths=frozenset(there["path"]),
        interfaces=frozenset(there["interface"]),
        programs=frozenset(there["program"]),
        saved=facts.get("saved", [None])[0],
        after_drbd=dict(_units(facts.get("unit", ()))),
        ports=configured or (_number(first, PORTS[0]), _number(last, PORTS[1])),
        listening=frozenset(int(port, 16) for port in facts.get("listening", ())),
        peer=peer,
        peer_words=peer_words,
        memory=memory,
        memory_words=memory_words,
    )


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
