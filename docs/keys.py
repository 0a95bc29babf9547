"""What every key of the configuration file is for; writes docs/cluster.toml.example: ``python -m docs.keys``.

Which keys there are, and which values, `lvmigrate.config` decides; a test compares the two.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from lvmigrate import config
from lvmigrate.convergence import Rule
from lvmigrate.plan import Options
from lvmigrate.service.settings import Settings
from lvmigrate.sqlite_journal import DEFAULT_PATH as JOURNAL
from lvmigrate.traffic import Limits as Traffic

EXAMPLE: Final = Path(__file__).with_name("cluster.toml.example")
_WIDTH: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of a table."""

    name: str
    #: One sentence or two.
    meaning: str
    #: A value as TOML has it.
    example: str
    #: What holds where it is not given, in words; empty: as `DEFAULTS` has it, else nothing.
    default: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table of the file."""

    #: Its header, with NAME where it is one of many.
    header: str
    #: The header in the example.
    example: str
    meaning: str
    keys: tuple[Key, ...]


def _key(name: str, example: str, meaning: str, default: str = "") -> Key:
    return Key(name=name, meaning=meaning, example=example, default=default)


def _table(header: str, meaning: str, *keys: Key, example: str = "") -> Table:
    return Table(header=header, example=example or header, meaning=meaning, keys=keys)


_BOUNDS: Final = "{ min = ..., max = ... }, either of them alone if you like."

TABLES: Final = (
    _table(
        "nodes.NAME",
        "One for each host. NAME is the host's `uname -n`: DRBD 9 knows the peer by that name. The table may be empty.",
        _key(
            "ssh",
            '"root@beta.example"',
            "Where ssh goes, from the machine that runs lvmigrate.",
            '"root@NAME"; nothing, and no ssh, if NAME is this very machine',
        ),
        _key(
            "sudo",
            "false",
            "Commands there are run by `sudo -n sh`: for a user who is not root (docs/howto/rights.md).",
            "false",
        ),
        _key(
            "libvirt_uri",
            '"qemu+ssh://root@beta.example/system"',
            "How this machine reaches the host's libvirt.",
            "made from `ssh`",
        ),
        _key(
            "peer_uri",
            '"qemu+ssh://root@beta.example/system"',
            "How the other hosts' libvirt daemons reach this host's.",
            "made from `ssh`",
        ),
        _key("migration_address", '"10.0.2.2"', "The address that guests' memory is sent to.", "NAME"),
        _key(
            "listen_address",
            '"10.0.2.2"',
            "The address on which this host's QEMU waits for memory.",
            "libvirt's: every address",
        ),
        _key(
            "migration_ports",
            '"49152-49183"',
            "The ports on which it waits, the first and the last; the last of several is kept free.",
            "as libvirt's qemu.conf there says",
        ),
        _key("tls_name", '"beta.example"', "What the host's certificate names.", "`migration_address`"),
        _key(
            "fence_command",
            '"fence_ipmilan -a beta-ipmi -l admin -S /etc/lvmigrate/beta-password -o off"',
            "What switches the host off, run by `sh -c` on this machine with the host's name in LVMIGRATE_NODE."
            " Exit code 0 within 90 s says that it is off, so make it true.",
            "none: a failover from a silent host wants --is-off",
        ),
        _key(
            "link_mib_s",
            "1100",
            "What the network carries to it, in MiB/s: for forecasts, and for a drain's budget.",
            "for a forecast what earlier moves have reached; for a drain 100",
        ),
        _key("drained", '"new disks on Friday"', "No guest may come: true, or why.", "false"),
        _key(
            "offline",
            "false",
            "It is out of use: true, or why. A migration does not wait for its answer, and no guest may come.",
            "false",
        ),
        _key("group", '"rack2"', "The group it is in, for [ipolicy.groups] and the iallocator.", '"default"'),
        example="nodes.beta",
    ),
    _table(
        "guests.NAME",
        "What holds for one guest, by its name or UUID, in place of [defaults].",
        _key("mode", '"non-live"', "live, non-live or post-copy."),
        _key("always_failover", "true", "Never move it while it runs: shut it down, and start it on the target."),
        _key("allow_failover", "true", "Do that where it cannot move while it runs."),
        _key("keep_definition", "true", "Every move leaves its definition, without autostart, on the node it leaves."),
        example="guests.web1",
    ),
    _table(
        "ipolicy.all",
        "What every node takes. The same keys in [ipolicy.groups.NAME] and [ipolicy.nodes.NAME] hold for a group"
        " and for one node; the nearest bound counts. A guest outside of them is refused without --ignore-ipolicy.",
        _key("memory_mib", "{ min = 128, max = 65536 }", f"MiB that the guest may use at most: {_BOUNDS}"),
        _key("cpus", "{ max = 16 }", "Its CPUs."),
        _key("disks", "{ min = 1, max = 8 }", "How many disks it has."),
        _key("disk_mib", "{ max = 1048576 }", "The size of each of them, in MiB."),
        _key("nics", "{ max = 4 }", "Its network interfaces."),
    ),
    _table(
        "ssh",
        "How lvmigrate's own ssh is called (libvirt's, for qemu+ssh, reads root's own ~/.ssh/config).",
        _key("config", '"ssh_config"', "A file for `ssh -F`, relative to this one.", "ssh's own"),
    ),
    _table(
        "storage",
        "Storage that is not DRBD's.",
        _key(
            "shared_directories",
            '["/srv/vms"]',
            "Directories that are the same on every node, by your word: disks in them move without being copied.",
            "none",
        ),
    ),
    _table(
        "defaults",
        "What holds for every move where the command line says nothing else. Times in seconds, rates in MiB/s.",
        _key(
            "mode",
            '"live"',
            "live: it runs during the copy; non-live: it stands still; post-copy: after one pass it"
            " goes on at the target, and nothing aborts it from then on.",
        ),
        _key(
            "policy",
            '"gentle"',
            "What is done about a copy that makes no progress: gentle, force, post-copy,"
            " patient, or one of [policies].",
        ),
        _key("bandwidth_mib_s", "1000", "The most that a copy of memory may use.", "no limit"),
        _key("postcopy_bandwidth_mib_s", "500", "The same once the guest runs at the target (post-copy).", "no limit"),
        _key("downtime_limit_s", "0.3", "The longest standstill for the last pass; the policy may raise it."),
        _key("auto_converge", "true", "Slow the guest down when it dirties memory faster than it is sent."),
        _key("throttle_initial", "20", "By how many percent at first.", "QEMU's"),
        _key("throttle_increment", "10", "And by how many more each time.", "QEMU's"),
        _key("compression", '"zstd"', "xbzrle, mt (until QEMU 9.0), zlib or zstd (with `connections` only).", "none"),
        _key("compression_level", "3", "How hard: mt and zlib 0 to 9, zstd 0 to 20.", "QEMU's"),
        _key("connections", "4", "Send memory over so many connections side by side.", "one"),
        _key("tls", "true", "Encrypt memory on its way, with the certificates that QEMU on both nodes has."),
        _key("sync_timeout_s", "3600", "How long to wait for the disks to be in step before the move."),
        _key("sync_stall_s", "120", "How long a resynchronisation may stand still before the move is given up."),
        _key("copy_timeout_s", "3600", "How long a copy of memory may take before it is aborted."),
        _key("poll_s", "0.5", "How often libvirt's job statistics are read."),
        _key("recovery_timeout_s", "600", "How long a post-copy that broke is tried to be mended."),
        _key("shutdown_timeout_s", "120", "How long a guest may take to shut down, in a failover."),
        _key("allow_failover", "true", "Fail a guest over that cannot move while it runs."),
        _key("keep_definition", "true", "Every move leaves the definition, without autostart, on the node it leaves."),
        _key("iallocator", '"hail"', "The program that chooses the target: a path, or a name among Ganeti's.", "none"),
        _key("ignore_ipolicy", "true", "Whatever [ipolicy] says."),
        _key("ignore_hvversions", "true", "Move to an older libvirt or QEMU, too."),
        _key("allow_runtime_changes", "true", "Let a guest give memory back where the target has too little."),
        _key("minimum_memory_mib", "1024", "What it keeps then.", "half of what it has"),
    ),
    _table(
        "policies.NAME",
        "A policy of your own, or one of the four built-in names redefined.",
        _key("auto_converge", "true", "Slow the guest's CPUs down where that is needed.", "false"),
        _key(
            "rules",
            '[{ stalled_passes = 2, then = "raise-downtime" }]',
            "Tables, of which the first that holds counts; their keys are below.",
            "none: `copy_timeout_s` alone ends it",
        ),
        example="policies.night",
    ),
    _table(
        "limits",
        "Deadlines of single calls, in seconds.",
        _key("connect_s", "15", "For a connection to a node to come up."),
        _key("command_s", "30", "For one command on a node; libvirt's calls have twice as long."),
        _key("lease_s", "30", "How long one renewal of the token on the nodes lasts: the guards wait that long."),
    ),
    _table(
        "drain",
        "How much a drain does at once.",
        _key("at_once", "4", "Guests under way, in all."),
        _key("per_source", "2", "Of them from one node."),
        _key("per_target", "2", "Of them to one node."),
        _key("per_link", "2", "Of them between the same two nodes."),
        _key(
            "budget_mib_s",
            "880",
            "What all of it may use of each node's link, DRBD's part included.",
            "80 % of its link_mib_s, or 100",
        ),
    ),
    _table(
        "journal",
        "What this machine remembers of what was done; nothing is ever decided from it.",
        _key("path", '"/var/lib/lvmigrate/journal.sqlite"', 'Its file, on a local disk; "" keeps none.', str(JOURNAL)),
        _key("keep_days", "365", "Errands that began earlier are forgotten.", "the newest 5000 are kept"),
    ),
    _table(
        "hooks",
        "Your own programs before and after a move.",
        _key("directory", '"/etc/lvmigrate/hooks"', "Where they are, in Ganeti's layout.", "none"),
        _key("timeout_s", "60", "How long one of them may take.", f"{config.HOOK_TIMEOUT_S:g}"),
    ),
    _table(
        "service",
        "How `lvmigrate serve` is reached, who may do what there, and how much goes on at once (docs/service.md).",
        _key("socket", '"/run/lvmigrate-service/api.sock"', 'The unix socket; "": none.'),
        _key("socket_mode", '"0660"', "Who can open it."),
        _key("socket_group", '"lvmigrate"', "The group that may; none: the service's own."),
        _key("socket_role", '"move"', "What those may do who can open it: look, move or force."),
        _key("users", '{ nagios = "look" }', "The users who may do something else there, by name."),
        _key("listen", '"192.0.2.1:7443"', "ADDRESS:PORT for TCP, which is served with TLS only."),
        _key("certificate", '"service.pem"', "The service's certificate; paths are relative to this file."),
        _key("key", '"service.key"', "Its key."),
        _key("client_ca", '"clients.pem"', "The authority that signs clients' certificates; none are asked for else."),
        _key("certificates", '{ "ci.example" = "move" }', "What whoever has one may do, by its common name."),
        _key("at_once", "4", "Moves, rehearsals, failovers and drains under way in all."),
        _key("per_node", "2", "Of moves and failovers: those under way that touch one node."),
        _key("queue", "1000", "How many jobs may wait."),
        _key("requests_per_minute", "1200", "How many requests one user, token or certificate may make."),
        _key("body_kib", "256", "The longest request."),
        _key("stop", '"hand-over"', "What a stop does with what is under way: wait for it, abort it, or hand-over."),
        _key("stop_deadline_s", "600", "How long it waits for that."),
        _key("log", '"text"', "How the log is written: text or json."),
    ),
    _table(
        "service.tokens.NAME",
        "Somebody who comes with a token; `lvmigrate token NAME` makes one, and these lines.",
        _key(
            "sha256", f'"{"0" * 64}"', "The token's digest: the token itself is nowhere but with them.", "must be given"
        ),
        _key("role", '"look"', "What they may do: look, move or force.", '"look"'),
        _key("expires", "2027-06-30", "The first day on which it is not valid any more.", "none"),
        example="service.tokens.nagios",
    ),
)

#: The keys of one rule of a policy.
RULE: Final = _table(
    "policies.NAME rules",
    "All conditions of a rule must hold. A rule without a condition holds at once.",
    _key("then", '"raise-downtime"', "raise-downtime, post-copy, pause or abort: what is done.", "must be given"),
    _key("stalled_passes", "2", "Condition: so many passes in a row without progress since the last rule fired."),
    _key("passes", "5", "Condition: the copy has begun its pass of this number; 1 is the first."),
    _key("seconds_per_gib", "100", "Condition: so many seconds per GiB of the guest, which counts as 1 GiB at least."),
    _key("after_s", "60", "Condition: the copy has taken so many seconds."),
    _key("factor", "2.0", "raise-downtime: by how much the limit is multiplied each time."),
    _key("up_to_s", "4.0", "raise-downtime: where that ends, in seconds."),
)

#: The values that hold where a table says nothing.
DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "defaults": Options(),
        "guests.NAME": Options(),
        "limits": config.Limits(),
        "drain": Traffic(),
        "service": Settings(),
        RULE.header: Rule,
    }
)


def default_of(table: Table, key: Key) -> str:
    """What holds where the key is not given, for people; empty: nothing."""
    if table.header == "ipolicy.all":
        return "no bound"
    if key.default or table.header not in DEFAULTS:
        return key.default
    if table is RULE:
        condition = key.meaning.startswith("Condition")
        return "no condition" if condition else _toml(Rule.__dataclass_fields__[key.name].default)
    if table.header == "guests.NAME":
        return "as in [defaults]" if key.name != "always_failover" else "false"
    return _toml(getattr(DEFAULTS[table.header], key.name))


def _toml(value: Any) -> str:  # noqa: ANN401 -- whatever a field holds
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}"
    if isinstance(value, str | dict):
        return f'"{value}"' if value else "none"
    named = getattr(value, "value", None) or getattr(value, "name", None)
    return f'"{named}"'


_EXAMPLE_HEAD: Final = (
    "The configuration of lvmigrate: copy it to /etc/lvmigrate/cluster.toml and name your hosts. Guests are not listed,"
    " libvirt and DRBD know them. Two tables are enough; every other key is here as a comment, with its meaning and an"
    " example: take the # away to set it. Made from docs/keys.py by `make docs`."
)


def example() -> str:
    """The example file: every key, those that are not needed as comments."""
    return "\n".join(_example_lines()) + "\n"


def _example_lines() -> Iterator[str]:
    yield from (*_comment(_EXAMPLE_HEAD), "")
    yield from (*_comment("On one of the hosts themselves its own table stays empty."), "[nodes.alpha]", "")
    for table in TABLES:
        yield from _comment(table.meaning)
        yield f"{'' if table.header == 'nodes.NAME' else '#'}[{table.example}]"
        for key in table.keys:
            yield from _comment(_with_default(table, key))
            yield f"#{key.name} = {key.example}"
        if table.header == "policies.NAME":
            yield from _comment(f"The keys of a rule. {RULE.meaning}")
            for key in RULE.keys:
                yield from _comment(f"{key.name}: {_with_default(RULE, key)}", indent="  ")
        yield ""


def _with_default(table: Table, key: Key) -> str:
    default = default_of(table, key)
    return f"{key.meaning} Default: {default}." if default else key.meaning


def _comment(text: str, *, indent: str = "") -> Iterator[str]:
    first = f"# {indent}"
    yield from textwrap.wrap(
        text.replace("`", ""),
        _WIDTH,
        initial_indent=first,
        subsequent_indent=first + indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


_PAGE_HEAD: Final = """\
# Every key of the configuration

Made from `docs/keys.py`, which a test compares with what `lvmigrate/config.py` reads.

One TOML file, the same on every machine that runs lvmigrate: `--config FILE`, else `$LVMIGRATE_CONFIG`, else
`/etc/lvmigrate/cluster.toml`. Only the nodes must be named; guests are not listed, libvirt and DRBD know them. A key
that is not known, or a value that makes no sense, is an error that names the file and the line
([`CONFIG_INVALID`](../codes.md#config_invalid)).

```toml
[nodes.alpha]
[nodes.beta]
```

Every key with an example, as a file to copy: [cluster.toml.example](../cluster.toml.example).
"""


def page() -> str:
    """The site's page of all keys, in Markdown."""
    return "\n".join(_page_lines())


def _page_lines() -> Iterator[str]:
    yield _PAGE_HEAD
    for table in TABLES:
        yield f"## [{table.header}]\n"
        yield f"{table.meaning}\n"
        yield from _page_table(table)
        if table.header == "policies.NAME":
            yield f"\n### A rule\n\n{RULE.meaning}\n"
            yield from _page_table(RULE)
        yield ""


def _page_table(table: Table) -> Iterator[str]:
    yield "| key | what it is for | without it | for example |"
    yield "|---|---|---|---|"
    for key in table.keys:
        default = default_of(table, key).replace("|", "\\|")
        yield f"| `{key.name}` | {key.meaning} | {default} | `{key.example}` |"


if __name__ == "__main__":
    EXAMPLE.write_text(example(), encoding="utf-8")
