"""What is asked for, against what libvirt and QEMU on both nodes can do. Pure.

By their versions: neither tells before a migration begins which of its features would work (libvirt's domain
capabilities name none, QEMU's are only those of a guest that runs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from lvmigrate import convergence
from lvmigrate.domain import Host
from lvmigrate.errors import Code, Finding
from lvmigrate.plan import Compression, Mode, Options
from lvmigrate.premises import dotted

Version = tuple[int, int, int]

_HIGHEST: Final[Mapping[Compression, int]] = {Compression.MT: 9, Compression.ZLIB: 9, Compression.ZSTD: 20}
_WITH_CONNECTIONS: Final = frozenset({Compression.ZLIB, Compression.ZSTD})


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """Something that may be asked for, and since when it is there."""

    name: str
    wanted: Callable[[Options], bool]
    libvirt: Version
    qemu: Version
    #: The first QEMU without it.
    gone_from_qemu: Version | None = None


#: libvirt.org/html/libvirt-libvirt-domain.html names the release of each flag, QEMU's change log the rest.
FEATURES: Final = (
    Feature(name="post-copy", wanted=lambda o: o.may_post_copy, libvirt=(1, 3, 3), qemu=(2, 6, 0)),
    Feature(
        name="a bandwidth of its own for post-copy",
        wanted=lambda o: o.postcopy_bandwidth_mib_s is not None,
        libvirt=(5, 1, 0),
        qemu=(3, 0, 0),
    ),
    Feature(name="auto-converge", wanted=lambda o: o.throttles, libvirt=(1, 2, 3), qemu=(1, 6, 0)),
    Feature(
        name="auto-converge's initial and increment",
        wanted=lambda o: o.throttle_initial is not None or o.throttle_increment is not None,
        libvirt=(2, 0, 0),
        qemu=(2, 7, 0),
    ),
    Feature(name="xbzrle", wanted=lambda o: o.compression is Compression.XBZRLE, libvirt=(0, 9, 13), qemu=(1, 2, 0)),
    Feature(
        name="compression mt",
        wanted=lambda o: o.compression is Compression.MT,
        libvirt=(1, 3, 4),
        qemu=(2, 4, 0),
        gone_from_qemu=(9, 1, 0),
    ),
    Feature(
        name="compression zlib or zstd",
        wanted=lambda o: o.compression in _WITH_CONNECTIONS,
        libvirt=(9, 1, 0),
        qemu=(5, 0, 0),
    ),
    Feature(name="parallel connections", wanted=lambda o: o.connections is not None, libvirt=(5, 2, 0), qemu=(4, 0, 0)),
    Feature(name="TLS", wanted=lambda o: o.tls, libvirt=(3, 2, 0), qemu=(2, 7, 0)),
)


def unsupported(options: Options, host: Host) -> Iterator[Finding]:
    """Everything asked for that this node does not have. A version that is not known (zeros) is no reason."""
    for feature in FEATURES:
        if not feature.wanted(options):
            continue
        for what, version, since in (
            ("libvirt", host.libvirt_version, feature.libvirt),
            ("QEMU", host.qemu_version, feature.qemu),
        ):
            if (0, 0, 0) < version < since:
                yield Finding(
                    code=Code.OPTION_UNSUPPORTED,
                    sentence=f"{what} {dotted(version)} on {host.node} has no {feature.name}"
                    f" ({what} {dotted(since)} has).",
                    hint=f"Leave it out, or update {what} on {host.node}.",
                )
        if feature.gone_from_qemu is not None and host.qemu_version >= feature.gone_from_qemu:
            yield Finding(
                code=Code.OPTION_UNSUPPORTED,
                sentence=f"QEMU {dotted(host.qemu_version)} on {host.node} has no {feature.name} any more.",
                hint="Use --compression zstd with --connections 2 (or more).",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The numbers that libvirt and QEMU take for something that may be asked for."""

    name: str
    #: The option, as the command has it.
    option: str
    asked: Callable[[Options], float | None]
    #: 0: any number above it.
    least: float
    most: float
    unit: str = ""


#: migrate_params_check in QEMU's migration/options.c; of bandwidths, what fits in 63 bits once libvirt makes it bytes.
BOUNDS: Final = (
    Bounds(
        name="downtime limit",
        option="--downtime-limit",
        asked=lambda o: o.downtime_limit_s,
        least=0.0,
        most=convergence.UNLIMITED_S,
        unit=" s",
    ),
    Bounds(
        name="downtime limit in the end of the policy",
        option="up_to_s in [policies.NAME], or another --policy",
        asked=lambda o: max((rule.up_to_s for rule in o.rules.rules), default=None),
        least=0.0,
        most=convergence.UNLIMITED_S,
        unit=" s",
    ),
    Bounds(name="first throttle", option="--throttle-initial", asked=lambda o: o.throttle_initial, least=1, most=99),
    Bounds(
        name="throttle's increment",
        option="--throttle-increment",
        asked=lambda o: o.throttle_increment,
        least=1,
        most=99,
    ),
    Bounds(name="number of connections", option="--connections", asked=lambda o: o.connections, least=1, most=255),
    Bounds(
        name="bandwidth",
        option="--bandwidth",
        asked=lambda o: o.bandwidth_mib_s,
        least=1,
        most=(1 << 43) - 1,
        unit=" MiB/s",
    ),
    Bounds(
        name="bandwidth of the post-copy",
        option="--postcopy-bandwidth",
        asked=lambda o: o.postcopy_bandwidth_mib_s,
        least=1,
        most=(1 << 43) - 1,
        unit=" MiB/s",
    ),
)


def out_of_bounds(options: Options) -> Iterator[Finding]:
    """Every number asked for that libvirt or QEMU would refuse once the move has begun."""
    for bounds in BOUNDS:
        asked = bounds.asked(options)
        if asked is None or (bounds.least <= asked <= bounds.most and asked > 0):
            continue
        taken = f"{f'{bounds.least} to' if bounds.least else 'at most'} {bounds.most:.15g}{bounds.unit}"
        yield Finding(
            code=Code.OPTION_UNSUPPORTED,
            sentence=f"The {bounds.name} is {asked}{bounds.unit}, and QEMU takes {taken}.",
            hint=f"Give another number: {bounds.option}.",
        )


def conflicts(options: Options) -> Iterator[Finding]:
    """What cannot be had together, as libvirt and QEMU would say only once the move has begun."""
    post_copy = "--mode post-copy" if options.mode is Mode.POST_COPY else f"--policy {options.policy.name}"
    highest = 1_000 if options.compression is None else _HIGHEST.get(options.compression, 1_000)
    for wrong, sentence, hint in (
        (
            options.may_post_copy and options.connections is not None,
            f"Post-copy ({post_copy}) goes over one connection only.",
            "Leave out --connections, or choose another mode and policy.",
        ),
        (
            options.compression in _WITH_CONNECTIONS and options.connections is None,
            f"Compression {_name(options)} needs parallel connections.",
            "Add --connections 2 (or more).",
        ),
        (
            options.compression in (Compression.XBZRLE, Compression.MT) and options.connections is not None,
            f"Compression {_name(options)} goes over one connection only.",
            "Leave out --connections, or use zlib or zstd.",
        ),
        (
            options.compression_level is not None and options.compression not in _HIGHEST,
            "A compression level was given without a compression that has levels.",
            "Name one with --compression: zlib, zstd or mt.",
        ),
        (
            not 0 <= (options.compression_level or 0) <= highest,
            f"Compression {_name(options)} has no level {options.compression_level}.",
            f"Its levels are 0 to {highest}.",
        ),
        (
            options.postcopy_bandwidth_mib_s is not None and not options.may_post_copy,
            "A bandwidth for post-copy was given for a move that cannot become one.",
            "Add --mode post-copy or --policy post-copy.",
        ),
        (
            not options.throttles and (options.throttle_initial or options.throttle_increment) is not None,
            "A throttle was given without auto-converge.",
            "Add --auto-converge or --policy force; a non-live move has none.",
        ),
    ):
        if wrong:
            yield Finding(code=Code.OPTIONS_CONFLICT, sentence=sentence, hint=hint)


def _name(options: Options) -> str:
    return "" if options.compression is None else options.compression.value
