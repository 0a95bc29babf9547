"""A real service, killed by kill -9 at any moment: no order is lost, none is done twice, and every guest is whole."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lvmigrate.errors import ExitCode
from lvmigrate.service.client import Client
from lvmigrate.service.job import Job, State
from lvmigrate.service.messages import JobList
from lvmigrate.service.orders import Drain, Migrate, Priority
from tests.service.support import House, house, wait_for

GUESTS = 4
#: More than two find out more: LVMIGRATE_KILLS=50.
SEEDS = range(int(os.environ.get("LVMIGRATE_KILLS", "2")))


def jobs_of(client: Client, collection: str = "moves") -> list[Job]:
    return client.get(f"/v1/{collection}", JobList, most=1000).jobs


def all_over(house_: House, number: int, collection: str = "moves") -> list[Job]:
    with house_.client() as client:

        def over() -> list[Job]:
            jobs = jobs_of(client, collection)
            return jobs if len(jobs) == number and all(job.over for job in jobs) else []

        found: list[Job] = wait_for(over, lambda: str(jobs_of(client, collection)), 90)
        return found


@pytest.mark.parametrize("seed", SEEDS)
def test_moves_survive_kills_at_random_moments(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with house(tmp_path, "at_once = 4\nper_node = 4") as here:
        guests = {f"web{number}": here.guest(f"web{number}") for number in range(GUESTS)}
        here.start()
        with here.client() as client:
            ids = [client.order("moves", Migrate(instance=name))[0].id for name in guests]
        for _ in range(3):
            time.sleep(chance.uniform(0.0, 1.4))
            here.kill()
            here.start()
        jobs = all_over(here, GUESTS)
        assert sorted(job.id for job in jobs) == sorted(ids)
        begun = here.stage.do(lambda: Counter(copy.guest.name for copy in here.stage.world.migrations))
        assert max(begun.values(), default=0) <= 1, begun
        for job in jobs:
            assert job.outcome in ("OK", "INTERRUPTED"), job
            assert here.running(guests[job.about]) == [job.target if job.outcome == "OK" else job.source]
            assert (job.exit_code == 0) is (job.outcome == "OK")
        here.at_rest()
        assert here.stop() == 0


def test_what_had_no_plan_yet_is_done_by_the_next_one(tmp_path: Path) -> None:
    with house(tmp_path, "at_once = 1") as here:
        guests = [here.guest(f"web{number}", copy_s=1.5) for number in range(3)]
        here.start()
        with here.client() as client:
            first, _ = client.order("moves", Migrate(instance="web0"))
            client.order("moves", Migrate(instance="web1", priority=Priority.LOW))
            client.order("moves", Migrate(instance="web2", priority=Priority.HIGH))
            wait_for(lambda: here.copies_begun() and client.get(f"/v1/moves/{first.id}", Job).target)
        here.kill()
        here.start()
        jobs = {job.about: job for job in all_over(here, 3)}
        # The copy that was under way is watched to its end by the cleanup: the move has arrived.
        assert {job.outcome for job in jobs.values()} == {"OK"}
        assert jobs["web0"].interruptions == 1
        assert jobs["web1"].interruptions == 0
        assert jobs["web2"].begun is not None
        assert jobs["web1"].begun is not None
        assert jobs["web2"].begun < jobs["web1"].begun
        assert [here.running(guest) for guest in guests] == [["node2"]] * 3
        assert here.copies_begun() == 3
        here.at_rest()


def test_an_abort_that_was_asked_for_is_not_forgotten(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        guest = here.guest("web1", copy_s=30.0)
        here.start()
        with here.client() as client:
            job, _ = client.order("moves", Migrate(instance="web1"))
            wait_for(here.copies_begun)
            # Written, and nothing of it done: as if it were killed right then.
            assert client.send("POST", f"/v1/moves/{job.id}/abort", None, Job).wish.value == "abort"
        here.kill()
        here.start()
        (job,) = all_over(here, 1)
        assert (job.outcome, job.exit_code) == ("ABORTED", 4)
        assert here.running(guest) == ["node1"]
        here.at_rest()


def test_a_drain_goes_on_where_it_stood(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        guests = [here.guest(f"web{number}", copy_s=0.6) for number in range(3)]
        here.start()
        with here.client() as client:
            client.order("drains", Drain(nodes=["node1"], reason="new disks"))
            wait_for(here.copies_begun)
        here.kill()
        here.start()
        (job,) = all_over(here, 1, "drains")
        assert (job.outcome, job.interruptions) == ("OK", 1)
        assert [here.running(guest) for guest in guests] == [["node2"]] * 3
        begun = here.stage.do(lambda: Counter(copy.guest.name for copy in here.stage.world.migrations))
        assert set(begun.values()) == {1}
        here.at_rest()


def test_a_drain_that_was_to_stop_does_not_go_on(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        for number in range(4):
            here.guest(f"web{number}", copy_s=3.0)
        here.start()
        with here.client() as client:
            job, _ = client.order("drains", Drain(nodes=["node1"]))
            wait_for(lambda: here.copies_begun() == 2)
            client.send("POST", f"/v1/drains/{job.id}/stop", None, Job)
        here.kill()
        here.start()
        (job,) = all_over(here, 1, "drains")
        assert (job.outcome, job.exit_code) == ("ABORTED", 4)
        assert here.copies_begun() == 2
        here.at_rest()


def test_a_node_that_is_silent_is_waited_for(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        guest = here.guest("web1", copy_s=1.0)
        here.start()
        with here.client() as client:
            client.order("moves", Migrate(instance="web1"))
            wait_for(here.copies_begun)
        here.kill()
        here.stage.do(lambda: here.stage.world.kill_daemon("node2", 4.0))
        here.start()
        with here.client() as client:
            recovering = wait_for(lambda: [job for job in jobs_of(client) if job.waits_for])
            assert recovering[0].state is State.RECOVERING
        (job,) = all_over(here, 1)
        assert here.running(guest) == [job.target if job.outcome == "OK" else job.source]
        here.at_rest()


@pytest.mark.parametrize("limits", ["at_once = 1\nper_node = 4", "at_once = 4\nper_node = 1"])
def test_what_is_adopted_takes_its_place(tmp_path: Path, limits: str) -> None:
    with house(tmp_path, limits) as here:
        guests = [here.guest(f"web{number}", copy_s=2.5) for number in range(3)]
        here.start()
        with here.client() as client:
            client.order("moves", Migrate(instance="web0"))
            wait_for(lambda: here.copies_begun() and jobs_of(client)[0].target)
            for number in (1, 2):
                client.order("moves", Migrate(instance=f"web{number}"))
        most = 0

        def copies() -> int:
            return here.stage.do(lambda: len({uuid for host in here.stage.world.hosts.values() for uuid in host.jobs}))

        here.kill()
        here.start()
        with here.client() as client:

            def over() -> bool:
                nonlocal most
                most = max(most, copies())
                return all(job.over for job in jobs_of(client))

            wait_for(over, lambda: str(jobs_of(client)), 90)
            jobs = jobs_of(client)
        assert most == 1
        assert [job.outcome for job in jobs] == ["OK"] * 3
        assert jobs[-1].interruptions == 1
        assert [here.running(guest) for guest in guests] == [["node2"]] * 3
        here.at_rest()


def test_what_waits_for_a_silent_node_keeps_nobody_elses_place(tmp_path: Path) -> None:
    with house(tmp_path, "at_once = 1\nper_node = 1", nodes=("node1", "node2", "node3")) as here:
        guest = here.guest("web1", peer="node2", copy_s=1.0)
        here.guest("web2", peer="node3", copy_s=0.3)
        here.start()
        with here.client() as client:
            client.order("moves", Migrate(instance="web1"))
            wait_for(here.copies_begun)
        here.kill()
        here.stage.do(lambda: here.stage.world.kill_daemon("node2", 12.0))
        here.start()
        with here.client() as client:
            wait_for(lambda: [job for job in jobs_of(client) if job.waits_for])
            other, _ = client.order("moves", Migrate(instance="web2", target="node3"))
            wait_for(lambda: client.get(f"/v1/moves/{other.id}", Job).over)
            assert [job.state for job in jobs_of(client)] == [State.ENDED, State.RECOVERING]
        job = {job.about: job for job in all_over(here, 2)}["web1"]
        assert here.running(guest) == [job.target if job.outcome == "OK" else job.source]
        here.at_rest()


def test_two_services_do_not_share_a_journal(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        here.start()
        words = [str(here.configuration), str(here.stage.path), "other"]
        other = subprocess.run(
            [sys.executable, "-m", "tests.service.process", *words], capture_output=True, text=True, check=False
        )
        assert other.returncode == ExitCode.REFUSED
        assert "Another service works with the journal" in other.stderr
        with here.client() as client:
            assert jobs_of(client) == []
