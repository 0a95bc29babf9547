"""``make bench-service``: 200 clients who watch 20 moves, and what that asks of the service.

The service is a process of its own, as ``lvmigrate serve`` is, with its journal; the nodes are a simulated world, which
passes its time as the clock does, in another one (tests/service/stage.py).  No move ends meanwhile, and each tells of
its progress as often as by default.  Every client follows everything, and Prometheus comes by now and then.
"""

from __future__ import annotations

import argparse
import array
import bisect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import httpx2 as httpx
import structlog

from lvmigrate.plan import Options
from lvmigrate.service.client import Client, Way
from lvmigrate.service.job import Job, State
from lvmigrate.service.messages import JobList
from lvmigrate.service.orders import Migrate, MoveOptions
from tests.bench.figure import percentile, show
from tests.bench.usage import Usage
from tests.service.support import house, wait_for

_OPTIONS: Final = MoveOptions(poll_s=Options().poll_s, policy="patient")
_COPY_S: Final = 3600.0
#: How long everything goes on before it counts.
_WARM_S: Final = 5.0
#: Between two scrapes, in seconds: more often than Prometheus is told to by anybody.
_SCRAPE_S: Final = 5
#: What is published in a minute and kept in the log of events is of about this size; the rest is the allocator's.
_GROWTH_MIB: Final = 6.0


def main() -> int:
    """Both figures; 1 if a goal does not hold."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    parser = argparse.ArgumentParser(prog="python -m tests.bench.service")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long is measured (60)")
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    limits = f"at_once = {asked.moves}\nper_node = {asked.moves}\nstop = 'abort'"
    with (
        tempfile.TemporaryDirectory(prefix="lvm-bench-") as folder,
        house(Path(folder), limits, copy_s=_COPY_S) as here,
    ):
        here.module = "tests.bench.stamped"
        for number in range(asked.moves):
            here.guest(f"web{number}")
        here.start()
        with here.client() as client:
            for number in range(asked.moves):
                client.order("moves", Migrate(instance=f"web{number}", target="node2", options=_OPTIONS))
            _under_way(client, asked.moves)
            assert here.process is not None
            pid = here.process.pid
            words = [sys.executable, "-m", "tests.bench.watchers", str(here.socket), str(asked.clients)]
            with subprocess.Popen(
                [*words, str(asked.seconds + _WARM_S)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as watchers:
                assert watchers.stderr is not None
                assert watchers.stdout is not None
                said = watchers.stderr.readline()
                assert said == b"all follow\n", said + watchers.stderr.read()
                time.sleep(_WARM_S)
                begin = time.monotonic()
                watched = Usage.of(watchers.pid)
                samples, scrapes = _looked_at(pid, here.url, begin + asked.seconds - 1)
                end = time.monotonic()
                watched_s = (Usage.of(watchers.pid).cpu_s - watched.cpu_s) / (end - begin)
                seen = array.array("d", watchers.stdout.read())
            running = [job for job in _jobs(client) if job.state is State.RUNNING]
            assert len(running) == asked.moves, "a move has ended meanwhile"
        assert here.stop() == 0
        here.at_rest()
        stamps = {int(n): at for n, at in json.loads((here.directory / "stamps.json").read_text()).items()}
    counted = {number: at for number, at in stamps.items() if begin <= at < end - 0.5}
    late = [
        1000 * (at - counted[int(number)])
        for number, at in zip(seen[::2], seen[1::2], strict=True)
        if int(number) in counted
    ]
    told = len(counted) * asked.clients
    assert len(late) == told, f"{told - len(late)} of {told} events did not reach a client"
    common = {
        "clients": asked.clients,
        "moves": asked.moves,
        "seconds": round(end - begin, 1),
        "scrapes": len(scrapes),
        "scrape_max_ms": round(1000 * max(scrapes), 1),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }
    cpu = (samples[-1].cpu_s - samples[0].cpu_s) / (len(samples) - 1)
    late.sort()
    held = [
        show(
            f"event_latency_p99_ms_{asked.clients}_clients",
            percentile(late, 99),
            "ms",
            goal=100,
            higher=False,
            p50_ms=round(late[len(late) // 2], 2),
            max_ms=round(late[-1], 1),
            over_100_ms=len(late) - bisect.bisect(late, 100.0),
            events=len(counted),
            events_per_second=round(len(counted) / (end - begin), 1),
            received=told,
            server_cpu=round(cpu, 2),
            clients_cpu=round(watched_s, 2),
            includes="from the moment at which a job's change is published, before it is made into JSON, until a client"
            " has read that JSON; every client gets every event; all clients are one process of this machine;"
            f" /metrics is asked for every {_SCRAPE_S} s",
            **common,
        )
    ]
    half = len(samples) // 2
    rss = [sample.rss_mib for sample in samples]
    held.append(
        show(
            "service_rss_growth_mib",
            statistics.median(rss[half:]) - statistics.median(rss[:half]),
            "MiB",
            goal=_GROWTH_MIB,
            higher=False,
            first_mib=round(rss[0], 1),
            last_mib=round(rss[-1], 1),
            fds=[samples[0].fds, samples[-1].fds],
            threads=[samples[0].threads, samples[-1].threads],
            children=[samples[0].children, samples[-1].children],
            includes="the server's process: the second half's median less the first half's; the events that it keeps"
            " for those who come back, 10,000 at most, are in it",
            **common,
        )
    )
    return 0 if all(held) else 1


def _looked_at(pid: int, url: str, until: float) -> tuple[list[Usage], list[float]]:
    """What the service used, by the second, and how long each scrape of its metrics took."""
    samples: list[Usage] = []
    scrapes: list[float] = []
    with Way(url).client() as http:
        while (begin := time.monotonic()) < until:
            if len(samples) % _SCRAPE_S == 0:
                answer = http.get("/metrics")
                assert answer.status_code == httpx.codes.OK, answer.text
                scrapes.append(time.monotonic() - begin)
            samples.append(Usage.of(pid))
            time.sleep(1)
    return samples, scrapes


def _jobs(client: Client) -> list[Job]:
    return client.get("/v1/moves", JobList, most=1000).jobs


def _under_way(client: Client, moves: int) -> None:
    """Wait until all of them copy memory."""

    def begun() -> bool:
        time.sleep(0.5)  # only so many requests may come in a minute
        jobs = _jobs(client)
        over = [(job.about, job.error) for job in jobs if job.over]
        assert not over, over
        return sum(job.state is State.RUNNING and bool(job.target) for job in jobs) == moves

    wait_for(begun, lambda: str(_jobs(client)), 180)
    time.sleep(_WARM_S)


if __name__ == "__main__":
    sys.exit(main())
