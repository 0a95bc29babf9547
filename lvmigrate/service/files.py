"""The page for people: its files as they are served, and what a browser is told to let it do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files as resources
from types import MappingProxyType
from typing import Final, NamedTuple

#: What may be done with an answer that is no page: nothing.
NOTHING: Final = "default-src 'none'; frame-ancestors 'none'"

_CAREFUL: Final[Mapping[str, str]] = MappingProxyType(
    {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Lvmigrate-Version": version("lvmigrate"),
    }
)
#: With each file of the page. It runs its own scripts only, asks its own service only, and makes no element of a text.
PAGE: Final[Mapping[str, str]] = MappingProxyType(
    {
        **_CAREFUL,
        # Kept, and asked about each time: a service that is newer has newer files.
        "Cache-Control": "no-cache",
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'; trusted-types 'none'",
    }
)
#: With a report: `lvmigrate.page` brings its own style, and runs nothing.
REPORT: Final[Mapping[str, str]] = MappingProxyType(
    {
        **_CAREFUL,
        "Content-Security-Policy": f"{NOTHING}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    }
)

_KINDS: Final[Mapping[str, str]] = MappingProxyType(
    {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
)
_FIRST: Final = "index.html"


class File(NamedTuple):
    """One of them."""

    body: bytes
    media_type: str
    #: Another one when it holds something else.
    tag: str


def files() -> Mapping[str, File]:
    """All of them, by the path that they are asked for by; nothing else is ever read from the disk."""
    found = {}
    for each in resources("lvmigrate.service").joinpath("page").iterdir():
        body = each.read_bytes()
        path = "/" if each.name == _FIRST else f"/page/{each.name}"
        kind = _KINDS[each.name.rpartition(".")[2]]
        found[path] = File(body, kind, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
    return found
