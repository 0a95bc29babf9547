"""The wheel and the sdist, each in an environment that has nothing else: all of it is there, and it works."""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.package.conftest import ROOT, run

PACKAGES = ("hv", "lvmigrate", "storage")


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of the three packages in ``folder``, and what it holds."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for package in PACKAGES
        for path in (folder / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def differences(site: Path) -> set[str]:
    """What an installed copy lacks, has too much of, or holds otherwise than the tree."""
    here, there = files_of(ROOT), files_of(site)
    return {name for name in here.keys() | there.keys() if here.get(name) != there.get(name)}


@pytest.fixture(scope="module", params=["*.whl", "*.tar.gz"], ids=["wheel", "sdist"])
def environment(
    request: pytest.FixtureRequest, built: Path, tmp_path_factory: pytest.TempPathFactory, bare: dict[str, str]
) -> Iterator[Path]:
    """A fresh virtual environment in which one of the two was installed, with what it needs, service and all."""
    (file,) = built.glob(request.param)
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder / "bin" / "python",
        "install",
        "-q",
        f"{file}[service]",
        cwd="/",
        env=bare,
    )
    yield folder
    shutil.rmtree(folder)


def site_of(environment: Path) -> Path:
    (site,) = environment.glob("lib/python3*/site-packages")
    return site


def test_every_file_is_there_as_it_is_here(environment: Path) -> None:
    site = site_of(environment)
    page = {"lvmigrate/service/page/index.html", "lvmigrate/service/page/main.js"}
    assert {"storage/node.sh", "storage/guard.sh", "lvmigrate/py.typed", *page} <= files_of(site).keys()
    assert differences(site) == set()


def test_nothing_else_comes_with_it(environment: Path, version: str) -> None:
    ours = (site_of(environment) / f"lvmigrate-{version}.dist-info" / "RECORD").read_text().splitlines()
    tops = {line.split("/", 1)[0] for line in ours}
    assert {top for top in tops if not top.startswith("lvmigrate-")} == {*PACKAGES, ".."}


def test_the_command(environment: Path, version: str, bare: dict[str, str]) -> None:
    command = environment / "bin" / "lvmigrate"
    assert run(command, "--version", cwd="/", env=bare) == f"lvmigrate {version}\n"
    assert "OutcomeUnknown" not in run(command, "explain", "LOCKED", cwd="/", env=bare)
    for words in ("--help", "drain --help", "explain"):
        assert run(command, *words.split(), cwd="/", env=bare)


def test_the_python_interface_with_its_adapters(environment: Path, bare: dict[str, str]) -> None:
    """Everything can be imported, and a cluster can be put together: that reads what travels to the nodes."""
    modules = sorted(
        name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for name in files_of(ROOT)
        if name.endswith(".py") and not name.endswith("__main__.py")
    )
    file = environment / "cluster.toml"
    file.write_text("[journal]\npath = ''\n[nodes.a]\n[nodes.b]\n")
    code = "\n".join(f"import {module}" for module in modules)
    code += f"\nwith lvmigrate.Cluster.open({str(file)!r}) as cluster: print(*cluster.nodes)"
    assert run(environment / "bin" / "python", "-I", "-c", code, cwd="/", env=bare) == "a b\n"


def test_the_simulator_moves_a_guest(environment: Path, bare: dict[str, str]) -> None:
    code = """
from lvmigrate.migrate import MigrateInstance
from lvmigrate.simulator import World, audit
with World() as world:
    guest = world.add_guest("web1", "node1")
    move = MigrateInstance(world.controller("c1"), "web1")
    move.check_prereq()
    print(move.exec().target, audit(world))
"""
    assert run(environment / "bin" / "python", "-I", "-c", code, cwd="/", env=bare).splitlines()[-1] == "node2 ()"


@pytest.mark.parametrize(
    "lost", ["storage/node.sh", "storage/guard.sh", "lvmigrate/service/page/dom.js", "hv/py.typed"]
)
def test_a_missing_file_would_be_noticed(built: Path, tmp_path: Path, lost: str) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    assert differences(tmp_path) == set()
    (tmp_path / lost).unlink()
    assert differences(tmp_path) == {lost}


def test_the_changelog_has_this_version(version: str) -> None:
    """In the form of Keep a Changelog: what is not out yet first, then versions, the newest first."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert heads[:2] == ["Unreleased", version]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)", text, re.MULTILINE)) <= kinds
