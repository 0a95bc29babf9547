"""The page of every command and every option, made from the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from lvmigrate.words import parser

_HEAD: Final = """\
# Every command

Made from `lvmigrate/words.py`. `lvmigrate COMMAND --help` says the same.

`--json` gives one JSON object on standard output, errors included. What the exit codes promise is told by
[every code](../codes.md#exit-codes) and by `lvmigrate explain NUMBER`.
"""
_OPTIONS: Final = ("option", "what it is for")
#: Options that as many commands have, or more, are told once.
_MANY: Final = 3


def commands() -> Mapping[str, argparse.ArgumentParser]:
    """Each command's own parser, by its name."""
    (found,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001
    return dict(found.choices)


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join(_lines(commands()))


def options_of(command: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    """Its options and arguments, without ``--help``."""
    return [action for action in command._actions if not isinstance(action, argparse._HelpAction)]  # noqa: SLF001


def _lines(known: Mapping[str, argparse.ArgumentParser]) -> Iterator[str]:
    users: dict[tuple[str, str], list[str]] = {}
    for name, command in known.items():
        for action in options_of(command):
            users.setdefault(_row(action), []).append(name)
    groups: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for row, having in users.items():
        if len(having) >= _MANY and row[0].startswith("`-"):
            groups.setdefault(tuple(having), []).append(row)
    titles = {names: _title(names, known) for names in sorted(groups, key=len, reverse=True)}

    yield _HEAD
    yield from _table(("command", "what it does"), [(f"[{n}](#{n})", str(c.description)) for n, c in known.items()])
    yield "\n## Before the command\n"
    yield "Where a service is to do it, what says so stands before the command: `lvmigrate --server URL status`.\n"
    yield from _table(_OPTIONS, [_row(action) for action in options_of(parser()) if action.option_strings])
    yield ""
    for name, command in known.items():
        yield f"## {name}\n"
        yield f"{_sentence(str(command.description))}\n"
        yield f"    {_usage(command)}\n"
        told = {row for names in groups if name in names for row in groups[names]}
        yield from _table(_OPTIONS, [row for row in map(_row, options_of(command)) if row not in told])
        also = [f"[{_some(groups[names])}](#{_anchor(title)})" for names, title in titles.items() if name in names]
        yield f"\nAnd, as other commands: {'; '.join(also)}.\n"
    yield "## What several commands understand\n"
    for names, title in titles.items():
        yield f"### {title}\n"
        yield from _table(_OPTIONS, groups[names])
        yield ""


def _title(names: Sequence[str], known: Mapping[str, argparse.ArgumentParser]) -> str:
    if len(names) == len(known):
        return "Understood by every command"
    return f"Understood by {', '.join(names[:-1])} and {names[-1]}"


def _some(rows: Sequence[tuple[str, str]]) -> str:
    """The first options of a group, and how many more there are."""
    words = [f"`{row[0].strip('`').split()[0]}`" for row in rows]
    return ", ".join(words) if len(words) <= _MANY else f"{words[0]}, {words[1]} and {len(words) - 2} more"


def _anchor(title: str) -> str:
    return title.lower().replace(",", "").replace(" ", "-")


def _usage(command: argparse.ArgumentParser) -> str:
    arguments: dict[int | str | None, str] = {None: "{}", 1: "{}", "?": "[{}]", "+": "{} ..."}
    words = [
        arguments[action.nargs].format(action.metavar) for action in options_of(command) if not action.option_strings
    ]
    return " ".join([command.prog, "[OPTION ...]", *words])


def _row(action: argparse.Action) -> tuple[str, str]:
    """How it is written, and what it means."""
    what = str(action.help or "")
    if not action.option_strings:
        return f"`{action.metavar}`", _cell(what or _ARGUMENTS[str(action.metavar)])
    value = ""
    if action.nargs != 0:
        value = action.metavar if isinstance(action.metavar, str) else "|".join(map(str, action.choices or ()))
        value = f" [{value}]" if action.nargs == "?" else f" {value}"
    return f"`{', '.join(action.option_strings)}{value}`".replace("|", "\\|"), _cell(what, default=action.default)


#: Arguments that the command itself does not describe: their names say it.
_ARGUMENTS: Final = {"NODE": "the node's name, as in the configuration"}


def _cell(text: str, *, default: object = None) -> str:
    return _text(text.replace("%(default)s", str(default)).replace("%%", "%"))


def _text(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    if rows:
        yield f"| {head[0]} | {head[1]} |"
        yield "|---|---|"
        yield from (f"| {left} | {right} |" for left, right in rows)
