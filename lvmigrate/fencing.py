"""Whether a node may be taken for dead: a failover from it makes a second running copy if it lives (law 9).

That the survivor's disk is UpToDate proves nothing: after a cut of the link it stays so.  Only that its power is off
does: by the word of a command that the configuration names, or of the operator, who typed the node's name.  And
whatever still answers from there speaks against it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from lvmigrate import program
from lvmigrate.errors import Code, ExitCode, Finding, LvmigrateError, NodeUnreachable
from lvmigrate.node import Node
from lvmigrate.program import NotStarted
from lvmigrate.protocols import Hypervisor, Storage
from lvmigrate.replication import ConnectionState
from lvmigrate.together import outcomes_of

#: How long a fence command may take, in seconds: a power switch answers in a few, a slow one in some ten.
_COMMAND_S: Final = 90.0
_KEPT: Final = 64 * 1024
#: What only something that lives says, of libvirt's errors and in the words of ssh and of sockets.  libvirt ends every
#: failure of its ssh with "Connection reset by peer", so that says nothing.
_REFUSALS: Final = frozenset({Code.AUTH_FAILED, Code.HOST_KEY_UNKNOWN, Code.TLS_FAILED})
_REFUSED: Final = re.compile(
    r"permission denied|host key verification failed|host identification has changed|connection refused"
    r"|too many authentication failures|kex_exchange_identification|connection closed by \S+ port",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """Which of the three ways to a node still answer."""

    node: str
    libvirt: bool
    ssh: bool
    #: The survivor's kernel is connected to it, for at least one of the guest's resources.
    drbd: bool

    @property
    def ways(self) -> tuple[str, ...]:
        """Those that do, in words."""
        named = (("libvirt", self.libvirt), ("ssh", self.ssh), ("DRBD", self.drbd))
        return tuple(name for name, answers in named if answers)


def objections(signs: Signs, *, has_command: bool, typed: str | None) -> Iterator[Finding]:
    """Every reason not to take the node for dead, before its fence command was run. Pure.

    ``typed``: the name of the node that the operator says is off.
    """
    if signs.ways:
        yield alive(signs)
    if typed is not None and typed != signs.node:
        yield Finding(
            code=Code.NOT_FENCED,
            sentence=f"{typed} was said to be off, but the guest was on {signs.node}.",
            hint=f"If {signs.node} is off, say so: --is-off {signs.node}.",
        )
    elif typed is None and not has_command:
        yield Finding(
            code=Code.NOT_FENCED,
            sentence=f"Nothing says that {signs.node} is off: it does not answer, which is no proof.",
            hint=f"Name its fence_command in the configuration, or switch it off and say so: --is-off {signs.node}."
            " If it lives after all, the guest will run twice.",
        )


def alive(signs: Signs) -> Finding:
    """The finding that a node still answers."""
    return Finding(
        code=Code.NODE_ALIVE,
        sentence=f"{signs.node} is not dead: it still answers by {' and '.join(signs.ways)}.",
        hint="Fail over with it answering (`lvmigrate failover` without --is-off, once all of it answers), or switch it"
        " off first. DRBD needs some seconds to notice that a peer is gone.",
    )


def look(hypervisor: Hypervisor, storage: Storage, dead: str, survivor: str, names: tuple[str, ...]) -> Signs:
    """Ask in all three ways, side by side. Raises what the survivor's answer makes it raise."""
    calls: list[Callable[[], object]] = [lambda: hypervisor.domains(dead), lambda: storage.traces(dead)]
    libvirt, ssh = (answers(outcome) for outcome in outcomes_of(calls))
    seen = storage.observe(survivor, names)
    links = [resource.towards(dead) for resource in seen.values()]
    drbd = any(link is not None and link.state is ConnectionState.CONNECTED for link in links)
    return Signs(node=dead, libvirt=libvirt, ssh=ssh, drbd=drbd)


def answers(outcome: object) -> bool:
    """Whether this is somebody's word: a login that is refused is no use to us, and a sign of life all the same."""
    if not isinstance(outcome, NodeUnreachable):
        return True
    return outcome.code in _REFUSALS or _REFUSED.search(f"{outcome.sentence} {outcome.detail}") is not None


class FenceFailed(LvmigrateError):
    """The fence command did not say that the node is off."""

    code = Code.FENCE_FAILED
    exit_code = ExitCode.FAILED


def commands(nodes: Mapping[str, Node]) -> Mapping[str, Callable[[], None]]:
    """By node: what switches it off. Each raises `FenceFailed` unless its command ended with 0 in time."""
    return {name: _command(name, node.fence_command) for name, node in nodes.items() if node.fence_command}


def _command(node: str, command: str) -> Callable[[], None]:
    def fence() -> None:
        hint = f"Look at {node} and at its fence_command; nothing was started."
        try:
            done = program.run(
                ["/bin/sh", "-c", command],
                env={**os.environ, "LVMIGRATE_NODE": node},
                within_s=_COMMAND_S,
                most_bytes=_KEPT,
            )
        except NotStarted as error:
            raise FenceFailed(error.sentence, hint=hint) from error
        if done.overdue:
            raise FenceFailed(f"The fence command of {node} did not end within {_COMMAND_S:.0f} s.", hint=hint)
        if not done.ok:
            raise FenceFailed(
                f"The fence command of {node} failed ({done.status}).",
                hint=hint,
                detail=(done.output + done.errors)[-2000:],
            )

    return fence
