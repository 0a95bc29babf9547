"""``make campaign-lab``: faults at the steps of real moves between the lab's two nodes; then nothing may be wrong.

Two guests, ``web1`` and ``db1``, change places at the same time, each with its own fault, or with one that both meet.
After each, the guards are waited for, ``lvmigrate cleanup`` runs from another directory with a configuration that has
no journal, and the audits and the records on both nodes' disks are looked at.  One JSON line per guest and fault, then
the sums, whatever ends the campaign; what went wrong leaves a folder to look at.  A fault that was not met is tried
again, and shows nothing: it fails the campaign as a violation does, and as an error of the campaign itself does.

The order is drawn anew from ``--seed``, and ``--minutes`` ends it: an emulated node needs a minute per fault, and there
are more than a hundred (``--all``).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from lvmigrate import ExitCode
from tests.bench.figure import show
from tests.lab.deadlines import LIMITS, PATIENCE
from tests.lab.faults import Case, KernelRefusedError, NotMetError, Play, case, cases, guarded, wait_until
from tests.lab.support import LVMIGRATE, Running, acquaint, side_by_side
from tests.lab.tally import Outcome, Tally, rounds_played, whatever_ends_it
from tests.lab.under import EndlessError, Under
from vagrant.labkit import audit, guests, links
from vagrant.labkit.guests import DB1, WEB1, Guest
from vagrant.labkit.lab import NODES, Lab, other
from vagrant.labkit.witness import Witness

#: Enough memory traffic that the copy takes some seconds, so that there is a middle of it; and not more, since each
#: guest is emulated by a processor that is emulated itself.
GUESTS: Final = tuple(dataclasses.replace(guest, dirty_mib=3, rate=200, record_ms=100) for guest in (WEB1, DB1))
SLOWLY: Final = ("--bandwidth", "2")
_CLEANUPS: Final = 6
#: Where what went wrong is kept.
BUNDLES: Final = Path(".lab-bundles")
#: What a move whose command lived may end with; wrong usage and a traceback are none of these.
_ENDS: Final = frozenset(ExitCode) - {ExitCode.USAGE, ExitCode.CONFIGURATION}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Desk:
    """Where commands run from: two configurations, with a journal and without, in directories of their own."""

    config: Path
    elsewhere: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """An ``lvmigrate`` command from another directory, without a journal, as JSON."""
        command = [str(LVMIGRATE), words[0], "--json", "--config", str(self.elsewhere), *words[1:]]
        return subprocess.run(
            command,
            cwd=self.elsewhere.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


class Campaign:
    """The two guests, wherever they are, and what is done to them."""

    def __init__(self, lab: Lab, desk: Desk, stack: ExitStack, *, bundles: Path = BUNDLES) -> None:
        self.lab = lab
        self.desk = desk
        self.bundles = bundles
        self.under_way: list[Under] = []
        self.witnesses = {guest.name: stack.enter_context(Witness(lab, guest)) for guest in GUESTS}
        self.running: dict[str, Running] = {}

    def begin(self) -> None:
        """Both guests newly made, one on each node; each libvirt was reached by the other, which is slow at first."""
        acquaint(self.lab)
        made = side_by_side(*(partial(self._made, guest, node) for guest, node in zip(GUESTS, NODES, strict=True)))
        self.running = {it.guest.name: it for it in made}

    def heal(self) -> None:
        """Nothing runs, every link is whole, both nodes are on and their copies one; then as `begin`."""
        self.stop()
        for node in NODES:
            self.lab.switch_on(node)
        links.mended(self.lab)
        side_by_side(*(partial(self._heal, guest) for guest in GUESTS))
        self.begin()

    def _heal(self, guest: Guest) -> None:
        self.lab.both(f"virsh -q destroy {guest.name} 2>/dev/null; drbdadm adjust {guest.resource}; true")
        try:
            self._in_step(guest, timeout_s=60)
        except TimeoutError:  # 8.4 does not say that two copies have parted: it forgets their connection
            self._give_up(guest, NODES[1])

    def stop(self) -> None:
        """No command of a move is under way."""
        for under in list(self.under_way):
            if under.alive:
                under.kill()
        self.under_way.clear()
        (self.desk.config.parent / "journal" / "ballast").unlink(missing_ok=True)

    def end(self) -> None:
        """No trace of them."""
        self.stop()
        links.mended(self.lab)
        side_by_side(*(partial(guests.remove, self.lab, guest) for guest in GUESTS))

    def _made(self, guest: Guest, node: str) -> Running:
        guests.make(self.lab, guest, node)
        witness = self.witnesses[guest.name]
        witness.alive()
        return Running(self.lab, guest, witness, node, audit.settings(self.lab, guest))

    def play(self, chosen: Sequence[Case]) -> list[Outcome]:
        """One case, which both guests' moves meet, or one for each guest."""
        begin = time.monotonic()
        pairs = list(zip(GUESTS, chosen if len(chosen) > 1 else [*chosen, *chosen], strict=True))
        side_by_side(*(partial(self._loaded, guest, one) for guest, one in pairs))
        plays = [(self._play(guest, one), one) for guest, one in pairs]
        outcomes = side_by_side(
            *(
                partial(self._one, play, one, leads=number == 0 or not one.fault.shared)
                for number, (play, one) in enumerate(plays)
            )
        )
        for act in (self._settle, self._judge):
            side_by_side(
                *(partial(_told, act, play, one, outcome) for (play, one), outcome in zip(plays, outcomes, strict=True))
            )
        for (play, one), outcome in zip(plays, outcomes, strict=True):
            _told(self._audit, play, one, outcome)
        found = self.desk.run("audit")
        if found.returncode != ExitCode.OK or json.loads(found.stdout)["findings"]:
            outcomes[0].violations.append(f"the audit: {found.stdout}{found.stderr}")
        self.stop()
        for outcome in outcomes:
            outcome.seconds = round(time.monotonic() - begin, 1)
        return outcomes

    def _loaded(self, guest: Guest, one: Case) -> None:
        """It runs with the load that the fault needs: newly made where it has another."""
        it = self.running[guest.name]
        wanted = guest if one.fault.rate is None else dataclasses.replace(guest, rate=one.fault.rate)
        if it.guest != wanted:
            self.running[guest.name] = self._made(wanted, it.home)

    def _play(self, guest: Guest, one: Case) -> Play:
        it = self.running[guest.name]
        slowly = () if "--bandwidth" in one.fault.words else SLOWLY
        under = Under(guest, self.desk.config, *slowly, *one.fault.words)
        self.under_way.append(under)
        return Play(lab=self.lab, it=it, under=under, config=self.desk.config)

    def _one(self, play: Play, one: Case, *, leads: bool) -> Outcome:
        outcome = Outcome(case=str(one), guest=play.guest.name)
        try:
            if leads:
                meet(play, one, outcome)
            code = play.under.end()
        except Exception as error:  # noqa: BLE001 -- the other guest's part goes on
            if play.under.alive:
                play.under.kill()
            # That the command hangs is its own fault.
            whose = outcome.violations if isinstance(error, EndlessError) else outcome.errors
            whose.append(f"{type(error).__name__}: {error}")
            return outcome
        if outcome.not_met:
            outcome.not_met += f": {play.under.said.strip()[-300:]}"
        outcome.ended = "killed" if play.under.killed else _name(code)
        if not play.under.killed and code not in _ENDS:
            outcome.violations.append(f"it ended with {code}: {play.under.said[-2000:]}")
        if "Traceback" in play.under.said:
            outcome.violations.append(f"a traceback: {play.under.said[-2000:]}")
        outcome.violations += play.wrong
        return outcome

    # ---- afterwards

    def _settle(self, play: Play, one: Case, outcome: Outcome) -> None:
        """Guards, cleanup, and what a person does where the cleanup leaves it to one, as it says."""
        if not one.fault.at_once:
            try:
                wait_until(
                    lambda: not guarded(self.lab, play.guest) or self._parted(play.guest),
                    "the guards neither end nor wait for a person",
                )
            except TimeoutError as error:
                said = self.lab.both(f"tail -n 1 /run/lvmigrate/{play.guest.uuid}.seen 2>/dev/null; true")
                raise TimeoutError(f"{error}: {said}") from error
        words = one.fault.cleanup_words
        for _ in range(_CLEANUPS):
            done = self.desk.run("cleanup", play.guest.name, *words)
            if done.returncode == ExitCode.OK:
                outcome.home = json.loads(done.stdout)["node"]
                if outcome.home is not None:
                    return
                self._start(play, outcome, "it was off everywhere")
            elif done.returncode == ExitCode.LOST:
                self._start(play, outcome, "it was lost")
            elif self._parted(play.guest):
                self._reunite(play.guest, done.stdout, outcome)
            elif done.returncode == ExitCode.UNKNOWN and "virsh destroy" in done.stdout:
                self._decide(play, done.stdout, outcome)
            else:
                outcome.held.append(f"asked again after {_name(done.returncode)}: {_sentence(done.stdout)}")
                time.sleep(5)
        outcome.violations.append(f"no cleanup leads back: {done.returncode} {done.stdout}{done.stderr}")

    def _parted(self, guest: Guest) -> bool:
        """Whether DRBD has found that both copies changed: a person has to give one up."""
        texts = self.lab.both(f"drbdsetup events2 --now {guest.resource}")
        return any("connection:StandAlone" in text for text in texts.values())

    def _running_on(self, guest: Guest) -> list[str]:
        return [node for node, state in guests.where(self.lab, guest).items() if state == "running"]

    def _reunite(self, guest: Guest, said: str, outcome: Outcome) -> None:
        """Give up the copy where the guest does not run, as the cleanup's hint says."""
        if "--discard-my-data" not in said:
            outcome.violations.append(f"the copies have parted, and no hint says what to do: {said}")
        where = self._running_on(guest) or [node for node, state in guests.where(self.lab, guest).items() if state]
        loser = other(where[0])
        outcome.held.append(f"split-brain: the copy on {loser} was given up")
        self._give_up(guest, loser)

    def _give_up(self, guest: Guest, loser: str) -> None:
        """Of two copies that have parted, that on ``loser``. Guaranteed afterwards: both are in step."""
        resource, winner = guest.resource, other(loser)
        self.lab.run(winner, f"drbdadm disconnect {resource}; true")
        self.lab.run(loser, f"drbdadm disconnect {resource}; drbdadm secondary {resource}; true")
        self.lab.run(loser, f"drbdadm connect --discard-my-data {resource}")
        self.lab.run(winner, f"drbdadm connect {resource}; true")
        self._in_step(guest)

    def _decide(self, play: Play, said: str, outcome: Outcome) -> None:
        """Nobody knows whether the copy that waits is the older one: end it and start from the disk, which is whole."""
        outcome.held.append(_sentence(said))
        self.lab.both(f"virsh -q destroy {play.guest.name} 2>/dev/null; true")
        self._start(play, outcome, "its copy was ended")

    def _start(self, play: Play, outcome: Outcome, why: str) -> None:
        """What was acknowledged is on a disk; from that it starts."""
        guest = play.guest
        self._in_step(guest)
        home = next(node for node, state in sorted(guests.where(self.lab, guest).items()) if state)
        verdict = self.witnesses[guest.name].last_words(home)
        if not verdict.ok:
            outcome.violations.append(f"{why}, and on {home}: {verdict.sentence}")
        guests.start(self.lab, guest, home)
        self.witnesses[guest.name].alive()
        outcome.held.append(f"{why}, and was started on {home}")

    def _in_step(self, guest: Guest, *, timeout_s: float = 240) -> None:
        look = f"drbdsetup status {guest.resource}"
        wait_until(
            lambda: all(
                text.count("UpToDate") == 2 * len(guest.disks) for text in self.lab.both(look, check=False).values()
            ),
            f"{guest.resource} did not come in step",
            timeout_s=timeout_s,
        )

    def _judge(self, play: Play, one: Case, outcome: Outcome) -> None:
        """A second cleanup has nothing to do; memory and records are whole."""
        if outcome.home is None:
            return
        if one.fault.given_up and not outcome.not_met and outcome.home != play.source:
            outcome.violations.append(f"a move that was given up led to {outcome.home}")
        again = self.desk.run("cleanup", play.guest.name)
        if again.returncode != ExitCode.OK or json.loads(again.stdout)["acts"]:
            outcome.violations.append(f"a second cleanup was not idle: {again.stdout}{again.stderr}")
        outcome.violations += play.it.heard_faults()

    def _audit(self, play: Play, _one: Case, outcome: Outcome) -> None:
        """By virsh and drbdsetup."""
        if outcome.home is None:
            return
        outcome.violations += audit.violations(self.lab, play.guest, outcome.home, play.it.before)
        self.running[play.guest.name] = dataclasses.replace(play.it, home=outcome.home)

    # ---- what is kept

    def bundle(self, outcomes: Sequence[Outcome]) -> Path:
        """Everything that tells what happened, in a folder of its own."""
        place = self.bundles / f"{int(time.time())}-{outcomes[0].case}"
        place.mkdir(parents=True)
        (place / "outcomes.json").write_text("\n".join(json.dumps(dataclasses.asdict(one)) for one in outcomes))
        journal = self.desk.config.parent / "journal"
        if journal.exists():
            shutil.copytree(journal, place / "journal", ignore=shutil.ignore_patterns("ballast"))
        for node in NODES:
            for name, look in (
                ("events2", "drbdsetup events2 --now --statistics; drbdsetup show"),
                ("domains", "virsh list --all; for d in $(virsh list --all --name); do virsh dumpxml $d; done"),
                ("traces", "head -v -n 99 /run/lvmigrate/* 2>/dev/null; systemctl list-units --all 'lvmigrate-*'"),
                ("kernel", "dmesg | tail -n 400"),
                ("journald", "journalctl --no-pager -n 800 -u libvirtd -u 'lvmigrate-*'"),
                ("qemu", "tail -v -n 200 /var/log/libvirt/qemu/*.log"),
            ):
                with contextlib.suppress(subprocess.SubprocessError):
                    (place / f"{node}.{name}").write_text(self.lab.run(node, f"{look}; true", check=False))
        return place


def meet(play: Play, one: Case, outcome: Outcome) -> None:
    """Do the fault, once its step has begun."""
    if not play.under.until(one.step):
        outcome.not_met = f"{one.step} did not begin"
        return
    try:
        one.fault.act(play)
    except NotMetError as error:
        outcome.not_met = str(error)
    except KernelRefusedError as error:
        outcome.refused = str(error)


def _told(act: Callable[[Play, Case, Outcome], None], play: Play, one: Case, outcome: Outcome) -> None:
    """What does not come in time is one of the outcome's violations; what else goes wrong is its error."""
    if outcome.errors:
        return
    try:
        act(play, one, outcome)
    except TimeoutError as error:
        outcome.violations.append(f"in vain: {error}")
    except Exception as error:  # noqa: BLE001 -- one case is not the campaign's end
        outcome.errors.append(f"{type(error).__name__}: {error}")


def _name(code: int) -> str:
    return ExitCode(code).name if code in set(ExitCode) else str(code)


def _sentence(said: str) -> str:
    try:
        return str(json.loads(said)["error"]["sentence"])
    except (ValueError, KeyError, TypeError):
        return said[-300:]


def in_order(chosen: Sequence[Case]) -> list[list[Case]]:
    """Those that one guest meets alone two by two where they follow each other."""
    rounds: list[list[Case]] = []
    for one in chosen:
        if rounds and len(rounds[-1]) == 1 and not (one.fault.shared or rounds[-1][0].fault.shared):
            rounds[-1].append(one)
        else:
            rounds.append([one])
    return rounds


def drawn(chosen: Sequence[Case], seed: int) -> list[list[Case]]:
    """The cases in an order of chance, those that one guest meets alone two by two."""
    order = random.Random(seed)
    mixed = list(chosen)
    order.shuffle(mixed)
    alone = [one for one in mixed if not one.fault.shared]
    rounds = [[one] for one in mixed if one.fault.shared] + in_order(alone)
    order.shuffle(rounds)
    return rounds


def with_deadlines(text: str) -> str:
    """The configuration ``text`` with those of the campaign, none of which is longer than its long cuts."""
    limits = {"connect_s": LIMITS.connect_s, "command_s": LIMITS.command_s, "lease_s": LIMITS.lease_s}
    tables = {"limits": limits, "defaults": PATIENCE}
    without = re.sub(r"(?m)^\[(limits|defaults)\]\n(?:(?!\[).*\n)*", "", text)
    lines = [
        f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()) for name, keys in tables.items()
    ]
    return "\n".join([*lines, without])


@contextlib.contextmanager
def desk(lab: Lab) -> Iterator[Desk]:
    """The lab's configuration with the campaign's deadlines, and its journal on a small disk of its own."""
    text = with_deadlines(lab.config.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="campaign-lab-") as made:
        folder = Path(made)
        disk = folder / "here" / "journal"
        for place in (disk, folder / "elsewhere"):
            place.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "journal", disk], check=True)
        try:
            here, elsewhere = folder / "here" / "cluster.toml", folder / "elsewhere" / "cluster.toml"
            for file, journal in ((here, f"{disk}/journal.sqlite"), (elsewhere, "")):
                file.write_text(re.sub(r'(?<=\[journal\]\npath = )".+"', f'"{journal}"', text), encoding="utf-8")
            yield Desk(config=here, elsewhere=elsewhere)
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)


def run(rounds: Sequence[Sequence[Case]], *, until: float, bundles: Path, tell: Callable[[Tally], None]) -> Tally:
    """Play them until the time is up; the sums are told whatever ends it."""
    tally = Tally()
    stopping = threading.Event()
    there: list[Campaign] = []

    def work() -> None:
        with Lab.open() as lab, desk(lab) as at, ExitStack() as stack:
            campaign = Campaign(lab, at, stack, bundles=bundles)
            there.append(campaign)
            stack.callback(campaign.end)
            campaign.begin()
            rounds_played(campaign, rounds, tally, more=lambda: not stopping.is_set() and time.monotonic() <= until)

    def stop() -> None:
        stopping.set()
        for campaign in there:
            campaign.stop()

    whatever_ends_it(tally, work, tell=lambda: tell(tally), stop=stop)
    return tally


def main(arguments: Sequence[str] | None = None) -> int:
    """1 if anything was wrong, or was not met; more than 128 if a signal ended it."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=23, help="begin no further round after so many (23)")
    parser.add_argument("--all", action="store_true", help="every fault at every step: hours")
    parser.add_argument("--case", action="append", default=[], help="this one (may be repeated), in that order")
    parser.add_argument("--only", default="", metavar="PATTERN", help="only those whose names match")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the order (default: the time)")
    parser.add_argument("--list", action="store_true", help="the names of all cases")
    parser.add_argument("--bundles", type=Path, default=BUNDLES, help="where what went wrong is kept")
    asked = parser.parse_args(arguments)
    if asked.list:
        print("\n".join(map(str, cases())))
        return 0
    begin = time.monotonic()
    wanted = [one for one in cases() if re.search(asked.only, str(one))]
    rounds = in_order([case(text) for text in asked.case]) if asked.case else drawn(wanted, asked.seed)
    until = float("inf") if asked.all or asked.case else begin + 60 * asked.minutes

    def tell(tally: Tally) -> None:
        detail = {"seconds": round(time.monotonic() - begin), "seed": asked.seed, "of": len(wanted), **tally.sums}
        show("campaign_lab_cases", tally.counted["cases"], "", goal=1, higher=True, **detail)
        show("campaign_lab_violations", tally.counted["violations"], "", goal=0, higher=False)
        show("campaign_lab_not_met", len(tally.not_met), "", goal=0, higher=False, cases=tally.not_met)
        show("campaign_lab_errors", tally.counted["errors"], "", goal=0, higher=False)

    tally = run(rounds, until=until, bundles=asked.bundles, tell=tell)
    return 128 + tally.signal if tally.signal else int(tally.failed)


if __name__ == "__main__":
    sys.exit(main())
