"""Writes docs/decisions.md from the tables themselves: ``python -m docs.decisions``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lvmigrate import guard
from lvmigrate.decision import DISKS, GUEST, May, Sight, decide

_PAGE: Final = Path(__file__).with_suffix(".md")

_HEAD: Final = """\
# What follows from what is seen

Made from `lvmigrate/decision.py` and `lvmigrate/guard.py` by `make docs`; do not edit.

A move that was not finished, and every move after its copy of memory has ended, is decided by what both nodes say
now: not by the reply of a call, nor by what a command remembers. `lvmigrate cleanup --dry-run GUEST` prints which of
these rows is met.

Which node is the source and which the target stands in the token that the move has left on both nodes. Where no token
tells, a job of libvirt's does; else the node with a running copy is taken as the source.
"""

_PERSON: Final = """\
### When a person must decide

Nothing was undone and nothing forced. To look:

    lvmigrate status GUEST ; lvmigrate cleanup --dry-run GUEST
    virsh domstate --reason GUEST ; virsh domjobinfo GUEST       on both nodes
    drbdsetup status RESOURCE --verbose                          on both nodes
    drbdadm get-gi RESOURCE                                      on both nodes: whose data is newer

Let a copy run by hand (`virsh resume`) only where the other node has none. Two copies that ran at once and were
suspended: compare the generations of the disks, end the copy on the older one (`virsh destroy` there), resume the
other.
"""


def page() -> str:
    """The whole page."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield _HEAD
    yield "## What a node's word about the guest amounts to\n"
    yield from (f"- **{sight.name}**: {sight.value}" for sight in Sight)
    yield "\n## The guest: source x target\n"
    yield from _table(
        ("source", "target", "what follows", "why"),
        ((source.value, target.value, ruling.action.value, ruling.why) for (source, target), ruling in GUEST.items()),
    )
    yield "\nEvery other pair: asked again while time may change it by itself (a job, no answer); after a minute:\n"
    yield from _table(
        ("what is seen", "what follows", "why"),
        (
            (
                words,
                decide(*pair, ran=True, last_chance=True).action.value,
                decide(*pair, ran=True, last_chance=True).why,
            )
            for words, pair in (
                ("a node gives no answer", (Sight.UNKNOWN, Sight.WAITS)),
                ("a copy stands for a reason of its own", (Sight.GONE, Sight.HELD)),
                ("a job does not end", (Sight.GONE, Sight.ARRIVING)),
                ("anything else", (Sight.GONE, Sight.STALLED)),
            )
        ),
    )
    held = decide(Sight.GONE, Sight.WAITS, ran=True, last_chance=True, handed_over=False)
    yield "\nA copy that waits on the target while the source's is gone is let run only if the source's copy ended by"
    yield "being handed over: by the word of the source's libvirt (`shut off (migrated)`), or by what the move saw and"
    yield f"has noted in its token. Else: {held.action.value} ({held.why}). A transient guest"
    yield "leaves no word, and is let run.\n"
    yield "\nA guest that was paused before the move stays paused. Two copies that both stand are asked again for"
    yield "a minute first, since libvirt's source daemon lets its copy run again by itself when a reply was lost; and"
    yield "when no token tells which of the two was the source, that is a person's matter.\n"
    yield "## Each resource, once it is known where the guest is to live (home; the other node is away)\n"
    yield "The first row that holds counts.\n"
    yield from _table(("what is seen", "what follows", "why"), ((r.when, r.closing.value, r.why) for r in DISKS))
    yield "\n## The token: who may act at all\n"
    yield from (f"- {may.value}" for may in May)
    yield "\n## The guard on each node, when the token has run out\n"
    yield " ".join((guard.__doc__ or "").split("\n\n")[-1].split()) + "\n"
    yield from (f"- {act.value}" for act in guard.Act)
    yield ""
    yield _PERSON


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    _PAGE.write_text(page(), encoding="utf-8")
