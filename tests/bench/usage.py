"""What a process uses, by the kernel's word."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """At one moment."""

    #: What it has in memory; its share of that, where pages are shared with other processes. MiB.
    rss_mib: float
    pss_mib: float
    threads: int
    fds: int
    #: Those of them that are sockets: connections of libvirt, mostly.
    sockets: int
    #: Its children, and theirs; those of them that are ssh's, of which one keeps each connection.
    children: int
    ssh: int
    #: Seconds of CPU since it began, without its children's.
    cpu_s: float

    @property
    def files(self) -> int:
        """File descriptors that are no sockets: connections come and go, and are counted apart."""
        return self.fds - self.sockets

    @classmethod
    def of(cls, pid: int | None = None) -> Usage:
        """Of that process; of this one."""
        at = Path("/proc") / (str(pid) if pid is not None else "self")
        memory = (at / "smaps_rollup").read_text()
        words = (at / "stat").read_text().rpartition(")")[2].split()
        files = list(_files(at / "fd"))
        children = descendants(pid if pid is not None else os.getpid())
        return cls(
            rss_mib=_kib(memory, "Rss") / 1024,
            pss_mib=_kib(memory, "Pss") / 1024,
            threads=len(list((at / "task").iterdir())),
            fds=len(files),
            sockets=sum(file.startswith("socket:") for file in files),
            children=len(children),
            ssh=sum(_name(child) == "ssh" for child in children),
            cpu_s=(int(words[11]) + int(words[12])) / _TICKS,
        )


def _files(folder: Path) -> Iterator[str]:
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # the one that the folder itself is read by
            yield str(file.readlink())


def descendants(pid: int) -> tuple[int, ...]:
    """Its children, and theirs."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in (Path("/proc") / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                for child in map(int, (task / "children").read_text().split()):
                    found += [child, *descendants(child)]
    return tuple(found)


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        return (Path("/proc") / str(pid) / "comm").read_text().strip()
    return ""


def _kib(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None, name
    return int(found[1])
