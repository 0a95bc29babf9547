"""The connections to nodes: what is let go is closed, after all that was registered with it is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import libvirt
import pytest

from hv.connections import Connections
from lvmigrate.node import Node

NODE = Node(name="node1", ssh=None, libvirt_uri="test:///default", peer_uri="", migration_address="")


def told(name: str, act: Callable[..., Any], calls: list[tuple[str, Any]]) -> Callable[..., Any]:
    def call(self: Any, *words: Any) -> Any:
        result = act(self, *words)
        calls.append((name, result if name == "register" else words[0] if words else None))
        return result

    return call


@pytest.mark.parametrize("dead", [False, True])
def test_a_connection_is_closed_after_its_callbacks_are_gone(monkeypatch: pytest.MonkeyPatch, *, dead: bool) -> None:
    calls: list[tuple[str, Any]] = []
    names = {"register": "domainEventRegisterAny", "deregister": "domainEventDeregisterAny", "close": "close"}
    for name, method in names.items():
        monkeypatch.setattr(libvirt.virConnect, method, told(name, getattr(libvirt.virConnect, method), calls))
    # The driver of libvirt's tests sends events, but has no other end to be kept alive.
    monkeypatch.setattr(libvirt.virConnect, "setKeepAlive", lambda *_words: 0)
    connections = Connections({"node1": NODE}, connect_timeout_s=30)
    first = connections.to("node1")
    registered = [number for _, number in calls]
    assert registered
    assert connections.to("node1") is first
    calls.clear()
    if dead:
        with monkeypatch.context() as patched:
            patched.setattr(libvirt.virConnect, "isAlive", lambda _self: 0)
            assert connections.to("node1") is not first
    else:
        connections.close()
    gone = len(registered) + 1
    assert calls[:gone] == [*(("deregister", number) for number in registered), ("close", None)]
    connections.close()
    connections.close()
