"""``make bench-storage``: the way of an event from a node to a subscriber, and opening and closing a dual-primary.

What is measured on this machine alone goes through everything that events go through: a child process, its pipe, the
lines, the world, the subscriber's feed.  The rest needs the lab, with nothing in use on its resource web1.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import structlog

from lvmigrate import config
from lvmigrate.clock import Clock
from lvmigrate.disks import Disks
from lvmigrate.dual_primary import DualPrimary
from lvmigrate.errors import CommandFailed, LvmigrateError
from lvmigrate.lease import Lease
from lvmigrate.node import Node
from lvmigrate.plan import ResourcePlan
from lvmigrate.together import together
from lvmigrate.token import Errand, Guarded, Token
from storage import DrbdStorage
from storage.feed import Change, Feed
from storage.shell import Answer, Shell, Stream
from storage.watch import ReplicationWatch
from tests.bench.figure import percentile, show
from tests.bench.hand import Care, Hand
from vagrant.labkit.guests import WEB1
from vagrant.labkit.lab import Lab

_DUMP = Path(__file__).parents[1] / "transcripts/drbd93/slow-resync.node1.txt"
_COUNT = 30_000
_LATE_COUNT = 2_000
_LATE_HZ = 200
_NODES = ("node1", "node2")
_PAIRS = 5


def main() -> int:
    """Every figure that can be had here; 1 if a goal does not hold."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    holds = [rate(), latency(), open_close()]
    return 0 if all(holds) else 1


# ---- events


def dump() -> list[str]:
    """The recorded lines of DRBD 9 up to the end of the first dump."""
    lines = [line for line in _DUMP.read_text(encoding="utf-8").splitlines() if line[:4].isdigit()]
    return lines[: next(i for i, line in enumerate(lines) if line.endswith("exists -")) + 1]


def change(number: int) -> str:
    """A line as 9.3.3 sends one in a resynchronisation."""
    return (
        "2026-11-22T22:14:11.738350+00:00 change peer-device name:r0 peer-node-id:1 conn-name:node2 volume:0"
        f" done:{number % 100}.00 received:0 sent:{number} out-of-sync:{number} pending:0 unacked:0 dbdt1:1.00 eta:4"
    )


@contextmanager
def watched(scripts: dict[str, str]) -> Iterator[ReplicationWatch]:
    """A watch of r0 whose streams are these scripts, run on this machine."""
    shell = Shell(ssh_config=None, connect_timeout_s=5)

    def follow(name: str) -> Stream:
        node = Node(name=name, ssh=None, libvirt_uri="", peer_uri="", migration_address="")
        return shell.stream(node, scripts[name])

    def why(node: str, answer: Answer) -> LvmigrateError:
        return CommandFailed(node, "Following events", status=answer.status, hint="none", detail=answer.err)

    with ReplicationWatch(
        called={node: {"r0": "r0"} for node in _NODES}, follow=follow, why=why, on_change=None, answer_within_s=10
    ) as watch:
        yield watch
    shell.close()


def number_of(feed: Feed) -> int | None:
    """How much is out of sync by the next change that the feed has."""
    item = feed.next(30)
    if not isinstance(item, Change) or item.resource is None:
        raise TypeError(f"no change: {item}")
    return item.resource.connections[0].volumes[0].out_of_sync_kib


def rate() -> bool:
    """Lines a second through the whole path, to a subscriber that takes every change."""
    rates = []
    with tempfile.TemporaryDirectory() as directory:
        first, rest, go = (Path(directory) / name for name in ("dump", "rest", "go"))
        first.write_text("\n".join(dump()) + "\n")
        rest.write_text("\n".join(map(change, range(_COUNT))) + "\n")
        for _ in range(3):
            os.mkfifo(go)
            quiet = f"cat {first}; exec cat"
            # It waits for the word go, so that the clock starts with the first line.
            loud = f"cat {first}; cat {go}; cat {rest}; exec cat"
            with watched({"node1": loud, "node2": quiet}) as watch, watch.subscribe(limit=_COUNT) as feed:
                feed.next(5)
                begin = time.perf_counter()
                go.write_text("")
                numbers = [number_of(feed) for _ in range(_COUNT)]
                rates.append(_COUNT / (time.perf_counter() - begin))
            if numbers != list(range(_COUNT)):
                raise AssertionError("changes are missing, or in another order")
            go.unlink()
    return show(
        "events2_lines_per_second",
        statistics.median(rates),
        "1/s",
        goal=5000,
        higher=True,
        lines=_COUNT,
        runs=[round(one) for one in rates],
        load=round(os.getloadavg()[0], 1),
        includes="a child's pipe, parsing, the world of the node, the change in its subscriber's hands",
    )


def latency() -> bool:
    """From the moment at which a line is written to the moment at which a subscriber has the change."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        first, pipe = Path(directory) / "dump", Path(directory) / "pipe"
        first.write_text("\n".join(dump()) + "\n")
        os.mkfifo(pipe)
        scripts = {"node1": f"cat {first}; exec cat {pipe}", "node2": f"cat {first}; exec cat"}
        watch = stack.enter_context(watched(scripts))
        feed = stack.enter_context(watch.subscribe())
        feed.next(5)
        written: list[float] = []

        def write() -> None:
            with pipe.open("w") as out:
                begin = time.perf_counter()
                for number in range(_LATE_COUNT):
                    time.sleep(max(0.0, begin + number / _LATE_HZ - time.perf_counter()))
                    written.append(time.perf_counter())
                    out.write(change(number) + "\n")
                    out.flush()
                done.wait(30)

        done = threading.Event()
        writer = threading.Thread(target=write)
        writer.start()
        late = []
        for number in range(_LATE_COUNT):
            if number_of(feed) != number:
                raise AssertionError("a change is missing, or in another order")
            late.append((time.perf_counter() - written[number]) * 1000)
        done.set()
        writer.join()
    return show(
        "events2_latency_p99_ms",
        percentile(late, 99),
        "ms",
        goal=5,
        higher=False,
        p50_ms=round(percentile(late, 50), 3),
        max_ms=round(max(late), 3),
        lines=_LATE_COUNT,
        lines_per_second=_LATE_HZ,
        load=round(os.getloadavg()[0], 1),
        includes="as events2_lines_per_second; the writer is a thread of the same process",
    )


# ---- the lab


def open_close() -> bool:
    """Ours against the same by hand, in turn; the median of the pairs."""
    with Lab.open() as lab:
        configuration = config.load(lab.config)
        storage = DrbdStorage(configuration.nodes, ssh_config=configuration.ssh_config)
        hand = Hand(lab, WEB1)
        try:
            lab.run("node1", "drbdadm primary web1")
            pairs: dict[Care, list[tuple[float, float]]] = {care: [] for care in Care}
            for _ in range(_PAIRS):
                for care, both in pairs.items():
                    # The guest's home is the other node each time.
                    ours = ours_s(storage, "node1", "node2")
                    both.append((ours, hand.open_close_s("node2", "node1", care)))
        finally:
            storage.close()
            lab.both("drbdadm secondary web1", check=False)
    by_hand = "drbdsetup by ssh over one kept connection a node, one command after the other"
    _open_close_shown(
        "open_close_ratio_to_hand_without_looks",
        pairs[Care.BLIND],
        goal=None,
        hand=f"{by_hand}: the six that act, and nothing is seen of what they did; no token and no guard",
    )
    _open_close_shown(
        "open_close_ratio_to_hand_with_looks",
        pairs[Care.LOOKS],
        goal=None,
        hand=f"{by_hand}: what is set and seen before and after each act on both nodes; no token and no guard",
    )
    return _open_close_shown(
        "open_close_ratio_to_hand",
        pairs[Care.GUARDED],
        goal=0.7,
        hand=f"{by_hand}: with looks, and on each node a file that keeps others away and a timer of systemd's that"
        " demotes and forbids two primaries after 60 s; both are removed at the end",
    )


def _open_close_shown(name: str, pairs: list[tuple[float, float]], *, goal: float | None, hand: str) -> bool:
    return show(
        name,
        statistics.median(ours / by_hand for ours, by_hand in pairs),
        "",
        goal=goal,
        higher=False,
        pairs_s=[[round(ours, 3), round(by_hand, 3)] for ours, by_hand in pairs],
        ours="tokens and guards on both nodes, two primaries allowed and seen, target promoted and seen, source demoted"
        " and seen, options restored and seen, guards and tokens gone; both nodes side by side",
        hand=hand,
    )


def ours_s(storage: DrbdStorage, source: str, target: str) -> float:
    """Seconds for one dual-primary from ``source`` to ``target``, opened and closed."""
    with storage.watch(_NODES, ["web1"]) as watch:
        begin = time.perf_counter()
        errand = Errand(source=source, target=target, ran=True, autostart=False, target_had_definition=False)
        token = Token(
            uuid=str(uuid.uuid4()), instance="web1", id=uuid.uuid4().hex, holder="bench", lease_s=30, errand=errand
        )
        lease = Lease(storage, _NODES, token, clock=Clock())
        for node in _NODES:
            if lease.take(node) is not None:
                raise AssertionError("somebody else has the token")
        peers = dict(zip(_NODES, reversed(_NODES), strict=True))
        found = together([partial(storage.options, node, "web1", peers[node]) for node in _NODES])
        options = dict(zip(_NODES, found, strict=True))

        def arm(node: str) -> None:
            guarded = [Guarded(resource="web1", peer=peers[node], options=options[node])]
            storage.arm_guard(node, lease.token, guarded, resume=False)

        together([lambda: arm("node1"), lambda: arm("node2")])
        lease.guarded()
        plan = ResourcePlan(name="web1", volumes=(0,), options=(options[source], options[target]))
        both = DualPrimary(storage=storage, watch=watch, lease=lease, plan=plan, source=source, target=target)
        both.open()
        both.close(source)
        disks = Disks(storage=storage, watch=watch, names=("web1",), nodes=(source, target))
        if not watch.wait(lambda: disks.in_step() and disks.single_primary(target), 10):
            raise AssertionError("not single-primary and in step afterwards")
        together(
            [lambda: storage.disarm_guard("node1", lease.token), lambda: storage.disarm_guard("node2", lease.token)]
        )
        together([lambda: storage.drop_token("node1", lease.token), lambda: storage.drop_token("node2", lease.token)])
        return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
