"""The one name of a resource that its nodes call differently, and what each node calls it.

It goes by all of its names, such as ``node1:r0=node2:r9``.  No command takes that one: what is told to people has each
node's own.
"""

from __future__ import annotations

from collections.abc import Iterable


def joined(ends: Iterable[tuple[str, str]]) -> str:
    """The one name of what these nodes, each with its own name for it, call differently."""
    return "=".join(f"{node}:{own}" for node, own in ends)


def own_name(name: str, node: str) -> str:
    """What ``node`` calls the resource that goes by ``name``."""
    ends = [end.partition(":") for end in name.split("=")]
    return next((own for where, _, own in ends if where == node and len(ends) > 1), name)


def on_each(command: str, name: str, nodes: Iterable[str]) -> str:
    """``command`` with the resource's name in place of ``{}``, and where to run it: one text where it has one name."""
    by_node = {node: command.format(own_name(name, node)) for node in nodes}
    if len(set(by_node.values())) == 1:
        return f"`{next(iter(by_node.values()))}` on both nodes"
    return " and ".join(f"`{text}` on {node}" for node, text in by_node.items())
