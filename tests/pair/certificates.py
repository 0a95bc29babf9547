"""Certificates for the pair's hosts, made anew for each test with openssl, where their qemu.conf says."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.pair.host import CERTIFICATES, Host

#: openssl's option for a time that has passed, and one that lasts.
_DATES: Final = {True: ("20200101000000Z", "20200201000000Z"), False: ("20200101000000Z", "20700101000000Z")}


class Authority:
    """Signs what hosts are called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "index.txt").touch()
        (folder / "serial").write_text("01\n")
        (folder / "ca.cnf").write_text(
            "[ca]\ndefault_ca = own\n[own]\n"
            f"database = {folder}/index.txt\nserial = {folder}/serial\nnew_certs_dir = {folder}\n"
            "default_md = sha256\npolicy = any\nunique_subject = no\ncopy_extensions = copy\n"
            "[any]\ncommonName = supplied\n"
        )
        _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=authority", "-days", "1000",
                 "-keyout", f"{folder}/ca-key.pem", "-out", f"{folder}/ca-cert.pem")  # fmt: skip

    def equip(self, host: Host, *, names: Sequence[str] = (), expired: bool = False) -> None:
        """Give the host certificates for ``names`` (as in ``IP:10.0.0.1``), by default those that it has."""
        there = host.folder / "etc" / CERTIFICATES
        (there / "ca-cert.pem").write_bytes((self.folder / "ca-cert.pem").read_bytes())
        called = ",".join(names or (f"DNS:{host.name}", f"IP:{host.address}"))
        begin, end = _DATES[expired]
        for role in ("server", "client"):
            request = self.folder / "request.pem"
            _openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={role} of {host.name}",
                     "-addext", f"subjectAltName={called}", "-keyout", f"{there}/{role}-key.pem",
                     "-out", str(request))  # fmt: skip
            _openssl("ca", "-batch", "-notext", "-config", f"{self.folder}/ca.cnf", "-in", str(request),
                     "-cert", f"{self.folder}/ca-cert.pem", "-keyfile", f"{self.folder}/ca-key.pem",
                     "-startdate", begin, "-enddate", end, "-out", f"{there}/{role}-cert.pem")  # fmt: skip


def _openssl(*words: str) -> None:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"openssl {words[0]}: {done.stderr}"
