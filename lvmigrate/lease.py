"""The token of a move on its nodes, kept alive for as long as the move lives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import structlog

from lvmigrate.clock import Clock
from lvmigrate.errors import LvmigrateError
from lvmigrate.protocols import Storage
from lvmigrate.token import Token
from lvmigrate.together import outcomes_of

_log = structlog.get_logger()


class Lease:
    """Renews one token on its nodes, in a thread, until it is ended.

    A renewal counts when the node acknowledged it.  `lapsed` says in words why the move may no longer go on: a node
    that did not acknowledge for two thirds of the lease.  ``since``: when the tokens began to be taken.
    """

    def __init__(self, storage: Storage, nodes: Sequence[str], token: Token, *, since: float, clock: Clock) -> None:
        self._storage = storage
        self._nodes = tuple(nodes)
        self._token = token
        self._clock = clock
        self._acknowledged = dict.fromkeys(self._nodes, since)
        self._trouble: dict[str, LvmigrateError] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease-{token.instance}", daemon=True)
        self._thread.start()

    def lapsed(self) -> str | None:
        """Why the lease does not hold any more, or ``None`` while it does."""
        for node in self._nodes:
            age = self._clock.now() - self._acknowledged[node]
            if age > self._token.lease_s * 2 / 3:
                trouble = self._trouble.get(node)
                why = f": {trouble}" if trouble else ""
                return f"{node} has not acknowledged the move's token for {age:.0f} s{why}"
        return None

    def end(self) -> None:
        """Stop renewing; the tokens themselves stay."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._token.lease_s / 4):
            for node, outcome in zip(self._nodes, outcomes_of([self._renewal(n) for n in self._nodes]), strict=True):
                if isinstance(outcome, LvmigrateError):
                    self._trouble[node] = outcome
                    _log.warning("token_not_renewed", node=node, error=str(outcome))
                else:
                    self._trouble.pop(node, None)
                    self._acknowledged[node] = outcome

    def _renewal(self, node: str) -> Callable[[], float]:
        def renew() -> float:
            asked = self._clock.now()  # the node counts from some moment after this one: the earlier is the safe one
            self._storage.renew_token(node, self._token)
            return asked

        return renew
