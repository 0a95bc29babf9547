"""Why a guest cannot be moved from where it is, as far as only finding it tells. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from lvmigrate.decision import Sight, sight_of
from lvmigrate.domain import Domain, JobKind
from lvmigrate.errors import Code, Finding
from lvmigrate.survey import Sightings, one_guest


def where(sightings: Sightings) -> Iterator[Finding]:
    """Every reason.

    Raises `UsageError` where several guests of that name are there.  One that is off does not make it doubtful which
    one is to move.
    """
    name = sightings.instance
    one_guest(name, sightings.active or sightings.domains)
    for silent in sightings.silent:
        # It may run there too: that node's word is needed to know that there is one copy.
        yield Finding(code=silent.code, sentence=silent.sentence, hint=silent.hint)
    active = sightings.active
    moving = [d for d in active if d.job in (JobKind.INCOMING, JobKind.OUTGOING)]
    if moving:
        yield from (busy(domain) for domain in moving)
    elif len(active) > 1:
        nodes = " and ".join(d.node for d in active)
        yield Finding(
            code=Code.INSTANCE_TWICE,
            sentence=f"{name} has a live copy on {nodes} at once.",
            hint=f"`lvmigrate cleanup --dry-run {name}` says what follows from it.",
        )
    elif not sightings.domains and not sightings.silent:
        yield Finding(
            code=Code.INSTANCE_UNKNOWN,
            sentence=f"No node knows a guest called {name}.",
            hint="`lvmigrate status` lists the guests of all nodes.",
        )
    elif not active and not sightings.silent:
        nodes = " and ".join(d.node for d in sightings.domains)
        yield Finding(
            code=Code.INSTANCE_STOPPED,
            sentence=f"{name} is not running (it is defined on {nodes}).",
            hint=f"Start it first: `virsh start {name}`. A guest that is off needs no live migration.",
        )


def waits_alone(sightings: Sightings) -> Iterator[Finding]:
    """What becomes of a copy that waits paused while the node that it came from says nothing.

    That copy may be older than its disk: where libvirt's last reply is lost, the source goes on for a while.
    """
    waiting = [domain for domain in sightings.active if sight_of(domain) in (Sight.WAITS, Sight.STALLED)]
    if sightings.silent and len(waiting) == len(sightings.active) == 1:
        name, node = sightings.instance, waiting[0].node
        silent = " and ".join(error.node for error in sightings.silent)
        yield Finding(
            code=Code.INSTANCE_STATE,
            sentence=f"{name} waits paused on {node}; only {silent} could tell whether that copy is the newest.",
            hint=f"When {silent} is back: `lvmigrate cleanup {name}`. If it is off for good, what the guest had in"
            f" memory is given up: `virsh destroy {name}` on {node}, then `lvmigrate failover {name} --to {node}"
            " --is-off NODE` starts it from its disk.",
        )


def busy(domain: Domain) -> Finding:
    """What is said of a guest of which libvirt has a job."""
    return Finding(
        code=Code.JOB_ACTIVE,
        sentence=f"libvirt has a job for {domain.name} on {domain.node} ({domain.job.value}).",
        hint=f"Wait for it, or look with `virsh domjobinfo {domain.name}` on {domain.node}. `lvmigrate cleanup"
        f" {domain.name}` adopts the job of a controller that died.",
    )
