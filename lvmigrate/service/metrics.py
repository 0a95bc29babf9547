"""What Prometheus is told: seconds and bytes, totals that only grow, histograms of what takes time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from lvmigrate.drain_report import DrainReport
from lvmigrate.report import Report
from lvmigrate.service.job import State

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

#: From a look at a local file to a node that is silent; from a small guest to one that is copied for hours.
_REQUEST_S: Final = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0, 60.0)
_JOB_S: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
_DOWNTIME_S: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        build = Gauge(
            "lvmigrate_build_info", "Which lvmigrate this is; always 1.", ["version"], registry=self._registry
        )
        build.labels(version("lvmigrate")).set(1)
        self.requests: Final = Counter(
            "lvmigrate_http_requests_total",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self.request_seconds: Final = Histogram(
            "lvmigrate_http_request_duration_seconds",
            "From a request to its answer; streams of events are left out.",
            ["method", "route"],
            buckets=_REQUEST_S,
            registry=self._registry,
        )
        self.refused: Final = Counter(
            "lvmigrate_http_refused_total",
            "Requests refused before they were looked at, by code.",
            ["code"],
            registry=self._registry,
        )
        self.jobs: Final = Gauge("lvmigrate_jobs", "Jobs that have not ended.", ["state"], registry=self._registry)
        self.ended: Final = Counter(
            "lvmigrate_jobs_ended_total",
            "Jobs that have ended, by outcome: OK or a code.",
            ["what", "outcome"],
            registry=self._registry,
        )
        self.job_seconds: Final = Histogram(
            "lvmigrate_job_duration_seconds",
            "From a job's beginning to its end.",
            ["what"],
            buckets=_JOB_S,
            registry=self._registry,
        )
        self.wait_seconds: Final = Histogram(
            "lvmigrate_job_wait_seconds",
            "From its order to a job's beginning.",
            ["what"],
            buckets=_JOB_S,
            registry=self._registry,
        )
        self.downtime_seconds: Final = Histogram(
            "lvmigrate_move_downtime_seconds",
            "How long a guest stood still.",
            buckets=_DOWNTIME_S,
            registry=self._registry,
        )
        self.dual_primary_seconds: Final = Histogram(
            "lvmigrate_move_dual_primary_seconds",
            "How long both nodes were Primary.",
            buckets=_JOB_S,
            registry=self._registry,
        )
        self.memory_bytes: Final = Counter(
            "lvmigrate_memory_sent_bytes_total", "Memory sent by moves that have arrived.", registry=self._registry
        )
        self.moved: Final = Counter(
            "lvmigrate_guests_moved_total", "Guests that have arrived.", registry=self._registry
        )
        self.interrupted: Final = Counter(
            "lvmigrate_jobs_interrupted_total",
            "Jobs found under way when the service started.",
            registry=self._registry,
        )
        self.followers: Final = Gauge("lvmigrate_event_followers", "Who follows events now.", registry=self._registry)

    def jobs_are(self, count: Callable[[], Mapping[State, int]]) -> None:
        """Have the number of jobs be asked for when it is wanted."""
        for state in State:
            if state is not State.ENDED:
                self.jobs.labels(state.value).set_function(lambda state=state: count().get(state, 0))  # type: ignore[misc]

    def arrived(self, result: object) -> None:
        """What a job has done to guests."""
        match result:
            case Report():
                self.moved.inc()
                self.downtime_seconds.observe(result.downtime_s)
                self.dual_primary_seconds.observe(result.dual_primary_s)
                self.memory_bytes.inc(result.memory_bytes)
            case DrainReport():
                self.moved.inc(len(result.moved))
                for moved in result.moved:
                    self.downtime_seconds.observe(moved.downtime_s)

    def text(self) -> bytes:
        """As Prometheus reads them."""
        return generate_latest(self._registry)
