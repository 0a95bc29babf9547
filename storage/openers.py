"""What node.sh says of those who have a device open, as values."""

from __future__ import annotations

from typing import Final

from lvmigrate.replication import Opener

_GUEST: Final = ", of the guest "


def parse(text: str) -> tuple[Opener, ...]:
    """Each opener once: a process may have a device open twice, and several mount namespaces show one mount."""
    lines = (line.split(" ", 2) for line in dict.fromkeys(text.splitlines()))
    return tuple(
        Opener(
            resource=name,
            volume=int(volume),
            what=what,
            process=" (pid " in what,
            guest=what.partition(_GUEST)[2],
        )
        for name, volume, what in lines
    )
