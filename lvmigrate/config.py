"""The configuration: one TOML file that names the nodes. Guests are not listed, libvirt and DRBD know them.

Long, because every key is read and checked in one place, beside the value that it becomes.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeVar

from lvmigrate.convergence import NAMED, Policy, Rule, Then
from lvmigrate.errors import Code, ConfigurationError
from lvmigrate.ipolicy import NO_POLICY, Bounds, InstancePolicy
from lvmigrate.node import Node
from lvmigrate.plan import Compression, Mode, Options
from lvmigrate.sqlite_journal import DEFAULT_PATH as JOURNAL_PATH
from lvmigrate.traffic import Limits as Traffic

T = TypeVar("T")

DEFAULT_PATH: Final = Path("/etc/lvmigrate/cluster.toml")
#: Where a first file is told, and where every key is.
_FIRST: Final = "Two lines are enough to begin with, [nodes.NAME] for each host (docs/start.md)."
_KEYS: Final = "docs/cluster.toml.example has every key."
#: What goes into file names, ssh's command line and libvirt's URIs without quoting.
_NODE_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_NODE_KEYS: Final = (
    "ssh",
    "libvirt_uri",
    "peer_uri",
    "migration_address",
    "listen_address",
    "migration_ports",
    "tls_name",
    "fence_command",
)
HOOK_TIMEOUT_S: Final = 60.0
_TABLES: Final = (
    *("nodes", "guests", "ipolicy", "ssh", "storage", "defaults", "limits", "policies", "journal", "hooks", "drain"),
    "service",  # read by lvmigrate.service.settings, when there is a service
)
#: What may be set for one guest.
_GUEST_SWITCHES: Final = ("always_failover", "allow_failover", "keep_definition")
#: FIRST-LAST
_PORTS: Final = re.compile(r"(\d{1,5})-(\d{1,5})")
_LAST_PORT: Final = 65535
#: No sensible time or rate is larger; infinity is excluded with it.
_ABSURD: Final = 1e9
#: Of the numbers that are above 0 otherwise.
_FROM_ZERO: Final = frozenset({"compression_level"})
_DEFAULTS: Final[Mapping[str, tuple[type, ...]]] = MappingProxyType(
    {
        "bandwidth_mib_s": (int,),
        "postcopy_bandwidth_mib_s": (int,),
        "throttle_initial": (int,),
        "throttle_increment": (int,),
        "compression_level": (int,),
        "connections": (int,),
        "recovery_timeout_s": (float, int),
        "downtime_limit_s": (float, int),
        "sync_timeout_s": (float, int),
        "sync_stall_s": (float, int),
        "copy_timeout_s": (float, int),
        "poll_s": (float, int),
        "shutdown_timeout_s": (float, int),
        "minimum_memory_mib": (int,),
    }
)
_SWITCHES: Final = (
    *("tls", "auto_converge", "ignore_hvversions", "allow_runtime_changes"),
    *("allow_failover", "ignore_ipolicy", "keep_definition"),
)
_WORDS: Final[Mapping[str, type[Mode | Compression]]] = MappingProxyType({"mode": Mode, "compression": Compression})
_RULE: Final[Mapping[str, tuple[type, ...]]] = MappingProxyType(
    {
        "stalled_passes": (int,),
        "passes": (int,),
        "seconds_per_gib": (float, int),
        "after_s": (float, int),
        "factor": (float, int),
        "up_to_s": (float, int),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Deadlines of single calls, in seconds."""

    connect_s: float = 15.0
    command_s: float = 30.0
    #: How long one renewal of the token on the nodes lasts.
    lease_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A checked configuration."""

    path: Path
    nodes: Mapping[str, Node]
    ssh_config: Path | None
    defaults: Options
    limits: Limits
    #: The named policies and the configuration's own.
    policies: Mapping[str, Policy] = field(default_factory=lambda: MappingProxyType(NAMED))
    #: The file of the journal; ``None``: none is kept.
    journal: Path | None = JOURNAL_PATH
    #: Older errands are forgotten; ``None``: as many as there is room for.
    keep_days: float | None = None
    #: Directories that are the same on every node, by the operator's word.
    shared_directories: tuple[str, ...] = ()
    #: The directory of the operator's hooks, and how long one of them may take, in seconds.
    hooks: Path | None = None
    hook_timeout_s: float = HOOK_TIMEOUT_S
    #: How many guests a drain moves at once, and how much of a link that may use.
    drain: Traffic = field(default_factory=Traffic)
    #: By a guest's name or UUID: the `Options` that are its own.
    guests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: The file as TOML has it: for people, secrets and all.
    written: Mapping[str, Any] = field(default_factory=dict, repr=False)


def find(path: str | os.PathLike[str] | None = None) -> Path:
    """The file to read: ``path``, else ``$LVMIGRATE_CONFIG``, else ``/etc/lvmigrate/cluster.toml``."""
    return Path(path or os.environ.get("LVMIGRATE_CONFIG") or DEFAULT_PATH)


def load(path: str | os.PathLike[str] | None = None) -> Config:
    """Read and check the file. Raises `ConfigurationError`, whose sentence names the file and the line."""
    where = find(path)
    try:
        text = where.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            f"There is no configuration file {where}.",
            code=Code.CONFIG_MISSING,
            hint=f"Write one, or name it with --config or LVMIGRATE_CONFIG. {_FIRST}",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(
            f"The configuration file {where} cannot be read: {reason}.", hint="Check the path and its permissions."
        ) from error
    return _Reader(where, text).config()


class _Reader:
    """One file being read: keeps the text, to say at which line something is wrong."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text

    def config(self) -> Config:
        try:
            root = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as error:
            what = re.sub(r" \(at (line \d+, column \d+|end of document)\)$", "", str(error))
            found = re.search(r"at line (\d+)", str(error))
            self._fail(what, line=int(found[1]) if found else self._text.count("\n") + 1)
        self._only((), root, _TABLES)
        ssh = self._table(root, "ssh")
        self._only(("ssh",), ssh, ("config",))
        policies = self._policies(self._table(root, "policies"))
        ssh_config = self._value(("ssh",), ssh, "config", (str,))
        hooks = self._table(root, "hooks")
        directory = self._value(("hooks",), hooks, "directory", (str,))
        timeout = self._numbers(root, "hooks", {"timeout_s": (float, int)}, also=("directory",)).get("timeout_s")
        storage = self._table(root, "storage")
        self._only(("storage",), storage, ("shared_directories",))
        return Config(
            path=self._path,
            nodes=self._with_policies(self._nodes(self._table(root, "nodes")), self._table(root, "ipolicy")),
            guests=self._guests(self._table(root, "guests")),
            ssh_config=None if ssh_config is None else self._file(("ssh", "config"), ssh_config),
            shared_directories=self._directories(storage),
            defaults=self._defaults(root, policies),
            policies=MappingProxyType(policies),
            limits=Limits(**self._numbers(root, "limits", dict.fromkeys(Limits.__slots__, (float, int)))),
            drain=Traffic(**self._numbers(root, "drain", dict.fromkeys(Traffic.__slots__, (int,)))),
            journal=self._journal(self._table(root, "journal")),
            keep_days=self._numbers(root, "journal", {"keep_days": (float, int)}, also=("path",)).get("keep_days"),
            hooks=None if not directory else self._file(("hooks", "directory"), directory),
            hook_timeout_s=HOOK_TIMEOUT_S if timeout is None else timeout,
            written=root,
        )

    def _journal(self, table: Mapping[str, Any]) -> Path | None:
        self._only(("journal",), table, ("path", "keep_days"))
        path = self._value(("journal",), table, "path", (str,))
        if path is None:
            return JOURNAL_PATH
        return self._file(("journal", "path"), path) if path else None

    def _file(self, at: tuple[str, ...], text: str) -> Path:
        """A path as the file means it: from its own directory on, ``~`` being a home directory."""
        try:
            return self._path.parent / Path(text).expanduser()
        except RuntimeError:  # what pathlib raises for a user that the machine does not know
            self._fail(
                f"{at[-1]} begins with {text.partition('/')[0]}, a home directory that this machine does not know",
                line=self._line(at),
            )

    def _directories(self, table: Mapping[str, Any]) -> tuple[str, ...]:
        key = "shared_directories"
        listed = self._value(("storage",), table, key, (list,)) or []
        if not all(isinstance(path, str) and path.startswith("/") and path.isprintable() for path in listed):
            self._fail(f"{key} must be a list of absolute paths", line=self._line(("storage", key)))
        return tuple(listed)

    def _nodes(self, table: Mapping[str, Any]) -> Mapping[str, Node]:
        if not table:
            self._fail("it names no nodes", line=1)
        nodes = {}
        for name in table:
            at = ("nodes", name)
            if not _NODE_NAME.fullmatch(name):
                self._fail(f"{name!r} is no host name", line=self._line(at))
            entry = self._table(table, name, under=("nodes",))
            self._only(at, entry, (*_NODE_KEYS, "sudo", "link_mib_s", "drained", "offline", "group"))
            text = {key: self._value(at, entry, key, (str,)) for key in _NODE_KEYS}
            for key, value in text.items():
                if (
                    key != "fence_command"
                    and value is not None
                    and (not value or value.startswith("-") or re.search(r"\s", value))
                ):
                    self._fail(f"{key} of {name} must be one word", line=self._line((*at, key)))
            here = text["ssh"] is None and name in (socket.gethostname(), socket.gethostname().partition(".")[0])
            ssh = None if here else text["ssh"] or f"root@{name}"
            nodes[name] = Node(
                name=name,
                ssh=ssh,
                sudo=self._sudo(at, entry),
                libvirt_uri=text["libvirt_uri"] or ("qemu:///system" if here else f"qemu+ssh://{ssh}/system"),
                peer_uri=text["peer_uri"] or f"qemu+ssh://{text['ssh'] or f'root@{name}'}/system",
                migration_address=text["migration_address"] or name,
                fence_command=(text["fence_command"] or "").strip() or None,  # sh does nothing, and says 0
                listen_address=text["listen_address"],
                migration_ports=self._ports(at, text["migration_ports"]),
                link_mib_s=self._link(at, entry),
                drained=self._reason(at, entry, "drained"),
                offline=self._reason(at, entry, "offline"),
                group=self._value(at, entry, "group", (str,)) or "default",
                tls_name=text["tls_name"],
            )
        return MappingProxyType(nodes)

    def _sudo(self, at: tuple[str, ...], entry: Mapping[str, Any]) -> bool:
        value = entry.get("sudo", False)
        if not isinstance(value, bool):
            self._fail("sudo must be true or false", line=self._line((*at, "sudo")))
        return value

    def _reason(self, at: tuple[str, ...], entry: Mapping[str, Any], key: str) -> str | None:
        """Why something is so: ``true``, or the reason in words."""
        value = entry.get(key, False)
        if not isinstance(value, bool | str):
            self._fail(f"{key} must be true, false, or the reason in quotes", line=self._line((*at, key)))
        if isinstance(value, bool):
            return "as the configuration says" if value else None
        return value or None

    def _with_policies(self, nodes: Mapping[str, Node], table: Mapping[str, Any]) -> Mapping[str, Node]:
        """Each node with its bounds: its own, else its group's, else those of all."""
        self._only(("ipolicy",), table, ("all", "groups", "nodes"))
        general = self._bounds(("ipolicy", "all"), self._table(table, "all", under=("ipolicy",)))
        own: dict[str, dict[str, InstancePolicy]] = {}
        for kind, known in (("groups", {node.group for node in nodes.values()}), ("nodes", set(nodes))):
            named = self._table(table, kind, under=("ipolicy",))
            self._only(("ipolicy", kind), named, tuple(sorted(known)))
            at = ("ipolicy", kind)
            own[kind] = {name: self._bounds((*at, name), self._table(named, name, under=at)) for name in named}
        return MappingProxyType(
            {
                name: replace(
                    node,
                    policy=own["nodes"]
                    .get(name, NO_POLICY)
                    .over(own["groups"].get(node.group, NO_POLICY).over(general)),
                )
                for name, node in nodes.items()
            }
        )

    def _bounds(self, at: tuple[str, ...], table: Mapping[str, Any]) -> InstancePolicy:
        self._only(at, table, InstancePolicy.__slots__)
        found = {}
        for key in table:
            entry = self._table(table, key, under=at)
            here = self._line((*at, key))
            self._only((*at, key), entry, ("min", "max"), line=here)
            least, most = (self._value((*at, key), entry, word, (int,)) for word in ("min", "max"))
            if any(value is not None and not 0 <= value < _ABSURD for value in (least, most)):
                self._fail(f"{key} must have numbers of 0 or more", line=here)
            if least is not None and most is not None and least > most:
                self._fail(f"{key} has a min above its max", line=here)
            found[key] = Bounds(least=least, most=most)
        return InstancePolicy(**found)

    def _guests(self, table: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        guests = {}
        for name in table:
            at = ("guests", name)
            entry = self._table(table, name, under=("guests",))
            self._only(at, entry, ("mode", *_GUEST_SWITCHES))
            own: dict[str, Any] = {}
            for key in _GUEST_SWITCHES:
                if key in entry:
                    if not isinstance(entry[key], bool):
                        self._fail(f"{key} must be true or false", line=self._line((*at, key)))
                    own[key] = entry[key]
            word = self._value(at, entry, "mode", (str,))
            if word is not None:
                modes = {mode.value: mode for mode in Mode if mode is not Mode.FAILOVER}
                own["mode"] = self._one_of((*at, "mode"), word, modes)
            guests[name] = MappingProxyType(own)
        return MappingProxyType(guests)

    def _link(self, at: tuple[str, ...], entry: Mapping[str, Any]) -> int | None:
        value: int | None = self._value(at, entry, "link_mib_s", (int,))
        if value is not None and not 0 < value < _ABSURD:
            self._fail("link_mib_s must be a number above 0", line=self._line((*at, "link_mib_s")))
        return value

    def _ports(self, at: tuple[str, ...], text: str | None) -> tuple[int, int] | None:
        if text is None:
            return None
        found = _PORTS.fullmatch(text)
        if found is None or not 0 < int(found[1]) <= int(found[2]) <= _LAST_PORT:
            self._fail('migration_ports must be like "49152-49215"', line=self._line((*at, "migration_ports")))
        return int(found[1]), int(found[2])

    def _defaults(self, root: Mapping[str, Any], policies: Mapping[str, Policy]) -> Options:
        table = self._table(root, "defaults")
        at = ("defaults",)
        chosen: dict[str, Any] = self._numbers(
            root, "defaults", _DEFAULTS, also=(*_SWITCHES, *_WORDS, "policy", "iallocator")
        )
        for key in _SWITCHES:
            if key in table:
                if not isinstance(table[key], bool):
                    self._fail(f"{key} must be true or false", line=self._line((*at, key)))
                chosen[key] = table[key]
        for key, kind in _WORDS.items():
            word = self._value(at, table, key, (str,))
            if word is not None:
                chosen[key] = self._one_of(
                    (*at, key), word, {item.value: item for item in kind if item is not Mode.FAILOVER}
                )
        iallocator = self._value(at, table, "iallocator", (str,))
        if iallocator:
            chosen["iallocator"] = str(self._file((*at, "iallocator"), iallocator)) if "/" in iallocator else iallocator
        policy = self._value(at, table, "policy", (str,))
        if policy is not None:
            chosen["policy"] = self._one_of((*at, "policy"), policy, policies)
        return Options(**chosen)

    def _policies(self, table: Mapping[str, Any]) -> dict[str, Policy]:
        """The named policies and the file's own, which may replace them."""
        policies = dict(NAMED)
        for name in table:
            at = ("policies", name)
            entry = self._table(table, name, under=("policies",))
            self._only(at, entry, ("rules", "auto_converge"))
            slows = entry.get("auto_converge", False)
            rules = entry.get("rules", [])
            if not isinstance(slows, bool):
                self._fail("auto_converge must be true or false", line=self._line((*at, "auto_converge")))
            if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
                self._fail("rules must be a list of tables", line=self._line((*at, "rules")))
            policies[name] = Policy(
                name=name, rules=tuple(self._rule((*at, "rules"), rule) for rule in rules), auto_converge=slows
            )
        return policies

    def _rule(self, at: tuple[str, ...], rule: Mapping[str, Any]) -> Rule:
        self._only(at, rule, ("then", *_RULE), line=self._line(at))
        word = self._value(at, rule, "then", (str,))
        if word is None:
            self._fail(f"a rule must say `then` (one of {', '.join(then.value for then in Then)})", line=self._line(at))
        numbers = {}
        for key, kinds in _RULE.items():
            value = self._value(at, rule, key, kinds)
            if value is not None:
                if not 0 < value < _ABSURD or (key == "factor" and value <= 1):
                    self._fail(f"{key} must be above {1 if key == 'factor' else 0}", line=self._line(at))
                numbers[key] = value
        return Rule(then=self._one_of(at, word, {then.value: then for then in Then}), **numbers)

    def _one_of(self, at: tuple[str, ...], word: str, known: Mapping[str, T]) -> T:
        if word not in known:
            key = "then" if at[-1] == "rules" else at[-1]
            self._fail(f"{key} {word!r} is not known (known: {', '.join(known)})", line=self._line(at))
        return known[word]

    def _numbers(
        self, root: Mapping[str, Any], name: str, kinds: Mapping[str, tuple[type, ...]], *, also: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        table = self._table(root, name)
        self._only((name,), table, (*kinds, *also))
        numbers = {}
        for key, kind in kinds.items():
            value = self._value((name,), table, key, kind)
            if value is None:
                continue
            from_zero = key in _FROM_ZERO
            if not 0 <= value < _ABSURD or (value == 0 and not from_zero):
                bound = "of 0 or more" if from_zero else "above 0"
                self._fail(f"{key} must be a number {bound}", line=self._line((name, key)))
            numbers[key] = value
        return numbers

    def _table(self, parent: Mapping[str, Any], key: str, *, under: tuple[str, ...] = ()) -> Mapping[str, Any]:
        value = parent.get(key, {})
        if not isinstance(value, dict):
            self._fail(f"{key} must be a table, [{'.'.join((*under, key))}]", line=self._line((*under, key)))
        return value

    def _value(self, at: tuple[str, ...], table: Mapping[str, Any], key: str, kinds: tuple[type, ...]) -> Any:  # noqa: ANN401 -- the caller names the kind
        value = table.get(key)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            wanted = "text in quotes" if kinds == (str,) else "a list" if kinds == (list,) else "a number"
            self._fail(f"{key} must be {wanted}", line=self._line((*at, key)))
        return value

    def _only(
        self, at: tuple[str, ...], table: Mapping[str, Any], known: tuple[str, ...], *, line: int | None = None
    ) -> None:
        for key in table:
            if key not in known:
                place = f"[{'.'.join(at)}]" if at else "the file"
                self._fail(
                    f"{key!r} is not known in {place} (known: {', '.join(known)})", line=line or self._line((*at, key))
                )

    def _line(self, path: tuple[str, ...]) -> int:
        """The line where ``path`` is set, as well as a scan of headers and keys can tell; else of its table."""
        header: tuple[str, ...] = ()
        best = 1
        for number, line in enumerate(self._text.splitlines(), 1):
            if found := re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line):
                header = _split(found[1])
                if header and header == path[: len(header)]:
                    best = number
            elif found := re.match(r"\s*([^=#]+?)\s*=", line):
                full = (*header, *_split(found[1]))
                if full[: len(path)] == path:
                    return number
            if header[: len(path)] == path:
                return number
        return best

    def _fail(self, what: str, *, line: int) -> NoReturn:
        raise ConfigurationError(f"{self._path}, line {line}: {what}.", hint=f"Mend that line. {_KEYS}")


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
