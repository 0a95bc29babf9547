"""A real service, killed by kill -9 at any moment: no order is lost, none is done twice, and every guest is whole."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx2 as httpx
import pytest

from lvmigrate.cluster import Cluster
from lvmigrate.errors import ExitCode
from lvmigrate.service.client import Client, Way
from lvmigrate.service.job import Job, State
from lvmigrate.service.messages import JobList
from lvmigrate.service.orders import Cleanup, Drain, Failover, Migrate, Priority, Rehearse, Return
from tests.service.far import Door
from tests.service.process import cluster
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


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("order", [Failover(instance="web1"), Rehearse(instance="web1")], ids=["failover", "rehearse"])
def test_what_else_moves_survives_kills_at_random_moments(
    tmp_path: Path, order: Failover | Rehearse, seed: int
) -> None:
    chance = random.Random(f"{order} {seed}")
    with house(tmp_path, shutdown_s=0.6) as here:
        guest = here.guest("web1", copy_s=60.0)  # a rehearsal has memory be copied so slowly that it does not arrive
        here.start()
        with here.client() as client:
            ordered, _ = client.order("moves", order)
        for _ in range(2):
            time.sleep(chance.uniform(0.0, 0.9))
            here.kill()
            here.start()
        (job,) = all_over(here, 1)
        assert job.id == ordered.id
        assert (job.outcome, job.exit_code) in (("OK", 0), ("INTERRUPTED", 1)), job
        stays = isinstance(order, Rehearse)
        if stays or job.outcome == "OK":
            assert here.running(guest) == (["node1"] if stays else ["node2"])
        else:  # it may have been shut down: then the job says so, and nobody starts it unasked
            where = here.running(guest)
            assert where in (["node1"], [])
            assert ("is off" in (job.error or {})["sentence"]) is (where == [])
        here.at_rest()
        assert here.stop() == 0


def test_a_cleanup_goes_on_where_it_stood(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        guest = here.guest("web1", copy_s=8.0)
        command = cluster(str(here.configuration), Door(str(here.stage.path), "command"))
        threading.Thread(target=_until_killed, args=(command,), daemon=True).start()
        wait_for(here.copies_begun)
        here.stage.kill("command")
        here.start()
        with here.client() as client:

            def watches() -> Job | None:
                """It is refused while the command's token is valid; then it watches the copy that has outlived it."""
                cleanup, _ = client.order("cleanups", Cleanup(instance="web1"))
                path = f"/v1/cleanups/{cleanup.id}"
                wait_for(lambda: (now := client.get(path, Job)).over or now.uuid)
                time.sleep(0.3)
                now = client.get(path, Job)
                return None if now.over else now

            job = wait_for(watches)
        here.kill()
        here.start()
        ended = {each.id: each for each in wait_for(lambda: _over(here, "cleanups"))}[job.id]
        assert (ended.outcome, ended.interruptions) == ("OK", 1)
        assert here.running(guest) == ["node2"]
        assert here.copies_begun() == 1
        here.at_rest()


def test_a_return_goes_on_where_it_stood(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        guests = [here.guest(f"web{number}", copy_s=0.8) for number in range(3)]
        here.start()
        with here.client() as client:
            client.order("drains", Drain(nodes=["node1"]))
            all_over(here, 1, "drains")
            assert [here.running(guest) for guest in guests] == [["node2"]] * 3
            client.order("drains", Return(node="node1"))
            wait_for(lambda: here.copies_begun() > len(guests))
        here.kill()
        here.start()
        job = max(all_over(here, 2, "drains"), key=lambda job: job.asked)
        assert (job.what, job.outcome, job.interruptions) == ("return", "OK", 1)
        assert [here.running(guest) for guest in guests] == [["node1"]] * 3
        begun = here.stage.do(lambda: Counter(copy.guest.name for copy in here.stage.world.migrations))
        assert set(begun.values()) == {2}
        here.at_rest()


def _until_killed(command: Cluster) -> None:
    """A move by a command, whose process is killed: of what it does then nothing reaches a node."""
    with suppress(Exception):
        command.migrate("web1")


def _over(house_: House, collection: str) -> list[Job]:
    with house_.client() as client:
        jobs = jobs_of(client, collection)
        return jobs if all(job.over for job in jobs) else []


def test_an_order_that_is_repeated_after_a_kill_is_the_same_job(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        guest = here.guest("web1", copy_s=1.5)
        here.start()
        order = {"what": "migrate", "instance": "web1"}

        def ask(order: dict[str, str], key: str = "once") -> httpx.Response:
            with Way(here.url).client() as http:
                return http.post("/v1/moves", json=order, headers={"Idempotency-Key": key})

        first = ask(order)
        assert first.status_code == 202
        wait_for(here.copies_begun)
        here.kill()
        here.start()
        again = ask(order)
        assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
        assert ask({**order, "target": "node2"}).json()["code"] == "KEY_REUSED"
        (job,) = all_over(here, 1)
        here.kill()
        here.start()
        over = ask(order).json()
        assert (over["id"], over["state"], over["outcome"]) == (job.id, "ended", "OK")
        with here.client() as client:
            assert len(jobs_of(client)) == 1
        assert here.copies_begun() == 1
        assert here.running(guest) == ["node2"]
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
