"""One name for what two nodes call differently: what is learnt from both kernels, and the adapter over two of them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from lvmigrate.errors import CommandFailed, NodeUnreachable
from lvmigrate.node import Node
from lvmigrate.replication import ConnectionOptions, Role
from lvmigrate.token import Errand, Guarded, Token
from storage import names as names_module
from storage.drbd import DrbdStorage
from storage.names import Names
from storage.shell import Shell
from storage.show import Shown, ShownConnection
from tests.unit.storage.conftest import TRANSCRIPTS, FakeNode, here

ONE = "node1:r1=node2:r9"
BOTH = ("node1", "node2")
PEER = {"node1": "node2", "node2": "node1"}


# ---- what is learnt

Link = tuple[str | None, int, int]  # the peer, this end's port and the peer's


def shown(name: str, *links: Link) -> Shown:
    return Shown(
        name=name,
        minors=((0, 0),),
        auto_promote=False,
        connections=tuple(
            ShownConnection(
                peer=peer,
                peer_node_id=None if peer is None else 1,
                paths=((f"ipv4:10.0.0.1:{here}", f"ipv4:10.0.0.1:{there}"),),
                allow_two_primaries=False,
                protocol=None,
                verify_alg=None,
            )
            for peer, here, there in links
        ),
    )


class Kernels:
    """What the nodes say, and who was asked; a node that is not in it gives no answer."""

    def __init__(self, **said: list[Shown]) -> None:
        self.said = said
        self.asked: list[str] = []

    def __call__(self, node: str) -> list[Shown]:
        self.asked.append(node)
        if node not in self.said:
            raise NodeUnreachable(node, "silent", hint="")
        return self.said[node]

    def learnt(self, names: Names, *nodes: str) -> Mapping[str, list[str]]:
        """After these nodes were looked at: the one name of everything that each node has."""
        for node in nodes:
            names.learn(node, self.said[node])
        return {node: [names.one(node, each.name) for each in here] for node, here in self.said.items()}


@pytest.fixture(autouse=True)
def _no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node is asked each time."""
    monkeypatch.setattr(names_module, "FRESH_S", 0.0)
    monkeypatch.setattr(names_module, "SILENT_S", 0.0)


def test_what_has_one_name_everywhere_goes_by_it() -> None:
    kernels = Kernels(node1=[shown("r0", ("node2", 1, 2))], node2=[shown("r0", ("node1", 2, 1))])
    assert kernels.learnt(Names(BOTH, kernels), *BOTH) == {"node1": ["r0"], "node2": ["r0"]}


@pytest.mark.parametrize("peers", [("node2", "node1"), (None, None)], ids=["9", "8.4"])
@pytest.mark.parametrize("first", BOTH)
def test_what_has_two_names_goes_by_both_whoever_is_looked_at_first(first: str, peers: tuple[str | None, ...]) -> None:
    to_2, to_1 = peers
    kernels = Kernels(
        node1=[shown("r1", (to_2, 1, 2)), shown("other", (to_2, 3, 4))],
        node2=[shown("other", (to_1, 4, 3)), shown("r9", (to_1, 2, 1))],
    )
    names = Names(BOTH, kernels)
    assert kernels.learnt(names, first) == {"node1": [ONE, "other"], "node2": ["other", ONE]}
    assert [names.own(node, ONE) for node in BOTH] == ["r1", "r9"]
    assert names.owns("node2", [ONE, "other"]) == {"r9": ONE, "other": "other"}


def test_names_that_are_exchanged_are_not_taken_for_each_other() -> None:
    kernels = Kernels(
        node1=[shown("a", ("node2", 1, 2)), shown("b", ("node2", 3, 4))],
        node2=[shown("a", ("node1", 4, 3)), shown("b", ("node1", 2, 1))],
    )
    names = Names(BOTH, kernels)
    ab, ba = "node1:a=node2:b", "node1:b=node2:a"
    assert kernels.learnt(names, "node1") == {"node1": [ab, ba], "node2": [ba, ab]}
    assert [names.own("node2", one) for one in (ab, ba)] == ["b", "a"]


def test_a_resource_of_the_same_name_with_another_peer_stays_apart() -> None:
    kernels = Kernels(
        node1=[shown("r1", ("node2", 1, 2))],
        node2=[shown("r9", ("node1", 2, 1)), shown("r1", ("node3", 5, 6))],
        node3=[shown("r1", ("node2", 6, 5))],
    )
    names = Names(["node1", "node2", "node3"], kernels)
    assert kernels.learnt(names, "node1", "node3") == {"node1": [ONE], "node2": [ONE, "r1"], "node3": ["r1"]}


def test_three_nodes_have_one_name_and_keep_the_one_that_was_given_first() -> None:
    kernels = Kernels(
        node1=[shown("r1", ("node2", 1, 2), ("node3", 3, 4))],
        node2=[shown("r9", ("node1", 2, 1), ("node3", 5, 6))],
    )
    names = Names(["node1", "node2", "node3"], kernels)
    assert kernels.learnt(names, "node1") == {"node1": [ONE], "node2": [ONE]}
    kernels.said["node3"] = [shown("r1", ("node1", 4, 3), ("node2", 6, 5))]
    assert kernels.learnt(names, "node3") == {"node1": [ONE], "node2": [ONE], "node3": [ONE]}
    assert names.own("node3", ONE) == "r1"


def test_a_name_stays_while_a_node_is_silent_or_the_connection_is_forgotten() -> None:
    """DRBD 8.4 forgets a connection that is StandAlone."""
    kernels = Kernels(node1=[shown("r1", (None, 1, 2))], node2=[shown("r9", (None, 2, 1))])
    names = Names(BOTH, kernels)
    kernels.learnt(names, "node1")
    kernels.said["node1"] = [shown("r1")]
    assert kernels.learnt(names, *BOTH) == {"node1": [ONE], "node2": [ONE]}
    silent = Kernels(node1=[shown("r1", (None, 1, 2))])
    names = Names(BOTH, silent)
    assert silent.learnt(names, "node1") == {"node1": ["r1"]}
    silent.said["node2"] = [shown("r9", (None, 2, 1))]
    assert silent.learnt(names, "node1") == {"node1": [ONE], "node2": [ONE]}
    # Who has begun with the name that was known then, goes on.
    assert names.own("node1", "r1") == "r1"


def test_another_connection_gives_another_name() -> None:
    kernels = Kernels(node1=[shown("r1", ("node2", 1, 2))], node2=[shown("r9", ("node1", 2, 1))])
    names = Names(BOTH, kernels)
    kernels.learnt(names, "node1")
    kernels.said["node2"] = [shown("r9"), shown("r5", ("node1", 2, 1))]
    assert kernels.learnt(names, *BOTH) == {"node1": ["node1:r1=node2:r5"], "node2": ["r9", "node1:r1=node2:r5"]}
    kernels.said["node2"] = [shown("r9"), shown("r1", ("node1", 2, 1))]
    assert kernels.learnt(names, *BOTH) == {"node1": ["r1"], "node2": ["r9", "r1"]}


def test_addresses_that_several_use_prove_nothing() -> None:
    """DRBD 8.4 does not say which node its peer is, and pairs of nodes may have the same cable between them."""
    kernels = Kernels(
        node1=[shown("r1", (None, 1, 2))], node2=[shown("r9", (None, 2, 1))], node3=[shown("r9", (None, 2, 1))]
    )
    names = Names(["node1", "node2", "node3"], kernels)
    assert kernels.learnt(names, "node1") == {"node1": ["r1"], "node2": ["r9"], "node3": ["r9"]}


def test_only_who_is_named_is_asked_and_not_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels(node1=[shown("r1", ("node2", 1, 2), ("node4", 7, 8))], node2=[shown("r9", ("node1", 2, 1))])
    names = Names(["node1", "node2", "node3", "node4"], kernels)
    monkeypatch.setattr(names_module, "FRESH_S", 60.0)
    monkeypatch.setattr(names_module, "SILENT_S", 60.0)
    for _ in range(3):
        kernels.learnt(names, "node1")
    # Neither the one that answered nor the one that is silent.
    assert sorted(kernels.asked) == ["node2", "node4"]
    assert kernels.learnt(names)["node2"] == [ONE]


class Hung:
    """A clock, and a node at whose silence it stands 30 s later; ``meanwhile`` happens in them."""

    def __init__(self, kernels: Kernels, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.now_s = 1000.0
        self.kernels = kernels
        self.meanwhile = meanwhile

    def monotonic(self) -> float:
        return self.now_s

    def __call__(self, node: str) -> list[Shown]:
        try:
            return self.kernels(node)
        except NodeUnreachable:
            self.now_s += 30.0
            self.meanwhile()
            raise


def test_a_node_that_takes_long_to_be_silent_is_not_asked_by_every_look(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels(node1=[shown("r1", ("node2", 1, 2), ("node3", 3, 4))], node3=[shown("r1", ("node1", 4, 3))])
    hung = Hung(kernels)
    monkeypatch.setattr(names_module, "SILENT_S", 30.0)
    monkeypatch.setattr(names_module, "FRESH_S", 2.0)
    monkeypatch.setattr(names_module, "time", hung)
    names = Names(["node1", "node2", "node3"], hung)
    for _ in range(3):
        names.learn("node1", kernels.said["node1"])
        hung.now_s += 9.0
    assert kernels.asked.count("node2") == 1
    # What another node said is as old as the question: 30 s of waiting do not make it fresh.
    assert kernels.asked.count("node3") == 3
    hung.now_s += 3.0
    names.learn("node1", kernels.said["node1"])
    assert kernels.asked.count("node2") == 2


def test_a_silence_does_not_undo_what_the_node_said_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels(node1=[shown("r1", ("node2", 1, 2))])
    said = [shown("r9", ("node1", 2, 1)), shown("r8", ("node1", 4, 3))]
    hung = Hung(kernels, lambda: names.learn("node2", said))
    monkeypatch.setattr(names_module, "SILENT_S", 30.0)
    monkeypatch.setattr(names_module, "FRESH_S", 2.0)
    monkeypatch.setattr(names_module, "time", hung)
    names = Names(BOTH, hung)
    names.learn("node1", kernels.said["node1"])
    names.learn("node1", [*kernels.said["node1"], shown("r2", ("node2", 3, 4))])
    assert [names.one("node1", own) for own in ("r1", "r2")] == [ONE, "node1:r2=node2:r8"]


# ---- the adapter, over two nodes whose kernels give one replica two names and other minors

TOKEN = Token(
    uuid="0b6f0c3e-0000-4000-8000-00000000000b",
    instance="db1",
    id="ours",
    holder="a test",
    lease_s=60,
    errand=Errand(source="node1", target="node2", ran=True, autostart=True, target_had_definition=False),
)
_SYSTEMD = """#!/bin/sh
sed -n 2p run/lvmigrate/*.token >$(ls run/lvmigrate/*.sh | sed s/.sh$/.seen/)
"""


class TwoShells(Shell):
    """Runs what is for a node in that node's directory, with its programs."""

    def __init__(self, roots: Mapping[str, Path]) -> None:
        super().__init__(ssh_config=None, connect_timeout_s=5)
        self._roots = roots

    def command(self, node: Node, script: str) -> list[str]:
        root = shlex.quote(str(self._roots[node.name]))
        return ["/bin/sh", "-c", f"cd {root} && PATH={root}/bin:$PATH exec /bin/sh -c {shlex.quote(script)}"]


@pytest.fixture
def two(tmp_path: Path, lines: Callable[[str], list[str]]) -> dict[str, FakeNode]:
    """r1 with minors 10 and 11 on node1 is r9 with minors 12 and 13 on node2."""
    made = {}
    for node in BOTH:
        (tmp_path / node).mkdir()
        fake = made[node] = FakeNode(tmp_path / node, "9.3.3")
        (fake.root / "run/systemd/system").mkdir(parents=True)
        for program, text in (("systemd-run", _SYSTEMD), ("systemctl", "#!/bin/sh\n"), ("virsh", "#!/bin/sh\n")):
            (fake.root / "bin" / program).write_text(text)
            (fake.root / "bin" / program).chmod(0o755)
        dump = "".join(f"{line.partition(' ')[2]}\n" for line in lines("drbd93/mv.events2-now-stat-ts"))
        text = (TRANSCRIPTS / "drbd93/mv.show.txt").read_text(encoding="utf-8")
        if node == "node2":
            dump = (
                dump.replace("name:r1 ", "name:r9 ")
                .replace("node2", "node1")
                .replace("peer-node-id:1", "peer-node-id:0")
            )
            dump = dump.replace("minor:10", "minor:12").replace("minor:11", "minor:13")
            text = text.replace('"r1"', '"r9"').replace("node2", "node1").replace("_peer_node_id 1", "_peer_node_id 0")
            text = text.replace("minor 10", "minor 12").replace("minor 11", "minor 13")
            text = text.replace("10.77.0.1:", "10.77.0.x:").replace("10.77.0.2:", "10.77.0.1:").replace("0.x:", "0.2:")
        fake.put("dump", dump)
        fake.put("show", text)
        fake.put("gi", "278088B07E2C80DF:0:0:0:1:1:0:1:0:0:0")
    return made


@pytest.fixture
def storage(two: dict[str, FakeNode]) -> Iterator[DrbdStorage]:
    shell = TwoShells({node: fake.root for node, fake in two.items()})
    made = DrbdStorage({node: here(node) for node in BOTH}, command_timeout_s=20, root=".", shell=shell)
    yield made
    made.close()


def test_all_that_is_seen_has_the_one_name(two: dict[str, FakeNode], storage: DrbdStorage) -> None:
    for node in BOTH:
        assert set(storage.observe(node)) == {ONE}
        seen = storage.observe(node, [ONE, "nosuch"])
        assert list(seen) == [seen[ONE].name] == [ONE]
        assert seen[ONE].in_step_with(PEER[node])
        assert [volume.minor for volume in seen[ONE].volumes] == ([10, 11] if node == "node1" else [12, 13])
        assert set(storage.generations(node, [ONE])) == {f"{ONE}/0", f"{ONE}/1"}
        assert set(storage.lineages(node, PEER[node], [ONE])) == {f"{ONE}/0", f"{ONE}/1"}
        assert storage.options(node, ONE, PEER[node]) == ConnectionOptions(allow_two_primaries=False, protocol=None)
        assert storage.two_primaries(node) == frozenset()
        text = (two[node].root / "show").read_text()
        two[node].put("show", text.replace("net {", "net {\n allow-two-primaries yes;"))
        drbdadm = two[node].root / "bin/drbdadm"
        drbdadm.write_text("#!/bin/sh\n")
        drbdadm.chmod(0o755)
        assert storage.two_primaries(node) == storage.surroundings(node, [ONE]).two_primaries_for_good == {ONE}
        assert storage.openers(node, [ONE]) == ()


def test_the_minor_of_a_node_is_its_own(
    two: dict[str, FakeNode], storage: DrbdStorage, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same path leads to this machine's loop device, which is r1/1 on the one node and r9/1 on the other."""
    number = device.stat().st_rdev
    monkeypatch.setattr("storage.kernels.MAJOR", number >> 8)
    for node, other, minor in (("node1", 10, 11), ("node2", 12, 13)):
        dump = (two[node].root / "dump").read_text().replace(f"minor:{other}", "minor:1000")
        two[node].put("dump", dump.replace(f"minor:{minor}", f"minor:{number & 255}"))
        (place,) = storage.locate(node, [str(device), "/dev/null"]).values()
        assert (place.resource, place.volume) == (ONE, 1)
        assert storage.locate(node, ["/dev/null"]) == {}


def test_every_command_has_the_nodes_own_name(two: dict[str, FakeNode], storage: DrbdStorage) -> None:
    off = ConnectionOptions(allow_two_primaries=False, protocol="A")
    for node, own, peer_id in (("node1", "r1", 1), ("node2", "r9", 0)):
        storage.observe(node)
        assert storage.take_token(node, TOKEN) is None
        storage.allow_two_primaries(node, ONE, PEER[node], TOKEN)
        before = (two[node].root / "show").read_text()
        two[node].put("show", before.replace("net {", "net {\n allow-two-primaries yes;"))
        storage.promote(node, ONE, TOKEN)
        two[node].put("dump", (two[node].root / "dump").read_text().replace("role:Secondary", "role:Primary"))
        storage.demote(node, ONE, TOKEN)
        storage.restore_options(node, ONE, PEER[node], off, TOKEN)
        dump = (two[node].root / "dump").read_text()
        two[node].put("dump", dump.replace("connection:Connected", "connection:StandAlone"))
        storage.reconnect(node, ONE, PEER[node], off, TOKEN)
        assert two[node].told == [
            f"net-options {own} {peer_id} --protocol=C --allow-two-primaries=yes",
            f"primary {own}",
            f"secondary {own}",
            f"net-options {own} {peer_id} --protocol=A --allow-two-primaries=no",
            f"net-options {own} {peer_id} --protocol=A --allow-two-primaries=no",
            f"connect {own} {peer_id}",
        ]


def test_what_fails_is_said_with_the_nodes_own_name(two: dict[str, FakeNode], storage: DrbdStorage) -> None:
    storage.observe("node2")
    assert storage.take_token("node2", TOKEN) is None
    two["node2"].status = 11
    with pytest.raises(CommandFailed, match="Promoting r9 failed on node2"):
        storage.promote("node2", ONE, TOKEN)


def test_a_guard_has_the_nodes_own_name_and_any_controller_reads_the_one(
    two: dict[str, FakeNode], storage: DrbdStorage
) -> None:
    link = Guarded(resource=ONE, peer="node1", options=ConnectionOptions(allow_two_primaries=False, protocol=None))
    storage.observe("node2")
    assert storage.take_token("node2", TOKEN) is None
    storage.arm_guard("node2", TOKEN, [link], resume=True)
    orders = (two["node2"].tokens / f"{TOKEN.uuid}.guard").read_text()
    assert "link r9 node1 0 no - no r9 0\n" in orders
    assert "gen r9 0 278088B07E2C80DE\n" in orders
    assert "r1" not in orders
    shell = TwoShells({node: fake.root for node, fake in two.items()})
    other = DrbdStorage({node: here(node) for node in BOTH}, command_timeout_s=20, root=".", shell=shell)
    (guard,) = other.traces("node2").guards
    assert guard.guarded == (link,)
    other.close()


def test_the_watch_speaks_the_one_name(two: dict[str, FakeNode], storage: DrbdStorage) -> None:
    two["node2"].put("events", "change resource name:r9 role:Primary\nchange resource name:r1 role:Primary\n")
    storage.observe("node1")
    said: list[str] = []
    open_ended = [os.open(fake.root / "more", os.O_RDWR) for fake in two.values()]
    with storage.watch(BOTH, [ONE], on_change=said.append) as watch:

        def seen() -> bool:
            here = watch.resource("node2", ONE)
            return here is not None and here.role is Role.PRIMARY

        assert watch.wait(seen, 10)
        # A line about r1 on node2 is about another resource.
        assert (watch.breaks(), watch.gaps()) == ((), ())
        first = watch.resource("node1", ONE)
        assert first is not None
        assert first.role is Role.SECONDARY
    assert said == [f"{ONE} on node2 is Primary (was Secondary)"]
    for file in open_ended:
        os.close(file)


# ---- 8.4, which calls every peer "peer"

PAIRS = {"node1": "node3", "node3": "node1", "node2": "node4", "node4": "node2"}


@pytest.fixture
def four(tmp_path: Path, lines: Callable[[str], list[str]]) -> Iterator[tuple[dict[str, FakeNode], DrbdStorage]]:
    """Two pairs of nodes, each with a resource r0 of its own on the same minor."""
    fakes = {}
    for node, peer in PAIRS.items():
        (tmp_path / node).mkdir()
        fake = fakes[node] = FakeNode(tmp_path / node, "8.4.11")
        dump = lines("drbd84/events2-now-stat-ts-initial")
        fake.put("dump", "".join(f"{line.partition(' ')[2]}\n" for line in dump))
        text = (TRANSCRIPTS / "drbd84/show.txt").read_text(encoding="utf-8")
        text = text.replace("10.77.0.1:", f"10.77.0.{node}:").replace("10.77.0.2:", f"10.77.0.{peer}:")
        fake.put("show", text.replace(".node", "."))
    shell = TwoShells({node: fake.root for node, fake in fakes.items()})
    storage = DrbdStorage({node: here(node) for node in PAIRS}, command_timeout_s=20, root=".", shell=shell)
    yield fakes, storage
    storage.close()


def test_another_pairs_resource_of_that_name_is_no_copy(four: tuple[dict[str, FakeNode], DrbdStorage]) -> None:
    _, storage = four
    for node, peer in PAIRS.items():
        storage.observe(node)
        seen = storage.observe(node, ["r0"])["r0"]
        for other in PAIRS.keys() - {node}:
            assert (seen.towards(other) is not None) is (other == peer), (node, other)


def test_a_peer_that_says_nothing_and_was_never_heard_may_be_any(
    four: tuple[dict[str, FakeNode], DrbdStorage],
) -> None:
    """In a failover from a dead node: the survivor's connection is to it, as far as anybody knows."""
    fakes, storage = four
    for silent in ("node1", "node4"):
        (fakes[silent].root / "sys/module/drbd/version").unlink()
    storage.observe("node3")
    assert storage.observe("node3", ["r0"])["r0"].towards("node1") is not None
    # And once it was heard, it is known for good.
    (fakes["node4"].root / "sys/module/drbd/version").write_text("8.4.11\n")
    storage.observe("node4")
    (fakes["node4"].root / "sys/module/drbd/version").unlink()
    storage.observe("node2")
    assert storage.observe("node2", ["r0"])["r0"].towards("node1") is None


def test_84s_peer_is_another_when_its_address_is() -> None:
    kernels = Kernels(node1=[shown("r0", (None, 1, 2))], node2=[shown("r0", (None, 2, 1))], node3=[])
    names = Names(["node1", "node2", "node3"], kernels)
    names.learn("node1", kernels.said["node1"])
    assert names.peer("node1", "r0") == "node2"
    kernels.said |= {"node1": [shown("r0", (None, 1, 3))], "node2": [], "node3": [shown("r0", (None, 3, 1))]}
    names.learn("node1", kernels.said["node1"])
    assert (names.peer("node1", "r0"), names.peer("node3", "r0")) == ("node3", "node1")
