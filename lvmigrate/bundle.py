"""Everything that a report of a defect needs about one errand, in one archive, and no secret in it.

What the journal knows of it, the configuration, all versions, and what its nodes still say: a node that does not answer
is told of instead.  Nothing is changed on any node.
"""

from __future__ import annotations

import io
import json
import platform
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from lvmigrate.errors import LvmigrateError
from lvmigrate.journal import Story
from lvmigrate.jsonable import error_object, jsonable
from lvmigrate.redaction import redacted, redacted_value, secrets_of
from lvmigrate.tasklet import Context
from lvmigrate.together import outcomes_of

_README: Final = """\
What lvmigrate knows of one errand, for a report of a defect.

  report.txt           the errand, as `lvmigrate report` tells it
  journal.json         the same with every row: plan, steps, acts, events of libvirt and DRBD, result
  configuration.json   the configuration, without comments
  versions.json        lvmigrate, Python, and each node's libvirt, QEMU, DRBD and drbd-utils
  NODE/*.txt           what the node says now: DRBD, and the ends of the logs of libvirt, QEMU, the kernel and guards

Passwords, keys, tokens and the arguments of fence commands were taken out (***), by what they are called. Look through
it all the same before you give it away: host names, addresses and names of guests are in it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Files by their names below one folder."""

    folder: str
    files: Mapping[str, str]
    #: The nodes of which nothing could be had.
    silent: tuple[str, ...]

    def archive(self) -> bytes:
        """The files as a compressed tar archive, readable by their owner only once they are unpacked."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            for name, text in self.files.items():
                content = text.encode()
                entry = tarfile.TarInfo(f"{self.folder}/{name}")
                entry.size, entry.mode = len(content), 0o600
                archive.addfile(entry, io.BytesIO(content))
        return out.getvalue()


def collect(
    context: Context, story: Story, *, report: Iterable[str], configuration: Mapping[str, Any], version: str
) -> Bundle:
    """Ask the errand's nodes, and put all of it together.

    ``report``: the lines that tell the errand to people; ``configuration``: the file as TOML has it; ``version``:
    lvmigrate's own.
    """
    known = secrets_of(configuration, names=_names(context))
    ends = (story.entry.source, story.entry.target)  # of a drain each may be several
    nodes = [node for node in dict.fromkeys(name for end in ends for name in end.split(", ")) if node in context.nodes]
    said = outcomes_of([partial(_of_node, context, node, story) for node in nodes])
    versions: dict[str, Any] = {"lvmigrate": version, "python": platform.python_version()}
    files = {
        "README.txt": _README,
        "report.txt": redacted("\n".join(report) + "\n", known),
        "journal.json": _json(jsonable(story), known),
        "configuration.json": _json(configuration, known),
    }
    for node, outcome in zip(nodes, said, strict=True):
        if isinstance(outcome, LvmigrateError):
            files[f"{node}/no-answer.txt"] = redacted(json.dumps(error_object(outcome), indent=1), known)
        else:
            versions[node], evidence = outcome
            files.update({f"{node}/{name}.txt": redacted(text, known) for name, text in evidence.items()})
    files["versions.json"] = _json(versions, known)
    return Bundle(
        folder=f"lvmigrate-bundle-{story.entry.id}",
        files=files,
        silent=tuple(n for n, outcome in zip(nodes, said, strict=True) if isinstance(outcome, LvmigrateError)),
    )


def _of_node(context: Context, node: str, story: Story) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Its versions, and its words; libvirt's versions are not worth losing the rest."""
    vitals = context.storage.vitals(node, ())
    evidence = context.storage.evidence(node, story.entry.instance)
    (host,) = outcomes_of([partial(context.hypervisor.host, node)])
    return {"drbd": vitals.module, "drbd-utils": vitals.utils, "libvirt": jsonable(host)}, evidence


def _names(context: Context) -> frozenset[str]:
    """What a command may name that is no secret."""
    nodes = context.nodes.values()
    return frozenset(
        word for node in nodes for word in (node.name, node.ssh, node.migration_address) if word is not None
    )


def _json(value: Any, known: frozenset[str]) -> str:  # noqa: ANN401 -- JSON is what it is
    return json.dumps(redacted_value(value, known), indent=1, default=str) + "\n"
