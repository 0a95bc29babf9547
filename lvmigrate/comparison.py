"""DRBD's online verify after a move: both copies of every disk are compared, block by block, while the guest runs.

It is no part of the move: that is done, its tokens are dropped and its hooks have run, so that whatever becomes of the
comparison is a word in the report.  It needs no token: it changes neither data nor roles, a node refuses to begin it
while another move of the guest has left its token there, and one that begins later waits for its end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from lvmigrate import acts
from lvmigrate.chronicle import Chronicle
from lvmigrate.errors import Code, Finding, LvmigrateError, NodeUnreachable
from lvmigrate.journal import Record
from lvmigrate.own_names import on_each, own_name
from lvmigrate.plan import Plan
from lvmigrate.progress import VerifyProgress
from lvmigrate.protocols import Watch
from lvmigrate.replication import VERIFYING, PeerVolume, Resource, VerifyEnd
from lvmigrate.report import Report, Verified
from lvmigrate.survey import Survey
from lvmigrate.tasklet import Context

#: As in `lvmigrate.move.STEPS`, after them.
STEP: Final = ("compare", "have DRBD compare both copies of every disk, block by block (online verify)")

#: How often the kernel is asked, in seconds: 8.4 sends no events of progress.
_ASK_S: Final = 2.0
#: How long the node may give no answer before nobody waits for it any more, in seconds.
_SILENT_S: Final = 120.0
#: How long after its end the kernel's log may take to tell of it, in seconds.
_LOG_S: Final = 10.0
#: How often it is looked at in any case: an answer may be lost, or its deadline pass.
_LOOKS: Final = 3


def objections(seen: Survey) -> Iterator[Finding]:
    """Why the disks could not be compared afterwards."""
    names = sorted({place.resource for place in seen.source.places.values()})
    if not names:
        yield _unsupported(f"No disk of {seen.domain.name} is replicated by DRBD: there are no copies to compare.")
    for name in names:
        for side in (seen.target, seen.source):
            if name in side.options and side.options[name].verify_alg is None:
                yield _unsupported(
                    f"{name} has no verify-alg on {side.node}: DRBD cannot compare its copies.",
                    f"`verify-alg crc32c;` in the net section of {name} on both nodes, and"
                    f" {on_each('drbdadm adjust {}', name, seen.nodes)}; or leave"
                    " --verify-disks out.",
                )


def beside_a_dead_node(plan: Plan) -> Finding:
    """Why there is nothing to compare with."""
    return _unsupported(f"{plan.source} does not answer: there is no second copy to compare with.")


def planned(plan: Plan) -> Plan:
    """The plan with the comparison after its steps."""
    return replace(plan, steps=(*plan.steps, STEP))


def compared(context: Context, plan: Plan, report: Report, record: Record, *, since: float) -> Report:
    """The report of a move that is done, and what an online verify of all of the guest's volumes came to.

    Waits for its end, however long it takes, until ``context.cancel`` is set; DRBD goes on with it then.  ``since``:
    when the move began, by ``context.clock``.  Raises no `LvmigrateError`: what went wrong is in the report.
    """
    context = acts.recorded(context, record)
    chronicle = Chronicle(plan, clock=context.clock, on_progress=context.on_progress, record=record, since=since)
    comparison = _Comparison(context=context, plan=plan, chronicle=chronicle)
    with chronicle.step(*STEP):
        comparison.run()
    return replace(
        report,
        verified=tuple(comparison.verified),
        warnings=(*report.warnings, *(finding for one in comparison.verified for finding in _findings(plan, one))),
        timeline=(*report.timeline, *chronicle.moments),
    )


@dataclass(slots=True, kw_only=True)
class _Comparison:
    context: Context
    plan: Plan
    chronicle: Chronicle
    verified: list[Verified] = field(default_factory=list)
    #: By resource and volume, of what has begun: when, and the last end that the log told of before.
    _begun: dict[tuple[str, int], tuple[float, VerifyEnd | None]] = field(default_factory=dict)
    #: Which of them the events have told of.
    _told: set[tuple[str, int]] = field(default_factory=set)

    def run(self) -> None:
        plan = self.plan
        names = [resource.name for resource in plan.resources]
        try:
            with self.context.storage.watch(
                (plan.target, plan.source), names, on_change=lambda said: self.chronicle.note(said, said_by="drbd")
            ) as watch:
                for resource in plan.resources:
                    for volume in resource.volumes:
                        self._begin(resource.name, volume)
                self._follow(watch)
        except LvmigrateError as error:
            self._give_up(str(error))

    def _begin(self, name: str, volume: int) -> None:
        storage, target, source = self.context.storage, self.plan.target, self.plan.source
        try:
            before = storage.verify_ends(target, name, source).get(volume)
            storage.begin_verify(target, name, volume, source, self.plan.domain.uuid)
        except LvmigrateError as error:
            said = f" ({error.detail.strip()})" if error.detail.strip() else ""
            self.verified.append(Verified(resource=name, volume=volume, because=f"{str(error).rstrip('.')}{said}"))
            return
        self._begun[name, volume] = (self.context.clock.now(), before)

    def _follow(self, watch: Watch) -> None:
        heard = self.context.clock.now()
        while self._begun:
            watch.wait(lambda: self._an_end(watch), _ASK_S, cancel=self.context.cancel)
            if self.context.cancel.is_set():
                self._give_up("nobody waited for its end, as asked; DRBD goes on with it")
                return
            try:
                seen = self.context.storage.observe(self.plan.target, sorted({name for name, _ in self._begun}))
            except NodeUnreachable as error:
                if self.context.clock.now() - heard > _SILENT_S:
                    self._give_up(str(error))
                    return
                continue
            heard = self.context.clock.now()
            for key in sorted(self._begun):
                link = _link(seen.get(key[0]), self.plan.source, key[1])
                if link is None or link.replication not in VERIFYING:
                    self._end(*key, seen.get(key[0]), link)
            self._tell(seen.values())

    def _an_end(self, watch: Watch) -> bool:
        """Whether the events have told of an end; of the beginning they may tell later than the kernel itself."""
        for key in self._begun:
            link = _link(watch.resource(self.plan.target, key[0]), self.plan.source, key[1])
            if link is not None and link.replication in VERIFYING:
                self._told.add(key)
            elif key in self._told and link is not None:
                return True
        return False

    def _end(self, name: str, volume: int, resource: Resource | None, link: PeerVolume | None) -> None:
        begin, before = self._begun.pop((name, volume))
        seconds = self.context.clock.now() - begin
        end = self._by_the_log(name, volume, before)
        left = None if link is None else link.out_of_sync_kib
        if end is not None and left is not None:
            result = Verified(
                resource=name, volume=volume, seconds=seconds, out_of_sync_kib=left, skipped_kib=end.skipped_kib
            )
        else:
            doubts = [] if resource is None else [str(doubt) for doubt in resource.doubts(self.plan.source)]
            because = "; ".join(
                [f"the kernel's log of {self.plan.target} does not say that it came to its end", *doubts]
            )
            result = Verified(resource=name, volume=volume, seconds=seconds, because=because)
        self.verified.append(result)
        self.chronicle.note(str(result))

    def _by_the_log(self, name: str, volume: int, before: VerifyEnd | None) -> VerifyEnd | None:
        """Only the log tells an end from a break: after a lost connection that came back all looks the same."""
        deadline = self.context.clock.now() + _LOG_S
        for asked in itertools.count(1):
            try:
                end = self.context.storage.verify_ends(self.plan.target, name, self.plan.source).get(volume)
            except LvmigrateError:
                end = None
            if end is not None and end != before:
                return end
            if asked >= _LOOKS and self.context.clock.now() >= deadline:
                break
            self.context.clock.sleep(0.5)
        return None

    def _give_up(self, because: str) -> None:
        """Of every volume that has no result yet."""
        now = self.context.clock.now()
        known = {(one.resource, one.volume) for one in self.verified}
        for resource in self.plan.resources:
            for volume in resource.volumes:
                key = (resource.name, volume)
                if key not in known:
                    begin, _ = self._begun.pop(key, (now, None))
                    why = because.rstrip(".")
                    self.verified.append(Verified(resource=key[0], volume=volume, seconds=now - begin, because=why))

    def _tell(self, seen: Iterable[Resource]) -> None:
        links = {
            f"{resource.name}/{number}": link
            for resource in seen
            for name, number in self._begun
            if name == resource.name and (link := _link(resource, self.plan.source, number)) is not None
        }
        if links:
            done = [link.done_percent for link in links.values() if link.done_percent is not None]
            self.chronicle.tell(
                verify=VerifyProgress(
                    percent=min(done, default=None),
                    out_of_sync_kib=sum(link.out_of_sync_kib or 0 for link in links.values()),
                    volumes=tuple(links),
                )
            )


def _link(resource: Resource | None, peer: str, volume: int) -> PeerVolume | None:
    connection = None if resource is None else resource.towards(peer)
    return None if connection is None else next((one for one in connection.volumes if one.number == volume), None)


def _findings(plan: Plan, one: Verified) -> Iterator[Finding]:
    volume, source, target = f"{one.resource}/{one.volume}", plan.source, plan.target
    here, there = own_name(one.resource, target), own_name(one.resource, source)
    if one.because:
        yield Finding(
            code=Code.VERIFY_UNFINISHED,
            sentence=f"The copies of {volume} were not compared to the end: {one.because}.",
            hint=f"{plan.instance} has moved all the same. `drbdadm status {here}` on {target} tells whether DRBD"
            f" is still at it; `drbdadm verify {here}` there begins it again.",
        )
    elif one.out_of_sync_kib:
        nine = not any(r.modules[1].startswith("8.") for r in plan.resources if r.name == one.resource)
        mend = (
            f"`drbdsetup invalidate-remote {here} NODE_ID {one.volume} --reset-bitmap=no` on {target}, with the"
            f" node id of {source} that `drbdsetup show {here}` tells"
            if nine
            else f"`drbdadm disconnect {there}`, then `drbdadm connect {there}` on {source}"
        )
        yield Finding(
            code=Code.DISKS_DIFFER,
            sentence=f"{one.out_of_sync_kib} KiB of {volume} differ between {target} and {source}, by DRBD's count.",
            hint=f"{plan.instance} runs on the copy of {target}. What a guest changes while it is on its way (swap,"
            f" direct I/O) differs without harm, and not in the same places the next time: `drbdadm verify"
            f" {here}`. Else see to the disk of {source}, and have it brought in step: {mend}.",
        )


def _unsupported(sentence: str, hint: str = "Leave --verify-disks out.") -> Finding:
    return Finding(code=Code.OPTION_UNSUPPORTED, sentence=sentence, hint=hint)
