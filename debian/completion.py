"""Prints the bash completion of the command, made from its parser: ``python -m debian.completion``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Final

import shtab

from lvmigrate.convergence import NAMED
from lvmigrate.errors import Code, ExitCode
from lvmigrate.words import parser

_CODES: Final = (*(str(code.value) for code in ExitCode), *Code)


def script() -> str:
    """What bash-completion reads as ``completions/lvmigrate``."""
    command = parser()
    for action in _actions(command):
        if action.metavar in ("FILE", "PROGRAM"):
            action.complete = shtab.FILE  # type: ignore[attr-defined] # how shtab is told
        elif action.metavar == "CODE":
            action.choices = _CODES
        elif "--policy" in action.option_strings:
            action.choices = tuple(NAMED)
    return shtab.complete(command, "bash")


def _actions(command: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in command._actions:  # noqa: SLF001 -- argparse has no other way to its words
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for below in action.choices.values():
                yield from _actions(below)


if __name__ == "__main__":
    print(script())
