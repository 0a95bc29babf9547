"""The words that the command ``lvmigrate`` understands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NoReturn

from lvmigrate.errors import ExitCode, UsageError

_EPILOG = (
    "exit codes: "
    + ", ".join(f"{code.value} {code.name.lower().replace('_', ' ')}" for code in ExitCode)
    + " (`lvmigrate explain 5` says what one promises)"
)


class _Version(argparse.Action):
    """Asks the installed distribution, and only when it is wanted: that takes longer than all the rest."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, *_: object) -> NoReturn:
        from importlib.metadata import version  # noqa: PLC0415

        print(f"lvmigrate {version('lvmigrate')}")
        sys.exit(ExitCode.OK)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every other error is said, and takes no option by its beginning: some name a danger."""

    def __init__(self, **given: Any) -> None:  # noqa: ANN401 -- argparse's own
        super().__init__(allow_abbrev=False, **given)

    def error(self, message: str) -> NoReturn:
        hint = f"See `{self.prog} --help`."
        if message.startswith("unrecognized arguments: ") and not _OF_A_SERVICE.isdisjoint(_words_in(message)):
            hint = "What says where a service is stands before the command: `lvmigrate --server URL COMMAND ...`."
        raise UsageError(f"{message[0].upper()}{message[1:]}.", hint=hint)


#: They stand before the command.
_OF_A_SERVICE: Final = frozenset({"--server", "--token-file", "--ca", "--client-cert", "--client-key"})


def _words_in(message: str) -> Iterator[str]:
    return (word.partition("=")[0] for word in message.split())


def parser() -> argparse.ArgumentParser:
    """The command line; ``command`` of what it parses is the command's name."""
    # What was said before the command is not unsaid after it.
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    _add_common(common)
    moving = _Parser(add_help=False)
    moving.add_argument("instance", metavar="INSTANCE", help="the guest's name or UUID")
    moving.add_argument("--to", metavar="NODE", help="the target; default: the best that has the guest's disks")
    _add_choice(moving)
    copying = _copying()
    parser = _Parser(
        prog="lvmigrate", description="Moves running guests between KVM hosts with DRBD disks.", epilog=_EPILOG
    )
    parser.add_argument("--version", action=_Version)
    _add_common(parser.add_argument_group("also after the command"))
    parser.set_defaults(config=None, json=False, log_level="error")
    _add_server(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, parents, sentence in (
        ("check", [common, moving, copying], "say what a move would do, or every reason against it; change nothing"),
        (
            "migrate",
            [common, moving, copying],
            "move a running guest; Ctrl-C aborts, the guest goes on; SIGUSR1 begins a post-copy, where allowed",
        ),
        (
            "rehearse",
            [common, moving, copying],
            "go through a move up to the first bytes of memory, and back: the guest stays where it is",
        ),
        ("failover", [common], "shut a guest down and start it on another node, or start it when its node is off"),
        ("status", [common], "show every guest, its nodes, its disks"),
        ("cleanup", [common], "finish or undo what a move of a guest has left, by what the nodes say now"),
        ("audit", [common], "find everything that moves have left on any node; change nothing"),
        ("doctor", [common], "look at every node and say what to mend, and how; change nothing"),
        ("history", [common], "list what was done, newest first, from this machine's journal"),
        ("report", [common], "tell everything the journal knows of one errand, as text, JSON or a page"),
        ("bundle", [common], "put together what a report of a defect needs of one errand, without secrets"),
        ("explain", [common], "say what a code means, what was changed when it is told, and what to do"),
        ("serve", [common], "do all of this for programs and people at a distance (docs/service.md)"),
        (
            "token",
            [common],
            "make a token for somebody who asks a service over the net, and what its configuration says",
        ),
    ):
        command = commands.add_parser(name, parents=parents, help=sentence, description=sentence, epilog=_EPILOG)
        command.set_defaults(command=name)
        _add_own(command, name)
    _add_drain(commands, common, copying)
    return parser


def _add_common(to: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """What every command understands."""
    to.add_argument("--config", metavar="FILE", help="default: $LVMIGRATE_CONFIG, else /etc/lvmigrate/cluster.toml")
    to.add_argument("--json", action="store_true", help="one JSON object on standard output, errors too")
    to.add_argument(
        "--log-level",
        metavar="LEVEL",
        choices=("debug", "info", "warning", "error"),
        help="what is logged on standard error: debug, info, warning or error (error)",
    )


def _add_own(command: argparse.ArgumentParser, name: str) -> None:
    """The words that a command has to itself."""
    if name == "cleanup":
        command.add_argument("instance", metavar="INSTANCE", help="the guest's name or UUID")
        command.add_argument("--dry-run", action="store_true", help="say what is seen, what follows; change nothing")
        command.add_argument("--abort", action="store_true", help="end a copy under way instead of finishing it")
    if name == "failover":
        _add_failover(command)
    if name == "report":
        command.add_argument("id", metavar="ID", help="from `history`: all of it, its beginning, or `last`")
        command.add_argument("--html", metavar="FILE", help="write one self-contained page (- : standard output)")
    if name in ("check", "migrate"):
        command.add_argument(
            "--show-commands",
            action="store_true",
            help="print each step as drbdsetup and virsh lines, to finish by hand",
        )
    if name == "bundle":
        command.add_argument("id", metavar="ID", help="from `history`: all of it, its beginning, or `last`")
        command.add_argument("--output", metavar="FILE", help="default: ./lvmigrate-bundle-ID.tar.gz")
    if name == "explain":
        command.add_argument("code", metavar="CODE", nargs="?", help="or an exit code's number; default: list all")
    if name == "history":
        command.add_argument("--most", metavar="N", type=_positive(int), default=50, help="how many (50)")
        command.add_argument(
            "--prune",
            metavar="DAYS",
            type=_positive(float),
            help="list nothing, forget for good what is older, of all guests (by itself: [journal] keep_days)",
        )
    if name in ("status", "history"):
        command.add_argument("instance", metavar="INSTANCE", nargs="?", help="this guest alone")

    if name == "token":
        command.add_argument("name", metavar="NAME", help="who is to have it")
        command.add_argument("--role", choices=("look", "move", "force"), default="look", help="default: %(default)s")


def _add_server(parser: argparse.ArgumentParser) -> None:
    """A service instead of this machine."""
    server = parser.add_argument_group("a service (docs/service.md)")
    server.add_argument(
        "--server", metavar="URL", help="have it do the command: unix:PATH or https://HOST:PORT; $LVMIGRATE_SERVER"
    )
    server.add_argument("--token-file", metavar="FILE", help="the token to show it; default: $LVMIGRATE_TOKEN")
    server.add_argument("--ca", metavar="FILE", help="the authority that signed its certificate; default: the system's")
    server.add_argument("--client-cert", metavar="FILE", help="a certificate to show it, instead of a token")
    server.add_argument("--client-key", metavar="FILE", help="its key, if that is not in the same file")


def _copying() -> _Parser:
    """How a guest is moved, whichever it is."""
    copying = _Parser(add_help=False)
    _add_memory(copying.add_argument_group("how memory is copied"))
    _add_deadlines(copying.add_argument_group("how long to wait"))
    _add_willing(copying.add_argument_group("what may be done to the guest"))
    safeguards = copying.add_argument_group("safeguards to give up")
    safeguards.add_argument(
        "--fast",
        action="store_true",
        help="the target starts the guest by itself: sooner, with less proof (docs/guide/how-memory-travels.md)",
    )
    safeguards.add_argument(
        "--no-guard", action="store_true", help="accept that a command that dies leaves two primaries allowed"
    )
    safeguards.add_argument(
        "--ignore-hvversions", action="store_true", help="move to an older libvirt or QEMU than the source's"
    )
    return copying


def _add_memory(copying: argparse._ArgumentGroup) -> None:
    copying.add_argument(
        "--mode",
        choices=("live", "non-live", "post-copy"),
        help="live: copy while it runs; non-live: it stands still meanwhile; post-copy: it goes on at the target after"
        " one pass, and cannot be aborted from then on (live)",
    )
    copying.add_argument(
        "--policy",
        metavar="NAME",
        help="what to do when the copy makes no progress: gentle (stand still up to 1 s, then give up), force (slow the"
        " guest down, then stand still), post-copy, patient, or one of the configuration's (gentle)",
    )
    copying.add_argument(
        "--forecast",
        metavar="S",
        type=_positive(int),
        nargs="?",
        const=2,
        help="measure for so many seconds (2) what the guest dirties, and tell how long the copy will take",
    )
    copying.add_argument("--bandwidth", metavar="MIB", type=_positive(int), help="at most this many MiB/s of memory")
    copying.add_argument(
        "--postcopy-bandwidth", metavar="MIB", type=_positive(int), help="the same once it runs on the target"
    )
    copying.add_argument(
        "--downtime-limit", metavar="S", type=_positive(float), help="longest standstill for the last pass (0.3)"
    )
    copying.add_argument("--auto-converge", action="store_true", help="slow the guest down where that is needed")
    copying.add_argument("--throttle-initial", metavar="PERCENT", type=_positive(int), help="by so much at first")
    copying.add_argument(
        "--throttle-increment", metavar="PERCENT", type=_positive(int), help="and so much more each time"
    )
    copying.add_argument("--compression", choices=("xbzrle", "zlib", "zstd", "mt"), help="compress memory on its way")
    copying.add_argument(
        "--compression-level", metavar="N", type=_level, help="how hard: zlib and mt 0 to 9, zstd 0 to 20"
    )
    copying.add_argument("--connections", metavar="N", type=_positive(int), help="send over so many side by side")
    copying.add_argument("--tls", action="store_true", help="encrypt memory on its way, with QEMU's own certificates")


def _add_deadlines(copying: argparse._ArgumentGroup) -> None:
    copying.add_argument(
        "--sync-timeout", metavar="S", type=_positive(float), help="longest wait for the disks to be in step (3600)"
    )
    copying.add_argument(
        "--sync-stall", metavar="S", type=_positive(float), help="longest standstill of a resynchronisation (120)"
    )
    copying.add_argument(
        "--copy-timeout", metavar="S", type=_positive(float), help="longest copy of memory before it is aborted (3600)"
    )


def _add_willing(copying: argparse._ArgumentGroup) -> None:
    _add_afterwards(copying)
    copying.add_argument(
        "--allow-failover",
        action="store_true",
        help="where it cannot move while it runs, shut it down and start it there (decided before anything starts)",
    )
    copying.add_argument(
        "--shutdown-timeout", metavar="S", type=_positive(float), help="how long it may take to shut down then (120)"
    )
    copying.add_argument(
        "--allow-runtime-changes",
        action="store_true",
        help="let the guest give memory back where the target has too little; it gets it back afterwards",
    )
    copying.add_argument(
        "--minimum-memory", metavar="MIB", type=_positive(int), help="but keep so much (half of what it has)"
    )


def _add_choice(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--iallocator", metavar="PROGRAM", help="have this program choose the target: a path, or `hail` (ganeti-htools)"
    )
    command.add_argument("--ignore-ipolicy", action="store_true", help="whatever the target's policy says")


def _add_afterwards(command: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    command.add_argument(
        "--keep-definition",
        action="store_true",
        help="the node that it leaves keeps its definition, for a failover when the other one is dead",
    )
    command.add_argument(
        "--verify-disks",
        action="store_true",
        help="afterwards have DRBD compare both copies of its disks (drbdadm verify), and wait for the result",
    )


def _add_failover(command: argparse.ArgumentParser) -> None:
    _add_afterwards(command)
    command.add_argument("instance", metavar="INSTANCE", help="the guest's name or UUID")
    command.add_argument("--to", metavar="NODE", help="the target; default: the best that has the disks")
    _add_choice(command)
    command.add_argument(
        "--shutdown-timeout", metavar="S", type=_positive(float), help="how long the guest may take to shut down (120)"
    )
    command.add_argument("--hard", action="store_true", help="then switch it off, as a power cut would")
    command.add_argument(
        "--sync-timeout", metavar="S", type=_positive(float), help="longest wait for the disks to be in step (3600)"
    )
    command.add_argument(
        "--is-off",
        metavar="NODE",
        help="your word that this node, which does not answer, is switched off; if it lives, the guest will run twice",
    )
    command.add_argument(
        "--ignore-consistency",
        action="store_true",
        help="from a node that is off: start from the copy on --to NODE although it is old (Outdated, Consistent), and"
        " give up for good what was written since; never from one that is Inconsistent",
    )
    command.add_argument(
        "--definition",
        metavar="kept|FILE",
        help="from a node that is off, where the target has no definition: the one kept on this machine after the last"
        " move, or this file's",
    )
    command.add_argument("--dry-run", action="store_true", help="say what it would do, or every reason against it")


def _add_drain(commands: argparse._SubParsersAction[_Parser], common: _Parser, copying: _Parser) -> None:
    """Everything about many guests, and about nodes."""
    for name, sentence in (
        (
            "drain",
            "move every guest away from a node; the first Ctrl-C lets those under way arrive, the second aborts them",
        ),
        ("return", "open a node again, and move back what a drain has sent away; Ctrl-C as for drain"),
    ):
        command = commands.add_parser(
            name, parents=[common, copying], help=sentence, description=sentence, epilog=_EPILOG
        )
        command.set_defaults(command=name)
        command.add_argument("nodes", metavar="NODE", nargs="+" if name == "drain" else 1)
        command.add_argument("--dry-run", action="store_true", help="say who would go where, and when; change nothing")
        command.add_argument("--ignore-ipolicy", action="store_true", help="whatever a target's policy says")
        for word, what in (
            ("at-once", "guests under way, in all (4)"),
            ("per-source", "of them from one node (2)"),
            ("per-target", "of them to one node (2)"),
            ("per-link", "of them between the same two nodes (2)"),
        ):
            command.add_argument(f"--{word}", metavar="N", type=_positive(int), help=f"at most so many {what}")
        command.add_argument(
            "--budget",
            metavar="MIB",
            type=_positive(int),
            help="MiB/s of each node's link for all of it, DRBD's part included (80 %% of link_mib_s, or 100)",
        )
        wishes = command.add_mutually_exclusive_group()
        for wanted, what in (
            ("pause", "have the one that is under way begin nothing new until it is resumed"),
            ("resume", "have it go on"),
            ("stop", "have it end when those under way have arrived"),
        ):
            wishes.add_argument(f"--{wanted}", dest="wish", action="store_const", const=wanted, help=what)
        if name == "drain":
            command.add_argument("--to", metavar="NODE", action="append", help="only to this node; may be repeated")
            command.add_argument("--reason", metavar="WORDS", default="", help="why nobody may come to it meanwhile")
        else:
            command.add_argument(
                "--all", action="store_true", help="every guest that has its disks there, wherever it was before"
            )
    sentence = "list the nodes and who may come, or set it for one, for all commands on this machine"
    command = commands.add_parser("node", parents=[common], help=sentence, description=sentence, epilog=_EPILOG)
    command.set_defaults(command="node")
    command.add_argument("node", metavar="NODE", nargs="?")
    states = command.add_mutually_exclusive_group()
    states.add_argument("--drained", metavar="WHY", nargs="?", const="", help="no guest may come")
    states.add_argument("--offline", metavar="WHY", nargs="?", const="", help="out of use: it is not even asked")
    states.add_argument("--online", action="store_true", help="neither, unless the configuration says so")


def _level(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is no number of 0 or more")
    return int(word)


def _positive(kind: type[int | float]) -> Callable[[str], float]:
    def positive(word: str) -> float:
        try:
            number = kind(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} is no number") from None
        if not 0 < number < 1e9:  # noqa: PLR2004 -- no sensible time or rate is larger
            raise argparse.ArgumentTypeError(f"{word!r} must be above 0")
        return number

    return positive
