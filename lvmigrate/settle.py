"""Find out where a guest is that may be between two nodes, and act on that alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from lvmigrate.clock import Clock
from lvmigrate.decision import NOT_HANDED_OVER, Action, Ruling, Sight, decide, handed_over, sight_of
from lvmigrate.errors import GuestLost, LeftBehind, LvmigrateError, OutcomeUnknown
from lvmigrate.protocols import Hypervisor
from lvmigrate.together import outcomes_of

_log = structlog.get_logger()

#: libvirt's source daemon resumes its copy by itself a keepalive after the last reply was lost (default: 30 s).
_SETTLE_S: Final = 60.0
_ASK_S: Final = 0.3
#: How long an answer that does not come is asked for again where a guest would be held without it.
_ANSWER_S: Final = 30.0
#: Between two looks that must agree before a copy is ended: a hand-over that goes well takes some 0.2 s.
_AGREE_S: Final = 1.0
_RESUME_TRIES: Final = 5
#: How often a copy is ended, or let run, before what does not change is held.
_MOST_ACTS: Final = 10

#: What is done only when a second look agrees: libvirt's words about a state and a job are not of one moment.
_LOOK_TWICE: Final = frozenset(
    {
        Action.DISCARD_SOURCE,
        Action.DISCARD_TARGET,
        Action.DISCARD_AND_RESUME,
        Action.RESUME_SOURCE,
        Action.NOWHERE,
        Action.SUSPEND_BOTH,
    }
)

_UNSEEN: Final = frozenset(
    {Sight.UNKNOWN, Sight.BUSY, Sight.LEAVING, Sight.HANDING_OVER, Sight.ARRIVING, Sight.POST_COPY}
)


@dataclass(slots=True, kw_only=True)
class Settlement:
    """Where one guest is, by the word of the two nodes that it may be on."""

    hypervisor: Hypervisor
    instance: str
    uuid: str
    source: str
    target: str
    #: Whether its CPUs ran when the move began; ``None``: nobody knows.
    ran: bool | None
    #: Called right before a copy is ended or let run; raises `TokenLost` if somebody else took the guest over.
    confirm: Callable[[], None]
    #: Whether the move itself saw the source's copy end because it was handed over.
    handed_over: bool = False
    clock: Clock = field(default_factory=Clock)
    #: The same by the word of the source's libvirt, when it was asked last.
    _word: bool | None = field(default=None, init=False)
    #: By node that answered then: whether it has the guest's definition.
    _defined: dict[str, bool] = field(default_factory=dict, init=False)

    @property
    def nodes(self) -> tuple[str, str]:
        """Source and target."""
        return self.source, self.target

    def look(self) -> tuple[Sight, Sight]:
        """What source and target say now, asked side by side; no answer is `Sight.UNKNOWN`."""
        outcomes = outcomes_of([partial(self.hypervisor.domain, node, self.uuid) for node in self.nodes])
        source, target = (Sight.UNKNOWN if isinstance(o, LvmigrateError) else sight_of(o) for o in outcomes)
        self._word = None if isinstance(outcomes[0], LvmigrateError) else handed_over(outcomes[0])
        self._defined = {
            node: seen is not None and seen.persistent
            for node, seen in zip(self.nodes, outcomes, strict=True)
            if not isinstance(seen, LvmigrateError)
        }
        return source, target

    def how_to_start(self) -> str:
        """The command that starts a guest that runs nowhere: at the source, unless its definition is elsewhere."""
        name, start = self.instance, f"`virsh start {self.instance}` on"
        if self._defined.get(self.source, True):
            return f"{start} {self.source}."
        if self._defined.get(self.target, True):
            return f"{start} {self.target}, which alone has its definition."
        return f"`virsh define` {name} on {self.source} from a copy, as neither node has its definition; {start} it."

    def _rule(self, seen: tuple[Sight, Sight], *, late: bool) -> Ruling:
        over = True if self.handed_over else self._word
        return decide(*seen, ran=self.ran, last_chance=late, handed_over=over)

    def look_until_known(self) -> tuple[Sight, Sight]:
        """As `look`, asked again for a while if a node gives no answer: one lost reply must not hold a guest."""
        deadline = self.clock.now() + _ANSWER_S
        while True:
            sights = self.look()
            if not _UNSEEN & set(sights) or self.clock.now() > deadline:
                return sights
            self.clock.sleep(_ASK_S)

    def words(self) -> list[str]:
        """Both nodes' word now, for people."""
        return [f"{self.instance} on {n}: {s.value}" for n, s in zip(self.nodes, self.look(), strict=True)]

    def settle(self, follow: Callable[[], None]) -> bool:
        """Whether the guest is on the target alone (true: it waits or runs there) or at the source alone (false).

        ``follow`` is called as long as libvirt has a job at the source: it may end the job or watch it to its end.

        Guaranteed after false: the guest is at the source as it was, and no copy of it on the target.  Raises
        `OutcomeUnknown` (nothing was undone, but two running copies were suspended), `GuestLost`, or `TokenLost`.
        """
        deadline = self.clock.now() + _SETTLE_S
        acts_left = _MOST_ACTS
        while True:
            seen = self.look()
            late = self.clock.now() > deadline
            ruling = self._rule(seen, late=late)
            if ruling.action is Action.FOLLOW and not late:
                # A job that was watched for long is not one that does not end.
                deadline += max(0.0, self._followed(follow) - 1.0)
            elif ruling.action in _LOOK_TWICE:
                acts_left -= 1
                if not acts_left:
                    raise self._held(Ruling(action=Action.HOLD, why="libvirt does not do what it is asked"), seen)
                if self._agrees(ruling, late=late) and not self._act(ruling, late=late):
                    break
            elif ruling.action is not Action.ASK_AGAIN:
                break
            self.clock.sleep(_ASK_S)
        _log.info("settled", source=seen[0].value, target=seen[1].value, action=ruling.action.name)
        return self._final(ruling, seen)

    def _followed(self, follow: Callable[[], None]) -> float:
        begin = self.clock.now()
        follow()
        return self.clock.now() - begin

    def _act(self, ruling: Ruling, *, late: bool) -> bool:
        """Whether something was done: then what is left is looked at and ruled anew."""
        match ruling.action:
            case Action.DISCARD_SOURCE:
                self._end(self.source, ruling, late=late)
            case Action.DISCARD_TARGET | Action.DISCARD_AND_RESUME:
                self._end(self.target, ruling, late=late)
            case Action.RESUME_SOURCE:
                self.let_run(self.source)
            case _:
                return False
        return True

    def _final(self, ruling: Ruling, seen: tuple[Sight, Sight]) -> bool:
        match ruling.action:
            case Action.SWITCH | Action.ARRIVED:
                return True
            case Action.STAYED:
                return False
            case Action.NOWHERE:
                raise GuestLost(
                    f"{self.instance} runs neither on {self.source} nor on {self.target}.",
                    hint=f"See why it ended (/var/log/libvirt/qemu/{self.instance}.log on both nodes), then"
                    f" {self.how_to_start()}",
                )
            case Action.SUSPEND_BOTH:
                raise self.twice()
            case Action.FOLLOW:
                raise self._held(Ruling(action=Action.HOLD, why="libvirt has a job that does not end"), seen)
            case _:
                raise self._held(ruling, seen)

    def end_the_older(self) -> None:
        """End the source's copy if it stands while the target's runs: the fast switch, when libvirt's reply was lost.

        libvirt's source daemon would let it run again a keepalive later.  Nothing happens in every other case.
        """
        for _look in range(2):
            ruling = self._rule(self.look(), late=False)
            if ruling.action is not Action.DISCARD_SOURCE:
                return
            self.clock.sleep(_AGREE_S)
        self._end(self.source, ruling, late=False)

    def twice(self) -> OutcomeUnknown:
        """Suspend both running copies, which can be undone; the error to raise."""
        name = self.instance
        outcomes = outcomes_of([partial(self.hypervisor.suspend, node, self.uuid) for node in self.nodes])
        failed = [n for n, outcome in zip(self.nodes, outcomes, strict=True) if isinstance(outcome, LvmigrateError)]
        return OutcomeUnknown(
            f"{name} runs on {' and '.join(failed)} and could not be suspended there."
            if failed
            else f"{name} ran on both nodes and was suspended on both.",
            known=[
                f"suspending it on {node}: {outcome if isinstance(outcome, LvmigrateError) else 'done'}"
                for node, outcome in zip(self.nodes, outcomes, strict=True)
            ],
            hint="A person must decide: compare the generations of its disks (`drbdadm get-gi RESOURCE` on both nodes),"
            f" end the copy on the older one (`virsh destroy {name}` there), then `virsh resume {name}` on the other.",
        )

    def let_run(self, node: str) -> None:
        """Let the copy on ``node`` run, tried several times; it must be proved by now that the other node has none.

        Raises `LeftBehind` when libvirt does not do it, or `TokenLost`.
        """
        for tries_left in reversed(range(_RESUME_TRIES)):
            self.confirm()
            try:
                self.hypervisor.resume(node, self.uuid)
            except LvmigrateError as error:
                _log.warning("resume_failed", node=node, error=str(error), detail=error.detail)
                if not tries_left:
                    raise LeftBehind(
                        f"{self.instance} is on {node} only, but could not be let run there.",
                        leftovers=[f"{self.instance} waits paused on {node}: {error}"],
                        hint=f"`virsh resume {self.instance}` on {node}: no other node has a copy.",
                        detail=error.detail,
                    ) from error
                self.clock.sleep(1.0)
            else:
                return

    def _agrees(self, ruling: Ruling, *, late: bool) -> bool:
        self.clock.sleep(_AGREE_S if ruling.action is Action.DISCARD_SOURCE else _ASK_S)
        return self._rule(self.look(), late=late).action is ruling.action

    def _end(self, node: str, ruling: Ruling, *, late: bool) -> None:
        """End the copy that stands on ``node``. One lost reply is no reason to hold the guest: what follows is seen."""
        self.confirm()
        # That may have taken long, and the other copy is what makes this one dispensable.
        if self._rule(self.look(), late=late).action is not ruling.action:
            return
        try:
            self.hypervisor.discard(node, self.uuid)
        except LvmigrateError as error:
            _log.warning("discard_failed", node=node, error=str(error), detail=error.detail)
            self.clock.sleep(_AGREE_S)

    def _held(self, ruling: Ruling, seen: tuple[Sight, Sight]) -> OutcomeUnknown:
        name = self.instance
        if ruling.why == NOT_HANDED_OVER:
            return self._maybe_older()
        return OutcomeUnknown(
            f"It could not be settled where {name} is to run ({ruling.why}); nothing was undone.",
            known=[f"{name} on {node}: {sight.value}" for node, sight in zip(self.nodes, seen, strict=True)],
            hint=f"`virsh domstate --reason {name}` on both nodes; `virsh domjobabort {name}` on {self.source} ends a"
            f" job that still runs; when both nodes answer: `lvmigrate cleanup {name}`. Resume a copy by hand only when"
            " the other node has none.",
        )

    def _maybe_older(self) -> OutcomeUnknown:
        name, source, target = self.instance, self.source, self.target
        return OutcomeUnknown(
            f"{name} waits on {target}, but may have run on at {source} after that copy was made; nothing was undone.",
            known=[
                f"libvirt on {source} does not say that its copy ended by being handed over",
                f"{name} on {target}: {Sight.WAITS.value}",
            ],
            hint=f"See the last end in /var/log/libvirt/qemu/{name}.log on {source}. `reason=migrated`: `virsh resume"
            f" {name}` on {target}. Any other: `virsh destroy {name}` on {target} and `virsh start {name}` on {source}:"
            f" the disk is whole, as after a power cut. Then `lvmigrate cleanup {name}`.",
        )
