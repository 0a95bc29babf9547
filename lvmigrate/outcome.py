"""What a move that did not succeed amounts to, after everything that could be undone was undone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lvmigrate.decision import Sight
from lvmigrate.errors import GuestLost, LeftBehind, LvmigrateError, MoveFailed, Refused, TokenLost
from lvmigrate.plan import Plan
from lvmigrate.rollback import Leftover

#: The hint of an error after which everything is as it was.
NOTHING_LEFT: Final = "Nothing is left to do."


def where(plan: Plan, source: Sight, target: Sight) -> str:
    """Both nodes' word about the guest, as a clause."""
    if target is not Sight.GONE:
        return f"{plan.instance} on {plan.source}: {source.value}, on {plan.target}: {target.value}"
    words = {Sight.RUNS: "goes on at", Sight.WAITS: "waits paused at", Sight.GONE: "does not run any more at"}
    return f"{plan.instance} {words.get(source, f'({source.value}) is at')} {plan.source}"


def failed(
    plan: Plan, error: LvmigrateError, leftovers: Sequence[Leftover], sights: tuple[Sight, Sight], start: str
) -> LvmigrateError:
    """The error to raise for ``error`` when the rollback left ``leftovers`` and both nodes' word is ``sights``.

    ``start`` says how a guest that runs nowhere is started.
    """
    if isinstance(error, Refused) and not leftovers:
        return error
    what = error.sentence.rstrip(".")
    if leftovers or (isinstance(error, LeftBehind) and sights[0] is not Sight.RUNS):
        hints = [] if error.hint == NOTHING_LEFT else [error.hint]
        return LeftBehind(
            f"The move failed ({what}) and could not be undone completely; {where(plan, *sights)}.",
            leftovers=[
                *(error.leftovers if isinstance(error, LeftBehind) else ()),
                *(f"{leftover.undo.leftover}: {leftover.error}" for leftover in leftovers),
            ],
            hint=" ".join(dict.fromkeys([*hints, *(leftover.undo.hint for leftover in leftovers)])),
            detail=error.detail,
        )
    if isinstance(error, GuestLost):
        return error
    if sights == (Sight.GONE, Sight.GONE):
        return GuestLost(f"{what}; {where(plan, *sights)}.", hint=start)
    kind = type(error) if isinstance(error, MoveFailed) else MoveFailed
    return kind(f"{what}; {where(plan, *sights)}.", code=error.code, hint=error.hint, detail=error.detail)


def taken_over(error: TokenLost, plan: Plan) -> TokenLost:
    """A guest that was taken over; a command of ours that was late may have come after what the other one did."""
    look = f"Look also whether its autostart is as it should be: `virsh dominfo {plan.instance}` on {plan.source}."
    return TokenLost(error.sentence, hint=f"{error.hint} {look}", detail=error.detail, code=error.code)


def lost(error: GuestLost, leftovers: Sequence[Leftover], doubts: Sequence[str], plan: Plan) -> GuestLost:
    """A lost guest, with what its disks are worth and what could not be closed."""
    source = plan.source
    disks = (
        f"Its disks were not in step ({'; '.join(doubts)}): start it on {source} only."
        if doubts
        else (f"Its disks are in step on both nodes; start it on {source}.")
    )
    # The source may have been demoted by then.
    if by_hand := [resource.name for resource in plan.resources if not resource.options[0].auto_promote]:
        disks += f" First, there: `drbdadm primary {' '.join(by_hand)}`."
    left = [f"Left open: {leftover.undo.leftover} ({leftover.error}). {leftover.undo.hint}" for leftover in leftovers]
    return GuestLost(error.sentence, hint=" ".join([error.hint, disks, *left]), detail=error.detail)


def lost_there(error: GuestLost, doubts: Sequence[str], plan: Plan) -> GuestLost:
    """A guest that was lost on the target after it had run there, when nothing is undone any more.

    While its disks are not in step, the source would start it, by hand or as it boots, from the older one.
    """
    disks = (
        f"It ran on {plan.target} last, and its disks were not in step ({'; '.join(doubts)}): start it there only, and"
        " mend the link (`drbdsetup status` on both nodes)."
        if doubts
        else "Its disks are in step on both nodes."
    )
    return GuestLost(
        error.sentence,
        hint=f"{error.hint} {disks} Nothing was undone: `lvmigrate cleanup {plan.instance}` closes what is open, and"
        " says how it is started.",
        detail=error.detail,
    )


def unfinished(plan: Plan, errors: Sequence[LvmigrateError], sights: tuple[Sight, Sight]) -> LvmigrateError:
    """The error to raise when the guest was moved and ``errors`` kept the move from being finished."""
    return LeftBehind(
        f"{plan.instance} was moved to {plan.target}, but the move could not be finished"
        f" (on {plan.source}: {sights[0].value}, on {plan.target}: {sights[1].value}).",
        leftovers=[
            *map(str, errors),
            *([f"the definition of {plan.instance} may still be on {plan.source}"] if plan.domain.persistent else []),
        ],
        hint=" ".join(dict.fromkeys(error.hint for error in errors)),
        detail="; ".join(error.detail for error in errors if error.detail),
    )
