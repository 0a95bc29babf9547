"""What is built once: an sdist, a wheel, a Debian package."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def run(*words: object, **options: Any) -> str:
    """What a program says that must succeed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return str(done.stdout)


@pytest.fixture(scope="session")
def version() -> str:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist and a wheel, each made from this tree."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="session")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package of this tree."""
    folder = tmp_path_factory.mktemp("deb")
    return Path(run(ROOT / "debian" / "build", BIN, folder).strip())


@pytest.fixture(scope="session")
def bare() -> dict[str, str]:
    """An environment that points to nothing of this checkout."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "LVMIGRATE"))
    }
    return kept | {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
