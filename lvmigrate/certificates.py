"""The certificates that QEMU on a node encrypts migrations with, judged before anything starts. Pure.

libvirt and QEMU check them only once the move has begun, and a wrong name then reads "Cannot read from TLS channel:
Input/output error", which tells nobody what to do (measured).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from lvmigrate.errors import Code, Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """What one node has, as it says itself."""

    node: str
    #: The folder that QEMU there reads them from.
    folder: str
    #: Why they cannot be used at all (a clause), ``None`` when they can.
    trouble: str | None = None
    #: Names and addresses in the server's certificate.
    names: frozenset[str] = frozenset()
    #: The files whose time has run out, or has not begun, by the node's own clock.
    expired: tuple[str, ...] = ()
    #: The fingerprint of the authority that the node trusts.
    authority: str = ""
    #: Whether its own certificates were signed by it.
    signed: bool = True


def findings(source: Certificates, target: Certificates, wanted: str) -> Iterator[Finding]:
    """Why memory cannot be sent encrypted from ``source`` to ``target``, which is to be called ``wanted``."""
    for side in (source, target):
        if side.trouble is not None:
            yield Finding(
                code=Code.TLS_MISSING,
                sentence=f"{side.node} has no certificates for encrypted migrations: {side.trouble}.",
                hint=f"Put ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem and client-key.pem into"
                f" {side.folder} on {side.node} (migrate_tls_x509_cert_dir in its qemu.conf), or move without --tls.",
            )
            continue
        for file in side.expired:
            yield Finding(
                code=Code.TLS_EXPIRED,
                sentence=f"{side.folder}/{file} on {side.node} has expired, or is not valid yet.",
                hint=f"Renew it, and see that the clock of {side.node} is right.",
            )
        if not side.signed:
            yield Finding(
                code=Code.TLS_ISSUER,
                sentence=f"The certificates in {side.folder} on {side.node} were not signed by its own ca-cert.pem.",
                hint="Have them signed by the authority that all nodes trust.",
            )
    if source.trouble is not None or target.trouble is not None:
        return
    if source.authority != target.authority:
        yield Finding(
            code=Code.TLS_ISSUER,
            sentence=f"{source.node} and {target.node} trust different authorities for encrypted migrations.",
            hint=f"Put the same ca-cert.pem into {source.folder} on {source.node} and {target.folder} there.",
        )
    if not any(_matches(name, wanted) for name in target.names):
        yield Finding(
            code=Code.TLS_NAME,
            sentence=f"The certificate of {target.node} does not name {wanted}, where memory is sent to"
            f" (it names {', '.join(sorted(target.names)) or 'nothing'}).",
            hint=f"Issue one that does, or set tls_name of {target.node} to a name that is in it.",
        )


def _matches(name: str, wanted: str) -> bool:
    """As GnuTLS does it: addresses by value, names without regard to case, a star for the first label only."""
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(wanted)
    except ValueError:
        pass
    name, wanted = name.lower().rstrip("."), wanted.lower().rstrip(".")
    if name.startswith("*."):
        return wanted.partition(".")[2] == name[2:]
    return name == wanted
