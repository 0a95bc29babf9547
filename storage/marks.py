"""What lvmigrate leaves on nodes while a guest moves: tokens, and guards.

Both are files below ``/run/lvmigrate`` on the nodes themselves (node.sh and guard.sh say what is in them).  A token
is replaced as a whole under the guest's lock, and its deadline is one of the node's own clock.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import structlog

from lvmigrate.certificates import Certificates
from lvmigrate.errors import Code, CommandFailed, LvmigrateError
from lvmigrate.node import Node
from lvmigrate.premises import Premises, Wanted
from lvmigrate.replication import ConnectionOptions
from lvmigrate.token import Errand, Guarded, GuardSeen, Held, Token, Traces
from lvmigrate.vitals import Vitals
from storage import around
from storage.remote import TAKEN, Remote, uuid

_log = structlog.get_logger()

#: What libvirt's qemu driver uses where its file does not say otherwise: seconds, and messages.
_KEEPALIVE: Final[Mapping[str, int]] = {"keepalive_interval": 5, "keepalive_count": 5}
_YES_NO: Final[Mapping[bool | None, str]] = {True: "yes", False: "no", None: "unknown"}
_ERRAND: Final = re.compile(
    r"(\S+) (\S+) (yes|no) (yes|no|unknown) (yes|no)(?: (yes|no))?(?: (\d+))?( failover)?( keep)?( rehearsal)?"
)
#: Without the peer's node id before ``allow``, and without the ends behind: these are the guard's own.
_LINK: Final = re.compile(
    r"(?P<resource>\S+) (?P<peer>\S+) \d+ (?P<allow>yes|no) (?P<protocol>\S) (?P<auto>yes|no)(?: .*)?"
)


class Marks:
    """The part of `lvmigrate.protocols.Storage` that has nothing to do with disks; see there for the guarantees."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def take_token(
        self, node: str, token: Token, *, replaces: str | None = None, known: str | None = None
    ) -> Held | None:
        """Leave the token on ``node``. ``None``: it is ours; otherwise the one that was there first, and still is.

        One that ran out by the node's own clock is taken over (if ``known`` is given, only the one of that id), and so
        is the living one whose id is ``replaces``.
        """
        what = f"Taking the token of {token.instance}"
        words = (uuid(token.uuid), "take_token", replaces or "", "*" if known is None else known, *_written(token))
        answer = self._remote.run(node, what, "locked", *words)
        if answer.status == TAKEN:
            return next(_tokens(node, answer.out))
        self._remote.check(node, what, answer, token)
        return None

    def renew_token(self, node: str, token: Token) -> None:
        """Put the deadline ``token.lease_s`` ahead of the node's clock. Raises `TokenLost` if it is not ours.

        Guaranteed afterwards, if ``token.guarded``: the guard there has acknowledged the new deadline, within 5 s.
        Raises `CommandFailed` (`Code.GUARD_LOST`) when it does not; the token is renewed all the same.
        """
        what = f"Renewing the token of {token.instance}"
        words = (uuid(token.uuid), "renew_token", _YES_NO[token.guarded], *_written(token))
        self._remote.check(node, what, self._remote.run(node, what, "locked", *words), token)

    def drop_token(self, node: str, token: Token) -> None:
        """Remove our token from ``node``. Nothing if it is not ours."""
        what = f"Dropping the token of {token.instance}"
        self._remote.ask(node, what, "locked", uuid(token.uuid), "drop_token", token.id)

    def traces(self, node: str) -> Traces:
        """Every token and every guard that is on ``node`` now."""
        out = self._remote.ask(node, "Looking for tokens and guards", "traces").out
        return Traces(node=node, tokens=tuple(_tokens(node, out)), guards=tuple(_guards(node, out)))

    def disarm_guard(self, node: str, token: Token) -> None:
        """End this guest's guard on ``node``. Nothing if there is none. Raises also `TokenLost`.

        Guaranteed afterwards: it does not run, and will do nothing more.
        """
        self._remote.act(node, f"Disarming the guard of {token.instance}", token, "disarm")

    @contextmanager
    def inhibit(self, node: str, token: Token) -> Iterator[None]:
        """In the context, systemd holds a shutdown and a sleep of ``node`` back, where it can; nothing depends on it.

        It outlasts neither this process nor, for more than half a minute, its connection to the node.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(self._remote.stream(node, "hold_back", uuid(token.uuid)).attended())
            except LvmigrateError as error:
                _log.info("shutdown_not_inhibited", node=node, error=str(error))
            yield

    def keepalive_s(self, node: str) -> float:
        """Seconds until the libvirt daemon of ``node`` gives up a peer that does not answer during a migration.

        The least that it can be: the peer's last answer may be older than the silence by up to one interval, and
        libvirt counts from there.  Infinite when the daemon sends no keepalive messages.
        """
        found = dict(_KEEPALIVE)
        for line in self._remote.ask(node, "Reading libvirt's keepalive", "keepalive").out.splitlines():
            key, _, value = line.partition(" ")
            try:
                number = int(value)
            except ValueError as error:
                raise CommandFailed(
                    node,
                    f"Understanding {key}",
                    status=0,
                    hint=f"Look at /etc/libvirt/qemu.conf on {node}.",
                    detail=line,
                ) from error
            if key in found:
                found[key] = number
        interval, count = found["keepalive_interval"], found["keepalive_count"]
        return math.inf if interval <= 0 else float(interval * count)

    def available_kib(self, node: str) -> int | None:
        """How much memory the kernel of ``node`` would give without swapping, in KiB. ``None``: it does not say."""
        said = self._remote.ask(node, "Looking how much memory there is", "available").out.strip()
        return int(said) if said.isdecimal() else None

    def vitals(self, node: str, programs: Collection[str]) -> Vitals:
        """What ``node`` says of itself, and which of ``programs`` it lacks."""
        begun = time.monotonic()
        out = self._remote.ask(node, "Examining the node", "vitals", *sorted(programs)).out
        return around.vitals(node, out, begun=begun, ended=time.monotonic())

    def evidence(self, node: str, instance: str) -> Mapping[str, str]:
        """What ``node`` says for a report of a defect, by what it is. May hold secrets."""
        return around.evidence(self._remote.ask(node, "Gathering evidence", "evidence", instance).out)

    def certificates(self, node: str) -> Certificates:
        """What QEMU on ``node`` encrypts migrations with. A common name counts where no other name is given."""
        facts: dict[str, list[str]] = {}
        for line in self._remote.ask(node, "Reading the certificates", "certificates").out.splitlines():
            key, _, value = line.partition(" ")
            facts.setdefault(key, []).append(value.strip())
        return Certificates(
            node=node,
            folder=facts.get("folder", [""])[0],
            trouble=facts.get("trouble", [None])[0],
            names=frozenset(facts.get("name") or facts.get("common") or ()),
            expired=tuple(facts.get("expired", ())),
            authority=facts.get("authority", [""])[0],
            signed="unsigned" not in facts,
        )

    def premises(self, node: str, wanted: Wanted) -> Premises:
        """What is on ``node`` of that which is wanted there, and whether it reaches the peer."""
        peer = self._remote.node(wanted.peer)
        port = self._port_of(peer) if wanted.knock else None
        words = (
            wanted.instance,
            _YES_NO[wanted.autostart],
            peer.peer_uri if wanted.knock else "",
            "" if port is None else peer.migration_address,
            "" if port is None else str(port),
            *(f"path:{path}" for path in sorted(wanted.paths)),
            *(f"interface:{name}" for name in sorted(wanted.interfaces)),
            *(f"program:{name}" for name in sorted(wanted.programs)),
        )
        out = self._remote.ask(node, "Looking around on the node", "premises", *words).out
        return around.premises(self._remote.node(node), out)

    def _port_of(self, peer: Node) -> int | None:
        """Where ``peer`` can be knocked at. Of its own range libvirt takes the first that is free: at the last one."""
        if peer.migration_ports is not None:
            return peer.spare_port
        out = self._remote.ask(peer.name, "Looking which ports are for memory", "ports").out
        return around.ports(out)[1]

    def close(self) -> None:
        """End every connection and process of the adapter."""
        self._remote.close()


def orders(token: Token, links: Iterable[tuple[Guarded, int, Sequence[str]]], *, resume: bool) -> tuple[str, ...]:
    """What a guard is told, a line each; with each connection go the peer's node id and the two ends (8.4)."""
    return (
        f"instance {_line(token.instance)}",
        f"resume {_YES_NO[token.errand.ran] if resume and token.errand is not None else 'never'}",
        *(
            f"link {link.resource} {link.peer} {number} {_YES_NO[link.options.allow_two_primaries]}"
            f" {link.options.protocol or '-'} {_YES_NO[link.options.auto_promote]} {' '.join(ends)}"
            for link, number, ends in links
        ),
    )


def no_guard(node: str, why: str) -> CommandFailed:
    """No guard can be armed on ``node``, ``why`` being a clause."""
    return CommandFailed(
        node,
        "Arming a guard",
        status=0,
        hint="Move without a guard if you accept that a controller that dies leaves open what it opened.",
        detail=why,
        code=Code.GUARD_UNAVAILABLE,
    )


def _written(token: Token) -> tuple[str, ...]:
    """The words of node.sh's write_token."""
    return (
        token.id,
        _line(token.holder) or "unknown",
        str(max(1, math.ceil(token.lease_s * 100))),
        "unknown" if token.errand is None else _words_of(token.errand),
        _line(token.instance),
    )


def _words_of(errand: Errand) -> str:
    flags = (errand.ran, errand.autostart, errand.target_had_definition, errand.handed_over)
    tail = {
        str(errand.memory_kib): errand.memory_kib,
        "failover": errand.failover,
        "keep": errand.keep_definition,
        "rehearsal": errand.rehearsal,
    }
    said = (word for word, holds in tail.items() if holds)
    return " ".join((errand.source, errand.target, *(_YES_NO[flag] for flag in flags), *said))


def _line(words: str) -> str:
    return " ".join(words.split())


def _records(text: str, kind: str) -> Iterator[list[tuple[str, str]]]:
    """The (key, value) pairs of each record of ``kind``, the first being the kind and the guest's UUID."""
    record: list[tuple[str, str]] = []
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key in {"token", "guard"}:
            if record and record[0][0] == kind:
                yield record
            record = []
        record.append((key, value))
    if record and record[0][0] == kind:
        yield record


def _tokens(node: str, text: str) -> Iterator[Held]:
    for record in _records(text, "token"):
        said = dict(record)
        left = said.get("left", "never")
        yield Held(
            node=node,
            uuid=said["token"],
            instance=said.get("instance", ""),
            id=said.get("id", ""),
            holder=said.get("holder", ""),
            left_s=math.inf if left == "never" else int(left) / 100,
            errand=_errand(said.get("errand", "")),
        )


def _errand(words: str) -> Errand | None:
    match = _ERRAND.fullmatch(words)
    if match is None:
        return None
    source, target, ran, autostart, had, over, memory, failover, kept, rehearsal = match.groups()
    return Errand(
        source=source,
        target=target,
        ran=ran == "yes",
        autostart=None if autostart == "unknown" else autostart == "yes",
        target_had_definition=had == "yes",
        handed_over=over == "yes",
        failover=failover is not None,
        memory_kib=int(memory or 0),
        keep_definition=kept is not None,
        rehearsal=rehearsal is not None,
    )


def _guards(node: str, text: str) -> Iterator[GuardSeen]:
    for record in _records(text, "guard"):
        said = dict(record)
        links = (_LINK.fullmatch(value) for key, value in record if key == "link")
        yield GuardSeen(
            node=node,
            uuid=said["guard"],
            instance=said.get("instance", ""),
            alive=said.get("alive") == "yes",
            guarded=tuple(_guarded(link) for link in links if link is not None),
            resume=said.get("resume") == "yes",
            says=said.get("says", ""),
        )


def _guarded(link: re.Match[str]) -> Guarded:
    options = ConnectionOptions(
        allow_two_primaries=link["allow"] == "yes",
        protocol=None if link["protocol"] == "-" else link["protocol"],
        auto_promote=link["auto"] == "yes",
    )
    return Guarded(resource=link["resource"], peer=link["peer"], options=options)
