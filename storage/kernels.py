"""DRBD 9 and 8.4 on the nodes: what each kernel says and is told, each node by its own names of resources.

Everything is asked of and done by ``drbdsetup`` on the node itself, so it is the kernel's word and not that of a
configuration file, and nothing but the option that is meant is changed (``drbdadm`` applies every configured one).
Each mutating call checks the token in the same remote command, under the guest's lock.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import structlog

from lvmigrate.errors import Code, CommandFailed, UsageError
from lvmigrate.replication import (
    ConnectionOptions,
    Lineage,
    Opener,
    OtherHand,
    Place,
    Resource,
    Surroundings,
    VerifyEnd,
)
from lvmigrate.token import Guarded, Token
from storage import events2, lineage, openers, show
from storage.events2 import NAME, BadLine
from storage.marks import no_guard, orders
from storage.remote import Remote, uuid
from storage.shared import nothing_to_watch
from storage.shell import Answer, Stream
from storage.show import Shown, ShownConnection
from storage.watch import ReplicationWatch
from storage.world import Gap, World

log = structlog.get_logger(__name__)

#: DRBD's device number, registered with the kernel.
MAJOR: Final = 147
#: What the kernel says of blocks that an online verify did not compare.
_LEFT_OUT: Final = re.compile(r" but (\d+) (\d+)k blocks skipped")
#: How many lines that were not understood an error shows.
_BAD_LINES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What there is on a node at one moment."""

    #: Which volume each block device is that was asked for.
    places: Mapping[str, Place]
    resources: Mapping[str, Resource]
    shown: tuple[Shown, ...]


class Kernels:
    """What `storage.drbd.DrbdStorage` is made of; `lvmigrate.protocols.Storage` says what each method guarantees."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        #: By node, resource and peer: see `_end`.
        self._ends: dict[tuple[str, str, str], tuple[int, tuple[str, str]]] = {}

    # ---- looking

    def locate(self, node: str, paths: Collection[str]) -> Found:
        """Which resource and volume each of ``paths`` is; one that is none of DRBD's is left out."""
        wanted = tuple(paths)
        answer = self._remote.ask(node, f"Looking up the devices of {_enough(wanted)}", "locate", *wanted)
        devices, rest = _parts(answer.out)
        found = self._found(node, rest)
        places = {
            volume.minor: Place(resource=name, volume=volume.number)
            for name, resource in found.resources.items()
            for volume in resource.volumes
        }
        here: dict[str, Place] = {}
        for line in devices.splitlines():
            index, major, minor = line.split()
            if int(major, 16) == MAJOR and int(minor, 16) in places:
                here[wanted[int(index)]] = places[int(minor, 16)]
        return Found(places=here, resources=found.resources, shown=found.shown)

    def all(self, node: str) -> Found:
        """Every resource of ``node``; a node without DRBD has none."""
        return self._found(node, self._remote.ask(node, "Looking at all resources", "dump_any").out)

    def _found(self, node: str, text: str) -> Found:
        dump, rest = _parts(text)
        resources = self._resources(node, dump)
        try:
            shown = show.parse(rest)
        except show.BadShow as error:
            # Only names are learnt from it here; whoever needs more asks again, and is told.
            log.warning("bad_show", node=node, reason=str(error))
            shown = ()
        return Found(places={}, resources=resources, shown=shown)

    def observe(self, node: str, names: Collection[str]) -> Mapping[str, Resource]:
        """What the node's kernel says now of these resources. One that it does not have is left out."""
        answer = self._remote.ask(node, f"Looking at {_enough(names)}", "dump_all")
        resources = self._resources(node, answer.out, names)
        return {name: resources[name] for name in names if name in resources}

    def shown(self, node: str) -> tuple[Shown, ...]:
        """How every resource of ``node`` is configured in its kernel now."""
        answer = self._remote.ask(node, "Looking how resources are connected", "show_any")
        return self._parsed(node, "all resources", answer)

    def options(self, node: str, name: str, peer: str) -> ConnectionOptions:
        """What is set on the connection from ``node`` to ``peer`` now."""
        answer = self._remote.ask(node, f"Reading the options of {name}", "show", _name(name))
        return self._options(node, name, peer, answer)

    def generations(self, node: str, names: Collection[str]) -> Mapping[str, str]:
        """The generation of the data of each volume (``RESOURCE/NUMBER``): the current UUID of drbdsetup's get-gi.

        Its lowest bit tells a role and is left out.  DRBD 9 begins a new one at the first write without the peer, 8.4
        as soon as a Primary loses it (measured on 9.3.3 and 8.4.11).  The second of a device of 9.3, begun beside the
        peer when it was first opened for writing, counts as its first (node.sh).  A resource with a volume that has
        none, as it has no disk, is left out: what is left proves nothing of it.
        """
        what = f"Reading the generations of {_enough(names)}"
        answer = self._remote.ask(node, what, "generations", *map(_name, names))
        lines = [line.split() for line in answer.out.splitlines()]
        without = {name for name, _, generation in lines if generation == "-"}
        return {f"{name}/{volume}": generation for name, volume, generation in lines if name not in without}

    def lineages(self, node: str, peer: str, names: Collection[str]) -> Mapping[str, Lineage]:
        """Where the data of each volume (``RESOURCE/NUMBER``) on ``node`` come from, as seen towards ``peer``.

        A volume without a disk there is left out.
        """
        what = f"Reading the generations of {_enough(names)}"
        answer = self._remote.ask(node, what, "lineages", peer, *map(_name, names))
        return lineage.parse(answer.out)

    def verify_ends(self, node: str, name: str, peer: str) -> Mapping[int, VerifyEnd]:
        """By volume: the last online verify with ``peer`` that came to its end, by the kernel log of ``node``.

        drbd_resync_finished() says so there: "Online verify done", and of how many blocks it left out (DRBD 9).
        """
        what = f"Looking how the verification of {name} ended"
        ends = {}
        for line in self._remote.ask(node, what, "verify_ends", _name(name), peer).out.splitlines():
            volume, at, words = line.split(" ", 2)
            left_out = _LEFT_OUT.search(words)
            skipped = 0 if left_out is None else int(left_out[1]) * int(left_out[2])
            ends[int(volume)] = VerifyEnd(at=at, skipped_kib=skipped)
        return ends

    def openers(self, node: str, names: Collection[str]) -> tuple[Opener, ...]:
        """What has a device of these resources open on ``node`` now, in any mode: processes, mounts, other devices."""
        answer = self._remote.ask(node, f"Looking who has {_enough(names)} open", "openers", *map(_name, names))
        return openers.parse(answer.out)

    def surroundings(self, node: str, names: Collection[str]) -> Surroundings:
        """What is around these resources on ``node``: the module, their configuration, and who else acts on them.

        "For good" is what `drbdadm adjust` would leave as it is.
        """
        what = f"Looking around {_enough(names)}"
        answer = self._remote.ask(node, what, "surroundings", *map(_name, names))
        lines = [line.split() for line in answer.out.splitlines()]
        return Surroundings(
            version=next((words[1] for words in lines if words[0] == "version"), ""),
            two_primaries_for_good=frozenset(words[1] for words in lines if words[0] == "lasting"),
            other_hands=tuple(
                OtherHand(program=words[1], resource=words[2], active=words[3] == "yes")
                for words in lines
                if words[0] == "hand"
            ),
        )

    def watch(
        self, called: Mapping[str, Mapping[str, str]], *, on_change: Callable[[str], None] | None = None
    ) -> AbstractContextManager[ReplicationWatch]:
        """Follow resources. ``called``: by node, its own names of them, each with the name that the watch speaks."""
        nodes = tuple(called)
        if not any(called.values()):
            return nothing_to_watch(self._remote, nodes, on_change)

        def follow(node: str) -> Stream:
            return self._remote.stream(node, "follow")

        return ReplicationWatch(
            called={node: {_name(own): one for own, one in names.items()} for node, names in called.items()},
            follow=follow,
            why=lambda node, answer: self._remote.why(node, "Following events", answer),
            on_change=on_change,
            answer_within_s=self._remote.timeout_s,
        )

    # ---- changing

    def allow_two_primaries(self, node: str, name: str, peer: str, token: Token) -> ConnectionOptions:
        """Allow two primaries on this one connection, protocol C; what is set then. Idempotent.

        Raises also `TokenLost`.
        """
        return self._set_options(node, name, peer, token, allow=True, protocol="C")

    def restore_options(
        self, node: str, name: str, peer: str, options: ConnectionOptions, token: Token
    ) -> ConnectionOptions:
        """Set allow-two-primaries and the protocol to exactly ``options``; what is set then. Idempotent.

        Refuses to turn two primaries off unless the connection is Connected.  Raises also `TokenLost`.
        """
        return self._set_options(node, name, peer, token, allow=options.allow_two_primaries, protocol=options.protocol)

    def reconnect(self, node: str, name: str, peer: str, options: ConnectionOptions, token: Token) -> None:
        """Connect ``node`` to ``peer`` again if the connection is StandAlone, with these options. Discards nothing.

        DRBD 8.4 forgets the options of a connection that is StandAlone: there the configuration's are taken.
        """
        what = f"Connecting {name} to {peer} again"
        here = self.observe(node, (name,)).get(name)
        connection = None if here is None else here.towards(peer)
        number = "0" if connection is None else f"{connection.peer_node_id}"
        words = (
            f"--protocol={options.protocol or 'C'}",
            f"--allow-two-primaries={'yes' if options.allow_two_primaries else 'no'}",
        )
        self._remote.act(node, what, token, "reconnect", _name(name), number, *words)

    def promote(self, node: str, name: str, token: Token, *, beside: str | None = None) -> None:
        """Make the node Primary. Idempotent; never by force. Raises also `TokenLost`.

        Refuses with `CommandFailed` (`Code.NOT_CONNECTED`) unless Connected to ``beside``, if that is given; and with
        8.4, which would go on alone, unless the peer acknowledges what DRBD sends it.
        With 8.4 volumes are promoted one by one: after a failure some may be Primary, and `demote` is the way back.
        """
        number = () if beside is None else (f"{self._end(node, name, beside)[0]}",)
        self._remote.act(node, f"Promoting {name}", token, "promote", _name(name), *number)

    def promote_by_force(self, node: str, name: str, token: Token) -> None:
        """Make the node Primary although its copies are old: ``drbdsetup primary --force``. Raises also `TokenLost`.

        Refuses with `CommandFailed` (`Code.NOT_UPTODATE`) unless each is UpToDate, Outdated or Consistent and no peer
        is connected, which is looked at in the same remote command.  Guaranteed afterwards: they count as UpToDate.
        """
        self._remote.act(node, f"Promoting {name} by force", token, "promote_by_force", _name(name))

    def demote(self, node: str, name: str, token: Token) -> None:
        """Make the node Secondary. Idempotent; never by force.

        Refuses with `DeviceHeld` while anything has one of the resource's devices open in any mode (after about a
        second, since udev opens a device for a moment when another process has closed it).  Nothing is looked at where
        the node is Secondary already.
        """
        self._remote.act(node, f"Demoting {name}", token, "demote", _name(name))

    def begin_verify(self, node: str, name: str, volume: int, peer: str, guest: str) -> None:
        """Have DRBD compare every block of the volume on ``node`` with the copy on ``peer``: ``drbdsetup verify``.

        From the first block: without ``--start`` DRBD would go on where another one was broken off.
        """
        number, _ = self._end(node, name, peer)
        what = f"Beginning to verify {name}/{volume} with {peer}"
        words = (_name(name), f"{number}", f"{volume}")
        self._remote.ask(node, what, "locked", uuid(guest), "begin_verify", *words)

    # ---- guards

    def arm_guard(self, node: str, token: Token, guarded: Sequence[Guarded], *, resume: bool) -> None:
        """Start the dead-man's guard of this guest on ``node``; it outlives the controller. Idempotent.

        Guaranteed afterwards: it runs, and has acknowledged the token's deadline.  Raises also `TokenLost`, and
        `CommandFailed` with `Code.GUARD_UNAVAILABLE` or `Code.GUARD_LOST`.  One that was armed before is replaced, and
        what counts as unbroken stays what it was when the first was armed.
        """
        if not guarded:
            raise no_guard(node, "there is no connection to guard")
        links = [(link, *self._end(node, link.resource, link.peer)) for link in guarded]
        lines = orders(token, links, resume=resume)
        self._remote.act(node, f"Arming the guard of {token.instance}", token, "arm", *lines)

    # ---- how

    def _set_options(
        self, node: str, name: str, peer: str, token: Token, *, allow: bool, protocol: str | None
    ) -> ConnectionOptions:
        what = f"{'Allowing' if allow else 'Forbidding'} two primaries of {name}"
        number, ends = self._end(node, name, peer)
        # An option at its default is not shown, so C and unset look the same, and are the same.
        words = (_name(name), f"{number}", protocol or "C", "yes" if allow else "no", *ends)
        return self._options(node, name, peer, self._remote.act(node, what, token, "set_options", *words))

    def _end(self, node: str, name: str, peer: str) -> tuple[int, tuple[str, str]]:
        """What drbdsetup calls this connection: the peer's node id, and the two words of its net-options.

        Asked once: they last as long as the connection, and one that is another now is refused by drbdsetup.
        """
        key = (node, name, peer)
        if key not in self._ends:
            self.options(node, name, peer)
        return self._ends[key]

    def _options(self, node: str, name: str, peer: str, answer: Answer) -> ConnectionOptions:
        """What is set on the connection, by what the node shows of the resource."""
        shown, connection = self._shown(node, name, peer, answer)
        return _options(shown, connection, self._ends[node, name, peer][1])

    def _shown(self, node: str, name: str, peer: str, answer: Answer) -> tuple[Shown, ShownConnection]:
        shown = next((s for s in self._parsed(node, name, answer) if s.name == name), None)
        connection = None if shown is None else shown.towards(peer)
        if shown is None or connection is None:
            raise CommandFailed(
                node,
                f"Finding the connection of {name} to {peer}",
                status=0,
                hint="Look at drbdadm status on both nodes; DRBD's name of the peer must be the node's name here.",
                code=Code.NOT_CONNECTED,
            )
        if connection.peer_node_id is None:
            self._ends[node, name, peer] = (0, next(iter(connection.paths), ("", "")))
        else:
            self._ends[node, name, peer] = (connection.peer_node_id, (name, f"{connection.peer_node_id}"))
        return shown, connection

    def _parsed(self, node: str, name: str, answer: Answer) -> tuple[Shown, ...]:
        try:
            return show.parse(answer.out)
        except show.BadShow as error:
            raise CommandFailed(
                node,
                f"Understanding drbdsetup's configuration of {name}",
                status=0,
                hint=f"Run on {node}: drbdsetup show",
                detail=str(error),
                code=Code.STORAGE_FAILED,
            ) from error

    def _resources(self, node: str, dump: str, names: Collection[str] | None = None) -> Mapping[str, Resource]:
        """What a dump adds up to. A line that is not understood is logged, and what it is about is no answer.

        Raises `CommandFailed` if it is about one of ``names`` (``None``: all): a resource of which a line is missing
        would look whole.
        """
        world, bad = World(node), []
        # By its ends alone, as a stream's: a name may have other characters at which `splitlines` would part a line.
        for line in io.StringIO(dump, newline="\n"):
            try:
                world.apply(events2.parse(line.removesuffix("\n")))
            except (BadLine, Gap) as error:
                log.warning("bad_events2_line", node=node, reason=str(error))
                named = NAME.search(line)
                if names is None or named is None or named[1] in names:
                    bad.append(str(error))
        if bad:
            raise CommandFailed(
                node,
                "Understanding the state of DRBD",
                status=0,
                hint=f"Run on {node}: drbdsetup events2 --now --statistics",
                detail="\n".join(bad[:_BAD_LINES]),
                code=Code.STORAGE_FAILED,
            )
        return world.resources()


def _options(shown: Shown, connection: ShownConnection, called: tuple[str, str]) -> ConnectionOptions:
    return ConnectionOptions(
        allow_two_primaries=connection.allow_two_primaries,
        protocol=connection.protocol,
        auto_promote=shown.auto_promote,
        called=called,
        verify_alg=connection.verify_alg or None,
    )


def _parts(text: str) -> tuple[str, str]:
    """What is before the first line that is a dot, and after it."""
    before, _, after = f"\n{text}".partition("\n.\n")
    return before.removeprefix("\n"), after


def _enough(names: Collection[str]) -> str:
    """Some names for a sentence."""
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")  # noqa: PLR2004


def _name(word: str) -> str:
    """A resource's name, which must not look like an option to drbdsetup."""
    if not re.fullmatch(r"[^\s/\-:][^\s/:]*", word):
        raise UsageError(f"{word!r} is no name of a DRBD resource.", hint="Look at: drbdsetup events2 --now")
    return word
