"""The token of a move on its nodes, kept alive for as long as the move lives."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from lvmigrate.clock import Clock
from lvmigrate.defect import defect
from lvmigrate.errors import LvmigrateError, TokenLost
from lvmigrate.protocols import Storage
from lvmigrate.together import outcomes_of, together
from lvmigrate.token import Errand, Held, Token

_log = structlog.get_logger()

#: The part of the lease after which a node that did not acknowledge is one too many: the rest is for giving up.
_MARGIN: Final = 2 / 3
#: The part of the lease between two renewals.
_PERIOD: Final = 1 / 4


def holder() -> str:
    """Who we are, for people who find our token."""
    return f"{os.environ.get('USER', 'root')}@{socket.gethostname()} pid {os.getpid()}"


class Lease:
    """One token, taken on its nodes and renewed beside everything else until it is ended.

    A renewal counts when the node acknowledged it, and the node's guard once there is one.
    """

    def __init__(self, storage: Storage, nodes: Sequence[str], token: Token, *, clock: Clock) -> None:
        self._storage = storage
        self._nodes = tuple(nodes)
        self._token = token
        self._clock = clock
        #: Where the token may be.
        self._tried: set[str] = set()
        #: The tokens with an earlier id that may still be on a node: it gave no answer when it was fenced.
        self._unfenced: dict[str, Token] = {}
        self._acknowledged: dict[str, float] = {}
        self._trouble: dict[str, LvmigrateError] = {}
        self._renewing: ExitStack | None = None
        #: Whether something was learnt that the nodes were not told.
        self._untold = False
        #: Whether it was ours on every node.
        self._kept = False
        self._lock = threading.Lock()

    @property
    def token(self) -> Token:
        """The token as it is now: it changes when a guard was armed, and when it was fenced."""
        return self._token

    def take(self, node: str, known: str | None = None) -> Held | None:
        """Take the token on ``node``; the one that was there first if it is not ours then.

        ``known``: see `Storage.take_token`.
        """
        asked = self._clock.now()
        self._tried.add(node)
        held = self._storage.take_token(node, self._token, known=known)
        if held is None:
            self._acknowledged[node] = asked
        return held

    def keep(self) -> None:
        """Begin to renew: each node beside the other, so that one that hangs does not keep the other's from its own."""
        self._kept = True
        self._renewing = ExitStack()
        for node in self._nodes:
            name = f"lease-{self._token.instance}-{node}"
            renew = partial(self._renew_quietly, node)
            self._renewing.enter_context(self._clock.every(self._token.lease_s * _PERIOD, renew, name))

    def guarded(self) -> None:
        """From now on a renewal counts only when the node's guard has acknowledged it."""
        with self._lock:  # an event may have it learn something meanwhile
            self._token = replace(self._token, guarded=True)

    def unguarded(self) -> None:
        """The guards are gone, or going."""
        with self._lock:
            self._token = replace(self._token, guarded=False)

    def fence(self, new_id: str) -> None:
        """Give the token another id: commands that are still on their way with the old one are refused from now on.

        A node that gives no answer keeps the old one for the time being, and one that has forgotten it, as a reboot
        does, gets the new one.  Raises `TokenLost` if it is somebody else's, or is on no node any more: then somebody
        has finished what was left, and what we know of the guest is old.  Nothing where it never was ours on all nodes:
        then nothing was done under it.
        """
        if not self._kept:
            return
        self._still_ours()
        with self._lock:
            before, self._token = self._token, replace(self._token, id=new_id)
        # Asked once more: where one reply was lost, everything that follows would be refused as somebody else's.
        for node in self._not_fenced(before, self._not_fenced(before, sorted(self._tried))):
            self._unfenced[node] = before

    def _not_fenced(self, before: Token, nodes: Sequence[str]) -> list[str]:
        """Replace ``before`` on ``nodes``; those that gave no answer. Raises `TokenLost`."""
        silent = []
        outcomes = outcomes_of(
            [partial(self._storage.take_token, node, self._token, replaces=before.id) for node in nodes]
        )
        for node, outcome in zip(nodes, outcomes, strict=True):
            if isinstance(outcome, LvmigrateError):
                silent.append(node)
                _log.warning("not_fenced", node=node, error=str(outcome))
            elif outcome is not None:
                raise _lost(node, outcome)
        return silent

    def _still_ours(self) -> None:
        outcomes = self._asked()
        lost = next((outcome for outcome in outcomes if isinstance(outcome, TokenLost)), None)
        if lost is not None and None not in outcomes:
            raise lost

    def drop(self) -> None:
        """Remove the token wherever it may be, under whichever id it is there. Nothing where it is not ours."""
        together([partial(self._drop, node) for node in sorted(self._tried)])

    def _drop(self, node: str) -> None:
        self._storage.drop_token(node, self._token)
        if node in self._unfenced:
            self._storage.drop_token(node, self._unfenced[node])

    def inherit(self, errand: Errand) -> None:
        """What is known of the guest's move is this: by the token that was there before ours."""
        with self._lock:
            before = self._token.errand
            over = before is not None and before.handed_over and before.source == errand.source
            self._token = replace(self._token, errand=replace(errand, handed_over=errand.handed_over or over))
            self._untold = True

    def learn(self, *, handed_over: bool | None = None, ran: bool | None = None) -> None:
        """Note what has become of the errand: on the nodes with the next renewal, or as soon as it is told (`tell`).

        ``handed_over``: the source's copy ended because of that.  ``ran``: somebody has let the guest run, or suspended
        it: as it is now it is to arrive.
        """
        with self._lock:
            errand = self._token.errand
            if errand is not None:
                over = errand.handed_over if handed_over is None else handed_over
                errand = replace(errand, handed_over=over, ran=errand.ran if ran is None else ran)
                self._token, self._untold = replace(self._token, errand=errand), True

    def tell(self) -> None:
        """Have the nodes know at once what was learnt, if anything was. What gives no answer hears it later."""
        with self._lock:
            untold, self._untold = self._untold, False
        if untold:
            outcomes_of([partial(self._renew, node) for node in self._nodes])

    def lapsed(self) -> str | None:
        """Why the lease does not hold any more, in words, or ``None`` while it does."""
        for node in self._nodes:
            trouble = self._trouble.get(node)
            if isinstance(trouble, TokenLost):
                return str(trouble).rstrip(".")
            age = self._clock.now() - self._acknowledged[node]
            if age > self._token.lease_s * _MARGIN:
                why = f": {trouble}" if trouble else ""
                return f"{node} has not acknowledged the move's token for {age:.0f} s{why}"
        return None

    def renew(self, *, unless_within_s: float = 0.0) -> None:
        """Renew now on the nodes that have not acknowledged within the last ``unless_within_s`` seconds.

        Guaranteed afterwards: each has acknowledged, with all of the lease ahead but so much.
        """
        late = self._clock.now() - unless_within_s
        together([partial(self._renew, node) for node in self._nodes if self._acknowledged.get(node, late) <= late])

    def confirm(self) -> None:
        """Make sure that nobody took the guest over. A node that gives no answer does not say so.

        Raises `TokenLost`.
        """
        for outcome in self._asked():
            if isinstance(outcome, TokenLost):
                raise outcome

    def _asked(self) -> tuple[LvmigrateError | None, ...]:
        """What each node says to a renewal. A guest may stand still meanwhile: the guards are not waited for."""
        token = replace(self._token, guarded=False)
        return outcomes_of([partial(self._storage.renew_token, node, token) for node in self._nodes])

    def end(self) -> None:
        """Stop renewing; the tokens themselves stay."""
        with self._lock:
            renewing, self._renewing = self._renewing, None
        if renewing is not None:
            renewing.close()

    def _renew(self, node: str) -> None:
        asked = self._clock.now()  # the node counts from some moment after this one: the earlier is the safe one
        self._storage.renew_token(node, self._token)
        self._acknowledged[node] = asked

    def _renew_quietly(self, node: str) -> None:
        try:
            self._renew(node)
        except Exception as error:  # noqa: BLE001 -- the next one is to be tried, and this one told
            self._trouble[node] = defect(error)
            _log.warning("token_not_renewed", node=node, error=str(self._trouble[node]))
        else:
            self._trouble.pop(node, None)


def _lost(node: str, held: Held) -> TokenLost:
    return TokenLost(
        f"{held.instance} was taken over on {node} by {held.holder}.",
        hint=f"Nothing more is done to it here. Look with `lvmigrate status {held.instance}`.",
    )
