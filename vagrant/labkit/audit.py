"""The audits: what must hold after every move, by the words of virsh and drbdsetup."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vagrant.labkit.guests import Guest
from vagrant.labkit.lab import Lab, other

_LOOK = """
echo "state $(virsh -q domstate {name} 2>/dev/null)"
drbdsetup status {resource} | sed 's/^/status /'
drbdsetup show {resource} | sed 's/^/show /'
ls /run/lvmigrate 2>/dev/null | sed 's/^/token /'
pgrep -a drbdsetup | sed 's/^/process /'
true
"""


def settings(lab: Lab, guest: Guest) -> dict[str, str]:
    """What is set on the guest's resource on each node, to be compared with later."""
    return {node: _part(text, "show") for node, text in lab.both(_LOOK.format(**_words(guest))).items()}


def violations(lab: Lab, guest: Guest, node: str, before: dict[str, str]) -> Iterator[str]:
    """Everything that is not as it must be when ``guest`` runs on ``node`` and nothing moves."""
    seen = lab.both(_LOOK.format(**_words(guest)))
    for here, text in seen.items():
        state = _part(text, "state").strip()
        wanted = "running" if here == node else ""
        if state != wanted:
            yield f"{guest.name} on {here} is {state or 'not known'!r}, wanted {wanted or 'not known'!r}"
        yield from _storage(guest, here, node, text)
        if _part(text, "show") != before[here]:
            yield f"the options of {guest.resource} on {here} are not what they were: {_part(text, 'show')}"
        for kind in ("token", "process"):
            for line in _part(text, kind).splitlines():
                yield f"left behind on {here}: {kind} {line}"


def _storage(guest: Guest, here: str, node: str, text: str) -> Iterator[str]:
    status = _part(text, "status")
    roles = re.findall(r"role:(\w+)", status)
    wanted = ["Primary", "Secondary"] if here == node else ["Secondary", "Primary"]
    if roles != wanted:
        yield f"{guest.resource} seen from {here} has the roles {roles}, wanted {wanted}"
    disks = re.findall(r"disk:(\w+)", status)
    if set(disks) != {"UpToDate"} or len(disks) != 2 * len(guest.disks):
        yield f"{guest.resource} seen from {here} has the disks {disks}"
    if re.search(r"allow-two-primaries\s+yes", _part(text, "show")):
        yield f"two primaries are allowed for {guest.resource} on {here} (towards {other(here)})"


def _words(guest: Guest) -> dict[str, str]:
    return {"name": guest.name, "resource": str(guest.resource)}


def _part(text: str, kind: str) -> str:
    return "\n".join(line[len(kind) + 1 :] for line in text.splitlines() if line.startswith(f"{kind} "))
