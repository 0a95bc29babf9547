"""Fleets of any size, made up: half of the nodes are to be emptied; every guest has copies on one or two others."""

from __future__ import annotations

import random
from typing import Final

from lvmigrate.assignment import Room, Traveller

_GIB: Final = 1 << 20  # in KiB
_SIZES_GIB: Final = (1, 2, 2, 4, 4, 4, 8, 8, 16, 32)


def fleet(nodes: int, guests: int, *, seed: int) -> tuple[list[Room], list[Traveller]]:
    """The same for the same seed. There is room for nearly all of them, and for a few there is none."""
    chance = random.Random(seed)
    leaving = [f"old{number:04}" for number in range(nodes // 2)]
    staying = [f"new{number:04}" for number in range(nodes - nodes // 2)]
    rooms = [Room(node=node, free_kib=8 * _GIB, link_mib_s=chance.choice((None, 1100, 2800))) for node in leaving]
    rooms += [
        Room(
            node=node,
            free_kib=chance.randrange(256, 1024) * _GIB,
            link_mib_s=chance.choice((1100, 2800)),
            resyncs=chance.random() < 0.05,
            vcpus=chance.randrange(64),
            cpus=64,
        )
        for node in staying
    ]
    travellers = []
    for number in range(guests):
        memory = chance.choice(_SIZES_GIB) * _GIB
        peers = tuple(chance.sample(staying, chance.choice((1, 1, 2))))
        travellers.append(
            Traveller(
                uuid=f"uuid-{number:06}",
                name=f"guest{number:06}",
                source=leaving[number % len(leaving)],
                memory_kib=memory,
                resident_kib=int(memory * chance.uniform(0.2, 1.0)),
                peers=peers,
                vcpus=chance.randrange(1, 9),
                dirty_rate=chance.choice((0, 0, chance.randrange(1 << 20, 1 << 28))),
            )
        )
    return rooms, travellers
