"""Storage adapters: what the core asks of replicated disks, done with DRBD's own tools on the nodes.

`storage.drbd.DrbdStorage` fulfils `lvmigrate.protocols.Storage` for DRBD 9 and for the 8.4 of the mainline kernel,
`storage.shared.SharedStorage` for disks that every node reaches alike.
The modules, each of which imports only ones before it:

``events2``   one line of ``drbdsetup events2`` as a value
``show``      the text of ``drbdsetup show`` as a value
``world``     what the lines of one node add up to
``shell``     commands and streams on a node, here or over ssh
``session``   shells that stay on nodes, for one call after the other
``changes``   what differs between two states, in sentences
``feed``      what one subscriber is told
``watch``     one stream per node, kept alive, and what was seen in them
``lineage``   the generations of data, as values
``openers``   who has a device open
``remote``    the functions of node.sh, called on nodes
``marks``     tokens and guards
``reach``     where a path leads that is not replicated
``shared``    the adapter for shared storage
``kernels``   DRBD on each node, by the node's own names of resources
``names``     one name for each resource, whatever its nodes call it
``drbd``      the adapter for DRBD

Nothing is installed on a node: ``node.sh`` and ``guard.sh`` travel with the first command that needs them.
"""

from __future__ import annotations

from storage.drbd import DrbdStorage
from storage.shared import SharedStorage

__all__ = ["DrbdStorage", "SharedStorage"]
