"""The configuration file: what it means, and every mistake with its line."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmigrate import config, convergence
from lvmigrate.convergence import Policy, Rule, Then
from lvmigrate.errors import Code, ConfigurationError, ExitCode
from lvmigrate.plan import Compression, Mode, Options
from lvmigrate.traffic import Limits

GOOD = """
[nodes.node1]
ssh = "root@10.0.0.1"
libvirt_uri = "qemu+tls://node1/system"
peer_uri = "qemu+tcp://10.0.1.1/system"
migration_address = "10.0.2.1"

[nodes.node2]

[ssh]
config = "ssh_config"

[defaults]
bandwidth_mib_s = 100

[storage]
shared_directories = ["/srv/vms"]

[limits]
lease_s = 45
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    return path


def test_a_good_file(tmp_path: Path) -> None:
    read = config.load(write(tmp_path, GOOD))
    one, two = read.nodes["node1"], read.nodes["node2"]
    assert (one.ssh, one.libvirt_uri, one.peer_uri, one.migration_address) == (
        "root@10.0.0.1",
        "qemu+tls://node1/system",
        "qemu+tcp://10.0.1.1/system",
        "10.0.2.1",
    )
    assert (two.ssh, two.libvirt_uri, two.peer_uri, two.migration_address) == (
        "root@node2",
        "qemu+ssh://root@node2/system",
        "qemu+ssh://root@node2/system",
        "node2",
    )
    assert (one.sudo, two.sudo) == (False, False)
    assert read.ssh_config == tmp_path / "ssh_config"
    assert (read.defaults.bandwidth_mib_s, read.defaults.downtime_limit_s) == (100, 0.3)
    assert read.shared_directories == ("/srv/vms",)
    assert (read.limits.lease_s, read.limits.command_s) == (45, 30)


def test_this_very_machine_is_reached_without_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node2.example")
    here = config.load(write(tmp_path, GOOD)).nodes["node2"]
    assert (here.ssh, here.libvirt_uri, here.peer_uri) == (None, "qemu:///system", "qemu+ssh://root@node2/system")


def test_a_user_who_is_not_root(tmp_path: Path) -> None:
    (node,) = config.load(write(tmp_path, 'nodes.a = { ssh = "ops@a", sudo = true }')).nodes.values()
    assert (node.ssh, node.sudo, node.libvirt_uri) == ("ops@a", True, "qemu+ssh://ops@a/system")


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LVMIGRATE_CONFIG", raising=False)
    assert config.find() == Path("/etc/lvmigrate/cluster.toml")
    monkeypatch.setenv("LVMIGRATE_CONFIG", str(tmp_path / "a"))
    assert config.find() == tmp_path / "a"
    assert config.find(tmp_path / "b") == tmp_path / "b"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "names no nodes"),
        ("[nodes.node1]\nssh = root@node1\n", 2, "nvalid value"),
        ("[nodes.node1\n", 1, "xpected"),
        ('[nodes.a]\n\n# colour\ncolour = "red"\n', 4, "'colour' is not known in [nodes.a]"),
        ("[nodes.a]\n[nodes.b]\nssh = 3\n", 3, "ssh must be text in quotes"),
        ('[nodes.a]\nssh = ""\n', 2, "one word"),
        ('[nodes.a]\nssh = "-oProxyCommand=x"\n', 2, "one word"),
        ('[nodes.a]\nssh = "root@a b"\n', 2, "one word"),
        ('[nodes.a]\n[nodes."b;c"]\n', 2, "no host name"),
        ("nodes = 3\n", 1, "must be a table"),
        ("[nodes]\na = 1\n", 2, "must be a table"),
        ("[nodes.a]\n[limits]\nlease_s = 0\n", 3, "above 0"),
        ("[nodes.a]\n[limits]\nlease_s = inf\n", 3, "above 0"),
        ("[nodes.a]\n[drain]\nat_once = 0\n", 3, "above 0"),
        ("[nodes.a]\n[drain]\nper_link = 1.5\n", 3, "a number"),
        ("[nodes.a]\n[drain]\nper_node = 1\n", 3, "not known"),
        ("[nodes.a]\n[limits]\nlease_s = true\n", 3, "a number"),
        ("[nodes.a]\n[defaults]\nbandwidth_mib_s = 1.5\n", 3, "a number"),
        ("[nodes.a]\n[node.b]\n", 2, "'node' is not known in the file"),
        ("nodes.a.ssh = 1\n", 1, "ssh must be text"),
        ('nodes.a.sudo = "yes"\n', 1, "sudo must be true or false"),
        ("[nodes.a]\n[ssh]\nconfig = []\n", 3, "text in quotes"),
        ("[nodes.a]\n[journal]\nkeep_days = 0\n", 3, "above 0"),
        ("[nodes.a]\n[hooks]\ndirectory = 1\n", 3, "text in quotes"),
        ('[nodes.a]\n[ssh]\nconfig = "~nosuchuser/x"\n', 3, "config begins with ~nosuchuser, a home directory"),
        ('[nodes.a]\n[journal]\npath = "~nosuchuser/x"\n', 3, "path begins with ~nosuchuser, a home directory"),
        ('[nodes.a]\n[hooks]\ndirectory = "~nosuchuser"\n', 3, "directory begins with ~nosuchuser, a home directory"),
        ("[nodes.a]\n[hooks]\ntimeout_s = 0\n", 3, "above 0"),
        ("[nodes.a]\n[hooks]\npre = 'x'\n", 3, "'pre' is not known in [hooks]"),
        ("[nodes.a]\n[storage]\nshared_directories = 1\n", 3, "a list"),
        ('[nodes.a]\n[storage]\nshared_directories = ["srv"]\n', 3, "absolute paths"),
        ('[nodes.a]\nmigration_ports = "5-4"\n', 2, "migration_ports must be like"),
        ('[nodes.a]\nmigration_ports = "1-70000"\n', 2, "migration_ports must be like"),
        ('[nodes.a]\n[defaults]\ntls = "yes"\n', 3, "tls must be true or false"),
        ('[nodes.a]\n[defaults]\nmode = "fast"\n', 3, "mode 'fast' is not known (known: live, non-live, post-copy)"),
        (
            '[nodes.a]\n[defaults]\npolicy = "x"\n',
            3,
            "policy 'x' is not known (known: patient, gentle, force, post-copy)",
        ),
        ("[nodes.a]\n[defaults]\ncompression_level = -1\n", 3, "compression_level must be a number of 0 or more"),
        ("[nodes.a]\n[policies]\nx = 1\n", 3, "x must be a table"),
        ("[nodes.a]\n[policies.x]\nrules = [1]\n", 3, "rules must be a list of tables"),
        ("[nodes.a]\n[policies.x]\nauto_converge = 1\n", 3, "true or false"),
        ("[nodes.a]\n[policies.x]\nrules = [{after_s = 3}]\n", 3, "a rule must say `then`"),
        (
            '[nodes.a]\n[policies.x]\nrules = [{then = "stop"}]\n',
            3,
            "then 'stop' is not known (known: raise-downtime, ",
        ),
        ('[nodes.a]\n[policies.x]\nrules = [{then = "abort", passes = 0}]\n', 3, "passes must be above 0"),
        ('[nodes.a]\n[policies.x]\nrules = [{then = "abort", factor = 1}]\n', 3, "factor must be above 1"),
        ('[nodes.a]\n[policies.x]\nrules = [{then = "abort", when = 1}]\n', 3, "'when' is not known"),
    ],
)
def test_every_mistake_has_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        config.load(path)
    error = caught.value
    assert f"{path}, line {line}: " in str(error)
    assert words in str(error)
    assert "\n" not in str(error)
    assert error.hint
    assert error.exit_code is ExitCode.CONFIGURATION


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config.load(tmp_path / "none.toml")
    assert caught.value.code is Code.CONFIG_MISSING


def test_policies_ports_and_how_memory_travels(tmp_path: Path) -> None:
    read = config.load(
        write(
            tmp_path,
            """
[nodes.a]
listen_address = "0.0.0.0"
migration_ports = "49152-49160"
tls_name = "a.example"

[defaults]
policy = "night"
mode = "non-live"
tls = true
compression = "zstd"
connections = 4

[policies.night]
auto_converge = true
rules = [
    { then = "raise-downtime", stalled_passes = 2, factor = 3.0, up_to_s = 4 },
    { then = "abort", seconds_per_gib = 100, after_s = 20 },
]

[policies.gentle]
""",
        )
    )
    node = read.nodes["a"]
    assert (node.listen_address, node.migration_ports, node.tls_name) == ("0.0.0.0", (49152, 49160), "a.example")
    night = Policy(
        name="night",
        rules=(
            Rule(then=Then.RAISE_DOWNTIME, stalled_passes=2, factor=3.0, up_to_s=4),
            Rule(then=Then.ABORT, seconds_per_gib=100, after_s=20),
        ),
        auto_converge=True,
    )
    assert read.defaults == Options(
        policy=night, mode=Mode.NON_LIVE, tls=True, compression=Compression.ZSTD, connections=4
    )
    assert read.policies["force"] is convergence.FORCE
    assert read.policies["gentle"] == Policy(name="gentle")  # the file's own


def test_how_much_a_drain_may_do_at_once(tmp_path: Path) -> None:
    read = config.load(write(tmp_path, "[nodes.a]\n[drain]\nat_once = 8\nper_source = 3\nbudget_mib_s = 880\n"))
    assert read.drain == Limits(at_once=8, per_source=3, budget_mib_s=880)
    assert config.load(write(tmp_path, "[nodes.a]\n")).drain == Limits()


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "cluster.toml"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        config.load(path)


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_one_clear_sentence(text: str) -> None:
    try:
        config._Reader(Path("x.toml"), text).config()
    except ConfigurationError as error:
        assert "\n" not in str(error).rstrip(".")
        assert "line " in str(error)
