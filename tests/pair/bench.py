"""The adapter on the pair: a guest on its first host, and what each host says of it while it is moved."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from hv import LibvirtHypervisor
from hv.copy import LibvirtCopy
from lvmigrate.domain import Domain
from lvmigrate.plan import Options, Switch
from lvmigrate.protocols import CopyEnd, MemoryCopy
from tests.pair.guest import SLOW_MIB_S, Guest
from tests.pair.host import Host, wait_until
from tests.pair.pair import Pair

STRICT = Options(bandwidth_mib_s=SLOW_MIB_S)
FAST = Options(bandwidth_mib_s=SLOW_MIB_S, switch=Switch.FAST)
#: How long two copies are looked for, or at: the daemon resumes its own after a keepalive of 2 x 2 s.
REST_S = 3.0

#: state, reason, job
Look = tuple[str, str, str] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """The pair, a guest on its first host, and the adapter."""

    pair: Pair
    hv: LibvirtHypervisor
    guest: Guest

    def look(self, host: Host) -> Look:
        domain = self.hv.domain(host.name, self.guest.uuid)
        return None if domain is None else (domain.state.value, domain.reason, domain.job.value)

    def source(self) -> Domain:
        domain = self.hv.domain("node1", self.guest.uuid)
        assert domain is not None
        return domain

    def start(self, options: Options) -> LibvirtCopy:
        """A copy from the first host to the second that is under way, and goes on until `hurry`."""
        copy = self.hv.copy_memory(self.source(), "node2", options)
        wait_until(lambda: copy.progress() is not None or copy.wait(0) is not None, "the copy is under way")
        assert copy.wait(0) is None, copy.wait(0)
        return copy

    def hurry(self) -> None:
        self.pair.hurry(self.guest, on=self.pair.one)

    def lose_the_reply(self, options: Options) -> LibvirtCopy:
        """A move whose last reply from the target is lost: the target has finished, the source does not know."""
        copy = self.start(options)
        self.pair.two.drop_long_replies(on=True)
        self.hurry()
        arrived = ("running", "migrated", "none") if options is FAST else ("paused", "user", "none")
        self.sees(self.pair.two, arrived)
        return copy

    def sees(self, host: Host, look: Look) -> None:
        wait_until(lambda: self.look(host) == look, lambda: f"{host.name} says {look}; it says {self.look(host)}")

    def stays(self, looks: Mapping[str, Look], seconds: float = REST_S) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert {host.name: self.look(host) for host in self.pair.hosts} == looks
            time.sleep(0.1)

    @contextmanager
    def watched(self) -> Iterator[Callable[[], dict[str, list[Look]]]]:
        """In the context, what each host says is noted whenever it changes."""
        noted: dict[str, list[Look]] = {host.name: [] for host in self.pair.hosts}
        end = threading.Event()

        def watch(host: Host) -> None:
            while not end.is_set():
                look = self.look(host)
                if not noted[host.name] or noted[host.name][-1] != look:
                    noted[host.name].append(look)

        threads = [threading.Thread(target=watch, args=(host,)) for host in self.pair.hosts]
        for thread in threads:
            thread.start()
        try:
            yield lambda: {name: list(looks) for name, looks in noted.items()}
        finally:
            end.set()
            for thread in threads:
                thread.join()


def ended(copy: MemoryCopy) -> CopyEnd:
    # `wait` comes back sooner, too, whenever a pass over the memory has begun.
    for _ in range(240):
        if (end := copy.wait(1.0)) is not None:
            return end
    raise AssertionError("the copy does not end")
