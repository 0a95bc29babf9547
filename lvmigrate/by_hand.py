"""A plan as the commands that a person would type: what lvmigrate does, and how to finish it by hand. Pure.

The lines of ``drbdsetup`` are those that the storage adapter sends, ``virsh migrate`` has the flags that the
hypervisor adapter passes to ``migrateToURI3``.  What stands between them (the proof) is a person's to look at, so each
step has its looks, too, and says what must be seen before the next one.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from lvmigrate.domain import Domain, DomainState
from lvmigrate.node import Node
from lvmigrate.plan import Compression, Mode, Options, Plan, ResourcePlan, Switch


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One line to type on one node, as root."""

    step: str
    node: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByHand:
    """One step by hand."""

    step: str
    commands: tuple[Command, ...]
    #: What must be so, or be seen, before the next step.
    then: str


def by_hand(plan: Plan, options: Options, target: Node) -> tuple[ByHand, ...]:
    """Every step of the plan, in its order.

    ``options``: those that it was made with; ``target``: the node it goes to.
    """
    steps = _Steps(plan, options, target)
    places = {"name": plan.instance, "s": plan.source, "t": plan.target}
    return tuple(
        ByHand(step=name, commands=tuple(steps.of(name)), then=_THEN[name].format(**places)) for name, _ in plan.steps
    )


def undefining(domain: Domain) -> tuple[str, ...]:
    """How to remove a definition and keep what libvirt has beside it; virsh has the option for a TPM since 8.9."""
    return ("virsh", "undefine", domain.name, "--keep-nvram", *(("--keep-tpm",) if domain.loses_tpm else ()))


def migrating(domain: Domain, options: Options, target: Node, *, resume: bool = False) -> tuple[str, ...]:
    """The words of virsh for the copy of the memory; ``resume``: for connecting the ends of a post-copy that broke."""
    again = ("--postcopy-resume",) if resume else ()
    flags, parameters = _flags(domain, options), _parameters(domain, options, target)
    return ("virsh", "migrate", domain.name, target.peer_uri, *flags, *again, *parameters)


def _by_itself(domain: Domain, options: Options) -> bool:
    """Whether the target's libvirt starts it."""
    return options.switch is Switch.FAST or options.may_post_copy_of(domain)


def _flags(domain: Domain, options: Options) -> Iterator[str]:
    for wanted, flag in (
        (True, "--p2p"),
        (True, "--abort-on-error"),
        (options.mode is not Mode.NON_LIVE, "--live"),
        (options.may_post_copy_of(domain), "--postcopy"),
        (not _by_itself(domain, options), "--suspend"),
        (domain.persistent, "--persistent"),
        (options.throttles, "--auto-converge"),
        (options.compression is not None, "--compressed"),
        (options.connections is not None, "--parallel"),
        (options.tls, "--tls"),
    ):
        if wanted:
            yield flag


def _parameters(domain: Domain, options: Options, peer: Node) -> Iterator[str]:
    address = f"[{peer.migration_address}]" if ":" in peer.migration_address else peer.migration_address
    port = "" if peer.migration_ports is None else f":{peer.migration_ports[0]}"
    level = {Compression.MT: "mt", Compression.ZLIB: "zlib", Compression.ZSTD: "zstd"}.get(
        options.compression or Compression.XBZRLE
    )
    for option, value in (
        ("--migrateuri", f"tcp://{address}{port}"),
        ("--bandwidth", options.bandwidth_mib_s),
        ("--listen-address", peer.listen_address),
        ("--parallel-connections", options.connections),
        ("--tls-destination", peer.tls_name if options.tls else None),
        ("--postcopy-bandwidth", options.postcopy_bandwidth_mib_s if options.may_post_copy_of(domain) else None),
        ("--auto-converge-initial", options.throttle_initial if options.throttles else None),
        ("--auto-converge-increment", options.throttle_increment if options.throttles else None),
        ("--comp-methods", None if options.compression is None else options.compression.value),
        (f"--comp-{level}-level", options.compression_level if level else None),
    ):
        if value is not None:
            yield from (option, str(value))


_THEN: Final[Mapping[str, str]] = {
    "lock": "See that nobody else moves {name}: by hand there is no token. `lvmigrate audit` shows those there are.",
    "sync": "Connected, UpToDate on both, Primary on {s} only (8.4 and 9 alike).",
    "guard": "By hand there is none: if you stop in between, two primaries stay allowed.",
    "open": "Still Connected and UpToDate on both; where it was promoted, {t} is Primary too.",
    "memory": "Beside it, `virsh domjobinfo {name}` on {s}; `virsh domjobabort {name}` ends it. If DRBD's connection"
    " breaks meanwhile, abort. When it has ended, look at both nodes whatever it said.",
    "switch": "Only if {s} says `shut off (migrated)`, or does not know it, and DRBD is still Connected and UpToDate:"
    " let it run on {t}. If {s} still has it, running or paused, do not.",
    "close": "{s} Secondary before two primaries are forbidden, and both while Connected.",
    "verify": "It runs on {t}, Primary there only; then forget it on {s}.",
    "compare": "`drbdsetup status --statistics` shows how far it is, and afterwards what is out of sync.",
    # A failover's.
    "define": "Copy the file from {s} to {t} in between: it may hold passwords.",
    "shutdown": "Wait until {s} says `shut off`.",
    "demote": "Secondary on both, Connected, UpToDate on both.",
    "start": "Running on {t}.",
}


class _Steps:
    """The commands of each step."""

    def __init__(self, plan: Plan, options: Options, target: Node) -> None:
        self._plan = plan
        self._options = options
        self._peer = target
        self._running = plan.domain.state is DomainState.RUNNING
        self._step = ""

    def of(self, step: str) -> Iterator[Command]:
        """Of one step, by its name; of one that has none (a token, a guard), nothing."""
        self._step = step
        made: Mapping[str, Callable[[], Iterator[Command]]] = {
            "sync": self._sync,
            "open": self._open,
            "memory": self._memory,
            "switch": self._switch,
            "close": self._close,
            "verify": self._verify,
            "compare": self._compare,
            "define": self._define,
            "shutdown": self._shutdown,
            "demote": self._demoted,
            "start": self._start,
        }
        if step in made:
            yield from made[step]()

    def _sync(self) -> Iterator[Command]:
        yield from self._status()
        if self._plan.shrunk_kib is not None:
            yield self._virsh(self._plan.source, "setmem", self._name, str(self._plan.shrunk_kib), "--live")

    def _switch(self) -> Iterator[Command]:
        yield self._virsh(self._plan.source, "domstate", self._name, "--reason")
        yield from self._status()
        if self._running and not _by_itself(self._plan.domain, self._options):
            yield self._virsh(self._plan.target, "resume", self._name)

    def _close(self) -> Iterator[Command]:
        yield from self._demote()
        for resource in self._plan.resources:
            yield from self._restore(resource)

    def _define(self) -> Iterator[Command]:
        file = f"{self._name}.xml"
        dump = shlex.join(("virsh", "dumpxml", self._name, "--inactive", "--security-info"))
        yield self._on(self._plan.source, "sh", "-c", f"umask 077; {dump} >{shlex.quote(file)}")
        yield self._virsh(self._plan.target, "define", file)
        yield self._virsh(self._plan.source, "autostart", self._name, "--disable")

    def _shutdown(self) -> Iterator[Command]:
        yield self._virsh(self._plan.source, "shutdown", self._name)
        yield self._virsh(self._plan.source, "domstate", self._name, "--reason")

    def _demoted(self) -> Iterator[Command]:
        yield from self._demote()
        yield from self._status()

    def _start(self) -> Iterator[Command]:
        yield from self._promote()
        yield self._virsh(self._plan.target, "start", self._name)

    @property
    def _name(self) -> str:
        return self._plan.instance

    def _on(self, node: str, *words: str) -> Command:
        return Command(step=self._step, node=node, words=words)

    def _virsh(self, node: str, *words: str) -> Command:
        return self._on(node, "virsh", *words)

    def _status(self) -> Iterator[Command]:
        for node in (self._plan.source, self._plan.target):
            for resource in self._plan.resources:
                yield self._on(node, "drbdsetup", "status", resource.name)

    def _open(self) -> Iterator[Command]:
        for resource in self._plan.resources:
            for end, node in enumerate((self._plan.source, self._plan.target)):
                if not self._set(resource, end, allow=True, protocol="C"):
                    yield self._net_options(resource, end, node, allow=True, protocol="C")
        yield from self._promote()

    def _promote(self) -> Iterator[Command]:
        for resource in self._plan.resources:
            if resource.promotes:
                yield from self._role(resource, 1, self._plan.target, "primary")

    def _demote(self) -> Iterator[Command]:
        for resource in self._plan.resources:
            yield from self._role(resource, 0, self._plan.source, "secondary")

    def _restore(self, resource: ResourcePlan) -> Iterator[Command]:
        for end, node in enumerate((self._plan.source, self._plan.target)):
            before = resource.options[end]
            if not self._set(resource, end, allow=True, protocol="C"):
                yield self._net_options(
                    resource, end, node, allow=before.allow_two_primaries, protocol=before.protocol or "C"
                )

    @staticmethod
    def _set(resource: ResourcePlan, end: int, *, allow: bool, protocol: str) -> bool:
        """Whether the connection was so before."""
        before = resource.options[end]
        return (before.allow_two_primaries, before.protocol or "C") == (allow, protocol)

    def _net_options(self, resource: ResourcePlan, end: int, node: str, *, allow: bool, protocol: str) -> Command:
        words = (f"--protocol={protocol}", f"--allow-two-primaries={'yes' if allow else 'no'}")
        called = resource.options[end].called
        if called:
            return self._on(node, "drbdsetup", "net-options", *called, *words)
        return self._on(node, "drbdadm", "net-options", *words, resource.name)

    def _role(self, resource: ResourcePlan, end: int, node: str, role: str) -> Iterator[Command]:
        """The tool for 8.4 takes one minor at a time."""
        if resource.modules[end].startswith("8."):
            for minor in resource.minors[end]:
                yield self._on(node, "drbdsetup", role, str(minor))
        else:
            yield self._on(node, "drbdsetup", role, resource.name)

    def _memory(self) -> Iterator[Command]:
        source, domain = self._plan.source, self._plan.domain
        if domain.persistent and domain.autostart:
            yield self._virsh(source, "autostart", self._name, "--disable")
        milliseconds = max(1, round(self._options.downtime_limit_s * 1000))
        yield self._virsh(source, "migrate-setmaxdowntime", self._name, str(milliseconds))
        yield self._on(source, *migrating(domain, self._options, self._peer))

    def _compare(self) -> Iterator[Command]:
        for resource in self._plan.resources:
            yield self._on(self._plan.target, "drbdadm", "verify", resource.name)

    def _verify(self) -> Iterator[Command]:
        source, target, domain = self._plan.source, self._plan.target, self._plan.domain
        yield self._virsh(target, "domstate", self._name, "--reason")
        yield from self._status()
        if domain.persistent:
            if not self._plan.errand.keep_definition:
                yield self._on(source, *undefining(domain))
            if domain.autostart:
                yield self._virsh(target, "autostart", self._name)
        if self._plan.shrunk_kib is not None:
            yield self._virsh(target, "setmem", self._name, str(self._plan.errand.memory_kib), "--live")
