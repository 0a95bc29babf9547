"""The Debian package, installed over a copy of this machine's root that is thrown away, without a network."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lvmigrate.explanation import EXPLANATIONS
from lvmigrate.service.settings import Settings
from lvmigrate.words import parser
from tests.package.conftest import ROOT, run
from tests.package.test_distribution import differences

#: A file system over the root whose changes are in memory; nothing of this checkout or of root's own is in it.
SET_UP = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/changes" "$1/work" "$1/root"
mount -t overlay overlay -o lowerdir=/,upperdir="$1/changes",workdir="$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --bind /dev "$1/root/dev"
for hidden in /root /tmp "$2"; do
    mkdir -p "$1/root$hidden"
    mount -t tmpfs tmpfs "$1/root$hidden"
done
cp "$3" "$1/root/tmp"
echo ready
exec sleep infinity
"""
HOME = Path("usr/lib/lvmigrate")
Root = Callable[[str], str]


@pytest.fixture(scope="module")
def root(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    """Runs shell commands where the package was installed."""
    folder = tmp_path_factory.mktemp("root")
    unshare = ["unshare", "--mount", "--net", "sh", "-c", SET_UP, "-", str(folder), str(ROOT), str(deb)]
    with subprocess.Popen(unshare, stdout=subprocess.PIPE, text=True) as world:
        try:
            assert world.stdout is not None
            assert world.stdout.readline() == "ready\n"
            enter = ["nsenter", "--target", str(world.pid), "--mount", "--net", "chroot", folder / "root"]

            def inside(script: str) -> str:
                return run(*enter, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "sh", "-ec", script)

            inside("dpkg --install /tmp/*.deb")
            yield inside
        finally:
            world.kill()


@pytest.fixture(scope="module")
def unpacked(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    run("dpkg-deb", "--extract", deb, folder)
    return folder


def test_the_command(root: Root, version: str) -> None:
    assert root("lvmigrate --version") == f"lvmigrate {version}\n"
    assert set(root("lvmigrate --help").split()) >= {"migrate", "cleanup", "doctor", "drain"}
    assert "LOCKED" in root("lvmigrate explain LOCKED")
    assert '"exit_codes"' in root("lvmigrate explain --json")


def test_its_configuration_is_the_one_in_etc(root: Root) -> None:
    told = root("lvmigrate node 2>&1 || echo exit $?")
    assert "There is no configuration file /etc/lvmigrate/cluster.toml" in told
    assert told.endswith("exit 6\n")
    root("cp /etc/lvmigrate/cluster.toml.example /etc/lvmigrate/cluster.toml")
    assert {"alpha", "beta"} <= set(root("lvmigrate node").split())


def test_it_is_shut_off_from_the_caller_s_python(root: Root) -> None:
    root("mkdir -p /tmp/evil && echo 'raise SystemExit(9)' >/tmp/evil/rich.py && cp /tmp/evil/rich.py /tmp/evil/sh.py")
    assert root("cd /tmp/evil && PYTHONPATH=/tmp/evil lvmigrate explain 5")
    libraries = root(
        f"/{HOME}/bin/python -I -c 'import rich, sh, structlog, libvirt; print(rich, sh, structlog, libvirt)'"
    )
    assert libraries.count(f"/{HOME}/lib/python3") == 4


def complete(root: Root, line: str) -> set[str]:
    """What Tab offers at the end of ``line``."""
    words = line.split(" ")
    script = f"""
source /usr/share/bash-completion/completions/lvmigrate
COMP_WORDS=({" ".join(map(shlex.quote, words))}) COMP_CWORD={len(words) - 1}
_shtab_lvmigrate
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    return set(root(f"bash -c {shlex.quote(script)}").split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("lvmigrate re", {"rehearse", "report", "return"}),
        ("lvmigrate migrate web1 --mo", {"--mode"}),
        ("lvmigrate migrate web1 --mode p", {"post-copy"}),
        ("lvmigrate migrate --policy f", {"force"}),
        ("lvmigrate explain LO", {"LOCKED"}),
        ("lvmigrate status --config /etc/lvm", {"/etc/lvm", "/etc/lvmigrate"}),
        ("lvmigrate failover web1 --definition k", set()),
    ],
)
def test_the_completion(root: Root, line: str, offered: set[str]) -> None:
    found = complete(root, line)
    assert found == offered if not line.endswith("/etc/lvm") else "/etc/lvmigrate" in found


def test_the_completion_has_every_command_and_every_option(root: Root) -> None:
    (commands,) = (action.choices for action in parser()._actions if isinstance(action.choices, dict))
    assert complete(root, "lvmigrate ") == set(commands)
    for name, command in commands.items():
        options = {word for action in command._actions for word in action.option_strings}
        assert complete(root, f"lvmigrate {name} -") == options


def test_the_manual_page(root: Root) -> None:
    page = root("zcat /usr/share/man/man1/lvmigrate.1.gz")
    for word in ("lvmigrate drain", r"\-\-keep\-definition", "exit codes: 0 ok"):
        assert word in page


def test_nothing_stays_when_it_is_removed(root: Root) -> None:
    """Not even what Python writes beside what it reads: root has used it above."""
    owned = set(root("dpkg --listfiles lvmigrate").split())
    there = set(root(f"find /{HOME}").split())
    assert there - owned == set()
    root("cp -a /tmp/*.deb /run/ && rm -f /etc/lvmigrate/cluster.toml && dpkg --purge lvmigrate")
    assert root(f"ls -d /{HOME} /etc/lvmigrate /usr/bin/lvmigrate 2>/dev/null || true") == ""
    root("dpkg --install /run/lvmigrate_*.deb")


def test_every_file_is_there_as_it_is_here(unpacked: Path) -> None:
    (site,) = (unpacked / HOME).glob("lib/python3*/site-packages")
    assert differences(site) == set()


def test_nothing_in_it_names_where_it_was_built(unpacked: Path) -> None:
    marks = (str(ROOT).encode(), b"/tmp/tmp.", b"/.pyenv/")
    files = [path for path in unpacked.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 500
    assert [path for path in files if any(mark in path.read_bytes() for mark in marks)] == []


def test_what_it_depends_on(deb: Path) -> None:
    """The interpreter it was made for, libvirt's library as its own compiled part wants it, and ssh."""
    depends = run("dpkg-deb", "--field", deb, "Depends")
    assert re.search(r"\bpython3\.\d+\b", depends)
    assert re.search(r"\blibvirt0 \(>= [\d.]+\)", depends)
    assert "openssh-client" in depends


def test_the_service_comes_with_it(root: Root) -> None:
    """What it needs is there, its user is made, and nothing is turned on."""
    root(f"/{HOME}/bin/python -I -c 'import lvmigrate.service.server'")
    user = root("getent passwd lvmigrate").split(":")
    assert user[5:] == ["/var/lib/lvmigrate", "/usr/sbin/nologin\n"]
    assert root("ls /etc/systemd/system/multi-user.target.wants/lvmigrate.service 2>/dev/null || true") == ""


def test_its_unit(unpacked: Path) -> None:
    (unit,) = unpacked.rglob("lvmigrate.service")
    (started,) = re.findall(r"^ExecStart=/usr/bin/lvmigrate (\w+)", unit.read_text(), re.MULTILINE)
    (commands,) = (action.choices for action in parser()._actions if isinstance(action.choices, dict))
    assert started in commands
    # Told by systemd itself: a word that it does not know, a file that is not there.
    command = unpacked / "usr/bin/lvmigrate"
    told = unit.read_text().replace("/usr/bin/lvmigrate", "/usr/bin/env").replace("man:lvmigrate(1) ", "")
    assert command.is_symlink()
    changed = unpacked.parent / "lvmigrate.service"
    changed.write_text(told)
    assert run("systemd-analyze", "verify", "--man=no", changed) == ""


def test_whoever_reads_tokens_cannot_be_the_service(unpacked: Path) -> None:
    """/run/lvmigrate is root's on a host: a guard runs what lies there."""
    (unit,) = unpacked.rglob("lvmigrate.service")
    (directory,) = re.findall(r"^RuntimeDirectory=(.*)$", unit.read_text(), re.MULTILINE)
    assert directory == Path(Settings().socket).parent.name != "lvmigrate"


def test_its_pages_are_where_their_links_and_the_command_name_them(unpacked: Path) -> None:
    """Not compressed either: a link knows no .gz."""
    there = unpacked / "usr/share/doc/lvmigrate"
    pages = [there / "README.md", there / "CHANGELOG.md", *sorted((there / "docs").rglob("*.md"))]
    assert len(pages) > 25
    wrong = []
    for page in pages:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)#\s]+)", text):
            # The docstrings are where Python has them.
            if not re.match(r"[a-z]+:", link) and not link.endswith("__init__.py"):
                wrong += [f"{page}: {link}"] if not (page.parent / link).exists() else []
    wrong += [one.where for one in EXPLANATIONS.values() if not (there / one.where.partition("#")[0]).is_file()]
    (unit,) = unpacked.rglob("lvmigrate.service")
    (page,) = re.findall(r"file:/(\S+)", unit.read_text())
    assert (unpacked / page).is_file()
    assert wrong == []
