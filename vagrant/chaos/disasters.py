"""Two disasters, each met by bare commands and by lvmigrate. Each half ends with what was observed."""

from __future__ import annotations

import contextlib
from typing import Final

from vagrant.chaos.screen import Half
from vagrant.chaos.stage import BANDWIDTH_MIB_S, SOURCE, TARGET, Running, Stage, UnmetError, until
from vagrant.labkit import links
from vagrant.labkit.lab import NODES

REPLY: Final = "libvirt's last reply is lost"
LINK: Final = "DRBD's link is cut, and nothing else"
#: So many records are proof enough that a copy writes.
_SOME: Final = 20


def bare_reply(stage: Stage, half: Half) -> None:
    """Two copies are left, which write over each other's records."""
    virsh = _bare_move(stage)
    _lose_replies(stage)
    stage.let_go()
    until(lambda: stage.state_on(TARGET) == "running", f"the guest runs on {TARGET}")
    mark = stage.witness.listener.mark()
    stage.acknowledged_since(mark, TARGET, _SOME)
    newest = stage.witness.alive().n
    first = stage.records_on(TARGET, newest)
    stage.screen.says(f"it runs on {TARGET}, and {SOURCE} does not know: records up to {newest} are acknowledged")
    code = virsh.end()
    until(lambda: stage.state_on(SOURCE) == "running", f"{SOURCE} has resumed its copy")
    mark = stage.witness.listener.mark()
    for node in NODES:
        stage.acknowledged_since(mark, node, _SOME)
    lost = links.dropped_packets(stage.lab, SOURCE)
    links.mended(stage.lab)
    running = stage.running_on()
    roles = stage.replication()
    both_primary = all(text.splitlines()[0].endswith("role:Primary") for text in roles.values() if text)
    later = stage.records_on(TARGET, newest)
    changed = sum(later.get(n) != sector for n, sector in first.items())
    twice = len(stage.witness.listener.twice)
    stage.screen.proof(
        f"{twice} numbers acknowledged by both copies; {changed} records that {TARGET}'s copy had been promised"
        f" are overwritten by {SOURCE}'s"
    )
    half.copies, half.records_lost = len(running), changed
    half.as_promised = lost > 0 and code != 0 and len(running) == len(NODES) and both_primary and changed > 0 < twice
    primary = ", both disks Primary" if both_primary else ""
    half.verdict = f"{_copies(running)}{primary}; {changed} acknowledged records overwritten"


def kept_reply(stage: Stage, half: Half) -> None:
    """One copy is left, where it was."""
    move = _our_move(stage)
    _lose_replies(stage)
    stage.let_go()
    code = move.end()
    lost = links.dropped_packets(stage.lab, SOURCE)
    links.mended(stage.lab)
    if not lost:
        stage.screen.says("no reply was lost: the fault was not met")
    _prove_whole(stage, half, met=lost > 0, code=code)


def bare_link(stage: Stage, half: Half) -> None:
    """The target runs on a disk that lacks what the source acknowledged, and the disks part."""
    virsh = _bare_move(stage)
    _cut_drbd(stage)
    stage.acknowledged_since(stage.witness.listener.mark(), SOURCE, _SOME)
    promised = stage.witness.alive().n
    stage.screen.says(f"the guest goes on at {SOURCE}: records up to {promised} are acknowledged")
    stage.let_go()
    code = virsh.end()
    stage.acknowledged_since(stage.witness.listener.mark(), TARGET, _SOME)
    running = stage.running_on()
    stage.replication()
    verdict = stage.witness.verdict(TARGET)
    gone = [place.n for place in verdict.missing]
    stage.screen.proof(
        f"on {TARGET}, where it runs now: records {verdict.first} to {verdict.last}, of which"
        f" {verdict.missing_count} are missing{f', from {gone[0]} on' if gone else ''}"
    )
    links.mended(stage.lab)
    stage.screen.fault("the link is whole again")
    until(stage.parted, "DRBD has found what became of the disks", timeout_s=60)
    for node in NODES:
        stage.types(node, f"dmesg | grep 'drbd {stage.guest.resource}.*[Ss]plit-[Bb]rain' | tail -n 1")
        stage.types(node, f"drbdadm cstate {stage.guest.resource}")
    half.copies, half.records_lost = len(running), verdict.missing_count
    half.as_promised = running == [TARGET] and verdict.missing_count > 0
    half.verdict = (
        f"`virsh migrate` ended with {code}; {verdict.missing_count} acknowledged records are missing on {TARGET};"
        " split-brain, and DRBD stays apart"
    )


def kept_link(stage: Stage, half: Half) -> None:
    """The move is given up, the guest goes on where its disk is whole, and the disks are in step once they can be."""
    move = _our_move(stage)
    _cut_drbd(stage)
    stage.acknowledged_since(stage.witness.listener.mark(), SOURCE, _SOME)
    # From here on, as in the other half: the copy could end at once, if nobody saw the cut.
    if not move.over and stage.copying():
        stage.let_go()
    code = move.end()
    stage.running_on()
    links.mended(stage.lab)
    stage.screen.fault("the link is whole again")
    _prove_whole(stage, half, met=True, code=code)


# ---- the parts


def _bare_move(stage: Stage) -> Running:
    for node in NODES:
        stage.types(node, stage.by_hand.two_primaries(node, "yes"))
    stage.types(TARGET, stage.by_hand.primary)
    return stage.starts(SOURCE, stage.by_hand.migrate(SOURCE, bandwidth_mib_s=BANDWIDTH_MIB_S))


def _our_move(stage: Stage) -> Running:
    bandwidth = str(BANDWIDTH_MIB_S)
    return stage.lvmigrate("migrate", stage.guest.name, "--to", TARGET, "--bandwidth", bandwidth, "--policy", "patient")


def _lose_replies(stage: Stage) -> None:
    rules = links.long_replies(stage.lab, SOURCE)
    stage.lab.run(SOURCE, stage.once_copying(links.adding(rules)), timeout_s=300)
    stage.screen.fault(f"memory is under way; from now on {SOURCE} loses what {TARGET}'s libvirt answers ({rules[0]})")


def _cut_drbd(stage: Stage) -> None:
    stage.lab.run(SOURCE, stage.once_copying("true"), timeout_s=300)
    for node in NODES:
        stage.lab.run(node, links.adding(links.of_drbd(stage.lab, stage.guest, node)))
    stage.screen.fault(f"memory is under way; {stage.guest.resource}'s replication is cut, and no other link")
    until(stage.cut_off, "DRBD has noticed the cut on both nodes", timeout_s=60)
    stage.screen.says("DRBD has noticed it on both nodes")


def _prove_whole(stage: Stage, half: Half, *, met: bool, code: int) -> None:
    """One running copy, every record there on both disks, every page right, and the world as it was before."""
    with contextlib.suppress(UnmetError):
        until(lambda: stage.parted() or not stage.violations(), "all is as it was before", timeout_s=120)
    decided = bool(stage.violations()) and _as_told(stage)
    running = stage.running_on()
    stage.replication()
    heard = stage.witness.memory_verified()
    verdicts = {node: stage.witness.verdict(node) for node in NODES}
    for node, verdict in verdicts.items():
        stage.screen.proof(f"on {node}: {verdict.sentence}")
    lost = max(verdict.missing_count + verdict.lost_acknowledged for verdict in verdicts.values())
    faults = [*stage.witness.faults(), *stage.violations()]
    for fault in faults:
        stage.screen.says(f"FAULT: {fault}")
    half.copies, half.records_lost = len(running), lost
    half.as_promised = met and code != 0 and len(running) == 1 and not lost and not heard.bad and not faults
    half.verdict = (
        f"{_copies(running)}; {lost} of {heard.n + 1} records lost, {heard.bad} bad pages of memory;"
        f" {'in step and single-primary, nothing left behind' if not faults else f'{len(faults)} faults'}"
        f"{', once a person had said which copy DRBD gives up' if decided else ''}"
    )


def _as_told(stage: Stage) -> bool:
    """Do what lvmigrate says to an operator whose move has left something. Whether there was something to decide."""
    cleanup = stage.lvmigrate("cleanup", stage.guest.name)
    cleanup.end()
    # DRBD 8.4 begins a new generation of the data on each Primary that loses its peer, written to or not, and does not
    # connect two such copies. Which one to give up lvmigrate leaves to a person, and says what each has of its own.
    give_up = f"drbdadm connect --discard-my-data {stage.guest.resource}"
    if f"on {TARGET} `{give_up}`" not in cleanup.said:
        return False
    stage.screen.says(f"a person decides for {SOURCE}'s copy, where the guest runs")
    stage.types(TARGET, give_up)
    stage.types(SOURCE, f"drbdadm connect {stage.guest.resource}")
    until(stage.in_step, f"{stage.guest.resource} is in step", timeout_s=90)
    stage.lvmigrate("cleanup", stage.guest.name).end()
    return True


def _copies(running: list[str]) -> str:
    count = {0: "no copy runs", 1: "one copy runs", 2: "two copies run"}[len(running)]
    return f"{count}, on {' and '.join(running)}" if running else count
