"""DRBD 9 and 8.4 behind `lvmigrate.protocols.Storage`.

Everything is asked of and done by ``drbdsetup`` on the node itself, so it is the kernel's word and not that of a
configuration file, and nothing but the option that is meant is changed (``drbdadm`` applies every configured one).
Each mutating call checks the token in the same remote command, under the guest's lock.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import structlog

from lvmigrate.errors import Code, CommandFailed, DeviceHeld, LvmigrateError, TokenLost, UsageError
from lvmigrate.node import Node
from lvmigrate.replication import ConnectionOptions, Opener, Place, Resource, Token
from storage import events2, show
from storage.events2 import BadLine
from storage.shell import Answer, Shell, Stream
from storage.show import Shown, ShownConnection
from storage.watch import ReplicationWatch
from storage.world import Gap, World

log = structlog.get_logger(__name__)

#: DRBD's device number, registered with the kernel.
MAJOR: Final = 147

_SCRIPT: Final = Path(__file__).with_name("node.sh").read_text(encoding="utf-8")

# Statuses of node.sh; see there.
_NO_MODULE: Final = 90
_TOKEN_LOST: Final = 91
_BUSY: Final = 92
_TAKEN: Final = 93
_BLIND: Final = 94
_NO_RESOURCE: Final = 95
_NOT_CONNECTED: Final = 96
_HELD: Final = 97
_NO_SUCH_COMMAND: Final = 127

_HINTS: Final[Mapping[int, str]] = {
    _NO_MODULE: "Load it on the node: modprobe drbd, then drbdadm up all.",
    _BUSY: "Another command works on this guest there: wait for its end.",
    _BLIND: "The node needs GNU find and coreutils, util-linux, and a writable /run.",
    _NO_RESOURCE: "Bring it up on the node (drbdadm up), or correct the guest's disks.",
    _NOT_CONNECTED: "Wait until drbdadm status shows the connection on both nodes, then run the same command again.",
    _NO_SUCH_COMMAND: "Install drbd-utils on the node.",
}

#: The number in drbdsetup's words -> the next thing to do.
_KERNEL_HINTS: Final[Mapping[str, str]] = {
    "-1": "The other node is Primary and this connection allows only one: end the other's use, or run a cleanup.",
    "-2": "This node has no UpToDate data in reach: wait for the resynchronisation, or connect it to a node that has.",
    "-10": "The peer refused: look at drbdadm status on both nodes.",
    "-12": "End what has the device open, then run the same command again.",
    "-25": "Too few nodes are connected for quorum: bring one back.",
    "127": "Bring the resource up on the node: drbdadm up.",
    "139": "Two primaries need protocol C: set both in one step.",
    "158": "Bring the resource up on the node: drbdadm up.",
    "162": "There is no such connection now: drbdadm status, then drbdadm connect.",
    "164": "Both nodes are Primary: make one of them Secondary first.",
}
_KERNEL_NUMBER: Final = re.compile(r"\((-?\d+)\)")


class DrbdStorage:
    """Fulfils `lvmigrate.protocols.Storage`; see there for what each method guarantees and raises.

    ``root`` is put before ``/run`` and ``/sys/module`` on the nodes, so that a test can have its own.
    """

    def __init__(
        self,
        nodes: Mapping[str, Node],
        *,
        ssh_config: Path | None = None,
        command_timeout_s: float = 30.0,
        connect_timeout_s: float = 10.0,
        root: str = "",
    ) -> None:
        self._nodes = dict(nodes)
        self._timeout_s = command_timeout_s
        self._shell = Shell(ssh_config=ssh_config, connect_timeout_s=connect_timeout_s)
        # The lock is given up well before the command, so that "busy" is an answer and not a silence.
        patience = max(1, math.floor(command_timeout_s / 3))
        self._script = f"root={shlex.quote(root)}\npatience={patience}\n{_SCRIPT}\n"

    # ---- looking

    def locate(self, node: str, paths: Collection[str]) -> Mapping[str, Place]:
        """Which resource and volume each block device is on ``node``. A path that is none of DRBD's is left out."""
        wanted = tuple(paths)
        answer = self._ask(node, f"Looking up the devices of {_enough(wanted)}", "locate", *wanted)
        devices, _, dump = answer.out.partition(".\n")
        places = {
            volume.minor: Place(resource=name, volume=volume.number)
            for name, resource in self._world(node, dump).resources().items()
            for volume in resource.volumes
        }
        found: dict[str, Place] = {}
        for line in devices.splitlines():
            index, major, minor = line.split()
            if int(major, 16) == MAJOR and int(minor, 16) in places:
                found[wanted[int(index)]] = places[int(minor, 16)]
        return found

    def observe(self, node: str, names: Collection[str]) -> Mapping[str, Resource]:
        """What the node's kernel says now of these resources. One that it does not have is left out."""
        answer = self._ask(node, f"Looking at {_enough(names)}", "dump_all")
        resources = self._world(node, answer.out).resources()
        return {name: resources[name] for name in names if name in resources}

    def options(self, node: str, name: str, peer: str) -> ConnectionOptions:
        """What is set on the connection from ``node`` to ``peer`` now."""
        what = f"Reading the options of {name}"
        return _options(*self._shown(node, name, peer, self._ask(node, what, "show", _name(name))))

    def openers(self, node: str, names: Collection[str]) -> tuple[Opener, ...]:
        """What has a device of these resources open on ``node`` now, in any mode: processes, mounts, other devices."""
        answer = self._ask(node, f"Looking who has {_enough(names)} open", "openers", *map(_name, names))
        return _openers(answer.out)

    def watch(
        self, nodes: Sequence[str], names: Collection[str], *, on_change: Callable[[str], None] | None = None
    ) -> AbstractContextManager[ReplicationWatch]:
        """Follow these resources on these nodes. Inside the context every node has answered once."""
        wanted = tuple(map(_name, names))

        def follow(node: str) -> Stream:
            return self._shell.stream(self._node(node), self._call("follow"))

        def why(node: str, answer: Answer) -> LvmigrateError:
            return self._shell.unreachable(self._node(node), answer) or self._failed(node, "Following events", answer)

        return ReplicationWatch(
            nodes=nodes,
            names=wanted,
            follow=follow,
            why=why,
            on_change=on_change,
            answer_within_s=self._timeout_s,
        )

    # ---- changing

    def allow_two_primaries(self, node: str, name: str, peer: str, token: Token) -> None:
        """Allow two primaries on this one connection, protocol C. Idempotent. Raises also `TokenLost`."""
        self._set_options(node, name, peer, token, allow=True, protocol="C")

    def restore_options(self, node: str, name: str, peer: str, options: ConnectionOptions, token: Token) -> None:
        """Set allow-two-primaries and the protocol to exactly ``options``. Idempotent. Raises also `TokenLost`.

        Refuses to turn two primaries off unless the connection is Connected.
        """
        self._set_options(node, name, peer, token, allow=options.allow_two_primaries, protocol=options.protocol)

    def promote(self, node: str, name: str, token: Token) -> None:
        """Make the node Primary. Idempotent; never by force. Raises also `TokenLost`.

        With 8.4 volumes are promoted one by one: after a failure some may be Primary, and `demote` is the way back.
        """
        self._act(node, f"Promoting {name}", token, "promote", _name(name))

    def demote(self, node: str, name: str, token: Token) -> None:
        """Make the node Secondary. Idempotent; never by force.

        Refuses with `DeviceHeld` while anything has one of the resource's devices open in any mode (after about a
        second, since udev opens a device for a moment when another process has closed it).  Nothing is looked at where
        the node is Secondary already.
        """
        self._act(node, f"Demoting {name}", token, "demote", _name(name))

    # ---- tokens

    def take_token(self, node: str, token: Token) -> str | None:
        """Leave the token on ``node``. ``None``: it is ours; otherwise the words of the holder who was there first."""
        holder = " ".join(token.holder.split()) or "unknown"
        words = (_uuid(token.uuid), "take_token", token.id, holder, _hundredths(token.lease_s))
        answer = self._run(node, f"taking the token of {token.instance}", "locked", *words)
        if answer.status == _TAKEN:
            return answer.out.strip()
        self._check(node, f"Taking the token of {token.instance}", answer, token)
        return None

    def renew_token(self, node: str, token: Token) -> None:
        """Put the deadline ``token.lease_s`` into the future, by the node's clock. `TokenLost` if it is not ours."""
        holder = " ".join(token.holder.split()) or "unknown"
        words = (_uuid(token.uuid), "renew_token", token.id, holder, _hundredths(token.lease_s))
        what = f"Renewing the token of {token.instance}"
        self._check(node, what, self._run(node, what, "locked", *words), token)

    def drop_token(self, node: str, token: Token) -> None:
        """Remove our token from ``node``. Nothing if it is not ours."""
        self._ask(node, f"Dropping the token of {token.instance}", "locked", _uuid(token.uuid), "drop_token", token.id)

    def holder(self, node: str, uuid: str) -> str | None:
        """Who holds this guest's token on ``node`` now, in words; ``None``: nobody, or it ran out."""
        return self._ask(node, f"Reading the token of {uuid}", "holder", _uuid(uuid)).out.strip() or None

    def close(self) -> None:
        """End every connection and process of the adapter."""
        self._shell.close()

    # ---- how

    def _set_options(self, node: str, name: str, peer: str, token: Token, *, allow: bool, protocol: str | None) -> None:
        what = f"{'Allowing' if allow else 'Forbidding'} two primaries of {name}"
        shown, connection = self._shown(node, name, peer, self._act(node, what, token, "show", _name(name)))
        # An option at its default is not shown, so C and unset look the same, and are the same.
        if (connection.allow_two_primaries, connection.protocol or "C") == (allow, protocol or "C"):
            return
        words = [f"--protocol={protocol or 'C'}", f"--allow-two-primaries={'yes' if allow else 'no'}"]
        if connection.peer_node_id is None:
            ends = [connection.local or "", connection.remote or ""]
        else:
            ends = [shown.name, f"{connection.peer_node_id}"]
        if connection.allow_two_primaries and not allow:
            peer_number = f"{connection.peer_node_id or 0}"
            self._act(node, what, token, "net_options_connected", shown.name, peer_number, *ends, *words)
        else:
            self._act(node, what, token, "drbdsetup", "net-options", *ends, *words)

    def _shown(self, node: str, name: str, peer: str, answer: Answer) -> tuple[Shown, ShownConnection]:
        try:
            shown = next((s for s in show.parse(answer.out) if s.name == name), None)
        except show.BadShow as error:
            raise CommandFailed(
                node,
                f"Understanding drbdsetup's configuration of {name}",
                status=0,
                hint=f"Run on {node}: drbdsetup show {name}",
                detail=str(error),
                code=Code.STORAGE_FAILED,
            ) from error
        connection = None if shown is None else shown.towards(peer)
        if shown is None or connection is None:
            raise CommandFailed(
                node,
                f"Finding the connection of {name} to {peer}",
                status=0,
                hint="Look at drbdadm status on both nodes; DRBD's name of the peer must be the node's name here.",
                code=Code.NOT_CONNECTED,
            )
        return shown, connection

    def _world(self, node: str, dump: str) -> World:
        world = World(node)
        for line in dump.splitlines():
            try:
                world.apply(events2.parse(line))
            except BadLine as error:
                log.warning("bad_events2_line", node=node, reason=str(error))
            except Gap as error:
                log.warning("bad_events2_dump", node=node, reason=str(error))
        return world

    def _act(self, node: str, what: str, token: Token, *words: str) -> Answer:
        """Run a function of node.sh under the guest's lock, if the token is ours."""
        answer = self._run(node, what, "with_token", _uuid(token.uuid), token.id, *words)
        self._check(node, what, answer, token)
        return answer

    def _ask(self, node: str, what: str, *words: str) -> Answer:
        """Run a function of node.sh that needs no token."""
        answer = self._run(node, what, *words)
        if answer.status:
            raise self._failed(node, what, answer)
        return answer

    def _check(self, node: str, what: str, answer: Answer, token: Token) -> None:
        if answer.status == _TOKEN_LOST:
            raise TokenLost(
                f"{what} was not tried on {node}: the token of {token.instance} there is not ours any more.",
                hint="Somebody else took this guest over: look at what runs, and where, before anything else.",
                detail=answer.err.strip(),
            )
        if answer.status:
            raise self._failed(node, what, answer)

    def _failed(self, node: str, what: str, answer: Answer) -> CommandFailed:
        said = answer.err.strip()
        if answer.status == _HELD:
            who = "; ".join(opener.what for opener in _openers(answer.out))
            return DeviceHeld(
                node,
                what,
                status=answer.status,
                hint=f"Still open by {who}: end that first." if who else _KERNEL_HINTS["-12"],
                detail="\n".join(filter(None, (answer.out.strip(), said))),
                code=Code.DEVICE_HELD,
            )
        number = _KERNEL_NUMBER.search(said)
        hint = _HINTS.get(answer.status) or _KERNEL_HINTS.get(number[1] if number else "")
        codes = {_BUSY: Code.LOCKED, _NOT_CONNECTED: Code.NOT_CONNECTED}
        return CommandFailed(
            node,
            what,
            status=answer.status,
            hint=hint or f"Look at the kernel log of {node}: journalctl -k -g drbd",
            detail=said,
            code=codes.get(answer.status, Code.STORAGE_FAILED),
        )

    def _run(self, node: str, what: str, *words: str) -> Answer:
        return self._shell.run(self._node(node), self._call(*words), what=what, timeout_s=self._timeout_s)

    def _call(self, *words: str) -> str:
        return f"{self._script}{shlex.join(words)}\n"

    def _node(self, name: str) -> Node:
        try:
            return self._nodes[name]
        except KeyError:
            hint = f"The nodes are: {', '.join(sorted(self._nodes))}."
            raise UsageError(f"There is no node {name}.", hint=hint, code=Code.NODE_UNKNOWN) from None


def _options(shown: Shown, connection: ShownConnection) -> ConnectionOptions:
    return ConnectionOptions(
        allow_two_primaries=connection.allow_two_primaries,
        protocol=connection.protocol,
        auto_promote=shown.auto_promote,
    )


def _openers(text: str) -> tuple[Opener, ...]:
    # A process may have a device open more than once, and several mount namespaces show one mount.
    lines = (line.split(" ", 2) for line in dict.fromkeys(text.splitlines()))
    return tuple(
        Opener(resource=name, volume=int(volume), what=what, process=" (pid " in what) for name, volume, what in lines
    )


def _hundredths(seconds: float) -> str:
    return str(max(1, math.ceil(seconds * 100)))


def _enough(names: Collection[str]) -> str:
    """Some names for a sentence."""
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")  # noqa: PLR2004


def _name(word: str) -> str:
    """A resource's name, which must not look like an option to drbdsetup."""
    if not re.fullmatch(r"[^\s/\-:][^\s/:]*", word):
        raise UsageError(f"{word!r} is no name of a DRBD resource.", hint="Look at: drbdsetup events2 --now")
    return word


def _uuid(word: str) -> str:
    """A guest's UUID, which names a file."""
    if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}", word):
        raise UsageError(f"{word!r} is no UUID.", hint="Look at: virsh list --all --uuid")
    return word
