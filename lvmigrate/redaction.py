"""Taking secrets out of what is shown to others. Pure.

What a thing is called tells that it is secret (password, secret, key, credential, token), in XML, JSON, TOML, on a
command line and in DRBD's words; and what is known to be one is taken out wherever it stands.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

#: What stands in place of a secret.
GONE: Final = "***"

_WORD: Final = r"(?:passw(?:or)?d|passphrase|secret|credential|token|api[-_]?key|private[-_]?key|auth[-_]?key)"
#: Of these a key that ends in ``key`` alone is one, too.
_NAME: Final = re.compile(rf"{_WORD}|key$", re.IGNORECASE)
#: From its beginning only: else a line of dots is tried from each of them to its end.
_CALLED: Final = rf"(?<![\w.-])[\w.-]*{_WORD}[\w.-]*"
_RULES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), instead)
    for pattern, instead in (
        # Keys as files have them.
        (r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", r"\1***\2"),
        # scheme://user:password@host
        (r"(://[^\s/@:'\"]*:)[^\s/@]+(?=@)", r"\1***"),
        # <secret ...>...</secret>, <password>...</password>
        (rf"(<([\w:]*{_WORD}[\w:]*)\b[^<>]*>)[^<>]+(?=</\2)", r"\1***"),
        # QEMU's own secrets: -object secret,id=...,data=...   -object {"qom-type":"secret",...,"data":"..."}
        (r"(\bdata=)[^\s,'\"]+", r"\1***"),
        (r"(\\?\"data\\?\"\s*:\s*\\?\")[^\"\\]*", r"\1***"),
        # name="...", "name": "...", \"name\": \"...\"; the quotes within are escaped. What is cut off
        # ends with its line: the next quote is another one's.
        (rf"({_CALLED}\\?[\"']?\s*[:=]\s*)(\\?\")(?:(?!\2)(?:\\.|[^\n]))*(?=\2|\n|\Z)", r"\1\2***"),
        (rf"({_CALLED}[\"']?\s*[:=]\s*)'[^'\n]*(?:'|(?=\n)|\Z)", r"\1'***'"),
        # name=..., name: ... without quotes
        (rf"({_CALLED}[ \t]*[:=][ \t]*)[^\s\"'\\,;{{\[(<*&]+", r"\1***"),
        # shared-secret "...";   --password ...
        (
            r"((?<![\w-])[\w-]*(?:passw(?:or)?d|secret)[\w-]*[ \t]+)(?:\"(?:\\.|[^\"\\])*(?:\"|\Z)|'[^']*')",
            r"\1***",
        ),
        # shared-secret ...;   as drbd.conf may have it, without quotes
        (r"((?<![\w-])shared-secret[ \t]+)[^\s\"';*]+(?=[ \t]*;)", r"\1***"),
        # Authorization: Bearer ..., and the service's own tokens wherever they stand
        (r"(\bBearer[ \t]+|\bAuthorization[\"'\\: \t]+Basic[ \t]+)(?!\*)[\w.~+/=-]{8,}", r"\1***"),
        (r"\blvm_[\w-]{8,}", "***"),
        (rf"((?<![\w-])--?[\w-]*{_WORD}[\w-]*[ \t]+)[^\s\"'*-]\S*", r"\1***"),
    )
)


def redacted(text: str, known: Collection[str] = ()) -> str:
    """The text without what is named as a secret in it, and without what is ``known`` to be one."""
    for pattern, instead in _RULES:
        text = pattern.sub(instead, text)
    # Last: what is taken out here may be what another secret is called.
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, GONE)
    return text


def redacted_value(value: Any, known: Collection[str] = ()) -> Any:  # noqa: ANN401 -- JSON is what it is
    """The same for what JSON and TOML have: also by the keys, and of a command no argument is left."""
    if isinstance(value, Mapping):
        return {str(key): _of_key(str(key), item, known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_value(item, known) for item in value]
    return redacted(value, known) if isinstance(value, str) else value


def _of_key(key: str, item: Any, known: Collection[str]) -> Any:  # noqa: ANN401 -- as above
    if isinstance(item, str) and item and key.endswith("command"):
        program = item.split()[0] if item.split() else GONE
        return GONE if "=" in program else f"{program} {GONE}"
    if isinstance(item, str | int) and not isinstance(item, bool) and _NAME.search(key):
        return GONE
    return redacted_value(item, known)


def secrets_of(configuration: Mapping[str, Any], *, names: Collection[str]) -> frozenset[str]:
    """What the configuration (as TOML has it) says that nobody else should know, to be taken out everywhere.

    The arguments of its commands, and what its keys name so.  ``names`` of nodes and addresses are none.
    """
    return frozenset(word for word in _secrets(configuration) if len(word) > _SHORT and word not in names)


#: A short option and its value in one word; what is of small letters alone is a long option with one dash.
_GLUED: Final = re.compile(r"-\w(?![a-z]*$)[^-\s]\S*")
#: What is this short stands in any text: it is taken out by what it is called alone.
_SHORT: Final = 3


def _secrets(value: Any) -> Iterator[str]:  # noqa: ANN401 -- as above
    if isinstance(value, list):
        for item in value:
            yield from _secrets(item)
    if not isinstance(value, Mapping):
        return
    for key, item in value.items():
        if isinstance(item, str) and key.endswith("command"):
            yield from _arguments(item)
        elif isinstance(item, str) and _NAME.search(key):
            yield item
        else:
            yield from _secrets(item)


def _arguments(command: str) -> Iterator[str]:
    """Every word that may be a secret: all but the program and bare options, also within what is quoted."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    for number, word in enumerate(part for whole in words for part in (whole, *whole.split())):
        option = word.startswith("-") and "=" not in word
        if not option and (number > 1 or "=" in word):
            yield word
            yield word.partition("=")[2]
            yield word.partition(":")[2]  # user:password
        elif number > 1 and _GLUED.fullmatch(word):
            yield word[2:]
