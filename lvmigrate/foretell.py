"""Measuring what a forecast is made of: the guest's activity, and what the link has carried before."""

from __future__ import annotations

from typing import Final

from lvmigrate.errors import Code, Finding, LvmigrateError
from lvmigrate.forecast import Forecast, forecast, learnt
from lvmigrate.journal import OK
from lvmigrate.plan import Options, Plan
from lvmigrate.tasklet import Context

_MIB: Final = 1 << 20
#: How far back the journal is read.
_MOST: Final = 200


def foretell(context: Context, plan: Plan, options: Options) -> Forecast | Finding:
    """How long the copy will take, or why that cannot be told. Never raises: it is no reason not to move."""
    found = _link(context, plan, options)
    if found is None:
        return Finding(
            code=Code.NO_FORECAST,
            sentence=f"There is no forecast: what the network carries to {plan.target} is not known.",
            hint=f"Set link_mib_s of {plan.target} in the configuration; the first move without a limit shows it too.",
        )
    rate, source = found
    try:
        activity = context.hypervisor.activity(plan.source, plan.domain.uuid, options.forecast_s, cancel=context.cancel)
    except LvmigrateError as error:
        return Finding(
            code=Code.NO_FORECAST, sentence=f"There is no forecast: {error}", hint=error.hint or "Move without one."
        )
    return forecast(
        memory_bytes=activity.resident_bytes,
        dirty_rate=activity.dirty_rate,
        link_rate=rate,
        link_from=source,
        downtime_limit_s=options.downtime_limit_s,
    )


def _link(context: Context, plan: Plan, options: Options) -> tuple[int, str] | None:
    """Bytes per second, and where that is from: the least of the limit and of what the link carries."""
    limit = None if options.bandwidth_mib_s is None else options.bandwidth_mib_s * _MIB
    configured = context.nodes[plan.target].link_mib_s
    carries = (configured * _MIB, "as configured") if configured is not None else _learnt(context, plan)
    if limit is not None and (carries is None or limit <= carries[0]):
        return limit, "the bandwidth limit"
    return carries


def _learnt(context: Context, plan: Plan) -> tuple[int, str] | None:
    try:
        done = [
            entry
            for entry in context.journal.history(most=_MOST)
            if entry.outcome == OK and {entry.source, entry.target} == {plan.source, plan.target}
        ]
        results = [context.journal.story(entry.id).result or {} for entry in done[:20]]
    except LvmigrateError:
        return None  # there is none, or it cannot be read
    rate = learnt([int(result.get("peak_rate", 0)) for result in results])
    return None if rate is None else (rate, "learnt from earlier moves")
