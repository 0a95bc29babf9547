"""What each node calls a resource, for the commands that are told to people.

A resource that its nodes call differently goes by all of these names, such as ``node1:r0=node2:r9`` (storage.names).
No command takes that one.
"""

from __future__ import annotations

from collections.abc import Iterable


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
