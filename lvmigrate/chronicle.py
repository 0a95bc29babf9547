"""What happened when, during one move: the steps, the moments, the windows. By one monotonic clock.

Everything goes into the journal's record of the move as well, as soon as it happens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from lvmigrate.clock import Clock
from lvmigrate.journal import NO_RECORD, Kind, Record
from lvmigrate.jsonable import jsonable
from lvmigrate.plan import Plan
from lvmigrate.progress import MemoryProgress, StepProgress, SyncProgress, VerifyProgress
from lvmigrate.replication import Resource
from lvmigrate.report import Moment, StepRecord

_log = structlog.get_logger()
#: A flapping link must not fill the memory: the first moments tell the story.
_MOST_MOMENTS: Final = 10_000


class Chronicle:
    """Takes notes, and passes progress on. `note`, `mark` and `replication` may be called from any thread."""

    def __init__(
        self,
        plan: Plan,
        *,
        clock: Clock,
        on_progress: Callable[[StepProgress], None],
        record: Record = NO_RECORD,
        since: float | None = None,
    ) -> None:
        """``since``: when the move began, by ``clock``; ``None``: now."""
        self._plan = plan
        self._record = record
        self._clock = clock
        self._on_progress = on_progress
        self._begin = clock.now() if since is None else since
        self._lock = threading.Lock()
        self._moments: list[Moment] = []
        self._steps: list[StepRecord] = []
        self._now: tuple[str, str] = ("", "")
        self._marks: dict[str, float] = {}
        self._disks: dict[str, Resource] = {}

    @property
    def elapsed_s(self) -> float:
        """Seconds since the move began."""
        return self._clock.now() - self._begin

    @property
    def steps(self) -> tuple[StepRecord, ...]:
        """The steps that have ended."""
        return tuple(self._steps)

    @property
    def moments(self) -> tuple[Moment, ...]:
        """Everything noted, in order."""
        with self._lock:
            return tuple(sorted(self._moments, key=lambda moment: moment.at_s))

    def note(self, what: str, *, said_by: str = "lvmigrate") -> None:
        """Something was seen now."""
        with self._lock:
            if len(self._moments) >= _MOST_MOMENTS:
                return
            self._moments.append(Moment(at_s=self.elapsed_s, what=what))
            self._record.add(Kind.MOMENT, what, {"said_by": said_by})

    def mark(self, name: str) -> None:
        """Remember when ``name`` happened first."""
        with self._lock:
            if name not in self._marks:
                self._marks[name] = self.elapsed_s
                self._record.add(Kind.MARK, name)

    def replication(self, seen: Iterable[Resource | None]) -> None:
        """Have the journal tell how the disks are now, as far as that changed since it was last told."""
        with self._lock:
            for resource in seen:
                if resource is None:
                    continue
                key = f"{resource.name} on {resource.node}"
                if self._disks.get(key) != resource:
                    self._disks[key] = resource
                    self._record.add(Kind.DISK, key, jsonable(resource))

    def happened(self, name: str) -> bool:
        """Whether ``name`` was marked."""
        return name in self._marks

    def between(self, begin: str, end: str) -> float:
        """Seconds between two marks, 0 when one of them never happened."""
        if begin not in self._marks or end not in self._marks:
            return 0.0
        return max(0.0, self._marks[end] - self._marks[begin])

    @contextmanager
    def step(self, name: str, sentence: str) -> Iterator[None]:
        """The time inside the context is this step's, whether it succeeds or not."""
        begin = self.elapsed_s
        self._now = (name, sentence)
        self._record.add(Kind.STEP, name, {"sentence": sentence}, wait=True)
        self.tell()
        _log.info("step_began", step=name)
        error = ""
        try:
            yield
        except BaseException as caught:
            error = str(caught) or repr(caught)
            raise
        finally:
            seconds = self.elapsed_s - begin
            self._steps.append(StepRecord(name=name, sentence=sentence, begin_s=begin, seconds=seconds))
            self._record.add(Kind.STEP_END, name, {"error": error})
            _log.info("step_ended", step=name, seconds=round(seconds, 3))

    def tell(
        self,
        *,
        memory: MemoryProgress | None = None,
        sync: SyncProgress | None = None,
        verify: VerifyProgress | None = None,
    ) -> None:
        """Pass on how far the present step is."""
        if memory is not None:
            self._record.add(Kind.MEMORY, "", jsonable(memory))
        if sync is not None:
            self._record.add(Kind.SYNC, "", jsonable(sync))
        names = [name for name, _ in self._plan.steps]
        name, sentence = self._now
        progress = StepProgress(
            instance=self._plan.instance,
            source=self._plan.source,
            target=self._plan.target,
            step=name,
            number=names.index(name) + 1 if name in names else 0,
            steps=len(names),
            sentence=sentence,
            elapsed_s=self.elapsed_s,
            memory=memory,
            sync=sync,
            verify=verify,
        )
        try:
            self._on_progress(progress)
        except Exception:  # noqa: BLE001 -- a listener's defect must not stop a move half-way
            _log.exception("progress_listener_failed")
