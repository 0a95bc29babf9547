"""What node.sh says of the generations of data, as values."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from lvmigrate.replication import Lineage

_GENERATION: Final = re.compile(r"[0-9A-Fa-f]{16}")
_NONE: Final = "0" * 16


def parse(text: str) -> dict[str, Lineage]:
    """By ``RESOURCE/NUMBER``. What is no generation is left out: a volume without a disk has none."""
    lines = [line.split() for line in text.splitlines()]
    lost = {words[1]: _time(words[2]) for words in lines if len(words) == 3 and words[0] == "since"}  # noqa: PLR2004
    found: dict[str, Lineage] = {}
    for words in lines:
        if len(words) != 5 or words[0] != "gi":  # noqa: PLR2004
            continue
        _, name, volume, uuids, kib = words
        current, *earlier = _generations(uuids) or [_NONE]
        if current != _NONE:
            found[f"{name}/{volume}"] = Lineage(
                current=current,
                earlier=tuple(uuid for uuid in earlier if uuid != _NONE),
                changed_kib=int(kib) if kib.isdigit() else None,
                lost_at=lost.get(name),
            )
    return found


def _generations(uuids: str) -> list[str]:
    """The current one, the bitmap's, then the history; what follows are flags. The lowest bit tells a role."""
    found = []
    for word in uuids.split(":"):
        if not _GENERATION.fullmatch(word):
            break
        found.append(f"{int(word, 16) & ~1:016X}")
    return found


def _time(word: str) -> datetime | None:
    # journalctl writes +0000, dmesg a comma before the fraction.
    try:
        return datetime.fromisoformat(re.sub(r"([+-]\d\d)(\d\d)$", r"\1:\2", word.replace(",", ".")))
    except ValueError:
        return None
