"""What is asked for: refused before anything starts where the nodes, or the options themselves, do not allow it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmigrate import capabilities, certificates, convergence
from lvmigrate.capabilities import FEATURES
from lvmigrate.certificates import Certificates
from lvmigrate.convergence import Policy, Rule, Then
from lvmigrate.domain import DomainState, Host
from lvmigrate.errors import Code, Refused
from lvmigrate.migrate import MigrateInstance
from lvmigrate.plan import Compression, Mode, Options, Plan
from tests.unit.fakes import World, guest

OPTIONS = st.builds(
    Options,
    mode=st.sampled_from(Mode),
    policy=st.sampled_from(list(convergence.NAMED.values())),
    auto_converge=st.booleans(),
    throttle_initial=st.none() | st.integers(1, 99),
    throttle_increment=st.none() | st.integers(1, 99),
    compression=st.none() | st.sampled_from(Compression),
    compression_level=st.none() | st.integers(1, 30),
    connections=st.none() | st.integers(1, 16),
    tls=st.booleans(),
    postcopy_bandwidth_mib_s=st.none() | st.integers(1, 1000),
)
NEW = Host(node="node2", free_memory_kib=1 << 20, libvirt_version=(99, 0, 0), qemu_version=(9, 0, 99))


def check(options: Options, world: World | None = None) -> Plan:
    return MigrateInstance((world or World()).context(), "web1", options=options).check_prereq()


def refusals(options: Options, world: World | None = None) -> list[Code]:
    with pytest.raises(Refused) as caught:
        check(options, world)
    for finding in caught.value.findings:
        assert finding.sentence.endswith(".")
        assert finding.hint
    return [finding.code for finding in caught.value.findings]


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": Mode.POST_COPY, "connections": 2},
        {"policy": convergence.POST_COPY, "connections": 2},
        {"compression": Compression.ZSTD},
        {"compression": Compression.XBZRLE, "connections": 4},
        {"compression_level": 3},
        {"compression": Compression.XBZRLE, "compression_level": 3},
        {"compression": Compression.ZLIB, "connections": 2, "compression_level": 10},
        {"compression": Compression.ZLIB, "connections": 2, "compression_level": -1},
        {"compression": Compression.ZSTD, "connections": 2, "compression_level": 21},
        {"postcopy_bandwidth_mib_s": 3},
        {"throttle_initial": 20},
        {"mode": Mode.NON_LIVE, "auto_converge": True, "throttle_increment": 20},
    ],
)
def test_what_excludes_itself(changes: dict[str, Any]) -> None:
    assert refusals(Options(**changes)) == [Code.OPTIONS_CONFLICT]


UP_TO: dict[str, Any] = {"then": Then.RAISE_DOWNTIME, "stalled_passes": 1}


@pytest.mark.parametrize(
    ("key", "least", "most", "changes"),
    [
        ("downtime_limit_s", 0.001, 2000, {}),
        ("throttle_initial", 1, 99, {"auto_converge": True}),
        ("throttle_increment", 1, 99, {"auto_converge": True}),
        ("connections", 1, 255, {}),
        ("bandwidth_mib_s", 1, 8796093022207, {}),
        ("postcopy_bandwidth_mib_s", 1, 8796093022207, {"mode": Mode.POST_COPY}),
    ],
)
def test_a_number_that_qemu_would_refuse(key: str, least: float, most: int, changes: dict[str, Any]) -> None:
    for number in (least, most):
        check(Options(**changes | {key: number}))
    for number in (0, -1, most + 1):
        (finding,) = capabilities.out_of_bounds(Options(**changes | {key: number}))
        assert (str(number) in finding.sentence, str(most) in finding.sentence) == (True, True)
        assert finding.hint
        assert refusals(Options(**changes | {key: number})) == [Code.OPTION_UNSUPPORTED]


def test_a_number_that_is_none() -> None:
    for number in (float("nan"), float("inf")):
        assert refusals(Options(downtime_limit_s=number)) == [Code.OPTION_UNSUPPORTED]


def test_a_policy_that_would_raise_the_limit_above_what_qemu_takes() -> None:
    for up_to_s, found in ((2000.0, []), (2000.1, [Code.OPTION_UNSUPPORTED])):
        policy = Policy(name="mine", rules=(Rule(up_to_s=up_to_s, **UP_TO),))
        assert [finding.code for finding in capabilities.out_of_bounds(Options(policy=policy))] == found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mode": Mode.NON_LIVE},
        {"mode": Mode.POST_COPY, "postcopy_bandwidth_mib_s": 3},
        {"compression": Compression.ZSTD, "connections": 2, "compression_level": 20, "tls": True},
        {"policy": convergence.FORCE, "throttle_initial": 20, "throttle_increment": 20},
    ],
)
def test_what_goes_together(changes: dict[str, Any]) -> None:
    check(Options(**changes))


@pytest.mark.parametrize("node", ["node1", "node2"])
@pytest.mark.parametrize(
    "versions", [((1, 2, 2), (10, 0, 0)), ((11, 0, 0), (1, 5, 3))], ids=["old libvirt", "old QEMU"]
)
def test_both_nodes_must_have_what_is_asked_for(node: str, versions: tuple[Any, Any]) -> None:
    old = Host(node=node, free_memory_kib=1 << 20, libvirt_version=versions[0], qemu_version=versions[1])
    world = World(hosts={node: old})
    assert refusals(Options(auto_converge=True, ignore_hvversions=True), world) == [Code.OPTION_UNSUPPORTED]
    check(Options(ignore_hvversions=True), World(hosts={node: old}))  # what is not asked for is not missed


def test_a_compression_that_qemu_has_no_more() -> None:
    assert refusals(Options(compression=Compression.MT)) == [Code.OPTION_UNSUPPORTED] * 2


@given(OPTIONS)
def test_every_combination_is_allowed_or_refused_with_words(options: Options) -> None:
    findings = [
        *capabilities.conflicts(options),
        *capabilities.out_of_bounds(options),
        *capabilities.unsupported(options, NEW),
    ]
    for finding in findings:
        assert finding.code in (Code.OPTIONS_CONFLICT, Code.OPTION_UNSUPPORTED)
        assert "None" not in finding.sentence + finding.hint
    ancient = dataclasses.replace(NEW, libvirt_version=(0, 0, 1), qemu_version=(0, 0, 1))
    wanted = [feature for feature in FEATURES if feature.wanted(options)]
    assert len(list(capabilities.unsupported(options, ancient))) == 2 * len(wanted)
    unknown = dataclasses.replace(NEW, libvirt_version=(0, 0, 0), qemu_version=(0, 0, 0))
    assert list(capabilities.unsupported(options, unknown)) == []


@pytest.mark.parametrize("options", [Options(mode=Mode.POST_COPY), Options(policy=convergence.POST_COPY)])
def test_post_copy_needs_a_patient_source(options: Options) -> None:
    assert refusals(options, World(keepalive_s=10.0)) == [Code.KEEPALIVE_SHORT]
    # One that stands still never becomes a post-copy.
    paused = World(keepalive_s=10.0, domains={"node1": guest("node1", state=DomainState.PAUSED, reason="user")})
    check(options, paused)


# ---- certificates ----

GOOD = {
    node: Certificates(
        node=node, folder="/etc/pki/qemu", names=frozenset({node, "10.0.0.1", f"*.{node}.example"}), authority="A"
    )
    for node in ("node1", "node2")
}


@pytest.mark.parametrize(
    ("node", "changes", "code"),
    [
        ("node2", {"names": frozenset({"other"})}, Code.TLS_NAME),
        ("node2", {"names": frozenset()}, Code.TLS_NAME),
        ("node1", {"expired": ("client-cert.pem",)}, Code.TLS_EXPIRED),
        ("node2", {"expired": ("server-cert.pem",)}, Code.TLS_EXPIRED),
        ("node2", {"authority": "B"}, Code.TLS_ISSUER),
        ("node1", {"signed": False}, Code.TLS_ISSUER),
        ("node1", {"trouble": "there is no /etc/pki/qemu/ca-cert.pem"}, Code.TLS_MISSING),
        ("node2", {"trouble": "there is no /etc/pki/qemu/ca-cert.pem"}, Code.TLS_MISSING),
    ],
)
def test_certificates_that_would_not_do(node: str, changes: dict[str, Any], code: Code) -> None:
    world = World(certificates=GOOD | {node: dataclasses.replace(GOOD[node], **changes)})
    assert refusals(Options(tls=True), world) == [code]
    check(Options(), world)


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ("node2", True),
        ("NODE2.", True),
        ("10.0.0.1", True),
        ("a.node2.example", True),
        ("node2.example", False),
        ("a.b.node2.example", False),
        ("10.0.0.2", False),
        ("node", False),
    ],
)
def test_names(wanted: str, fits: bool) -> None:  # noqa: FBT001
    found = [finding.code for finding in certificates.findings(GOOD["node1"], GOOD["node2"], wanted)]
    assert found == ([] if fits else [Code.TLS_NAME])


def test_addresses_are_compared_by_value() -> None:
    six = dataclasses.replace(GOOD["node2"], names=frozenset({"fe80:0:0:0:0:0:0:1"}))
    assert list(certificates.findings(GOOD["node1"], six, "fe80::1")) == []
