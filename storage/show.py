"""The text of ``drbdsetup show RESOURCE`` as a value, for DRBD 9 and 8.4.

The text and not ``--json``, which the tool for 8.4 does not have.  What is at its default is not shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final


class BadShow(ValueError):
    """The text is not what ``drbdsetup show`` prints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownConnection:
    """One connection as configured in the kernel."""

    #: The peer's host name; ``None`` with DRBD 8.4, which does not know it.
    peer: str | None
    #: ``None`` with DRBD 8.4.
    peer_node_id: int | None
    #: The two ends of each path as ``drbdsetup`` of 8.4, which has one, takes them (``ipv4:10.0.0.1:7788``).
    paths: tuple[tuple[str, str], ...]
    allow_two_primaries: bool
    #: ``None``: at its default, which is C.
    protocol: str | None
    #: ``None``: not set.
    verify_alg: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One resource as configured in the kernel."""

    name: str
    #: (volume, minor), by volume.
    minors: tuple[tuple[int, int], ...]
    #: Always false with DRBD 8.4, which has no such thing.
    auto_promote: bool
    connections: tuple[ShownConnection, ...]

    def towards(self, peer: str) -> ShownConnection | None:
        """The connection to ``peer``; the only one there is where names are not known (8.4)."""
        for connection in self.connections:
            if connection.peer == peer:
                return connection
        if len(self.connections) == 1 and self.connections[0].peer is None:
            return self.connections[0]
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statement:
    """``words;`` or ``words { inside }``."""

    words: tuple[str, ...]
    inside: tuple[_Statement, ...] = ()


_LEXEME: Final = re.compile(r'\s+|\#[^\n]*|(?P<word>"(?:[^"\\]|\\.)*"|[^\s{};"\#]+)|(?P<mark>[{};])', re.DOTALL)
_DEEPEST: Final = 20


def parse(text: str) -> tuple[Shown, ...]:
    """Every resource in ``text``. Raises `BadShow`."""
    statements = _block(_lexemes(text), depth=0)
    return tuple(_resource(s) for s in statements if s.words[:1] == ("resource",))


def _lexemes(text: str) -> Iterator[str]:
    """Words, quoted ones with their quotes, and marks."""
    at = 0
    while at < len(text):
        match = _LEXEME.match(text, at)
        if match is None:
            raise BadShow(f"not understood: {text[at : at + 40]!r}")
        at = match.end()
        if match["word"] is not None or match["mark"] is not None:
            yield match[0]


def _block(lexemes: Iterator[str], *, depth: int) -> tuple[_Statement, ...]:
    if depth > _DEEPEST:
        raise BadShow("braces nested too deep")
    statements: list[_Statement] = []
    words: list[str] = []
    for lexeme in lexemes:
        if lexeme == ";":
            statements.append(_Statement(words=tuple(words)))
            words = []
        elif lexeme == "{":
            statements.append(_Statement(words=tuple(words), inside=_block(lexemes, depth=depth + 1)))
            words = []
        elif lexeme == "}":
            if depth == 0 or words:
                raise BadShow("a brace too many")
            return tuple(statements)
        else:
            words.append(re.sub(r"\\(.)", r"\1", lexeme[1:-1]) if lexeme.startswith('"') else lexeme)
    if depth or words:
        raise BadShow("the text ends too early")
    return tuple(statements)


def _sections(statement: _Statement, name: str) -> Iterator[_Statement]:
    return (s for s in statement.inside if s.words[:1] == (name,))


def _value(statements: Iterator[_Statement], key: str) -> tuple[str, ...] | None:
    """What follows ``key`` in the first of ``statements`` that has it."""
    for statement in statements:
        for inner in statement.inside:
            if inner.words[:1] == (key,):
                return inner.words[1:]
    return None


def _resource(resource: _Statement) -> Shown:
    if len(resource.words) != 2:  # noqa: PLR2004 -- "resource" and its name
        raise BadShow("a resource without a name")
    minors = [
        (_number(volume.words[-1]), _number(device.words[-1]))
        for host in _sections(resource, "_this_host")
        for volume in _sections(host, "volume")
        for device in _sections(volume, "device")
    ]
    # Only DRBD 9 gives nodes numbers.
    has_node_id = _value(_sections(resource, "_this_host"), "node-id") is not None
    auto_promote = has_node_id and _value(_sections(resource, "options"), "auto-promote") != ("no",)
    connections = [_connection_9(c) for c in _sections(resource, "connection")]
    if _value(_sections(resource, "_remote_host"), "address") is not None:
        connections.append(_connection_84(resource))
    return Shown(
        name=resource.words[1],
        minors=tuple(sorted(minors)),
        auto_promote=auto_promote,
        connections=tuple(connections),
    )


def _connection_9(connection: _Statement) -> ShownConnection:
    number = next((s.words[-1] for s in _sections(connection, "_peer_node_id")), None)
    name = _value(_sections(connection, "net"), "_name")
    return ShownConnection(
        peer=name[0] if name else None,
        peer_node_id=None if number is None else _number(number),
        paths=tuple(
            (_address(here.words[1:]), _address(there.words[1:]))
            for path in _sections(connection, "path")
            for here in _sections(path, "_this_host")
            for there in _sections(path, "_remote_host")
        ),
        allow_two_primaries=_value(_sections(connection, "net"), "allow-two-primaries") == ("yes",),
        protocol=_net(connection, "protocol"),
        verify_alg=_net(connection, "verify-alg"),
    )


def _connection_84(resource: _Statement) -> ShownConnection:
    here = _value(_sections(resource, "_this_host"), "address")
    there = _value(_sections(resource, "_remote_host"), "address")
    return ShownConnection(
        peer=None,
        peer_node_id=None,
        paths=((_address(here), _address(there)),) if here and there else (),
        allow_two_primaries=_value(_sections(resource, "net"), "allow-two-primaries") == ("yes",),
        protocol=_net(resource, "protocol"),
        verify_alg=_net(resource, "verify-alg"),
    )


def _net(holder: _Statement, key: str) -> str | None:
    words = _value(_sections(holder, "net"), key)
    return words[0] if words else None


def _address(words: tuple[str, ...]) -> str:
    return ":".join(words)


def _number(word: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise BadShow(f"no number: {word[:40]!r}")
    return int(word[:20])
