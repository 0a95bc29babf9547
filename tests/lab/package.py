"""The Debian package for the nodes' release, and what a node lacks of what it depends on; both put on a node."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vagrant.labkit.lab import HERE, NODES, Lab

#: The node that it is installed on.
HOME: Final = NODES[0]
_TREE: Final = HERE.parent
_PRESENT: Final = "dpkg-query -W -f '${Package}\\n'"
_BOOTSTRAP: Final = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "mmdebstrap")


def build(release: str, folder: Path) -> tuple[Path, Mapping[str, Path]]:
    """The package for this release of Debian, and all packages that were fetched to build it, by their names."""
    source = (_TREE / "debian" / "control").read_text(encoding="utf-8")
    found = re.search(r"^Build-Depends: (.*)$", source, re.MULTILINE)
    assert found
    # sudo: a node has none, and rules for it are tried there.
    wanted = ["build-essential", "debhelper", "sudo", *(name for name in found[1].split(", ") if "(" not in name)]
    mirror = _run(HERE / "mirror").split()[1]
    root = folder / "root"
    _run(
        *(*_outside(), *_BOOTSTRAP, "--mode=root", "--variant=minbase", f"--include={','.join(wanted)}"),
        *('--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io", "--skip=cleanup/apt"),
        *(release, root, mirror),
    )
    (package,) = _run(*_outside(), _TREE / "debian" / "build", Path(sys.executable).parent, folder, root).splitlines()
    fetched = {path.name.split("_")[0]: path for path in (root / "var/cache/apt/archives").glob("*.deb")}
    return Path(package), fetched


def lacking(package: Path, fetched: Mapping[str, Path], installed: Collection[str]) -> Iterator[Path]:
    """Those of the fetched packages that must be installed with it where ``installed`` are."""
    seen = set(installed)
    waiting = [package]
    while waiting:
        for name in _depends(waiting.pop()):
            if name not in seen:
                seen.add(name)
                if name in fetched:
                    waiting.append(fetched[name])
                    yield fetched[name]


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """The package is installed on `HOME`."""

    lab: Lab
    #: Every package that was fetched to build it, by its name.
    fetched: Mapping[str, Path]

    def also(self, node: str, name: str) -> None:
        """Install one more of those that were fetched, with what it needs."""
        present = set(self.lab.run(node, _PRESENT).split())
        wanted = self.fetched[name]
        put(self.lab, node, [wanted, *lacking(wanted, self.fetched, present)])


@contextmanager
def installed(lab: Lab, folder: Path) -> Iterator[Packaged]:
    """Built in ``folder`` and installed; afterwards no node has a package that it had not before."""
    release = lab.run(HOME, '. /etc/os-release && echo "$VERSION_CODENAME"').strip()
    made, fetched = build(release, folder)
    before = {node: set(text.split()) for node, text in lab.both(_PRESENT).items()}
    try:
        put(lab, HOME, [made, *lacking(made, fetched, before[HOME])])
        yield Packaged(lab=lab, fetched=fetched)
    finally:
        for node in NODES:
            added = sorted(set(lab.run(node, _PRESENT).split()) - before[node])
            # Root's password is nobody's on a node, and sudo asks before it goes.
            purge = f"SUDO_FORCE_REMOVE=yes dpkg --purge {' '.join(added)}"
            lab.run(node, purge if added else "true", timeout_s=300)


def put(lab: Lab, node: str, files: Sequence[Path]) -> None:
    """Install packages on a node."""
    lab.run(node, "mkdir -p /run/package")
    options = [word for word in lab.ssh(node, "true")[1:-3] if word]
    subprocess.run(["scp", "-q", *options, *files, f"{node}:/run/package"], check=True, timeout=300)
    lab.run(node, "dpkg --install /run/package/*.deb && rm -r /run/package", timeout_s=600)


def _depends(package: Path) -> Iterator[str]:
    """Every name that one of its dependencies gives, alternatives too."""
    for field in ("Pre-Depends", "Depends"):
        for clause in re.split(r"[,|]", _run("dpkg-deb", "--field", package, field)):
            if found := re.match(r"\s*([a-z0-9][a-z0-9.+-]+)", clause):
                yield found[1]


def _outside() -> tuple[str, ...]:
    """What a command is begun with that needs packages: a lab's own network, where we may be, has no way to them."""
    inside, process = _network("self"), os.getppid()
    while process:
        if _network(process) != inside:
            return ("nsenter", f"--net=/proc/{process}/ns/net", "--")
        process = int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    return ()


def _network(process: int | str) -> str:
    try:
        return str(Path(f"/proc/{process}/ns/net").readlink())
    except PermissionError:  # the machine's first one may be out of reach
        return _network("self")


def _run(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout
