"""guard.sh for real on this machine: what it decides, and the service from its arming to its end.

systemd, libvirt and DRBD play a part: programs in PATH that answer from files.  The shell, the files below /run, the
locks and the processes are real.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lvmigrate.errors import Code, CommandFailed, TokenLost
from lvmigrate.guard import Act, Copy, Link, decide
from lvmigrate.replication import ConnectionOptions
from lvmigrate.token import Errand, Guarded, Token
from storage import remote, shell
from storage.drbd import DrbdStorage
from tests.unit.storage.conftest import FakeNode, here

SCRIPT = "".join(Path(remote.__file__).with_name(name).read_text() for name in ("node.sh", "guard.sh"))
TOKEN = Token(
    uuid="0b6f0c3e-0000-4000-8000-00000000000a",
    instance="db1",
    id="ours",
    holder="a test",
    lease_s=60,
    errand=Errand(source="node1", target="node2", ran=True, autostart=True, target_had_definition=False),
    guarded=True,
)
BEFORE = ConnectionOptions(allow_two_primaries=False, protocol=None, auto_promote=False)


# ---- what it decides


@pytest.mark.parametrize("reader", [["sh"], ["bash", "--posix"]])
def test_any_posix_shell_reads_it(reader: list[str]) -> None:
    done = subprocess.run([*reader, "-n"], input=SCRIPT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def in_words(copy: Copy, links: Sequence[Link], *, alive: bool, resume: bool) -> str:
    yes_no = {True: "yes", False: "no"}
    digits = (
        "".join(
            str(int(fact))
            for fact in (
                link.primary,
                link.held,
                link.connected,
                link.peer_secondary,
                link.in_step,
                link.unbroken,
                link.changed,
            )
        )
        for link in links
    )
    return " ".join((yes_no[alive], yes_no[resume], copy.value, *digits))


def link(facts: Sequence[bool]) -> Link:
    primary, held, connected, peer_secondary, in_step, unbroken, changed = facts
    return Link(
        primary=primary,
        held=held,
        connected=connected,
        peer_secondary=peer_secondary,
        in_step=in_step,
        unbroken=unbroken,
        changed=changed,
    )


LINKS = [link(facts) for facts in itertools.product((False, True), repeat=7)]


def groups() -> Iterator[tuple[Link, ...]]:
    """None, every single one, many pairs, some threes."""
    draw = random.Random(5)
    yield ()
    yield from ((one,) for one in LINKS)
    pairs = list(itertools.product(LINKS, repeat=2))
    yield from draw.sample(pairs, 3000)
    for _ in range(500):
        yield tuple(draw.choices(LINKS, k=3))


@pytest.mark.parametrize("shell", [["sh"], ["bash", "--posix"]])
def test_it_decides_as_the_function_does(shell: list[str]) -> None:
    cases = [
        (copy, links, alive, resume)
        for links in groups()
        for copy in Copy
        for alive in (False, True)
        for resume in (False, True)
    ]
    asked = "".join(in_words(copy, links, alive=alive, resume=resume) + "\n" for copy, links, alive, resume in cases)
    script = f"root=\npatience=1\n{SCRIPT}\nwhile read -r line; do decide $line; done\n"
    done = subprocess.run([*shell, "-c", script], input=asked, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    said = done.stdout.splitlines()
    assert len(said) == len(cases)
    seen = set()
    for (copy, links, alive, resume), words in zip(cases, said, strict=True):
        act, about = decide(copy, links, alive=alive, resume=resume)
        seen.add(act)
        wanted = act.name if about is None else f"{act.name} {about}"
        assert words == wanted, (copy, links, alive, resume)
    assert seen == set(Act)


# ---- the service

_VIRSH = """#!/bin/sh
here={root}
[ ! -e "$here/silent" ] || exit 1
[ ! -e "$here/silent.about.ends" ] || case "$*" in *'--all'*) exit 1 ;; esac
[ ! -e "$here/slow" ] || /bin/sleep 4
case "$*" in
    *'list --uuid'*) cat "$here/active" ;;
    *'list --all --uuid'*) cat "$here/active" "$here/defined" ;;
    *domstate*) cat "$here/state" ;;
    *domjobinfo*) cat "$here/job"; exit "$(cat "$here/job.status")" ;;
    *resume*) echo "resume ${{5-}}" >>"$here/told"; echo 'running (unpaused)' >"$here/state" ;;
    *) exit 9 ;;
esac
"""
_SYSTEMD_RUN = """#!/bin/sh
here={root}
[ ! -e "$here/refuse" ] || {{ echo 'no bus here' >&2; exit 1; }}
echo "$*" >>"$here/services"
[ ! -e "$here/dead" ] || exit 0
for word; do
    last=$word
    case $word in --unit=*) unit=$here/run/systemd/transient/${{word#*=}} ;; esac
done
mkdir -p "${{unit%/*}}"
echo >"$unit"
# As --collect has it: of one that has ended nothing is known.
setsid sh -c 'sh -c "$1"; /bin/rm -f "$2"' - "$last" "$unit" >>"$here/journal" 2>&1 9>&- </dev/null &
echo $! >"$here/pid"
"""
_SYSTEMCTL = """#!/bin/sh
pid=$(cat {root}/pid 2>/dev/null)
runs() {{ [ -n "$pid" ] && grep -q '^State:.[^Z]' "/proc/$pid/status" 2>/dev/null; }}
case "$*" in
    *is-active*) if runs; then echo active; else echo inactive; exit 3; fi ;;
    stop*) [ ! -e {root}/refuse.stop ] || exit 1
        if runs; then kill -- "-$pid"; while runs; do /bin/sleep 0.02; done; fi
        /bin/rm -f {root}/run/systemd/transient/* ;;
esac
"""
#: Between writing a file and its being in place lies as long as a test likes.
_MV = """#!/bin/sh
case "$*" in
    *"$(cat {root}/halfway 2>/dev/null || echo nothing)"*) echo >{root}/reached; exec /bin/sleep 60 ;;
esac
exec /bin/mv "$@"
"""
#: And as long between the removal of one file and the next.
_RM = """#!/bin/sh
[ ! -e {root}/slowly ] || case "$*" in
    *.guard*) /bin/rm -f "$2"; echo >{root}/reached; exec /bin/sleep 60 ;;
esac
exec /bin/rm "$@"
"""
#: Holds until it is ended; at most as long as a test takes.
_INHIBIT = """#!/bin/sh
[ ! -e {root}/no.logind ] || {{ echo 'no bus here' >&2; exit 1; }}
echo "holds $*" >>{root}/inhibited
case "$*" in *" cat") /bin/cat; echo released >>{root}/inhibited; exit ;; esac
trap 'echo released >>{root}/inhibited; kill $!; exit' TERM
/bin/sleep 300 & wait
"""
_SLEEP = """#!/bin/sh
exec /bin/sleep 0.1
"""
#: The kernel does what it is told.
_REACT = """#!/bin/sh
here={root}
case "$*" in
    secondary*) [ "$(cat "$here/status")" != 0 ] || sed -i '/resource/s/role:Primary/role:Secondary/' "$here/dump" ;;
    net-options*--allow-two-primaries=no*) sed -i '/allow-two-primaries/d' "$here/show" ;;
esac
"""


class Host(FakeNode):
    """A node whose systemd, libvirt and DRBD are driven by a test."""

    def __init__(self, node: FakeNode, name: str) -> None:
        self.root = node.root
        self.name = name
        (self.root / "run/systemd/system").mkdir(parents=True)
        programs = {"virsh": _VIRSH, "systemd-run": _SYSTEMD_RUN, "systemctl": _SYSTEMCTL, "sleep": _SLEEP}
        programs |= {"mv": _MV, "rm": _RM, "systemd-inhibit": _INHIBIT}
        for program, text in programs.items():
            self.program(f"bin/{program}", text.format(root=self.root))
        # 8.4's was recorded before its first synchronisation.
        self.put("dump", (self.root / "dump").read_text().replace("disk:Inconsistent", "disk:UpToDate"))
        self.program("react", _REACT.format(root=self.root))
        for file, text in {
            "active": "",
            "defined": "",
            "state": "",
            "job": "Job type:         None\n\n",
            "job.status": "0",
            "gi": "4357AFD76E41E07E:0000000000000000:0000000000000000:0000000000000000:1:1:0:1:0:0:0\n",
            "journal": "",
            "inhibited": "",
        }.items():
            self.put(file, text)

    def program(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)
        (self.root / name).chmod(0o755)

    def change(self, file: str, old: str, new: str) -> None:
        text = (self.root / file).read_text()
        assert old in text
        # As a whole: the guard reads it at any time.
        (self.root / "new").write_text(text.replace(old, new))
        (self.root / "new").rename(self.root / file)

    def opened(self) -> None:
        """As in a move: two primaries are allowed, and this node is one."""
        self.change("show", "net {", "net {\n        allow-two-primaries yes;")
        self.change("dump", f"resource name:{self.name} role:Secondary", f"resource name:{self.name} role:Primary")

    def guest(self, state: str) -> None:
        self.put("state", f"{state}\n\n")
        self.put("active", f"{TOKEN.uuid}\n\n")

    @property
    def left(self) -> list[str]:
        return sorted(path.name for path in self.tokens.iterdir()) if self.tokens.exists() else []

    @property
    def closed(self) -> list[str]:
        """What a guard tells DRBD to close what `opened` opened."""
        off = "--protocol=C --allow-two-primaries=no"
        if self.name == "r0":
            return ["secondary 0", f"net-options ipv4:10.77.0.1:7788 ipv4:10.77.0.2:7788 {off}"]
        return ["secondary r1", f"net-options r1 1 {off}"]

    def end(self) -> None:
        """No guard outlives its test."""
        with_pid = self.root / "pid"
        if with_pid.exists():
            try:
                os.killpg(int(with_pid.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                return


@pytest.fixture(params=["drbd84", "drbd93"])
def host(request: pytest.FixtureRequest, fake: Callable[[str], FakeNode]) -> Iterator[Host]:
    made = Host(fake(request.param), {"drbd84": "r0", "drbd93": "r1"}[request.param])
    yield made
    made.end()


@pytest.fixture
def guarded(host: Host) -> list[Guarded]:
    return [Guarded(resource=host.name, peer="node2", options=BEFORE)]


def eventually(holds: Callable[[], bool], within_s: float = 20) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False


def says(storage: DrbdStorage) -> str:
    guard = storage.traces("node1").guard(TOKEN.uuid)
    return "" if guard is None else guard.says


SHORT = replace(TOKEN, lease_s=1.5)


def test_it_sleeps_as_long_as_the_token_lives(host: Host, storage: DrbdStorage, guarded: list[Guarded]) -> None:
    assert storage.take_token("node1", SHORT) is None
    storage.arm_guard("node1", SHORT, guarded, resume=True)
    host.opened()
    (seen,) = storage.traces("node1").guards
    assert (seen.uuid, seen.instance, seen.node) == (TOKEN.uuid, "db1", "node1")
    assert (seen.alive, seen.resume, seen.says) == (True, True, "")
    assert list(seen.guarded) == guarded
    began = time.monotonic()
    while time.monotonic() - began < 2 * SHORT.lease_s:
        storage.renew_token("node1", SHORT)
        written, acknowledged = (
            (host.tokens / f"{TOKEN.uuid}.{end}").read_text().splitlines() for end in ("token", "seen")
        )
        assert acknowledged[0] == written[1]
    assert host.told == []
    (service,) = (host.root / "services").read_text().splitlines()
    assert f"--unit=lvmigrate-guard-{TOKEN.uuid}.service" in service
    storage.disarm_guard("node1", SHORT)
    storage.disarm_guard("node1", SHORT)
    assert storage.traces("node1").guards == ()
    storage.drop_token("node1", SHORT)
    assert host.left == []


def test_no_shutdown_while_the_token_lives_and_not_a_moment_longer(
    host: Host, storage: DrbdStorage, guarded: list[Guarded]
) -> None:
    def inhibited() -> list[str]:
        return (host.root / "inhibited").read_text().splitlines()

    assert storage.take_token("node1", SHORT) is None
    storage.arm_guard("node1", SHORT, guarded, resume=False)
    host.opened()
    assert eventually(lambda: len(inhibited()) == 1)
    for _ in range(8):  # longer than one lease
        storage.renew_token("node1", SHORT)
        time.sleep(0.3)
    (holds,) = inhibited()
    assert holds.startswith("holds --what=shutdown:sleep --mode=block --who=lvmigrate ")
    assert holds.endswith(" sleep infinity")
    host.put(
        "silent", ""
    )  # the guard goes on for as long as libvirt gives no answer; the shutdown does not wait for it
    assert eventually(lambda: len(inhibited()) == 2, within_s=5)
    assert inhibited()[1] == "released"
    assert storage.traces("node1").guards
    (host.root / "silent").unlink()
    assert eventually(lambda: host.left == [f"{SHORT.uuid}.token"]), says(storage)


def test_a_disarmed_guard_holds_nothing_back(host: Host, storage: DrbdStorage, guarded: list[Guarded]) -> None:
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    assert eventually(lambda: "holds" in (host.root / "inhibited").read_text())
    storage.disarm_guard("node1", TOKEN)
    assert eventually(lambda: "released" in (host.root / "inhibited").read_text(), within_s=5)


def test_a_move_without_a_guard_holds_a_shutdown_back_itself(host: Host, storage: DrbdStorage) -> None:
    inhibited = host.root / "inhibited"
    with storage.inhibit("node1", TOKEN):
        assert eventually(lambda: "holds" in inhibited.read_text())
        (holds,) = inhibited.read_text().splitlines()
        assert holds.startswith("holds --what=shutdown:sleep --mode=block --who=lvmigrate ")
        assert TOKEN.uuid in holds
    assert eventually(lambda: "released" in inhibited.read_text())


@pytest.mark.parametrize("heard", [True, False])
def test_it_holds_a_shutdown_back_for_as_long_as_it_is_heard(
    host: Host, storage: DrbdStorage, monkeypatch: pytest.MonkeyPatch, *, heard: bool
) -> None:
    """A command whose link was cut has ended long ago, and sshd knows nothing of it."""
    monkeypatch.setenv("quiet_s", "2")
    monkeypatch.setattr(shell, "BEAT_S", 0.1 if heard else 600)
    inhibited = host.root / "inhibited"
    with storage.inhibit("node1", TOKEN):
        assert eventually(lambda: "holds" in inhibited.read_text())
        assert eventually(lambda: "released" in inhibited.read_text(), within_s=5 if heard else 30) is not heard
    assert eventually(lambda: "released" in inhibited.read_text())


def test_a_move_goes_on_where_nothing_holds_a_shutdown_back(host: Host, storage: DrbdStorage) -> None:
    host.put("no.logind", "")
    with storage.inhibit("node1", TOKEN):
        assert storage.take_token("node1", TOKEN) is None
    with storage.inhibit("nowhere", TOKEN):
        assert storage.take_token("node1", TOKEN) is None


def test_a_node_that_cannot_hold_a_shutdown_back_is_guarded_all_the_same(
    host: Host, storage: DrbdStorage, guarded: list[Guarded]
) -> None:
    host.put("no.logind", "")
    assert storage.take_token("node1", SHORT) is None
    storage.arm_guard("node1", SHORT, guarded, resume=False)
    host.opened()
    assert eventually(lambda: host.left == [f"{SHORT.uuid}.token"]), says(storage)
    assert host.told == host.closed
    assert (host.root / "journal").read_text().count("no bus here") == 1


@pytest.mark.parametrize("dropped", [False, True], ids=["ran out", "dropped"])
def test_without_a_token_it_closes_what_was_opened(
    host: Host, storage: DrbdStorage, guarded: list[Guarded], *, dropped: bool
) -> None:
    token = TOKEN if dropped else SHORT
    assert storage.take_token("node1", token) is None
    storage.arm_guard("node1", token, guarded, resume=False)
    host.opened()
    if dropped:
        storage.drop_token("node1", token)
    # A token that ran out stays: it is the record that a cleanup reads.
    left = [] if dropped else [f"{token.uuid}.token"]
    assert eventually(lambda: host.left == left), says(storage)
    assert host.told == host.closed
    assert eventually(lambda: storage.traces("node1").guards == ())
    # And under another id: a command that wakes up late must not open again what nobody would close.
    with pytest.raises(TokenLost):
        storage.renew_token("node1", token)


def test_a_libvirt_that_takes_its_time_is_waited_for(
    host: Host, storage: DrbdStorage, guarded: list[Guarded], tmp_path: Path
) -> None:
    # Seconds for each question, as on a node that is busy: less than others wait for the lock.
    patient = DrbdStorage(storage._remote._nodes, command_timeout_s=90, root=str(tmp_path))
    assert patient.take_token("node1", SHORT) is None
    patient.arm_guard("node1", SHORT, guarded, resume=False)
    host.opened()
    host.put("slow", "")
    assert eventually(lambda: host.left == [f"{TOKEN.uuid}.token"], within_s=120), says(storage)
    assert host.told == host.closed
    patient.close()


def test_another_protocol_is_restored_exactly(host: Host, storage: DrbdStorage) -> None:
    options = replace(BEFORE, protocol="A", allow_two_primaries=False)
    guarded = [Guarded(resource=host.name, peer="node2", options=options)]
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    assert storage.traces("node1").guards[0].guarded == tuple(guarded)
    # Only the protocol differs.
    storage.drop_token("node1", TOKEN)
    assert eventually(lambda: host.told != [])
    assert host.told[0] == host.closed[1].replace("--protocol=C", "--protocol=A")
    host.change("show", "net {", "net {\n        protocol A;")
    assert eventually(lambda: host.left == []), says(storage)


def test_two_primaries_stay_during_a_cut(host: Host, storage: DrbdStorage, guarded: list[Guarded]) -> None:
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    host.opened()
    host.put("defined", f"{TOKEN.uuid}\n\n")
    host.put("state", "shut off (shutdown)\n\n")
    host.change("dump", "connection:Connected", "connection:Connecting")
    storage.drop_token("node1", TOKEN)
    assert eventually(lambda: "not connected to node2" in says(storage)), says(storage)
    assert host.told == host.closed[:1]
    host.change("dump", "connection:Connecting role:Secondary", "connection:Connected role:Primary")
    assert eventually(lambda: "node2 is not Secondary" in says(storage)), says(storage)
    assert host.told == host.closed[:1]
    host.change("dump", "connection:Connected role:Primary", "connection:Connected role:Secondary")
    assert eventually(lambda: host.left == []), says(storage)
    assert host.told == host.closed


def test_a_device_that_is_held_is_not_demoted(host: Host, storage: DrbdStorage, guarded: list[Guarded]) -> None:
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    host.opened()
    host.put("said", "State change failed: (-12) Device is held open by someone\n")
    host.status = 11
    storage.drop_token("node1", TOKEN)
    assert eventually(lambda: len(host.told) > 8)
    assert set(host.told) == set(host.closed[:1])
    host.status = 0
    assert eventually(lambda: host.left == []), says(storage)


@pytest.mark.parametrize("trouble", ["silent", "silent.about.ends", "arriving", "outgoing", "no state"])
def test_while_libvirt_is_busy_or_silent_it_waits(
    host: Host, storage: DrbdStorage, guarded: list[Guarded], trouble: str
) -> None:
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=True)
    host.opened()
    if trouble.startswith("silent"):
        host.put(trouble, "")
    else:
        host.guest("no state" if trouble == "no state" else "paused (migration)")
        if trouble == "arriving":
            host.put("job", "")
            host.put("job.status", "1")
        elif trouble == "outgoing":
            host.put("job", "Job type:         Unbounded\nOperation:        Outgoing migration\n")
    storage.drop_token("node1", TOKEN)
    wanted = "job of the guest" if trouble in {"arriving", "outgoing"} else "no clear answer"
    assert eventually(lambda: wanted in says(storage)), says(storage)
    time.sleep(1)
    assert host.told == []
    (host.root / trouble).unlink(missing_ok=True)
    host.put("active", "")
    assert eventually(lambda: host.left == []), says(storage)
    assert host.told == host.closed


def test_a_libvirt_that_is_silent_keeps_nobody_waiting_for_the_lock(
    host: Host, storage: DrbdStorage, guarded: list[Guarded]
) -> None:
    assert storage.take_token("node1", SHORT) is None
    storage.arm_guard("node1", SHORT, guarded, resume=False)
    host.put("silent", "")
    with (host.tokens / f"{TOKEN.uuid}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert eventually(lambda: "no clear answer" in says(storage)), says(storage)


def test_a_guest_that_arrived_and_waits_is_resumed_on_proof(
    host: Host, storage: DrbdStorage, guarded: list[Guarded]
) -> None:
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=True)
    host.opened()
    # This node is Primary now: the lowest bit is not of the generation.
    host.change("gi", "E07E:", "E07F:")
    host.guest("paused (user)")
    host.change("dump", "connection:Connected role:Secondary", "connection:Connected role:Primary")
    storage.drop_token("node1", TOKEN)
    assert eventually(lambda: "node2 is not Secondary" in says(storage)), says(storage)
    assert host.told == []
    host.change("dump", "connection:Connected role:Primary", "connection:Connected role:Secondary")
    assert eventually(lambda: "has not forbidden two primaries" in says(storage)), says(storage)
    assert host.told == []
    # The other node's guard forbids two primaries, which this one sees, too: that is its word.
    host.change("show", "allow-two-primaries yes;", "")
    assert eventually(lambda: host.told == [f"resume {TOKEN.uuid}"]), says(storage)
    # It runs, and by that holds its device, as the kernel of this machine does not know: nothing more is done.
    assert eventually(lambda: "waits:" in says(storage)), says(storage)
    assert len(host.told) == 1


@pytest.mark.parametrize(
    ("ran", "runs_now", "may"),
    [(True, True, True), (True, False, True), (False, True, True), (False, False, True), (True, True, False)],
)
def test_whether_it_is_to_run_is_the_tokens_word(
    host: Host, storage: DrbdStorage, guarded: list[Guarded], *, ran: bool, runs_now: bool, may: bool
) -> None:
    """Somebody may have let the guest run, or suspended it, since the guard was armed."""
    assert TOKEN.errand is not None
    then = replace(TOKEN, errand=replace(TOKEN.errand, ran=ran))
    now = replace(TOKEN, errand=replace(TOKEN.errand, ran=runs_now), lease_s=1.5)
    assert storage.take_token("node1", then) is None
    storage.arm_guard("node1", then, guarded, resume=may)
    host.change("dump", f"resource name:{host.name} role:Secondary", f"resource name:{host.name} role:Primary")
    host.change("gi", "E07E:", "E07F:")
    host.guest("paused (user)")
    storage.renew_token("node1", now)
    if runs_now and may:
        assert eventually(lambda: host.told == [f"resume {TOKEN.uuid}"]), says(storage)
    else:
        assert eventually(lambda: "waits:" in says(storage)), says(storage)
        time.sleep(1)
        assert host.told == []


def test_a_service_that_has_lost_its_files_is_ended_first(
    host: Host, storage: DrbdStorage, guarded: list[Guarded]
) -> None:
    """One that was killed right after it had removed them is started again by systemd, for ever."""
    assert storage.take_token("node1", TOKEN) is None
    unit = host.root / f"run/systemd/transient/lvmigrate-guard-{TOKEN.uuid}.service"
    unit.parent.mkdir(parents=True)
    unit.touch()
    with subprocess.Popen(["/bin/sleep", "300"], start_new_session=True) as first:
        host.put("pid", str(first.pid))
        storage.arm_guard("node1", TOKEN, guarded, resume=False)
        assert first.wait(20) == -signal.SIGTERM
    storage.disarm_guard("node1", TOKEN)


def test_around_a_guest_that_runs_and_holds_its_device_there_is_nothing_to_guard(
    host: Host, guarded: list[Guarded], device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = device.stat().st_rdev
    # DRBD's major is written into the script; here it is the loop device's.
    text = remote._SCRIPT.replace('"147:', f'"{os.major(number)}:').replace("block/147:", f"block/{os.major(number)}:")
    monkeypatch.setattr(remote, "_SCRIPT", text)
    host.change("dump", " minor:0 " if host.name == "r0" else " minor:10 ", f" minor:{os.minor(number)} ")
    if host.name == "r1":  # somebody else on this machine may use the loop device of that number
        host.change("dump", " minor:11 ", f" minor:{(1 << 20) - 1} ")
    storage = DrbdStorage({"node1": here("node1")}, command_timeout_s=20, root=str(tmp_path))
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    host.change("dump", f"resource name:{host.name} role:Secondary", f"resource name:{host.name} role:Primary")
    host.guest("running (booted)")
    storage.drop_token("node1", TOKEN)
    assert eventually(lambda: says(storage).startswith("waits:")), says(storage)
    with device.open("rb"):
        assert eventually(lambda: host.left == []), says(storage)
    assert host.told == []
    storage.close()


def test_beside_a_primary_a_primary_restores_nothing(host: Host, storage: DrbdStorage, guarded: list[Guarded]) -> None:
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    host.opened()
    host.change("dump", "connection:Connected role:Secondary", "connection:Connected role:Primary")
    orders = (host.tokens / f"{TOKEN.uuid}.guard").read_text().splitlines()
    (link,) = (order.removeprefix("link ") for order in orders if order.startswith("link "))
    # It had decided so a moment ago.
    script = f"root={host.root}\npatience=1\n{SCRIPT}\nrestore {link}\n"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, host.told) == (96, [])
    assert "neither end" in done.stderr
    storage.disarm_guard("node1", TOKEN)


@pytest.mark.parametrize("end", ["migrated", "crashed"])
def test_the_source_s_guard_gives_its_word_only_for_a_copy_that_was_handed_over(
    host: Host, storage: DrbdStorage, guarded: list[Guarded], end: str
) -> None:
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    host.opened()
    host.put("defined", f"{TOKEN.uuid}\n\n")
    host.put("state", f"shut off ({end})\n\n")
    # The guest waits on the target, and holds it Primary.
    host.change("dump", "connection:Connected role:Secondary", "connection:Connected role:Primary")
    storage.drop_token("node1", TOKEN)
    if end == "migrated":
        assert eventually(lambda: host.left == []), says(storage)
        assert host.told == host.closed
    else:
        assert eventually(lambda: "node2 is not Secondary" in says(storage)), says(storage)
        assert host.told == host.closed[:1]


def test_one_with_other_data_or_no_order_or_a_reason_of_its_own_is_not(
    host: Host, storage: DrbdStorage, guarded: list[Guarded]
) -> None:
    assert storage.take_token("node1", TOKEN) is None
    host.guest("paused (migration)")
    for resume, state, file, old, new in (
        (True, "paused (user)", "gi", "4357AFD76E41E07E:", "4357AFD76E41E07C:"),
        (True, "paused (user)", "dump", "peer-disk:UpToDate", "peer-disk:Outdated"),
        (True, "paused (user)", "dump", "replication:Established", "replication:SyncTarget"),
        (True, "paused (user)", "dump", "suspended:no", "suspended:user"),
        (True, "paused (user)", "dump", " disk:UpToDate", " disk:Inconsistent"),
        (True, "paused (user)", "dump", "volume:0 replication", "volume:9 replication"),
        # DRBD 8.4 knows no quorum.
        *([(True, "paused (user)", "dump", "quorum:yes", "quorum:no")] if host.name == "r1" else []),
        (True, "paused (I/O error)", "gi", "0000", "0000"),
        (True, "paused (migration)", "gi", "0000", "0000"),
        (False, "paused (user)", "gi", "0000", "0000"),
    ):
        storage.arm_guard("node1", TOKEN, guarded, resume=resume)
        role = f"resource name:{host.name} role:"
        host.change("dump", f"{role}Secondary", f"{role}Primary")
        host.guest(state)
        host.change(file, old, new)
        storage.drop_token("node1", TOKEN)
        assert eventually(lambda: says(storage).startswith("waits:")), says(storage)
        time.sleep(0.7)
        assert host.told == [], new
        assert storage.take_token("node1", TOKEN) is None
        storage.disarm_guard("node1", TOKEN)
        host.change(file, new, old)
        host.change("dump", f"{role}Primary", f"{role}Secondary")


def test_the_second_generation_that_9_begins_when_the_target_opens_its_device_keeps_no_guest_waiting(
    host: Host, storage: DrbdStorage, guarded: list[Guarded]
) -> None:
    first = "4357AFD76E41E07E:0000000000000000:0000000000000000:"
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=True)
    role = f"resource name:{host.name} role:"
    host.change("dump", f"{role}Secondary", f"{role}Primary")
    host.guest("paused (user)")
    host.change("gi", first, "11111111111111FF:0000000000000000:4357AFD76E41E07E:")
    storage.drop_token("node1", TOKEN)
    if host.name == "r1":
        assert eventually(lambda: host.told == [f"resume {TOKEN.uuid}"]), says(storage)
        return
    # Of 8.4 that is unheard of.
    assert eventually(lambda: "not those of the beginning" in says(storage)), says(storage)


def test_armed_again_it_keeps_what_it_compares_with(host: Host, storage: DrbdStorage, guarded: list[Guarded]) -> None:
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    first = (host.root / "pid").read_text()
    host.change("gi", "4357AFD76E41E07E:", "11111111111111FF:")
    storage.arm_guard("node1", TOKEN, guarded, resume=True)
    assert (host.root / "pid").read_text() != first
    orders = (host.tokens / f"{TOKEN.uuid}.guard").read_text()
    volumes = 1 if host.name == "r0" else 2
    assert orders.count("4357AFD76E41E07E") == volumes
    assert orders.count("gen ") == volumes
    assert storage.traces("node1").guards[0].resume
    # A new move begins anew.
    storage.disarm_guard("node1", TOKEN)
    storage.arm_guard("node1", TOKEN, guarded, resume=True)
    assert (host.tokens / f"{TOKEN.uuid}.guard").read_text().count("11111111111111FE") == volumes


def test_a_guard_that_was_killed_is_lost_and_said(host: Host, storage: DrbdStorage, guarded: list[Guarded]) -> None:
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    os.killpg(int((host.root / "pid").read_text()), signal.SIGKILL)
    assert eventually(lambda: not storage.traces("node1").guards[0].alive)
    with pytest.raises(CommandFailed) as caught:
        storage.renew_token("node1", TOKEN)
    assert caught.value.code is Code.GUARD_LOST
    storage.renew_token("node1", replace(TOKEN, guarded=False))
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    storage.renew_token("node1", TOKEN)
    assert storage.traces("node1").guards[0].alive
    storage.disarm_guard("node1", TOKEN)


def test_a_guard_that_systemd_only_says_to_have_started_is_not_believed(
    host: Host, storage: DrbdStorage, guarded: list[Guarded]
) -> None:
    assert storage.take_token("node1", TOKEN) is None
    host.put("dead", "")
    with pytest.raises(CommandFailed) as caught:
        storage.arm_guard("node1", TOKEN, guarded, resume=False)
    assert caught.value.code is Code.GUARD_LOST
    (host.root / "dead").unlink()
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    storage.disarm_guard("node1", TOKEN)
    assert storage.traces("node1").guards == ()


def test_beside_a_guard_that_does_not_stop_none_is_started(
    host: Host, storage: DrbdStorage, guarded: list[Guarded]
) -> None:
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    host.put("refuse.stop", "")
    with pytest.raises(CommandFailed, match="Arming the guard of db1 failed on node1") as caught:
        storage.arm_guard("node1", TOKEN, guarded, resume=False)
    assert "is active" in caught.value.detail
    assert storage.traces("node1").guard(TOKEN.uuid) is not None
    assert len((host.root / "services").read_text().splitlines()) == 1
    # Disarmed it is all the same: it ends by itself.
    storage.disarm_guard("node1", TOKEN)
    assert storage.traces("node1").guards == ()
    assert host.left == [f"{TOKEN.uuid}.lock", f"{TOKEN.uuid}.token"]


def test_a_guard_that_is_disarmed_acts_no_more(host: Host, storage: DrbdStorage, guarded: list[Guarded]) -> None:
    """Neither now nor once the token is gone; and one that is armed in the same moment is not mistaken for it."""
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    host.opened()
    storage.disarm_guard("node1", TOKEN)
    storage.drop_token("node1", TOKEN)
    assert host.left == []
    assert eventually(lambda: not list((host.root / "run/systemd/transient").iterdir()))
    assert (host.told, host.left) == ([], [])
    # One that was killed in this moment is started again by systemd: it finds nothing, and that is no failure.
    _, _, command = (host.root / "services").read_text().strip().partition(" -c ")
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    storage.disarm_guard("node1", TOKEN)
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    (seen,) = storage.traces("node1").guards
    assert seen.alive
    storage.drop_token("node1", TOKEN)
    assert eventually(lambda: host.told == host.closed), says(storage)


def test_a_guard_that_is_stopped_halfway_through_writing_leaves_nothing(
    host: Host, storage: DrbdStorage, guarded: list[Guarded]
) -> None:
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    host.put("halfway", ".seen.new")
    storage.renew_token("node1", replace(TOKEN, guarded=False))
    assert eventually((host.root / "reached").exists)
    assert f"{TOKEN.uuid}.seen.new" in host.left
    (host.root / "halfway").unlink()
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    storage.disarm_guard("node1", TOKEN)
    storage.drop_token("node1", TOKEN)
    assert eventually(lambda: host.left == []), host.left


@pytest.mark.parametrize("part", ["guard", "sh", "token"])
@pytest.mark.parametrize("armed", [False, True], ids=["before it was armed", "when it was armed again"])
def test_a_command_that_is_killed_halfway_through_writing_leaves_nothing(
    host: Host, storage: DrbdStorage, guarded: list[Guarded], part: str, *, armed: bool
) -> None:
    assert storage.take_token("node1", TOKEN) is None
    if armed:
        storage.arm_guard("node1", TOKEN, guarded, resume=False)
    # What it had written, and then it was gone.
    host.tokens.joinpath(f"{TOKEN.uuid}.{part}.new").write_text("half")
    storage.disarm_guard("node1", TOKEN)
    storage.drop_token("node1", TOKEN)
    assert eventually(lambda: host.left == []), host.left


@pytest.mark.parametrize("part", ["guard", "sh", "seen", "token"])
def test_a_guard_that_is_done_leaves_nothing_half_written(
    host: Host, storage: DrbdStorage, guarded: list[Guarded], part: str
) -> None:
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    host.opened()
    host.tokens.joinpath(f"{TOKEN.uuid}.{part}.new").write_text("half")
    storage.renew_token("node1", SHORT)
    assert eventually(lambda: host.left == [f"{TOKEN.uuid}.token"]), host.left


def test_a_token_that_is_dropped_takes_along_what_a_killed_arming_left(host: Host, storage: DrbdStorage) -> None:
    assert storage.take_token("node1", TOKEN) is None
    for part in ("guard.new", "sh.new", "token.new", "sh"):
        host.tokens.joinpath(f"{TOKEN.uuid}.{part}").write_text("half")
    storage.drop_token("node1", TOKEN)
    assert host.left == []


def test_a_guard_that_is_killed_while_it_removes_its_files_removes_them_when_it_comes_back(
    host: Host, storage: DrbdStorage, guarded: list[Guarded]
) -> None:
    assert storage.take_token("node1", SHORT) is None
    storage.arm_guard("node1", SHORT, guarded, resume=False)
    script = host.tokens / f"{TOKEN.uuid}.sh"
    host.put("slowly", "")
    assert eventually((host.root / "reached").exists), says(storage)
    os.killpg(int((host.root / "pid").read_text()), signal.SIGKILL)
    assert f"{TOKEN.uuid}.guard" not in host.left
    assert f"{TOKEN.uuid}.seen" in host.left
    (host.root / "slowly").unlink()
    # As systemd does it.
    subprocess.run(["sh", str(script)], check=True, timeout=60)
    assert host.left == [f"{TOKEN.uuid}.token"]


def test_a_guard_that_was_armed_before_the_last_one_had_gone_keeps_its_files(
    host: Host, storage: DrbdStorage, guarded: list[Guarded]
) -> None:
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    before = [name for name in host.left if not name.endswith(".lock")]
    # The last one had seen no orders, and comes to its end only now.
    script = f"root={host.root}\npatience=1\n{SCRIPT}\nnames {TOKEN.uuid}\norders=$tokens/$uuid.guard\n"
    subprocess.run(["sh", "-c", f"{script}locked $uuid leave\n"], check=True, timeout=60)
    assert host.left == before
    assert storage.traces("node1").guards[0].alive
    storage.disarm_guard("node1", TOKEN)


def test_only_the_holder_arms_and_disarms(host: Host, storage: DrbdStorage, guarded: list[Guarded]) -> None:
    assert storage.take_token("node1", TOKEN) is None
    theirs = replace(TOKEN, id="theirs")
    with pytest.raises(TokenLost):
        storage.arm_guard("node1", theirs, guarded, resume=False)
    assert storage.traces("node1").guards == ()
    storage.arm_guard("node1", TOKEN, guarded, resume=False)
    with pytest.raises(TokenLost):
        storage.disarm_guard("node1", theirs)
    # Who takes the token over has the guard too.
    assert storage.take_token("node1", theirs, replaces=TOKEN.id) is None
    storage.renew_token("node1", theirs)
    storage.disarm_guard("node1", theirs)
    assert storage.traces("node1").guards == ()


def test_a_node_without_what_it_takes(host: Host, storage: DrbdStorage, guarded: list[Guarded]) -> None:
    assert storage.guard_trouble("node1") is None
    assert storage.take_token("node1", TOKEN) is None
    host.put("refuse", "")
    with pytest.raises(CommandFailed) as caught:
        storage.arm_guard("node1", TOKEN, guarded, resume=False)
    assert caught.value.code is Code.GUARD_UNAVAILABLE
    assert "no bus here" in caught.value.detail
    assert host.left == [f"{TOKEN.uuid}.lock", f"{TOKEN.uuid}.token"]
    with pytest.raises(CommandFailed) as caught:
        storage.arm_guard("node1", TOKEN, [], resume=True)
    assert caught.value.code is Code.GUARD_UNAVAILABLE
    (host.root / "run/systemd/system").rmdir()
    assert "systemd" in (storage.guard_trouble("node1") or "")
    with pytest.raises(CommandFailed) as caught:
        storage.arm_guard("node1", TOKEN, guarded, resume=False)
    assert caught.value.code is Code.GUARD_UNAVAILABLE


def test_a_resource_that_is_gone_has_nothing_to_close(host: Host, storage: DrbdStorage, guarded: list[Guarded]) -> None:
    assert storage.take_token("node1", TOKEN) is None
    storage.arm_guard("node1", TOKEN, guarded, resume=True)
    host.put("dump", "exists -\n")
    storage.drop_token("node1", TOKEN)
    assert eventually(lambda: host.left == []), says(storage)
    assert host.told == []
