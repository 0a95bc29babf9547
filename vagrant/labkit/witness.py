"""The proof that a guest kept running and lost nothing: its serial port heard, its records read from both nodes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from vagrant.guest import records
from vagrant.labkit.guests import Guest
from vagrant.labkit.lab import NODES, Lab


class Witness:
    """Hears one guest while in the context."""

    def __init__(self, lab: Lab, guest: Guest) -> None:
        self._lab = lab
        self._guest = guest
        self.listener = records.Listener(lab.address, guest.port)

    def __enter__(self) -> Self:
        self.listener.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.listener.__exit__(kind, error, trace)

    def alive(self, timeout_s: float = 120) -> records.Heard:
        """Wait for a record that is newer than now."""
        mark = self.listener.mark()
        return self.listener.wait_for(lambda heard: heard.at > mark, time.monotonic() + timeout_s)

    def memory_verified(self, timeout_s: float = 300) -> records.Heard:
        """Wait until the guest has looked at every page of its area since now (a full pass)."""
        return self.listener.wait_for(records.verified_since(self.alive()), time.monotonic() + timeout_s)

    def faults(self) -> list[str]:
        """Everything that is wrong with the records on the disks of both nodes, and with what was heard."""
        heard = self.alive()
        with ThreadPoolExecutor(len(NODES)) as pool:
            verdicts = list(pool.map(lambda node: self._verdict(node, heard), NODES))
        found = [f"{node}: {v.sentence}" for node, v in zip(NODES, verdicts, strict=True) if not v.ok]
        if heard.bad:
            found.append(f"{self._guest.name} found {heard.bad} bad pages in its memory")
        found += [f"{self._guest.name} announced record {twice.n} twice" for twice in self.listener.twice]
        return found

    def verdict(self, node: str) -> records.Verdict:
        """What the records on ``node``'s disks say."""
        return self._verdict(node, self.alive())

    def last_words(self, node: str) -> records.Verdict:
        """What the disks of ``node`` say of a guest that has ended. Raises `TimeoutError` if none was heard of it."""
        if (heard := self.listener.last) is None:
            raise TimeoutError(f"{self._guest.name} was never heard")
        return self._verdict(node, heard)

    def _verdict(self, node: str, heard: records.Heard) -> records.Verdict:
        images = [self.image(node, number, heard.n) for number in range(len(self._guest.backing))]
        return records.check(images, name=self._guest.name, run=heard.run, at_least=heard.n, running=True)

    def image(self, node: str, number: int, newest: int) -> bytes:
        """The disk as on ``node``'s backing device, up to the newest record that was heard; zeros behind it.

        What the guest writes while it is read is not looked at: a part that was read before would seem to lack it.
        """
        device, disk = self._guest.backing[number], self._guest.disks[number]
        # A Secondary lets nobody open its device, but tells its size.
        sectors = self._lab.run(node, f"cat /sys/class/block/$(basename $(readlink -f {disk}))/size")
        size = int(sectors) * records.SECTOR
        needed = min(size, (newest + 1) * records.SECTOR)
        mib = -(-needed // (1 << 20))
        data = self._lab.read(node, f"dd if={device} bs=1M count={mib} iflag=direct status=none")[:needed]
        return data + bytes(size - len(data))
