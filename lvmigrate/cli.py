"""The command ``lvmigrate``. It holds no rule of its own: it reads words, calls `Cluster`, and shows values.

Long, because every command is here.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from lvmigrate.errors import Code, ConfigurationError, ExitCode, LvmigrateError, UsageError
from lvmigrate.words import parser

if TYPE_CHECKING:
    from lvmigrate import cluster as here
    from lvmigrate.by_hand import ByHand
    from lvmigrate.plan import Options, Plan
    from lvmigrate.report import CleanupReport, Report
    from lvmigrate.service.remote import RemoteCluster

    #: This machine's, or a service.
    Cluster = here.Cluster | RemoteCluster


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (the process's own by default) and return its `ExitCode`. Never raises."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    try:
        asked = parser().parse_args(words)
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
        if {"debug", "--log-level=debug"} & set(words):
            import structlog  # noqa: PLC0415 -- only here

            structlog.get_logger().exception("defect")
        return _fail(defect, as_json=as_json)


def _run(asked: argparse.Namespace) -> int:
    if asked.command == "explain":  # it needs no nodes, and no configuration
        return _explain(asked)
    server = asked.server or os.environ.get("LVMIGRATE_SERVER")
    if asked.command in _HERE_ONLY:
        if asked.server:
            raise UsageError(
                f"`{asked.command}` is nothing that a service does.",
                hint="Run it on the machine itself, without --server.",
                code=Code.NOT_REMOTE,
            )
        with _extra():
            return _HERE_ONLY[asked.command](asked)
    if server and asked.config:
        raise UsageError(
            "Both --server (or LVMIGRATE_SERVER) and --config are given.",
            hint="A service has a configuration of its own: leave one of them out.",
        )
    # Heavy imports wait until the words are known to be right: --help and mistakes answer at once.
    from lvmigrate.log import configure  # noqa: PLC0415

    configure(level=asked.log_level, json=asked.json)
    with _cluster(asked, server) as cluster:
        act = _ACTS[asked.command]
        return act(cluster, asked)


def _cluster(asked: argparse.Namespace, server: str | None) -> Cluster:
    """The service at ``server``, or what the configuration describes."""
    if server:
        with _extra():
            from lvmigrate.service import client  # noqa: PLC0415
            from lvmigrate.service.remote import RemoteCluster  # noqa: PLC0415
        token = client.read_token(asked.token_file)
        way = client.Way(server, token=token, ca=asked.ca, certificate=asked.client_cert, key=asked.client_key)
        return RemoteCluster(way)
    from lvmigrate.cluster import Cluster  # noqa: PLC0415

    return Cluster.open(asked.config)


@contextmanager
def _extra() -> Iterator[None]:
    """What is imported here may not be installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("lvmigrate", "hv", "storage"):
            raise
        raise ConfigurationError(
            f"The Python package {error.name}, which the service and --server need, is not installed.",
            hint="Install lvmigrate with its extra: pip install 'lvmigrate[service]'.",
            code=Code.EXTRA_MISSING,
        ) from error


def _serve(asked: argparse.Namespace) -> int:
    from lvmigrate.service.server import serve  # noqa: PLC0415

    return serve(asked.config)


def _token(asked: argparse.Namespace) -> int:
    from lvmigrate.service.access import new_token  # noqa: PLC0415

    token, digest = new_token()
    told = f'[service.tokens."{asked.name}"]\nsha256 = "{digest}"\nrole = "{asked.role}"'
    if re.search(r'[\\"\x00-\x1f\x7f]', asked.name):
        raise UsageError(f"{asked.name!r} is no name that TOML has without escapes.", hint="Leave quotes out of it.")
    if asked.json:
        _print(json.dumps({"token": token, "name": asked.name, "role": asked.role, "sha256": digest}))
    else:
        _print(
            f"# for the service's configuration; then `systemctl reload` it, or send it SIGHUP\n{told}",
            error=True,
            raw=True,
        )
        _print(token)
    return ExitCode.OK


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
        _show_arrived(report, as_json=asked.json)
    return ExitCode.OK


def _show_arrived(report: Report | CleanupReport, *, as_json: bool) -> None:
    """A move's report; a cleanup's, where the service ended meanwhile and was led on by one."""
    from lvmigrate import display  # noqa: PLC0415
    from lvmigrate.report import CleanupReport  # noqa: PLC0415

    lines = display.cleanup_report_lines if isinstance(report, CleanupReport) else display.report_lines
    _show(report, lines, as_json=as_json)


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
        "verify_disks": asked.verify_disks or None,
        "ignore_ipolicy": asked.ignore_ipolicy or None,
        "iallocator": asked.iallocator,
        "ignore_consistency": asked.ignore_consistency or None,
        "definition": asked.definition,
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
    _show_arrived(report, as_json=asked.json)
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


def _many(cluster: Cluster, asked: argparse.Namespace) -> int:
    """A drain, or a return."""
    from lvmigrate import drain_display  # noqa: PLC0415
    from lvmigrate.jsonable import jsonable  # noqa: PLC0415
    from lvmigrate.manner import Manner  # noqa: PLC0415
    from lvmigrate.node_states import Wish  # noqa: PLC0415

    if asked.wish is not None:
        for node in asked.nodes:
            cluster.wish(node, Wish(asked.wish))
        _print(json.dumps({"asked": asked.wish}) if asked.json else f"asked to {asked.wish}")
        return ExitCode.OK
    returns = asked.command == "return"
    limits = {
        "at_once": asked.at_once,
        "per_source": asked.per_source,
        "per_target": asked.per_target,
        "per_link": asked.per_link,
        "budget_mib_s": asked.budget,
    }
    manner = Manner(
        limits=dataclasses.replace(cluster.drain_limits(), **{k: v for k, v in limits.items() if v is not None}),
        chosen=_chosen(cluster, asked),
        to=frozenset(() if returns else asked.to or ()),
        forecast_s=asked.forecast or 0,
    )
    if asked.dry_run:
        schedule = (
            cluster.check_return(asked.nodes[0], manner=manner, every=asked.all)
            if returns
            else cluster.check_drain(asked.nodes, manner=manner)
        )
        _show(schedule, drain_display.schedule_lines, as_json=asked.json)
        return ExitCode.REFUSED if schedule.stays else ExitCode.OK
    stop, abort = threading.Event(), threading.Event()
    with _signals_stop(stop, abort), drain_display.drain_display(json=asked.json) as shown:
        manner = dataclasses.replace(manner, onlooker=shown)
        if returns:
            report = cluster.bring_back(asked.nodes[0], manner=manner, every=asked.all, stop=stop, abort=abort)
        else:
            report = cluster.drain(asked.nodes, manner=manner, reason=asked.reason, stop=stop, abort=abort)
    if asked.json:
        _print(json.dumps({**jsonable(report), "exit_code": int(report.exit_code)}))
    else:
        _print("\n".join(drain_display.report_lines(report)))
    return report.exit_code


def _node(cluster: Cluster, asked: argparse.Namespace) -> int:
    from lvmigrate import drain_display  # noqa: PLC0415
    from lvmigrate.jsonable import jsonable  # noqa: PLC0415
    from lvmigrate.node import unknown  # noqa: PLC0415
    from lvmigrate.node_states import State  # noqa: PLC0415

    wanted = [
        (state, why)
        for state, why in (
            (State.DRAINED, asked.drained),
            (State.OFFLINE, asked.offline),
            (State.ONLINE, "" if asked.online else None),
        )
        if why is not None
    ]
    if wanted and asked.node is None:
        raise UsageError("No node is named.", hint="`lvmigrate node NODE --drained`, for example.")
    for state, why in wanted:
        cluster.set_node(asked.node, state, why)
    closed, known = cluster.closed(), cluster.node_states()
    if asked.node is not None and asked.node not in closed:
        found = unknown(asked.node, closed)
        raise UsageError(found.sentence, hint=found.hint, code=found.code)
    shown = {name: (why, known.get(name)) for name, why in closed.items() if asked.node in (None, name)}
    if asked.json:
        told = [
            {"node": name, "closed": closed or None, "by_command": jsonable(state)}
            for name, (closed, state) in shown.items()
        ]
        _print(json.dumps({"nodes": told}))
    else:
        _print("\n".join(drain_display.states_lines(shown)))
    return ExitCode.OK


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
        _print(page.page(story), raw=True)
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
    chosen = _chosen(cluster, asked)
    if asked.iallocator is not None:
        chosen["iallocator"] = asked.iallocator
    return dataclasses.replace(cluster.options(asked.instance), **chosen)


def _chosen(cluster: Cluster, asked: argparse.Namespace) -> dict[str, Any]:
    """What the command line says, by the names of `Options`."""
    from lvmigrate.plan import Compression, Mode, Switch  # noqa: PLC0415

    chosen = {
        "mode": None if asked.mode is None else Mode(asked.mode),
        "policy": None if asked.policy is None else cluster.policy(asked.policy),
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
        "verify_disks": asked.verify_disks or None,
        "ignore_ipolicy": asked.ignore_ipolicy or None,
        "allow_runtime_changes": asked.allow_runtime_changes or None,
        "minimum_memory_mib": asked.minimum_memory,
        "ignore_hvversions": asked.ignore_hvversions or None,
    }
    return {key: value for key, value in chosen.items() if value is not None}


#: Ctrl-C, and what a terminal or a service manager ends a process with.
_TO_STOP: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def _answered(numbers: Sequence[signal.Signals], answer: Callable[[], str]) -> Iterator[None]:
    """While in the context, each of these signals has ``answer`` called instead, and its words said."""

    def asked(_number: int, _frame: FrameType | None) -> None:
        _print(f"lvmigrate: {answer()} ...", error=True)

    before = {number: signal.signal(number, asked) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signals_set(cancel: threading.Event) -> AbstractContextManager[None]:
    """While in the context, Ctrl-C, SIGTERM and SIGHUP ask the move to stop instead of ending the process."""

    def answer() -> str:
        words = "already stopping" if cancel.is_set() else "stopping: the guest stays (or arrives) whole"
        cancel.set()
        return words

    return _answered(_TO_STOP, answer)


def _signals_stop(stop: threading.Event, abort: threading.Event) -> AbstractContextManager[None]:
    """While in the context, the first Ctrl-C, SIGTERM or SIGHUP lets what is under way end; the next one aborts it."""

    def answer() -> str:
        if stop.is_set():
            abort.set()
            return "aborting what is under way: every guest stays (or arrives) whole"
        stop.set()
        return "nothing more begins; waiting for what is under way (once more to abort it)"

    return _answered(_TO_STOP, answer)


def _usr1_sets(event: threading.Event) -> AbstractContextManager[None]:
    """While in the context, SIGUSR1 asks for post-copy."""

    def answer() -> str:
        event.set()
        return "post-copy was asked for"

    return _answered((signal.SIGUSR1,), answer)


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


def _print(text: str, *, error: bool = False, raw: bool = False) -> None:
    """``raw``: it is to be copied as it is."""
    stream = sys.stderr if error else sys.stdout
    with contextlib.suppress(OSError):  # a reader that went away changes nothing of what was done
        if stream.isatty() and not raw and not text.startswith("{"):
            from lvmigrate.fitted import fitted  # noqa: PLC0415

            text = fitted(text, shutil.get_terminal_size().columns)
        print(text, file=stream, flush=True)


#: What is of this machine alone, and needs no nodes.
_HERE_ONLY: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {"serve": _serve, "token": _token}
_ACTS: Final[Mapping[str, Callable[[Cluster, argparse.Namespace], int]]] = {
    "check": _check,
    "migrate": _migrate,
    "rehearse": _rehearse,
    "failover": _failover,
    "drain": _many,
    "return": _many,
    "node": _node,
    "status": _status,
    "cleanup": _cleanup,
    "audit": _audit,
    "doctor": _doctor,
    "history": _history,
    "report": _report,
    "bundle": _bundle,
}
