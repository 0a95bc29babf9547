"""Lint and types are part of what is promised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lvmigrate", "hv", "storage", "tests", "vagrant", "docs", "debian")


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy", *PACKAGES),
    ],
    ids=["ruff check", "ruff format", "mypy --strict"],
)
def test_clean(command: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_shell_scripts_are_clean() -> None:
    """Both what runs on the nodes and what makes the lab; shellcheck is among the packages of ``vagrant/lab setup``."""
    files = [path for path in (ROOT / "vagrant").rglob("*") if path.is_file() and ".lab" not in path.parts]
    scripts = [path for path in files if path.read_bytes().startswith((b"#!/bin/bash", b"#!/bin/sh"))]
    assert len(scripts) > 5
    # The guard's lines never stand alone.
    sent = "".join((ROOT / "storage" / name).read_text() for name in ("node.sh", "guard.sh"))
    for command in (
        ("shellcheck", *map(str, scripts), str(ROOT / ".ci" / "run"), str(ROOT / "debian" / "build")),
        ("shellcheck", "--shell=dash", "-"),
    ):
        done = subprocess.run(command, input=sent, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("blocked", ["libvirt", "sh"])
def test_the_core_needs_neither_libvirt_nor_sh(blocked: str) -> None:
    """Everything but the assembling module can be imported where the adapters' libraries are not."""
    modules = [path.stem for path in (ROOT / "lvmigrate").glob("*.py") if path.stem not in {"cluster", "__main__"}]
    code = f"import sys; sys.modules[{blocked!r}] = None\n" + "\n".join(
        "import lvmigrate" if name == "__init__" else f"import lvmigrate.{name}" for name in sorted(modules)
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("words", "status"), [(["status", "--wrong"], "2"), (["explain", "5", "--json"], "0")])
def test_help_answers_without_the_adapters(words: list[str], status: str) -> None:
    code = f"import sys\nfrom lvmigrate.cli import main\nprint(main({words!r}))\n"
    code += "print([m for m in ('libvirt', 'sh', 'hv', 'storage') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-3:-1] == [status, "[]"]
