"""Storage adapters: what the core asks of replicated disks, done with DRBD's own tools on the nodes.

`storage.drbd.DrbdStorage` fulfils `lvmigrate.protocols.Storage` for DRBD 9 and for the 8.4 of the mainline kernel.
The modules, each of which imports only ones before it:

``events2``   one line of ``drbdsetup events2`` as a value
``show``      the text of ``drbdsetup show`` as a value
``world``     what the lines of one node add up to
``shell``     commands and streams on a node, here or over ssh
``watch``     one stream per node, kept alive, and what was seen in them
``drbd``      the adapter

Nothing is installed on a node: ``node.sh`` travels with every command.
"""

from __future__ import annotations

from storage.drbd import DrbdStorage

__all__ = ["DrbdStorage"]
