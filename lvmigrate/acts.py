"""A row of the journal before each call that changes something on a node, and one after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, cast

from lvmigrate.journal import NO_RECORD, Kind, Record
from lvmigrate.protocols import Hypervisor, Storage
from lvmigrate.tasklet import Context

#: The methods of the two seams that change something. Renewals are left out: they come every few seconds, and change
#: a deadline only.
HYPERVISOR: Final = frozenset(
    {
        "start",
        "shut_down",
        "power_off",
        "define",
        "copy_memory",
        "abort_job",
        "resume",
        "set_memory",
        "suspend",
        "discard",
        "undefine",
        "set_autostart",
    }
)
#: Whose words are a whole definition, passwords included: nobody who reads the journal is to have those.
_UNTOLD: Final = frozenset({"define"})
STORAGE: Final = frozenset(
    {
        *("allow_two_primaries", "restore_options", "reconnect", "promote", "promote_by_force", "demote"),
        *("take_token", "drop_token", "arm_guard", "disarm_guard", "begin_verify"),
    }
)


def recorded(context: Context, record: Record) -> Context:
    """The same context, whose every act is told to ``record``. Unchanged where nothing is recorded."""
    if record is NO_RECORD:
        return context
    return dataclasses.replace(
        context,
        hypervisor=cast("Hypervisor", _Recorded(context.hypervisor, HYPERVISOR, record)),
        storage=cast("Storage", _Recorded(context.storage, STORAGE, record)),
    )


class _Recorded:
    """An adapter, with its acts told."""

    def __init__(self, adapter: object, acts: frozenset[str], record: Record) -> None:
        self._adapter = adapter
        self._acts = acts
        self._record = record

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever the adapter has
        method = getattr(self._adapter, name)
        return self._told(name, method) if name in self._acts else method

    def _told(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- as above
            first = args[0]
            node = first if isinstance(first, str) else first.node  # copy_memory is told the guest at its source
            words = [] if name in _UNTOLD else [word for word in args[1:] if isinstance(word, str)]
            data = {"node": node, "about": words, **{key: str(value) for key, value in kwargs.items()}}
            self._record.add(Kind.ACT, name, data, wait=True)
            try:
                result = method(*args, **kwargs)
            except BaseException as error:
                self._record.add(Kind.ACT_END, name, {**data, "error": str(error) or repr(error)})
                raise
            self._record.add(Kind.ACT_END, name, {**data, "error": ""})
            return result

        return act
