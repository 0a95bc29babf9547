"""The Debian package for the nodes' release, and what a node lacks of what it depends on."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

from vagrant.labkit.lab import HERE

_TREE: Final = HERE.parent
_BOOTSTRAP: Final = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "mmdebstrap")


def build(release: str, folder: Path) -> tuple[Path, Mapping[str, Path]]:
    """The package for this release of Debian, and all packages that were fetched to build it, by their names."""
    source = (_TREE / "debian" / "control").read_text(encoding="utf-8")
    found = re.search(r"^Build-Depends: (.*)$", source, re.MULTILINE)
    assert found
    wanted = ["build-essential", "debhelper", *(name for name in found[1].split(", ") if "(" not in name)]
    mirror = _run(HERE / "mirror").split()[1]
    root = folder / "root"
    _run(
        *(*_BOOTSTRAP, "--mode=root", "--variant=minbase", f"--include={','.join(wanted)}"),
        *('--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io", "--skip=cleanup/apt"),
        *(release, root, mirror),
    )
    (package,) = _run(_TREE / "debian" / "build", Path(sys.executable).parent, folder, root).splitlines()
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


def _depends(package: Path) -> Iterator[str]:
    """Every name that one of its dependencies gives, alternatives too."""
    for field in ("Pre-Depends", "Depends"):
        for clause in re.split(r"[,|]", _run("dpkg-deb", "--field", package, field)):
            if found := re.match(r"\s*([a-z0-9][a-z0-9.+-]+)", clause):
                yield found[1]


def _run(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout
