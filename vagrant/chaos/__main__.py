"""Two disasters live on the lab's two nodes: what bare commands end with, and what lvmigrate does. By ``make chaos``.

Each is met twice by the same guest: by `drbdsetup` and `virsh migrate --live --p2p` typed by hand, and by `lvmigrate
migrate`. A fault is put in place once memory is seen to go over, and the copy is held until the fault is: the guest
dirties more memory than the copy's bandwidth carries, until its downtime may be long. In life the moment is rare; here
it is met each time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

from vagrant.chaos import disasters
from vagrant.chaos.screen import Half, Screen
from vagrant.chaos.stage import Stage, UnmetError
from vagrant.labkit.lab import NODES, Lab, LabError

_PLAY: Final[tuple[tuple[str, Callable[[Stage, Half], None], Callable[[Stage, Half], None]], ...]] = (
    (disasters.REPLY, disasters.bare_reply, disasters.kept_reply),
    (disasters.LINK, disasters.bare_link, disasters.kept_link),
)
_INTERRUPTED: Final = 130


def main() -> int:
    """0: the bare commands met each disaster, and lvmigrate met none; 1: not so; 2: no lab; 130: it was interrupted."""
    parser = argparse.ArgumentParser(prog="make chaos", description="Two disasters: bare commands against lvmigrate.")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on standard output; the rest goes to stderr"
    )
    parser.add_argument("--only", type=int, choices=range(1, len(_PLAY) + 1), help="one of the disasters")
    asked = parser.parse_args()
    screen = Screen(sys.stderr if asked.json else sys.stdout)
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, _interrupt)
    begin = time.monotonic()
    try:
        with Lab.open() as lab:
            lab.both("true")
            _play(lab, screen, asked.only)
    except LabError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("chaos: interrupted; the lab is in order", file=sys.stderr)
        return _INTERRUPTED
    good = all(half.as_promised for half in screen.halves)
    screen.table([("", "bare commands", "lvmigrate"), *_rows(screen.halves)])
    screen.says(f"{'as promised' if good else 'NOT as promised'}; {time.monotonic() - begin:.0f} s in all")
    if asked.json:
        told = [
            {key: value for key, value in dataclasses.asdict(half).items() if key != "began"} for half in screen.halves
        ]
        print(json.dumps({"as_promised": good, "halves": told}))
    return 0 if good else 1


def _play(lab: Lab, screen: Screen, only: int | None) -> None:
    screen.says(
        f"DRBD {lab.drbd_version()} and {lab.run(NODES[0], 'virsh -V | head -n 1').strip()} on {' and '.join(NODES)}"
    )
    with Stage(lab, screen) as stage:
        for number, (title, *halves) in enumerate(_PLAY, 1):
            if only in {None, number}:
                screen.title(f"{number}. {title}")
                for who, half in zip(("bare", "lvmigrate"), halves, strict=True):
                    _half(stage, screen.half(number, title, who), half)


def _half(stage: Stage, half: Half, play: Callable[[Stage, Half], None]) -> None:
    stage.fresh()
    half.began = time.monotonic()
    try:
        play(stage, half)
    except (UnmetError, TimeoutError) as error:
        half.verdict = str(error)
    stage.screen.verdict(half)


def _rows(halves: list[Half]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for number, (title, *_) in enumerate(_PLAY, 1):
        both = {half.who: half for half in halves if half.disaster == number}
        if both:
            cells = [f"{half.copies} running, {half.records_lost} records lost" for half in both.values()]
            rows.append((f"{number}. {title}", *cells))
    return rows


def _interrupt(_sign: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
