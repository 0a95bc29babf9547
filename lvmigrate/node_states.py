"""Node states by command, drained or offline, and which guests a drain has sent away: a small file beside the journal.

They hold for who reads this file: for every command on this machine, not for other controllers.  What is to hold for
all of them belongs in the configuration.  Nothing of what a move needs is kept here: with the file lost, nodes are open
again, and a return has to be told which guests to bring.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from lvmigrate.errors import Code, ConfigurationError, Finding, Refused, UsageError
from lvmigrate.node import Node

FILE: Final = "nodes.json"


class State(enum.Enum):
    """What a node is for others' guests, by command."""

    ONLINE = "online"
    DRAINED = "drained"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """A guest that a drain has sent away, and to where."""

    uuid: str
    name: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """What is known of one node."""

    state: State = State.ONLINE
    reason: str = ""
    #: By UUID.
    gone: Mapping[str, Gone]


_NOTHING: Final = NodeState(gone={})


class NodeStates:
    """The file ``directory/nodes.json``; without a directory nothing is kept, and nothing can be set."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    @property
    def kept(self) -> bool:
        """Whether there is a place for them."""
        return self._directory is not None

    def all(self) -> Mapping[str, NodeState]:
        """Every node that the file names. Raises `ConfigurationError` when it cannot be read."""
        if self._directory is None:
            return {}
        path = self._directory / FILE
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            return {name: _parsed(entry) for name, entry in said.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it was not written by lvmigrate"
            raise ConfigurationError(
                f"The states of nodes in {path} cannot be read: {why}.",
                hint="See that it can be read, or move it away and set them again: `lvmigrate node NODE --drained`.",
            ) from error

    def of(self, node: str) -> NodeState:
        """One node."""
        return self.all().get(node, _NOTHING)

    def over(self, nodes: Mapping[str, Node]) -> Mapping[str, Node]:
        """The configuration's nodes with these states; what the configuration says itself stays as it is."""
        known = self.all()
        return {name: _with(node, known.get(name, _NOTHING)) for name, node in nodes.items()}

    def set(self, node: str, state: State, reason: str = "") -> None:
        """Have it be so from now on. Raises `ConfigurationError`, or `UsageError` where nothing is kept."""
        self._change(node, lambda before: replace(before, state=state, reason=reason))

    def sent_away(self, node: str, guest: Gone) -> None:
        """A guest is leaving the node by a drain. Nothing where nothing is kept."""
        if self.kept:
            self._change(node, lambda before: replace(before, gone={**before.gone, guest.uuid: guest}))

    def back(self, node: str, uuids: Collection[str]) -> None:
        """These are not away any more. Nothing where nothing is kept."""
        if self.kept:
            self._change(
                node,
                lambda before: replace(
                    before, gone={uuid: gone for uuid, gone in before.gone.items() if uuid not in uuids}
                ),
            )

    def _change(self, node: str, change: Callable[[NodeState], NodeState]) -> None:
        if self._directory is None:
            raise UsageError(
                "Without a journal there is no place for the states of nodes.",
                hint=f"Write `drained = true` into [nodes.{node}] of the configuration, or name a journal there.",
            )
        try:
            self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            with (self._directory / f".{FILE}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # several commands may write at once
                known = {**self.all()}
                known[node] = change(known.get(node, _NOTHING))
                self._write({name: _written(state) for name, state in known.items() if state != _NOTHING})
        except OSError as error:
            raise ConfigurationError(
                f"The states of nodes cannot be written to {self._directory / FILE}: {error.strerror}.",
                hint="Make room there, or name another place: [journal] path in the configuration.",
            ) from error

    def _write(self, said: Mapping[str, Any]) -> None:
        """Whole, or as it was before."""
        assert self._directory is not None  # noqa: S101 -- the caller's
        number, path = tempfile.mkstemp(dir=self._directory, prefix=".")
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                json.dump(said, file, indent=1, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            Path(path).replace(self._directory / FILE)
        except BaseException:
            Path(path).unlink(missing_ok=True)
            raise


def _with(node: Node, known: NodeState) -> Node:
    why = known.reason or "by command"
    if known.state is State.DRAINED and node.drained is None:
        return replace(node, drained=why)
    return replace(node, offline=why) if known.state is State.OFFLINE and node.offline is None else node


def _parsed(entry: Mapping[str, Any]) -> NodeState:
    gone = [Gone(uuid=each["uuid"], name=each["name"], target=each["target"]) for each in entry["gone"]]
    return NodeState(state=State(entry["state"]), reason=entry["reason"], gone={each.uuid: each for each in gone})


def _written(state: NodeState) -> Mapping[str, Any]:
    gone = [{"uuid": g.uuid, "name": g.name, "target": g.target} for g in state.gone.values()]
    return {"state": state.state.value, "reason": state.reason, "gone": gone}


# ---- a drain under way, and what is wished of it


class Wish(enum.Enum):
    """What a drain under way is asked to do."""

    GO_ON = "resume"
    PAUSE = "pause"
    STOP = "stop"


@contextmanager
def under_way(directory: Path | None, nodes: tuple[str, ...]) -> Iterator[Callable[[], Wish]]:
    """One drain (or return) of these nodes on this machine; inside, what is wished of it now, by `wish`.

    A node that is named twice counts once.
    Raises `Refused` (`Code.LOCKED`) when there is another one.  It ends with its process, however that ends.
    """
    if directory is None:
        yield lambda: Wish.GO_ON
        return
    each = sorted(set(nodes))
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            files = [stack.enter_context(_lock_of(directory, node).open("a+")) for node in each]
        except OSError as error:
            raise ConfigurationError(
                f"{directory} cannot be written: {error.strerror}.",
                hint="Make room there, or name another place: [journal] path in the configuration.",
            ) from error
        for node, file in zip(each, files, strict=True):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                finding = Finding(
                    code=Code.LOCKED,
                    sentence=f"{node} is being drained, or returned to, by another command on this machine.",
                    hint=f"Wait for its end, or end it: `lvmigrate drain {node} --stop`.",
                )
                raise Refused(node, [finding]) from None
            file.truncate(0)

        def wished() -> Wish:
            for file in files:
                file.seek(0)
                words = file.read().split()
                if words and words[-1] != Wish.GO_ON.value:
                    return Wish(words[-1])
            return Wish.GO_ON

        yield wished


def wish(directory: Path | None, node: str, wanted: Wish) -> None:
    """Ask the drain of ``node`` that is under way on this machine.

    Raises `UsageError` when there is none, and `ConfigurationError` when it cannot be asked.
    """
    path = None if directory is None else _lock_of(directory, node)
    try:
        if path is not None and path.exists():
            with path.open("a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.write(f"{wanted.value}\n")
                    return
    except OSError as error:
        raise ConfigurationError(
            f"The drain of {node} cannot be asked by {path}: {error.strerror}.",
            hint="Ask as the user who runs it, or as root.",
        ) from error
    raise UsageError(
        f"No drain of {node} is under way on this machine.",
        hint="`lvmigrate history` lists what is; one on another machine is asked there.",
        code=Code.ERRAND_UNKNOWN,
    )


def _lock_of(directory: Path, node: str) -> Path:
    return directory / f"drain-{node}"
