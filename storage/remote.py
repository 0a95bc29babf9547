"""The functions of node.sh, called on nodes; what they answer with becomes an error here, and nowhere else."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from lvmigrate.errors import Code, CommandFailed, DeviceHeld, LvmigrateError, TokenLost, UsageError
from lvmigrate.node import Node
from lvmigrate.token import Token
from storage import openers
from storage.session import Sessions
from storage.shell import Answer, Shell, Stream

_SCRIPT: Final = Path(__file__).with_name("node.sh").read_text(encoding="utf-8")
_GUARD: Final = Path(__file__).with_name("guard.sh").read_text(encoding="utf-8")

# Statuses of node.sh; see there.
NOT_FORCED: Final = 89
NO_MODULE: Final = 90
TOKEN_LOST: Final = 91
BUSY: Final = 92
TAKEN: Final = 93
BLIND: Final = 94
NO_RESOURCE: Final = 95
NOT_CONNECTED: Final = 96
HELD: Final = 97
NO_GUARD: Final = 98
NOT_ARMED: Final = 99
_NO_SUCH_COMMAND: Final = 127

_HINTS: Final[Mapping[int, str]] = {
    NOT_FORCED: "Only a copy that is Outdated or Consistent, and has no peer, is made Primary by force.",
    NO_MODULE: "Load it on the node: modprobe drbd, then drbdadm up all.",
    BUSY: "Another command works on this guest there: wait for its end.",
    BLIND: "The node needs GNU find and coreutils, util-linux, systemd for guards, and a writable /run.",
    NO_RESOURCE: "Bring it up on the node (drbdadm up), or correct the guest's disks.",
    NOT_CONNECTED: "Wait until drbdadm status shows the connection on both nodes, then run the same command again.",
    NO_GUARD: "Look at the node's journal: journalctl -u 'lvmigrate-guard-*'",
    NOT_ARMED: "Look at the node's journal: journalctl -b -g lvmigrate-guard",
    _NO_SUCH_COMMAND: "Install drbd-utils on the node.",
}
_CODES: Final[Mapping[int, Code]] = {
    BUSY: Code.LOCKED,
    NOT_FORCED: Code.NOT_UPTODATE,
    NOT_CONNECTED: Code.NOT_CONNECTED,
    NO_GUARD: Code.GUARD_LOST,
    NOT_ARMED: Code.GUARD_UNAVAILABLE,
}

#: The number in drbdsetup's words -> the next thing to do.
_KERNEL_HINTS: Final[Mapping[str, str]] = {
    "-1": "The other node is Primary and this connection allows only one: end the other's use, or run a cleanup.",
    "-2": "This node has no UpToDate data in reach: wait for the resynchronisation, or connect it to a node that has.",
    "-10": "The peer refused: look at drbdadm status on both nodes.",
    "-12": "End what has the device open, then run the same command again.",
    "-14": "Set a verify-alg on both nodes (net section of the resource), then drbdadm adjust.",
    "-25": "Too few nodes are connected for quorum: bring one back.",
    "127": "Bring the resource up on the node: drbdadm up.",
    "139": "Two primaries need protocol C: set both in one step.",
    "158": "Bring the resource up on the node: drbdadm up.",
    "162": "There is no such connection now: drbdadm status, then drbdadm connect.",
    "164": "Both nodes are Primary: make one of them Secondary first.",
}
_KERNEL_NUMBER: Final = re.compile(r"\((-?\d+)\)")


class Remote:
    """Calls functions of node.sh on nodes. Thread-safe.

    ``root`` is put before ``/run``, ``/etc`` and ``/sys/module`` on the nodes, so that a test can have its own.
    """

    def __init__(self, nodes: Mapping[str, Node], shell: Shell, *, command_timeout_s: float, root: str) -> None:
        self._nodes = dict(nodes)
        self._shell = shell
        self.timeout_s = command_timeout_s
        # The lock is given up well before the command, so that "busy" is an answer and not a silence.
        patience = max(1, math.floor(command_timeout_s / 3))
        text = f"root={shlex.quote(root)}\npatience={patience}\n{_SCRIPT}{_GUARD}"
        # Read by head and not as a part of the command, which the login shell would have to read first.
        self._load = f'text=$(head -c {len(text.encode())})\neval "$text"\n'
        self._text = text
        self._sessions = Sessions(shell, f"{self._load}serve\n", text)

    def run(self, node: str, what: str, *words: str) -> Answer:
        """Call the function ``words[0]`` with the rest as its arguments; whatever it answers."""
        # A request is one line; shlex.join has quoted every word with another character than usual ones.
        request = shlex.join(words).replace("\n", "'\"$newline\"'")
        return self._sessions.ask(self.node(node), request, what=what, timeout_s=self.timeout_s)

    def ask(self, node: str, what: str, *words: str) -> Answer:
        """As `run`; raises `CommandFailed` when the function failed."""
        answer = self.run(node, what, *words)
        if answer.status:
            raise self.failed(node, what, answer)
        return answer

    def act(self, node: str, what: str, token: Token, *words: str) -> Answer:
        """As `ask`, under the guest's lock, if the token is ours; raises `TokenLost` if not."""
        answer = self.run(node, what, "with_token", uuid(token.uuid), token.id, *words)
        self.check(node, what, answer, token)
        return answer

    def stream(self, node: str, *words: str) -> Stream:
        """Call a function that goes on; see `Shell.stream`."""
        return self._shell.stream(self.node(node), f"{self._load}{shlex.join(words)}\n", first=self._text)

    def check(self, node: str, what: str, answer: Answer, token: Token) -> None:
        """Raise what ``answer`` to a command for the holder of ``token`` means, if it is not success."""
        if answer.status == TOKEN_LOST:
            raise TokenLost(
                f"{what} was not tried on {node}: the token of {token.instance} there is not ours any more.",
                hint="Somebody else took this guest over: look at what runs, and where, before anything else.",
                detail=answer.err.strip(),
            )
        if answer.status:
            raise self.failed(node, what, answer)

    def failed(self, node: str, what: str, answer: Answer) -> CommandFailed:
        """What ``answer`` means, which is not success."""
        said = answer.err.strip()
        if answer.status == HELD:
            who = "; ".join(opener.what for opener in openers.parse(answer.out))
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
        return CommandFailed(
            node,
            what,
            status=answer.status,
            hint=hint or f"Look at the kernel log of {node}: journalctl -k -g drbd",
            detail=said,
            code=_CODES.get(answer.status, Code.STORAGE_FAILED),
        )

    def node(self, name: str) -> Node:
        """The node of that name; raises `UsageError` if there is none."""
        try:
            return self._nodes[name]
        except KeyError:
            hint = f"The nodes are: {', '.join(sorted(self._nodes))}."
            raise UsageError(f"There is no node {name}.", hint=hint, code=Code.NODE_UNKNOWN) from None

    def why(self, node: str, what: str, answer: Answer) -> LvmigrateError:
        """Why a stream ended with ``answer``."""
        return self._shell.unreachable(self.node(node), answer) or self.failed(node, what, answer)

    def close(self) -> None:
        """End every connection and process."""
        self._sessions.close()
        self._shell.close()


def uuid(word: str) -> str:
    """A guest's UUID, which names a file. Raises `UsageError`."""
    if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}", word):
        raise UsageError(f"{word!r} is no UUID.", hint="Look at: virsh list --all --uuid")
    return word
