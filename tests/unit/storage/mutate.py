"""Lines that were damaged on their way."""

from __future__ import annotations

import random


def mutated(real: str, draw: random.Random) -> str:
    """The line with one to four damages: a character changed, a piece lost or doubled, the end cut off."""
    line = list(real)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(line))
        match draw.randrange(4):
            case 0:
                line[at] = chr(draw.randrange(0xD800))
            case 1:
                del line[at : at + draw.randint(1, 40)]
                line = line or [" "]
            case 2:
                line[at:at] = line[: draw.randint(0, 80)]
            case _:
                line = line[: at + 1]
    return "".join(line)
