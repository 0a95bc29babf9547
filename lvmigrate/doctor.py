"""What is to be mended on the nodes before it matters, and how. One look at every node; nothing is changed.

It says what `lvmigrate.audit` finds, and what moves, or guards, or a boot would meet: it decides nothing by itself that
the checks of a move know already.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from types import MappingProxyType
from typing import Final

from lvmigrate import audit, checks, environment, fitness
from lvmigrate.audit import Seen
from lvmigrate.domain import Host
from lvmigrate.errors import Code, ExitCode, Finding, LvmigrateError, NodeUnreachable
from lvmigrate.node import Node
from lvmigrate.premises import Match, Premises, Wanted
from lvmigrate.replication import Surroundings
from lvmigrate.tasklet import Context
from lvmigrate.together import outcomes_of, together
from lvmigrate.token import Held
from lvmigrate.vitals import Vitals

#: What lvmigrate runs on a node -> the package that has it (Debian's name).
PROGRAMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "find": "findutils",
        "flock": "util-linux",
        "stat": "coreutils",
        "timeout": "coreutils",
        "virsh": "libvirt-clients",
        "systemd-run": "systemd",
        "systemctl": "systemd",
        "drbdsetup": "drbd-utils",
        "drbdadm": "drbd-utils",
        "openssl": "openssl",
        "bash": "bash",
    }
)
#: Without these a move goes on, and something is not checked.
_WANTED_ONLY: Final = frozenset({"openssl", "bash"})
#: Needed only where there is DRBD.
_OF_DRBD: Final = frozenset({"drbdsetup", "drbdadm"})
#: How far apart two clocks may be, in seconds, beyond what the look itself cannot tell.
CLOCKS_S: Final = 2.0
#: sshd's own default. One command holds up to three shells, a stream, and one more for each resource at work.
SESSIONS: Final = 10
#: Words of ssh, as a node's virsh repeats them -> what they mean.
_SAID: Final = (
    ("Host key verification failed", Code.HOST_KEY_UNKNOWN),
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", Code.HOST_KEY_UNKNOWN),
    ("Permission denied", Code.AUTH_FAILED),
    ("uthentication failed", Code.AUTH_FAILED),
)


class Severity(enum.Enum):
    """How bad it is."""

    #: Data, a guest, or the next move are at risk.
    DANGER = "danger"
    #: It works, and would be better otherwise.
    ADVICE = "advice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """One thing to mend."""

    severity: Severity
    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The whole cluster."""

    #: The dangerous ones first.
    complaints: tuple[Complaint, ...]
    #: Moves and cleanups under way: what they have open is theirs, and not complained of.
    under_way: tuple[Held, ...]
    #: The nodes that answered, and those that did not: what is there is not known.
    nodes: tuple[str, ...]
    silent: tuple[str, ...]
    exit_code: ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """One node's word about itself."""

    node: str
    host: Host
    vitals: Vitals
    keepalive_s: float
    #: Why no guard can be armed here.
    guard_trouble: str | None
    surroundings: Surroundings
    #: By each other node that answers: whether it is reached from here.
    towards: Mapping[str, Premises]


def diagnose(context: Context) -> Diagnosis:
    """Look at every node. A silent one is part of the answer."""
    nodes = tuple(context.nodes)
    looks = audit.looks(context)
    silent = tuple(node for node, seen in zip(nodes, looks, strict=True) if isinstance(seen, NodeUnreachable))
    answering = tuple(node for node in nodes if node not in silent)
    names = {seen.node: sorted(seen.resources) for seen in looks if isinstance(seen, Seen)}
    exams = outcomes_of(
        [partial(_examined, context, node, names.get(node, ()), _others(answering, node)) for node in answering]
    )
    audited = audit.judged(looks)
    seen = tuple(look for look in looks if isinstance(look, Seen))
    known = tuple(exam for exam in exams if isinstance(exam, Examined))
    errors = [outcome for outcome in (*looks, *exams) if isinstance(outcome, LvmigrateError)]
    complaints = (
        *(_unanswered(context.nodes, error) for error in errors),
        *(_danger(finding) for finding in audited.findings),
        *(_advice(note) for note in audited.notes),
        *complaints_of(context.nodes, seen, known),
    )
    ordered = tuple(sorted(dict.fromkeys(complaints), key=lambda complaint: list(Severity).index(complaint.severity)))
    # One that is out of use by the operator's word may be silent.
    unknown = any(context.nodes[node].offline is None for node in silent)
    return Diagnosis(
        complaints=ordered,
        under_way=audited.under_way,
        nodes=answering,
        silent=silent,
        exit_code=_exit_code(ordered, silent=unknown, left=bool(audited.findings)),
    )


def complaints_of(nodes: Mapping[str, Node], seen: Sequence[Seen], exams: Sequence[Examined]) -> Iterator[Complaint]:
    """What speaks for itself on one node, then what two nodes disagree about. Pure."""
    by_node = {one.node: one for one in seen}
    for exam in exams:
        yield from _programs(exam, by_node.get(exam.node))
        yield from _guards(exam, by_node.get(exam.node))
        yield from _keepalive(exam)
        yield from _sessions(exam)
        for one in (by_node.get(exam.node),):
            if one is not None:
                yield from _guests(exam, one)
        yield from _towards(nodes, exam)
        yield from map(_danger, environment.too_old(exam.node, exam.vitals.module))
    yield from map(_advice, environment.hands((exam.node, exam.surroundings) for exam in exams))
    yield from _clocks(exams)
    yield from _versions(exams)


def _exit_code(complaints: Sequence[Complaint], *, silent: bool, left: bool) -> ExitCode:
    if silent:
        return ExitCode.UNREACHABLE
    if left:
        return ExitCode.LEFT_BEHIND
    dangers = any(complaint.severity is Severity.DANGER for complaint in complaints)
    return ExitCode.REFUSED if dangers else ExitCode.OK


def _examined(context: Context, node: str, names: Sequence[str], peers: Sequence[str]) -> Examined:
    storage = context.storage
    premises = together([partial(storage.premises, node, _wanted(peer)) for peer in peers])
    return Examined(
        node=node,
        host=context.hypervisor.host(node),
        vitals=storage.vitals(node, sorted(PROGRAMS)),
        keepalive_s=storage.keepalive_s(node),
        guard_trouble=storage.guard_trouble(node),
        surroundings=storage.surroundings(node, names),
        towards=dict(zip(peers, premises, strict=True)),
    )


def _others(nodes: Sequence[str], node: str) -> tuple[str, ...]:
    return tuple(other for other in nodes if other != node)


def _wanted(peer: str) -> Wanted:
    """Of no guest: only whether the peer is reached."""
    return Wanted(instance="", peer=peer, knock=True, autostart=False)


def _danger(finding: Finding) -> Complaint:
    return Complaint(severity=Severity.DANGER, finding=finding)


def _advice(finding: Finding) -> Complaint:
    return Complaint(severity=Severity.ADVICE, finding=finding)


def _unanswered(nodes: Mapping[str, Node], error: LvmigrateError) -> Complaint:
    """A silent node, or a look that failed; a node that is out of use by the operator's word may be silent."""
    finding = Finding(code=error.code, sentence=error.sentence, hint=error.hint)
    out_of_use = isinstance(error, NodeUnreachable) and nodes[error.node].offline is not None
    return _advice(finding) if out_of_use else _danger(finding)


def _programs(exam: Examined, seen: Seen | None) -> Iterator[Complaint]:
    has_drbd = bool(exam.vitals.module) or (seen is not None and bool(seen.resources))
    for program in sorted(exam.vitals.lacking):
        if program in _OF_DRBD and not has_drbd:
            continue
        finding = Finding(
            code=Code.PROGRAM_MISSING,
            sentence=f"{exam.node} has no {program}.",
            hint=f"Install {PROGRAMS[program]} there"
            + (": without it something is not checked before a move." if program in _WANTED_ONLY else "."),
        )
        yield _advice(finding) if program in _WANTED_ONLY else _danger(finding)


def _guards(exam: Examined, seen: Seen | None) -> Iterator[Complaint]:
    if exam.guard_trouble and seen is not None and seen.resources:
        yield _danger(
            Finding(
                code=Code.GUARD_UNAVAILABLE,
                sentence=f"No guard can be armed on {exam.node}: {exam.guard_trouble}.",
                hint="Run systemd there and install what is missing; until then moves need --no-guard.",
            )
        )


def _keepalive(exam: Examined) -> Iterator[Complaint]:
    if exam.keepalive_s < checks.KEEPALIVE_S:
        yield _advice(
            Finding(
                code=Code.KEEPALIVE_SHORT,
                sentence=f"libvirt on {exam.node} gives up a silent peer after {exam.keepalive_s:g} s; from there the"
                f" fast switch and post-copy need {checks.KEEPALIVE_S:g} s.",
                hint="Raise keepalive_interval and keepalive_count in its qemu.conf, and restart libvirtd; the strict"
                " switch needs neither.",
            )
        )


def _sessions(exam: Examined) -> Iterator[Complaint]:
    if exam.vitals.max_sessions is not None and exam.vitals.max_sessions < SESSIONS:
        yield _advice(
            Finding(
                code=Code.SESSIONS_FEW,
                sentence=f"sshd on {exam.node} lets one connection have {exam.vitals.max_sessions} sessions at once"
                f" (MaxSessions); lvmigrate uses several side by side.",
                hint=f"MaxSessions {SESSIONS} or more in its sshd_config, and reload sshd.",
            )
        )


def _guests(exam: Examined, seen: Seen) -> Iterator[Complaint]:
    """What this node's guests will meet: a boot, a move, a cache."""
    starting = sorted(d.name for d in seen.domains if d.autostart and seen.used.get(d.uuid))
    for unit in sorted(unit for unit, after in exam.vitals.after_drbd.items() if not after):
        if starting:
            yield _danger(fitness.autostart_order(exam.node, ", ".join(starting), unit))
    if starting and not exam.vitals.after_drbd:
        yield _advice(
            Finding(
                code=Code.NOT_CHECKED,
                sentence=f"It could not be told of {exam.node} whether what starts {', '.join(starting)} at boot waits"
                " for DRBD (systemd does not say).",
                hint="See to it yourself.",
            )
        )
    for domain in seen.domains:
        yield from map(_danger, fitness.cached(domain))
    emulated = sorted(domain.name for domain in seen.domains if domain.virt_type == "qemu" and domain.state.active)
    if emulated:
        yield from map(_danger, checks.loses_memory(", ".join(emulated), exam.host))


def _towards(nodes: Mapping[str, Node], exam: Examined) -> Iterator[Complaint]:
    for peer, premises in exam.towards.items():
        uri = nodes[peer].peer_uri
        if premises.peer is Match.NO:
            code = next((code for words, code in _SAID if words in premises.peer_words), Code.PEER_UNREACHABLE)
            yield _danger(
                Finding(
                    code=code,
                    sentence=f"libvirt on {exam.node} cannot connect to {peer}'s ({premises.peer_words}).",
                    hint=_PEER_HINTS.get(code, "Look at libvirtd, the firewall and the address there.")
                    + f" As root on {exam.node}, without a question: `virsh -c '{uri}' list`.",
                )
            )
        if premises.memory is Match.NO:
            ports = nodes[peer].migration_ports or premises.ports
            yield _danger(
                Finding(
                    code=Code.PORTS_UNREACHABLE,
                    sentence=f"Nothing comes back to {exam.node} from {peer}'s address for memory"
                    f" ({premises.memory_words}).",
                    hint=f"Open the ports {ports[0]}-{ports[1]} on {peer} for {exam.node}, or correct"
                    " migration_address.",
                )
            )


_PEER_HINTS: Final[Mapping[Code, str]] = MappingProxyType(
    {
        Code.HOST_KEY_UNKNOWN: "Put the peer's host key into root's known_hosts there.",
        Code.AUTH_FAILED: "Let root's key in at the peer (`ssh-copy-id`).",
    }
)


def _clocks(exams: Sequence[Examined]) -> Iterator[Complaint]:
    """Each clock against the first node's."""
    for exam in exams[1:]:
        first, other = exams[0].vitals, exam.vitals
        apart = other.clock_s - first.clock_s
        if abs(apart) > CLOCKS_S + first.clock_error_s + other.clock_error_s:
            yield _advice(
                Finding(
                    code=Code.CLOCKS_APART,
                    sentence=f"The clock of {other.node} is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'}"
                    f" that of {first.node}.",
                    hint="Run chrony or systemd-timesyncd on both: logs cannot be compared, and a certificate may count"
                    " as not valid. (Tokens and guards go by each node's uptime.)",
                )
            )


def _versions(exams: Sequence[Examined]) -> Iterator[Complaint]:
    for what, found in (
        ("DRBD", {exam.node: exam.vitals.module for exam in exams if exam.vitals.module}),
        ("drbd-utils", {exam.node: exam.vitals.utils for exam in exams if exam.vitals.utils}),
    ):
        if len(set(found.values())) > 1:
            yield _advice(
                Finding(
                    code=Code.DRBD_DIFFERS,
                    sentence=f"The nodes have several versions of {what}: {_each(found)}.",
                    hint="Bring them to one version when you can.",
                )
            )
    for what, versions in (
        ("libvirt", {exam.node: exam.host.libvirt_version for exam in exams}),
        ("QEMU", {exam.node: exam.host.qemu_version for exam in exams}),
    ):
        told = {node: version for node, version in versions.items() if version > (0, 0, 0)}
        if len({version[:2] for version in told.values()}) > 1:
            words = _each({node: ".".join(map(str, version)) for node, version in told.items()})
            yield _advice(
                Finding(
                    code=Code.VERSION_OLDER,
                    sentence=f"The nodes have several versions of {what}: {words}.",
                    hint="A guest moves to a newer one; back only with --ignore-hvversions. Update the older ones.",
                )
            )


def _each(versions: Mapping[str, str]) -> str:
    """``9.3.3 on node1 and node2, 8.4.11 on node3``."""
    ordered = sorted(versions, key=lambda node: versions[node], reverse=True)
    return ", ".join(
        f"{version} on {' and '.join(nodes)}" for version, nodes in groupby(ordered, key=lambda node: versions[node])
    )
