"""Hooks: the operator's executables, run on this machine before an errand and after one that succeeded, as in Ganeti.

``DIRECTORY/instance-migrate-pre.d``, ``instance-migrate-post.d``, ``instance-failover-pre.d`` and
``instance-failover-post.d``; a cleanup is a migration with ``MIGRATE_CLEANUP=True``.  Names that run-parts takes
(letters, digits, ``_`` and ``-``), in their order; what they are told is `lvmigrate.occasion`'s.  A pre hook that
fails, hangs or cannot be started refuses: nothing was begun.  A post hook that does is a warning of the report.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import structlog

from lvmigrate import program
from lvmigrate.errors import Code, Finding, MoveAborted, Refused
from lvmigrate.journal import Kind, Record
from lvmigrate.occasion import Occasion, Phase
from lvmigrate.program import Ended, NotStarted
from lvmigrate.report import CleanupReport, Report
from lvmigrate.tasklet import Context

_log = structlog.get_logger()

R = TypeVar("R", bound=Report | CleanupReport)

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]+")
#: How much of a hook's output is kept in the journal, and how much of it is said.
_KEPT: Final = 64 * 1024
_SAID: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One file whose name counts."""

    path: Path
    executable: bool


class Unreadable(Exception):
    """The directory of the hooks cannot be listed: which of them there are is not known."""


def listed(directory: Path, name: str) -> tuple[Hook, ...]:
    """The hooks in ``directory/name``, in order; that one need not exist, ``directory`` must. Raises `Unreadable`."""
    try:
        # The directory first: that its part is missing means something only where it can be read itself.
        parts = {part.name: part for part in directory.iterdir()}
        found = sorted(parts[name].iterdir()) if name in parts else []
    except OSError as error:
        raise Unreadable(f"{error.filename} cannot be listed: {error.strerror}") from error
    return tuple(
        Hook(path=path, executable=path.is_file() and os.access(path, os.X_OK))
        for path in found
        if _NAME.fullmatch(path.name) and not path.is_dir()
    )


def objections(context: Context, occasion: Occasion) -> tuple[Finding, ...]:
    """Why no errand can be begun: which hooks there are cannot be told, of either phase. Runs none."""
    return tuple(finding for phase in Phase for finding in _objections(context, occasion, phase))


def _objections(context: Context, occasion: Occasion, phase: Phase) -> Iterator[Finding]:
    if context.hooks is not None:
        try:
            listed(context.hooks, occasion.directory(phase))
        except Unreadable as error:
            yield _failed(
                f"The hooks cannot be run: {error}.", "Mend that, or change [hooks] directory in the configuration."
            )


def notes(context: Context, occasion: Occasion) -> tuple[Finding, ...]:
    """What the operator may have meant as a hook, and which is none."""
    if context.hooks is None:
        return ()
    return tuple(
        Finding(
            code=Code.HOOK_SKIPPED,
            sentence=f"{hook.path} is not executable: it is not run.",
            hint="`chmod +x` it, or move it away.",
        )
        for phase in Phase
        for hook in listed(context.hooks, occasion.directory(phase))
        if not hook.executable
    )


def around(context: Context, record: Record, occasion: Occasion, act: Callable[[], R]) -> R:
    """Run the pre hooks, do ``act``, and run the post hooks if it succeeded.

    Raises `Refused` when a pre hook refuses, `MoveAborted` when somebody asks to stop meanwhile: ``act`` was not begun
    then.  Whatever the post hooks do, what ``act`` returned is returned, with a warning for each that failed.
    """
    before = [*_objections(context, occasion, Phase.PRE), *_run(context, record, occasion, Phase.PRE, None)]
    if before:
        raise Refused(occasion.instance, before)
    result = act()
    now_on = result.target if isinstance(result, Report) else result.node
    after = [*_objections(context, occasion, Phase.POST), *_run(context, record, occasion, Phase.POST, now_on)]
    for failed in after:
        _log.error("post_hook_failed", instance=occasion.instance, what=failed.sentence)
    return dataclasses.replace(result, warnings=(*result.warnings, *after))


def _run(context: Context, record: Record, occasion: Occasion, phase: Phase, now_on: str | None) -> Iterator[Finding]:
    """Run all hooks of one phase; of the pre hooks, up to the first that fails."""
    try:
        hooks = [] if context.hooks is None else listed(context.hooks, occasion.directory(phase))
    except Unreadable:
        return  # said already
    for hook in hooks:
        if not hook.executable:
            continue
        failed = _one(context, record, occasion, phase, hook.path, now_on)
        if failed is not None:
            yield failed
            if phase is Phase.PRE:
                return


def _one(
    context: Context, record: Record, occasion: Occasion, phase: Phase, hook: Path, now_on: str | None
) -> Finding | None:
    what = f"{phase.value} hook {hook.name}"
    record.add(Kind.MOMENT, f"{what} begins", {"said_by": "hooks", "path": str(hook)}, wait=True)
    try:
        ended = program.run(
            [str(hook)],
            env=occasion.environment(phase, errand=record.id, now_on=now_on),
            within_s=context.hook_timeout_s,
            most_bytes=_KEPT,
            # The guest has arrived when the post hooks run: there is nothing left to stop.
            cancel=context.cancel if phase is Phase.PRE else None,
        )
    except NotStarted as error:
        record.add(Kind.MOMENT, f"{what}: {error.sentence}", {"said_by": "hooks"})
        return _failed(error.sentence, error.hint)
    said = _said(ended)
    record.add(
        Kind.MOMENT,
        f"{what} {ended.how}{': ' if said else ''}{said}",
        {"said_by": "hooks", "output": ended.output, "errors": ended.errors, "cut_off": ended.cut_off},
    )
    _log.info("hook_ended", hook=str(hook), how=ended.how)
    if ended.stopped:
        raise MoveAborted("Aborted as asked, before anything began.", hint="Nothing is left to do.")
    if ended.ok:
        return None
    how = f"did not end within {context.hook_timeout_s:g} s, and was ended" if ended.overdue else ended.how
    told = f"; it said: {said}" if said else ""
    return _failed(
        f"The {phase.value} hook {hook} {how}{told}.",
        "Its whole output is in `lvmigrate report last`." if record.id else "Run it by hand to see all that it says.",
    )


def _failed(sentence: str, hint: str) -> Finding:
    return Finding(code=Code.HOOK_FAILED, sentence=sentence, hint=hint)


def _said(ended: Ended) -> str:
    """The end of what it said, on one line: there the reason stands."""
    words = " ".join(f"{ended.output} {ended.errors}".split())
    return words if len(words) <= _SAID else f"... {words[-_SAID:]}"
