"""What happened when, during one move: the steps, the moments, the windows. By one monotonic clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from lvmigrate.clock import Clock
from lvmigrate.plan import Plan
from lvmigrate.progress import MemoryProgress, StepProgress, SyncProgress
from lvmigrate.report import Moment, StepRecord

_log = structlog.get_logger()
#: A flapping link must not fill the memory: the first moments tell the story.
_MOST_MOMENTS: Final = 10_000


class Chronicle:
    """Takes notes, and passes progress on. `note` and `mark` may be called from any thread."""

    def __init__(self, plan: Plan, *, clock: Clock, on_progress: Callable[[StepProgress], None]) -> None:
        self._plan = plan
        self._clock = clock
        self._on_progress = on_progress
        self._begin = clock.now()
        self._lock = threading.Lock()
        self._moments: list[Moment] = []
        self._steps: list[StepRecord] = []
        self._now: tuple[str, str] = ("", "")
        self._marks: dict[str, float] = {}

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

    def note(self, what: str) -> None:
        """Something was seen now."""
        with self._lock:
            if len(self._moments) < _MOST_MOMENTS:
                self._moments.append(Moment(at_s=self.elapsed_s, what=what))

    def mark(self, name: str) -> None:
        """Remember when ``name`` happened first."""
        self._marks.setdefault(name, self.elapsed_s)

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
        self.tell()
        _log.info("step_began", step=name)
        try:
            yield
        finally:
            seconds = self.elapsed_s - begin
            self._steps.append(StepRecord(name=name, sentence=sentence, begin_s=begin, seconds=seconds))
            _log.info("step_ended", step=name, seconds=round(seconds, 3))

    def tell(self, *, memory: MemoryProgress | None = None, sync: SyncProgress | None = None) -> None:
        """Pass on how far the present step is."""
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
        )
        try:
            self._on_progress(progress)
        except Exception:  # noqa: BLE001 -- a listener's defect must not stop a move half-way
            _log.exception("progress_listener_failed")
