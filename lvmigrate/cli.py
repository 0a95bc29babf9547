"""The command ``lvmigrate``. It holds no rule of its own: it reads words, calls `Cluster`, and shows values.

Long, because every command with all of its options is declared in one place.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from lvmigrate.errors import Code, ExitCode, LvmigrateError, UsageError

if TYPE_CHECKING:
    from lvmigrate.by_hand import ByHand
    from lvmigrate.cluster import Cluster
    from lvmigrate.plan import Options, Plan

_EPILOG = "exit codes: " + ", ".join(f"{code.value} {code.name.lower().replace('_', ' ')}" for code in ExitCode)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (the process's own by default) and return its `ExitCode`. Never raises."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    try:
        asked = _parser().parse_args(words)
        return _run(asked)
    except LvmigrateError as error:
        return _fail(error, as_json=as_json)
    except KeyboardInterrupt:
        return ExitCode.ABORTED
    except Exception as error:  # noqa: BLE001 -- never a traceback
        defect = LvmigrateError(
            f"lvmigrate has a defect: {type(error).__name__}: {error}.",
            hint="Please report it with the output of the same command under --log-level debug.",
            code=Code.INTERNAL,
        )
        if "debug" in words:
            import structlog  # noqa: PLC0415 -- only here

            structlog.get_logger().exception("defect")
        return _fail(defect, as_json=as_json)


def _run(asked: argparse.Namespace) -> int:
    if asked.act is None:  # it needs no nodes, and no configuration
        return _explain(asked)
    # Heavy imports wait until the words are known to be right: --help and mistakes answer at once.
    from lvmigrate import Cluster  # noqa: PLC0415
    from lvmigrate.log import configure  # noqa: PLC0415

    configure(level=asked.log_level, json=asked.json)
    with Cluster.open(asked.config) as cluster:
        act: Callable[[Cluster, argparse.Namespace], int] = asked.act
        return act(cluster, asked)


def _check(cluster: Cluster, asked: argparse.Namespace) -> int:
    from lvmigrate import display  # noqa: PLC0415

    options = _options(cluster, asked)
    plan = cluster.check(asked.instance, target=asked.to, options=options)
    if not asked.show_commands:
        _show(plan, display.plan_lines, as_json=asked.json)
    else:
        _show_with(plan, display.plan_lines, cluster.by_hand(plan, options), as_json=asked.json)
    return ExitCode.OK


def _migrate(cluster: Cluster, asked: argparse.Namespace) -> int:
    from lvmigrate import display  # noqa: PLC0415

    cancel = threading.Event()
    post_copy = threading.Event()
    options = _options(cluster, asked)
    steps: list[ByHand] = []

    def on_plan(plan: Plan) -> None:
        if asked.show_commands:
            steps.extend(cluster.by_hand(plan, options))
            if not asked.json:
                from lvmigrate import telling  # noqa: PLC0415

                _print("\n".join(telling.by_hand_lines(steps)), error=True)
        shown.plan(plan)

    with _signals_set(cancel), _usr1_sets(post_copy), display.display(json=asked.json) as shown:
        report = cluster.migrate(
            asked.instance,
            target=asked.to,
            options=options,
            on_plan=on_plan,
            on_progress=shown.progress,
            cancel=cancel,
            post_copy=post_copy,
        )
    if asked.show_commands and asked.json:
        _show_with(report, display.report_lines, steps, as_json=True)
    else:
        _show(report, display.report_lines, as_json=asked.json)
    return ExitCode.OK


def _rehearse(cluster: Cluster, asked: argparse.Namespace) -> int:
    from lvmigrate import display, telling  # noqa: PLC0415

    cancel = threading.Event()
    with _signals_set(cancel), display.display(json=asked.json) as shown:
        told = cluster.rehearse(
            asked.instance,
            target=asked.to,
            options=_options(cluster, asked),
            on_plan=shown.plan,
            on_progress=shown.progress,
            cancel=cancel,
        )
    _show(told, telling.rehearsal_lines, as_json=asked.json)
    return ExitCode.OK


def _failover(cluster: Cluster, asked: argparse.Namespace) -> int:
    from lvmigrate import display  # noqa: PLC0415
    from lvmigrate.failover import FailoverOptions  # noqa: PLC0415

    chosen = {
        "shutdown_timeout_s": asked.shutdown_timeout,
        "sync_timeout_s": asked.sync_timeout,
        "hard": asked.hard,
        "is_off": asked.is_off,
        "keep_definition": asked.keep_definition or None,
        "ignore_ipolicy": asked.ignore_ipolicy or None,
        "iallocator": asked.iallocator,
    }
    _one_way_to_choose(asked)
    chosen = {key: value for key, value in chosen.items() if value is not None}
    options = dataclasses.replace(FailoverOptions.of(cluster.options(asked.instance)), **chosen)
    if asked.dry_run:
        plan = cluster.check_failover(asked.instance, target=asked.to, options=options)
        _show(plan, display.plan_lines, as_json=asked.json)
        return ExitCode.OK
    cancel = threading.Event()
    with _signals_set(cancel), display.display(json=asked.json) as shown:
        report = cluster.failover(
            asked.instance,
            target=asked.to,
            options=options,
            on_plan=shown.plan,
            on_progress=shown.progress,
            cancel=cancel,
        )
    _show(report, display.report_lines, as_json=asked.json)
    return ExitCode.OK


def _cleanup(cluster: Cluster, asked: argparse.Namespace) -> int:
    from lvmigrate import display  # noqa: PLC0415

    if asked.dry_run:
        plan = cluster.check_cleanup(asked.instance, abort=asked.abort)
        _show(plan, display.cleanup_plan_lines, as_json=asked.json)
        return ExitCode.OK
    cancel = threading.Event()
    with _signals_set(cancel):
        report = cluster.cleanup(
            asked.instance,
            abort=asked.abort,
            on_plan=lambda plan: (
                None if asked.json else _print("\n".join(display.cleanup_plan_lines(plan)), error=True)
            ),
            cancel=cancel,
        )
    _show(report, display.cleanup_report_lines, as_json=asked.json)
    return ExitCode.OK


def _audit(cluster: Cluster, asked: argparse.Namespace) -> int:
    from lvmigrate import display  # noqa: PLC0415

    found = cluster.audit()
    _show(found, display.audit_lines, as_json=asked.json)
    if found.silent:
        return found.silent[0].exit_code
    return ExitCode.LEFT_BEHIND if found.findings else ExitCode.OK


def _doctor(cluster: Cluster, asked: argparse.Namespace) -> int:
    from lvmigrate import telling  # noqa: PLC0415

    found = cluster.doctor()
    _show(found, telling.diagnosis_lines, as_json=asked.json)
    return found.exit_code


def _status(cluster: Cluster, asked: argparse.Namespace) -> int:
    from lvmigrate import display  # noqa: PLC0415
    from lvmigrate.jsonable import jsonable  # noqa: PLC0415

    nodes = cluster.status(asked.instance)
    silent = [node.trouble for node in nodes if node.trouble is not None]
    known = any(node.guests for node in nodes)
    if asked.instance and not known and not silent:
        raise UsageError(
            f"No node knows a guest called {asked.instance}.",
            hint="`lvmigrate status` lists the guests of all nodes.",
            code=Code.INSTANCE_UNKNOWN,
        )
    if asked.json:
        _print(json.dumps({"nodes": jsonable(nodes)}))
    else:
        from rich.console import Console  # noqa: PLC0415

        Console().print(display.status_table(nodes))
        for trouble in silent:
            _print("\n".join(display.error_lines(trouble)), error=True)
    return silent[0].exit_code if silent else ExitCode.OK


def _history(cluster: Cluster, asked: argparse.Namespace) -> int:
    from lvmigrate import display  # noqa: PLC0415
    from lvmigrate.jsonable import jsonable  # noqa: PLC0415

    if asked.prune is not None:
        gone = cluster.prune(asked.prune)
        _print(json.dumps({"forgotten": gone}) if asked.json else f"{gone} errands forgotten")
        return ExitCode.OK
    entries = cluster.history(asked.instance, most=asked.most)
    if asked.json:
        _print(json.dumps({"errands": jsonable(entries)}))
    elif entries:
        from rich.console import Console  # noqa: PLC0415

        Console().print(display.history_table(entries))
    else:
        _print("nothing was done yet" + (f" to {asked.instance}" if asked.instance else ""))
    return ExitCode.OK


def _report(cluster: Cluster, asked: argparse.Namespace) -> int:
    from lvmigrate import display, page  # noqa: PLC0415

    story = cluster.story(asked.id)
    if asked.html is None:
        _show(story, display.story_lines, as_json=asked.json)
    elif asked.html == "-":
        _print(page.page(story))
    else:
        try:
            Path(asked.html).write_text(page.page(story), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{asked.html} cannot be written: {error.strerror}.", hint="Name another file.") from error
        _print(json.dumps({"file": asked.html}) if asked.json else asked.html)
    return ExitCode.OK


def _explain(asked: argparse.Namespace) -> int:
    from lvmigrate import explanation, telling  # noqa: PLC0415
    from lvmigrate.jsonable import jsonable  # noqa: PLC0415

    if asked.code is not None:
        _show(explanation.explained(asked.code), telling.explanation_lines, as_json=asked.json)
    elif asked.json:
        everything = {"codes": explanation.EXPLANATIONS.values(), "exit_codes": explanation.EXITS.values()}
        _print(json.dumps({name: jsonable(tuple(all_of_it)) for name, all_of_it in everything.items()}))
    else:
        _print("\n".join(telling.explanations_lines()))
    return ExitCode.OK


def _bundle(cluster: Cluster, asked: argparse.Namespace) -> int:
    made = cluster.bundle(asked.id)
    path = Path(asked.output or f"{made.folder}.tar.gz")
    try:
        # Readable by its owner only, and nothing is overwritten.
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(made.archive())
    except FileExistsError as error:
        raise UsageError(f"{path} is there already.", hint="Name another file: --output.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.", hint="Name another file: --output.") from error
    if asked.json:
        _print(json.dumps({"file": str(path), "silent": list(made.silent)}))
    else:
        for node in made.silent:
            _print(f"{node} gave no answer: nothing of it is in the bundle", error=True)
        _print(str(path))
    return ExitCode.OK


def _one_way_to_choose(asked: argparse.Namespace) -> None:
    if asked.to is not None and asked.iallocator is not None:
        raise UsageError("Both --to and --iallocator name a target.", hint="Leave one of them out.")


def _options(cluster: Cluster, asked: argparse.Namespace) -> Options:
    """The configuration's defaults for this guest with what the command line says."""
    _one_way_to_choose(asked)
    from lvmigrate.plan import Compression, Mode, Switch  # noqa: PLC0415

    policy = None
    if asked.policy is not None:
        policies = cluster.config.policies
        if asked.policy not in policies:
            raise UsageError(
                f"There is no policy {asked.policy}.",
                hint=f"There are {', '.join(policies)}; [policies.NAME] in the configuration makes others.",
            )
        policy = policies[asked.policy]
    chosen = {
        "mode": None if asked.mode is None else Mode(asked.mode),
        "policy": policy,
        "bandwidth_mib_s": asked.bandwidth,
        "postcopy_bandwidth_mib_s": asked.postcopy_bandwidth,
        "auto_converge": asked.auto_converge or None,
        "throttle_initial": asked.throttle_initial,
        "throttle_increment": asked.throttle_increment,
        "compression": None if asked.compression is None else Compression(asked.compression),
        "compression_level": asked.compression_level,
        "connections": asked.connections,
        "tls": asked.tls or None,
        "forecast_s": asked.forecast,
        "downtime_limit_s": asked.downtime_limit,
        "sync_timeout_s": asked.sync_timeout,
        "sync_stall_s": asked.sync_stall,
        "copy_timeout_s": asked.copy_timeout,
        "switch": Switch.FAST if asked.fast else None,
        "guard": False if asked.no_guard else None,
        "allow_failover": asked.allow_failover or None,
        "shutdown_timeout_s": asked.shutdown_timeout,
        "keep_definition": asked.keep_definition or None,
        "ignore_ipolicy": asked.ignore_ipolicy or None,
        "iallocator": asked.iallocator,
        "allow_runtime_changes": asked.allow_runtime_changes or None,
        "minimum_memory_mib": asked.minimum_memory,
        "ignore_hvversions": asked.ignore_hvversions or None,
    }
    return dataclasses.replace(cluster.options(asked.instance), **{k: v for k, v in chosen.items() if v is not None})


@contextmanager
def _signals_set(cancel: threading.Event) -> Iterator[None]:
    """While in the context, Ctrl-C, SIGTERM and SIGHUP ask the move to stop instead of ending the process."""

    def asked(_number: int, _frame: FrameType | None) -> None:
        words = "already stopping" if cancel.is_set() else "stopping: the guest stays (or arrives) whole"
        cancel.set()
        _print(f"lvmigrate: {words} ...", error=True)

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _usr1_sets(event: threading.Event) -> Iterator[None]:
    """While in the context, SIGUSR1 asks for post-copy."""

    def asked(_number: int, _frame: FrameType | None) -> None:
        event.set()
        _print("lvmigrate: post-copy was asked for ...", error=True)

    before = signal.signal(signal.SIGUSR1, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def _show(value: object, lines: Callable[..., Iterator[str]], *, as_json: bool) -> None:
    from lvmigrate.jsonable import jsonable  # noqa: PLC0415

    _print(json.dumps(jsonable(value)) if as_json else "\n".join(lines(value)))


def _show_with(value: object, lines: Callable[..., Iterator[str]], steps: Sequence[ByHand], *, as_json: bool) -> None:
    """The same, and each step's commands."""
    from lvmigrate import telling  # noqa: PLC0415
    from lvmigrate.jsonable import jsonable  # noqa: PLC0415

    if as_json:
        _print(json.dumps({**jsonable(value), "by_hand": telling.by_hand_object(steps)}))
    else:
        _print("\n".join([*lines(value), *telling.by_hand_lines(steps)]))


def _fail(error: LvmigrateError, *, as_json: bool) -> int:
    from lvmigrate.jsonable import error_object  # noqa: PLC0415

    if as_json:
        _print(json.dumps({"error": error_object(error)}))
    else:
        from lvmigrate.display import error_lines  # noqa: PLC0415

        _print("lvmigrate: " + "\n".join(error_lines(error)), error=True)
    return error.exit_code


def _print(text: str, *, error: bool = False) -> None:
    with contextlib.suppress(OSError):  # a reader that went away changes nothing of what was done
        print(text, file=sys.stderr if error else sys.stdout, flush=True)


class _Version(argparse.Action):
    """Asks the installed distribution, and only when it is wanted: that takes longer than all the rest."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, *_: object) -> NoReturn:
        from importlib.metadata import version  # noqa: PLC0415

        _print(f"lvmigrate {version('lvmigrate')}")
        sys.exit(ExitCode.OK)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every other error is said."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].upper()}{message[1:]}.", hint=f"See `{self.prog} --help`.")


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--config", metavar="FILE", help="default: $LVMIGRATE_CONFIG, else /etc/lvmigrate/cluster.toml")
    common.add_argument("--json", action="store_true", help="one JSON object on standard output, errors too")
    common.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="error", help="default: %(default)s"
    )
    moving = _Parser(add_help=False)
    moving.add_argument("instance", metavar="INSTANCE", help="the guest's name or UUID")
    moving.add_argument("--to", metavar="NODE", help="the target; default: the best that has the guest's disks")
    _add_choice(moving)
    moving.add_argument(
        "--allow-failover",
        action="store_true",
        help="where it cannot move while it runs, shut it down and start it there (decided before anything starts)",
    )
    moving.add_argument(
        "--shutdown-timeout", metavar="S", type=_positive(float), help="how long it may take to shut down then (120)"
    )
    moving.add_argument("--bandwidth", metavar="MIB", type=_positive(int), help="at most this many MiB/s of memory")
    moving.add_argument(
        "--mode",
        choices=("live", "non-live", "post-copy"),
        help="live: copy while it runs; non-live: it stands still meanwhile; post-copy: it goes on at the target after"
        " one pass, and cannot be aborted from then on (default: live)",
    )
    moving.add_argument(
        "--policy",
        metavar="NAME",
        help="what to do when the copy makes no progress: gentle (stand still up to 1 s, then give up), force (slow the"
        " guest down, then stand still), post-copy, patient, or one of the configuration's (default: gentle)",
    )
    moving.add_argument(
        "--postcopy-bandwidth", metavar="MIB", type=_positive(int), help="the same once it runs on the target"
    )
    moving.add_argument("--auto-converge", action="store_true", help="slow the guest down where that is needed")
    moving.add_argument("--throttle-initial", metavar="PERCENT", type=_positive(int), help="by so much at first")
    moving.add_argument(
        "--throttle-increment", metavar="PERCENT", type=_positive(int), help="and so much more each time"
    )
    moving.add_argument("--compression", choices=("xbzrle", "zlib", "zstd", "mt"), help="compress memory on its way")
    moving.add_argument("--compression-level", metavar="N", type=_positive(int), help="how hard (zlib, zstd, mt)")
    moving.add_argument("--connections", metavar="N", type=_positive(int), help="send over so many side by side")
    moving.add_argument(
        "--forecast",
        metavar="S",
        type=_positive(int),
        nargs="?",
        const=2,
        help="measure for so many seconds (2) what the guest dirties, and tell how long the copy will take",
    )
    moving.add_argument("--tls", action="store_true", help="encrypt memory on its way, with QEMU's own certificates")
    moving.add_argument(
        "--downtime-limit", metavar="S", type=_positive(float), help="longest standstill for the last pass (0.3)"
    )
    moving.add_argument(
        "--sync-timeout", metavar="S", type=_positive(float), help="longest wait for the disks to be in step (3600)"
    )
    moving.add_argument(
        "--sync-stall", metavar="S", type=_positive(float), help="longest standstill of a resynchronisation (120)"
    )
    moving.add_argument(
        "--copy-timeout", metavar="S", type=_positive(float), help="longest copy of memory before it is aborted (3600)"
    )
    moving.add_argument(
        "--fast", action="store_true", help="the target starts the guest by itself: sooner, with less proof (README)"
    )
    moving.add_argument(
        "--no-guard", action="store_true", help="accept that a controller that dies leaves two primaries allowed"
    )
    moving.add_argument(
        "--allow-runtime-changes",
        action="store_true",
        help="let the guest give memory back where the target has too little; it gets it back afterwards",
    )
    moving.add_argument(
        "--minimum-memory", metavar="MIB", type=_positive(int), help="but keep so much (half of what it has)"
    )
    moving.add_argument(
        "--ignore-hvversions", action="store_true", help="move to an older libvirt or QEMU than the source's"
    )
    parser = _Parser(
        prog="lvmigrate", description="Moves running guests between KVM hosts with DRBD disks.", epilog=_EPILOG
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, act, parents, sentence in (
        ("check", _check, [common, moving], "say what a move would do, or every reason against it; change nothing"),
        (
            "migrate",
            _migrate,
            [common, moving],
            "move a running guest; Ctrl-C aborts, the guest goes on; SIGUSR1 begins a post-copy, where allowed",
        ),
        (
            "rehearse",
            _rehearse,
            [common, moving],
            "go through a move up to the first bytes of memory, and back: the guest stays where it is",
        ),
        (
            "failover",
            _failover,
            [common],
            "shut a guest down and start it on another node, or start it when its node is off",
        ),
        ("status", _status, [common], "show every guest, its nodes, its disks"),
        ("cleanup", _cleanup, [common], "finish or undo what a move of a guest has left, by what the nodes say now"),
        ("audit", _audit, [common], "find everything that moves have left on any node; change nothing"),
        ("doctor", _doctor, [common], "look at every node and say what to mend, and how; change nothing"),
        ("history", _history, [common], "list what was done, newest first, from this machine's journal"),
        ("report", _report, [common], "tell everything the journal knows of one errand, as text, JSON or a page"),
        ("bundle", _bundle, [common], "put together what a report of a defect needs of one errand, without secrets"),
        ("explain", None, [common], "say what a code means, what was changed when it is told, and what to do"),
    ):
        command = commands.add_parser(name, parents=parents, help=sentence, description=sentence, epilog=_EPILOG)
        command.set_defaults(act=act)
        _add_own(command, name)
    return parser


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


def _add_choice(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--iallocator", metavar="PROGRAM", help="have this program choose the target: a path, or `hail` (ganeti-htools)"
    )
    command.add_argument("--ignore-ipolicy", action="store_true", help="whatever the target's policy says")
    command.add_argument(
        "--keep-definition",
        action="store_true",
        help="the node that it leaves keeps its definition, for a failover when the other one is dead",
    )


def _add_failover(command: argparse.ArgumentParser) -> None:
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
    command.add_argument("--dry-run", action="store_true", help="say what it would do, or every reason against it")


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
