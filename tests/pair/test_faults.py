"""What libvirt itself refuses, and where a move's end is not what the call says: after each, the guest is whole.

Most of this is refused before a move begins (tests/pair/test_refusals.py); here it comes true only afterwards.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from lvmigrate.errors import Code
from tests.pair.bench import STRICT, Bench, ended
from tests.pair.guest import CALM, Guest
from tests.pair.host import wait_until
from tests.pair.test_refusals import EMULATOR, USUAL, renamed

ANOTHER = "7b1c9a40-0000-4000-8000-000000000009"


def refused(bench: Bench, guest: Guest | None = None) -> tuple[Code, str]:
    """What became of a copy that must not succeed; the guest still runs at the source, and is nowhere else."""
    guest = bench.guest if guest is None else guest
    found = bench.hv.domain("node1", guest.uuid)
    assert found is not None
    end = ended(bench.hv.copy_memory(found, "node2", STRICT))
    assert not end.ok
    bench.pair.whole(guest, on=bench.pair.one)
    wait_until(lambda: bench.hv.domain("node1", guest.uuid) == found, "it is as it was, without a job")
    return end.code, end.detail


def test_a_copy_is_aborted_while_the_link_is_cut(bench: Bench) -> None:
    """The abort is heard at once, and the job ends with the daemons' patience."""
    copy = bench.start(STRICT)
    bench.pair.one.link(up=False)
    copy.abort()
    assert not ended(copy).ok
    bench.sees(bench.pair.one, ("running", "booted", "none"))
    bench.hv.discard("node2", bench.guest.uuid)
    bench.pair.one.link(up=True)
    bench.pair.whole(bench.guest, on=bench.pair.one)


def test_a_target_that_cannot_be_reached(bench: Bench) -> None:
    bench.pair.one.link(up=False)
    _, detail = refused(bench)
    assert "libvirt error 38" in detail
    assert bench.look(bench.pair.two) is None


def test_a_second_copy_of_the_same_guest(bench: Bench) -> None:
    first = bench.start(STRICT)
    second = ended(bench.hv.copy_memory(bench.source(), "node2", STRICT))
    assert not second.ok
    assert second.code is Code.JOB_ACTIVE, second
    assert first.wait(0) is None
    bench.hurry()
    assert ended(first).ok
    bench.hv.resume("node2", bench.guest.uuid)
    bench.pair.whole(bench.guest, on=bench.pair.two)


def test_a_guest_that_does_not_run(bench: Bench) -> None:
    found = bench.source()
    bench.hv.power_off("node1", bench.guest.uuid)
    end = ended(bench.hv.copy_memory(found, "node2", STRICT))
    assert (end.ok, end.code) == (False, Code.INSTANCE_STATE), end
    assert bench.look(bench.pair.two) is None


@pytest.mark.parametrize("taken", ["name", "uuid"])
def test_a_name_or_an_id_that_runs_on_the_target(bench: Bench, tmp_path: Path, taken: str) -> None:
    guest = bench.guest
    kept, changed = (guest.uuid, ANOTHER) if taken == "name" else ("<name>web1<", "<name>web2<")
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    file = tmp_path / "another.xml"
    xml = guest.xml.replace(kept, changed).replace("type='block' device='disk'", "type='file' device='disk'")
    xml = re.sub(r"<serial type='udp'>.*</serial>", "", xml)  # it is not to be heard in this one's place
    file.write_text(xml.replace(f"dev='{guest.disk.path}'", f"file='{disk}'"))
    bench.pair.two.virsh("create", str(file))
    code, _ = refused_beside_another(bench)
    assert code is Code.INSTANCE_ON_TARGET
    assert bench.pair.two.virsh("list", "--name") == ("web1" if taken == "name" else "web2")


def refused_beside_another(bench: Bench) -> tuple[Code, str]:
    """As `refused`, where the target has a guest that looks like this one."""
    end = ended(bench.hv.copy_memory(bench.source(), "node2", STRICT))
    assert not end.ok
    bench.sees(bench.pair.one, ("running", "booted", "none"))
    bench.guest.runs()
    assert bench.guest.faults() == ()
    return end.code, end.detail


def test_a_disk_that_the_target_has_not(bench: Bench) -> None:
    bench.pair.two.run(f"rm {bench.guest.disk.path}")
    code, detail = refused(bench)
    assert code is Code.REPLICA_MISSING, detail


def test_a_cpu_that_the_target_has_not(bench: Bench) -> None:
    one, two = bench.pair.hosts
    shutil.copy(USUAL, bench.pair.folder / "qemu")
    one.run(f"cp {bench.pair.folder}/qemu {EMULATOR}")
    renamed(Path(USUAL), bench.pair.folder / "another", {b"\0avx2\0": b"\0avy2\0"})
    two.run(f"cp {bench.pair.folder}/another {EMULATOR}")

    def change(xml: str) -> str:
        cpu = "<cpu mode='custom' match='exact'><model>Nehalem</model><feature name='avx2' policy='require'/></cpu>"
        return xml.replace(USUAL, EMULATOR).replace("<features>", f"{cpu}<features>")

    guest = bench.pair.guest("web2", on=one, load=CALM, change=change)
    code, detail = refused(bench, guest)
    assert code is Code.CPU_LACKS, detail
