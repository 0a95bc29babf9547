"""The two seams: what the core asks of a hypervisor and of a storage.

They speak the domain, not a tool's options.  ``hv.libvirt_kvm.LibvirtHypervisor`` and ``storage.drbd.DrbdStorage``
fulfil them.  All methods are synchronous, may be called from several threads at once, have deadlines of their own, and
raise only what `lvmigrate.errors` defines: `NodeUnreachable` when a node gave no answer (nothing is known then, not
even whether the call acted), `CommandFailed` when it answered and refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Event
from typing import Protocol

from lvmigrate.certificates import Certificates
from lvmigrate.domain import Activity, Domain, Host
from lvmigrate.errors import Code
from lvmigrate.plan import Options
from lvmigrate.premises import Needs, Offer, Premises, Wanted
from lvmigrate.progress import MemoryProgress
from lvmigrate.replication import (
    ConnectionOptions,
    Lineage,
    Opener,
    Place,
    Reach,
    Resource,
    Surroundings,
    VerifyEnd,
)
from lvmigrate.token import Guarded, Held, Token, Traces
from lvmigrate.vitals import Vitals


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyEnd:
    """How the call that copies memory ended. Neither outcome proves anything about where the guest runs (law 1)."""

    ok: bool
    #: libvirt's own words when it was not, and what they mean.
    detail: str = ""
    code: Code = Code.COPY_FAILED
    hint: str = ""


class MemoryCopy(Protocol):
    """A copy of memory under way."""

    def progress(self) -> MemoryProgress | None:
        """The newest statistics; ``None`` while there are none. Never raises, and returns within seconds."""

    def abort(self) -> None:
        """Ask the source to give up. May be called repeatedly; never raises, and returns within seconds.

        Guaranteed afterwards: nothing. Look at both nodes.
        """

    def limit_downtime(self, seconds: float) -> None:
        """Let the guest stand still for so long at the end of the copy."""

    def start_post_copy(self) -> None:
        """Let the guest go on at the target now, with the memory that is there; the rest follows.

        Guaranteed afterwards: it cannot be aborted any more.  Raises `NodeUnreachable`: it may act, later.
        """

    def wait(self, timeout_s: float, *, cancel: Event | None = None) -> CopyEnd | None:
        """How the call ended; ``None``: it still runs after ``timeout_s``, or when ``cancel`` is set.

        ``None`` also, sooner, when a pass over the memory has begun, and after `wake`.
        """

    def wake(self) -> None:
        """End a `wait` that is under way, or the next one: there is something to be looked at. From any thread."""


class Hypervisor(Protocol):
    """Guests on nodes."""

    def domain(self, node: str, name: str) -> Domain | None:
        """The guest as ``node`` knows it now, by name or UUID; ``None``: the node answered and knows none."""

    def domains(self, node: str) -> tuple[Domain, ...]:
        """Every guest that ``node`` knows now, running or not; their jobs are not asked for."""

    def host(self, node: str) -> Host:
        """What the node itself offers now."""

    def needs(self, node: str, uuid: str) -> Needs:
        """What the guest that runs on ``node`` asks of any node that it is to run on."""

    def needs_described(self, text: str) -> Needs:
        """The same of the guest that a definition describes, as far as that tells it. Asks no node."""

    def offer(self, node: str, needs: Needs) -> Offer:
        """What ``node`` has of that."""

    def activity(self, node: str, uuid: str, seconds: int, *, cancel: Event) -> Activity:
        """What the running guest does to its memory, measured for so long.

        Raises `MoveAborted` once ``cancel`` is set.
        """

    def copy_memory(self, domain: Domain, target: str, options: Options) -> MemoryCopy:
        """Start to copy the running guest's memory, peer-to-peer, to ``target``.

        It arrives paused, unless ``options.switch`` is `Switch.FAST`, or the guest runs and the copy may become a
        post-copy: then it is started there by the target's libvirt.  Returns at once; if it raises, no copy was
        started.  The source's definition is never removed; a persistent guest becomes persistent on the target.
        """

    def resume_post_copy(self, domain: Domain, target: str, options: Options) -> MemoryCopy:
        """Connect the two ends of a post-copy that broke; with the options it was begun with. Returns at once."""

    def adopt(self, node: str, uuid: str) -> MemoryCopy:
        """Follow the outgoing job that ``node`` has for the guest, whoever started it.

        Its ``wait`` tells an end when the node answered that there is no such job any more; `CopyEnd.ok` says only
        that the guest is gone from ``node``.
        """

    def abort_job(self, node: str, uuid: str) -> None:
        """Ask ``node`` to cancel whatever migration job it has for the guest. Guaranteed afterwards: nothing; look."""

    def resume(self, node: str, uuid: str) -> None:
        """Let the guest's CPUs run. Guaranteed afterwards: libvirt said that they do."""

    def set_memory(self, node: str, uuid: str, kib: int) -> None:
        """Tell the running guest to have so much memory, within what it may have; its definition is not changed.

        Guaranteed afterwards: nothing; `Domain.current_kib` tells what it has.
        """

    def suspend(self, node: str, uuid: str) -> None:
        """Stop the guest's CPUs. Guaranteed afterwards: libvirt said that they stand."""

    def discard(self, node: str, uuid: str) -> None:
        """End a copy that waits *paused* on ``node``; a definition that the move brought stays for the caller to judge.

        Guaranteed afterwards: no process of this guest on ``node``.  Refuses (`CommandFailed`) unless the copy is seen
        paused right before.
        """

    def undefine(self, node: str, uuid: str) -> None:
        """Remove the guest's definition from ``node`` and keep its NVRAM and TPM state. Nothing if there is none.

        Refuses (`CommandFailed`) while the guest is active there.
        """

    def start(self, node: str, uuid: str) -> None:
        """Start the guest that is defined on ``node`` from its disks. Nothing if it is active there.

        Guaranteed afterwards: libvirt said that it was started.
        """

    def shut_down(self, node: str, uuid: str) -> None:
        """Ask the guest to shut down. Guaranteed afterwards: nothing; a guest may take its time, or not listen."""

    def power_off(self, node: str, uuid: str) -> None:
        """End the guest's process on ``node`` at once, as a power cut would. Nothing if there is none."""

    def definition(self, node: str, uuid: str) -> str | None:
        """The guest's definition on ``node`` in libvirt's words, secrets included; ``None``: it has none."""

    def described(self, node: str, text: str) -> Domain:
        """The guest that ``text`` describes, as ``node`` would know it once it was defined there. Asks no node.

        Raises `CommandFailed` (`Code.DEFINITION_WRONG`) when it describes none.
        """

    def define(self, node: str, text: str, *, left_on: str | None = None) -> None:
        """Define the guest on ``node`` as ``text`` says. Idempotent; it is not started, and not when the node boots.

        ``left_on``: the tombstone that `Domain.left_on` tells from then on, as long as there is that definition.
        """

    def set_autostart(self, node: str, uuid: str, *, on: bool) -> None:
        """Whether the node starts the guest when it boots."""

    def on_change(self, uuid: str, call: Callable[[str, str], None]) -> AbstractContextManager[None]:
        """While in the context, ``call(node, event)`` for each life-cycle event of this guest on any connected node.

        Events are named as libvirt names them, in lower case, state and detail: ``suspended migrated``.  Called from
        the adapter's event thread: it must return at once.
        """

    def close(self) -> None:
        """End every connection of the adapter. Jobs that run on the nodes go on."""


class Watch(Protocol):
    """What the kernels of some nodes say of some resources, kept current by events."""

    def resource(self, node: str, name: str) -> Resource | None:
        """The newest state; ``None`` when it is not known (the stream is down, or the node has no such resource)."""

    def wait(self, holds: Callable[[], bool], timeout_s: float, *, cancel: Event | None = None) -> bool:
        """Wait until ``holds()``, asked anew after each change; false after ``timeout_s`` or when ``cancel`` is set."""

    def breaks(self) -> tuple[str, ...]:
        """Every time since the watch began, or since `forgive`, that a resource was seen not in step.

        In words, oldest first.
        """

    def gaps(self) -> tuple[str, ...]:
        """Every time since then that a node was not watched, or said what was not understood. In words, oldest first.

        A gap is no break: its streams end and begin for reasons of their own, and after it the state is read anew.
        Neither breaks nor gaps is the proof that replication never left Established.
        """

    def forgive(self) -> None:
        """Forget the breaks and gaps seen so far: from here on replication is to stay whole."""

    def dual_primary_s(self) -> float:
        """Seconds since the watch began during which two nodes were Primary for the same resource."""


class Storage(Protocol):
    """Replicated disks on nodes.

    A resource has one name here, on all of its nodes, whatever each of them calls it.
    """

    def locate(self, node: str, paths: Collection[str]) -> Mapping[str, Place]:
        """Which resource and volume each block device is on ``node``. A path that is none of DRBD's is left out."""

    def shared(self, node: str, paths: Collection[str]) -> Mapping[str, Reach]:
        """Those of ``paths`` that lead to storage which other nodes can reach too, and what that is.

        Two nodes that tell the same of a path see the same thing there: nothing must be replicated, opened or closed.
        """

    def observe(self, node: str, names: Collection[str] | None = None) -> Mapping[str, Resource]:
        """What the node's kernel says now of these resources, or of all. One that it does not have is left out."""

    def generations(self, node: str, names: Collection[str]) -> Mapping[str, str]:
        """The generation of the data of each volume (``RESOURCE/NUMBER``) as the node's kernel has it now.

        It is another one as soon as a Primary has written without its peer; a role alone does not change it.  To be
        compared with what the same node told before, not with another's.
        """

    def lineages(self, node: str, peer: str, names: Collection[str]) -> Mapping[str, Lineage]:
        """Where the data of each volume (``RESOURCE/NUMBER``) on ``node`` come from, as seen towards ``peer``."""

    def watch(
        self, nodes: Sequence[str], names: Collection[str], *, on_change: Callable[[str], None] | None = None
    ) -> AbstractContextManager[Watch]:
        """Follow these resources on these nodes. Inside the context every node has answered once.

        ``on_change(sentence)`` is told of each change of a role, a connection, a disk or a replication state.
        Raises `NodeUnreachable` if a node does not answer.
        """

    def options(self, node: str, name: str, peer: str) -> ConnectionOptions:
        """What is set on the connection from ``node`` to ``peer`` now."""

    def two_primaries(self, node: str) -> frozenset[str]:
        """The resources of ``node`` with a connection on which two primaries are allowed now."""

    def surroundings(self, node: str, names: Collection[str]) -> Surroundings:
        """What is around these resources on ``node``: the module, their configuration, and who else acts on them."""

    def allow_two_primaries(self, node: str, name: str, peer: str, token: Token) -> ConnectionOptions:
        """Allow two primaries on this one connection, protocol C; what is set then. Idempotent.

        What is returned was read back after it was set.  Raises also `TokenLost`.
        """

    def restore_options(
        self, node: str, name: str, peer: str, options: ConnectionOptions, token: Token
    ) -> ConnectionOptions:
        """Set allow-two-primaries and the protocol to exactly ``options``; what is set then. Idempotent.

        What is returned was read back after it was set.  Raises also `TokenLost`.
        """

    def reconnect(self, node: str, name: str, peer: str, options: ConnectionOptions, token: Token) -> None:
        """Try to connect ``node`` to ``peer`` again, with ``options``, if that connection is StandAlone; else nothing.

        It takes both ends.  DRBD refuses copies that have both changed, or to bring a Primary up to date, and is
        StandAlone again then; but the operator's after-sb policies may have it discard one: see by `lineages` before
        that only one has changed.  Raises also `TokenLost`.
        """

    def promote(self, node: str, name: str, token: Token, *, beside: str | None = None) -> None:
        """Make the node Primary. Idempotent; never by force. Raises also `TokenLost`.

        ``beside``: the peer that is Primary too.  Refused (`CommandFailed`, `Code.NOT_CONNECTED`) unless it is
        connected, which is looked at in the same remote command: what is promoted alone has data of its own from then.
        """

    def promote_by_force(self, node: str, name: str, token: Token) -> None:
        """Make the node Primary although its copies are old: whoever asks has the operator's word for it.

        Guaranteed afterwards: they count as UpToDate, with a generation of their own, so that the peer's newer data
        are not taken over unasked.  Refuses (`CommandFailed`) unless each is UpToDate, or whole and old (Outdated,
        Consistent), and the peer is not connected.  Raises also `TokenLost`.
        """

    def demote(self, node: str, name: str, token: Token) -> None:
        """Make the node Secondary. Idempotent; never by force.

        Refuses with `DeviceHeld` while anything has one of the resource's devices open in any mode.
        """

    def begin_verify(self, node: str, name: str, volume: int, peer: str, guest: str) -> None:
        """Have DRBD compare every block of the volume on ``node`` with the copy on ``peer``: an online verify.

        Guaranteed afterwards: it has begun, from the first block, and goes on by itself beside all reads and writes; it
        changes no data, and counts what differs as out of sync.  Refuses (`CommandFailed`) with `Code.LOCKED` while
        there is a token of ``guest`` (its UUID) on ``node``, since it would disturb the move that has begun; and with
        `Code.NOT_CONNECTED` unless replication of the volume to that peer is Established.
        """

    def verify_ends(self, node: str, name: str, peer: str) -> Mapping[int, VerifyEnd]:
        """By volume: the last online verify with ``peer`` that came to its end since ``node`` booted.

        One that is not there has not, or the node's kernel log does not tell.
        """

    def openers(self, node: str, names: Collection[str]) -> tuple[Opener, ...]:
        """What has a device of these resources open on ``node`` now, in any mode: processes, mounts, other devices."""

    def take_token(
        self, node: str, token: Token, *, replaces: str | None = None, known: str | None = None
    ) -> Held | None:
        """Leave the token on ``node``. ``None``: it is ours; otherwise the one that was there first, and still is.

        One that ran out by the node's own clock is taken over, and so is the living one whose id is ``replaces``: from
        then on every command with that id is refused, those that are still on their way too.  Our own is taken again
        and renewed.  ``known``: of those that ran out only the one with this id is taken over, or with the one that its
        guard has given it since; what another says is the record of a move that nobody has looked at.
        """

    def renew_token(self, node: str, token: Token) -> None:
        """Put the deadline ``token.lease_s`` ahead of the node's clock. Raises `TokenLost` if it is not ours.

        Guaranteed afterwards, if ``token.guarded``: the guard there has acknowledged the new deadline.  Raises
        `CommandFailed` (`Code.GUARD_LOST`) when it does not.
        """

    def drop_token(self, node: str, token: Token) -> None:
        """Remove our token from ``node``. Nothing if it is not ours."""

    def guard_trouble(self, node: str) -> str | None:
        """Why no guard can be armed on ``node`` (a clause), ``None`` when one can."""

    def arm_guard(self, node: str, token: Token, guarded: Sequence[Guarded], *, resume: bool) -> None:
        """Start the dead-man's guard of this guest on ``node``; it outlives the controller. Idempotent.

        It does nothing while the token lives, whoever holds it.  Once the token ran out or is gone, and libvirt there
        has no job and no incoming copy of the guest, it demotes its own node if no process holds a device; restores
        ``guarded`` while Connected with the peer seen Secondary; and, if ``resume``, resumes a guest that waits paused
        there and ran by the token's errand, once the peer is seen Secondary over a connection that never left
        Established.  It tries until all holds, then removes itself; the token, run out, stays as the record that a
        cleanup reads.

        Guaranteed afterwards: it runs, and has acknowledged the token's deadline.  Raises also `TokenLost`.
        """

    def disarm_guard(self, node: str, token: Token) -> None:
        """End this guest's guard on ``node``. Nothing if there is none. Raises also `TokenLost`.

        Guaranteed afterwards: it does nothing more; its process ends by itself, within a second.
        """

    def traces(self, node: str) -> Traces:
        """Every token and every guard that is on ``node`` now."""

    def inhibit(self, node: str, token: Token) -> AbstractContextManager[None]:
        """In the context, the node's own shutdown and sleep are held back, where they can be. Never raises.

        Nothing depends on it: it ends with the controller, and where the guest has a guard that one does the same.
        """

    def certificates(self, node: str) -> Certificates:
        """What QEMU on ``node`` encrypts migrations with."""

    def premises(self, node: str, wanted: Wanted) -> Premises:
        """What is on ``node`` of that which is wanted there, and whether it reaches the peer.

        The peer's libvirt is connected to, and the last port of its range for memory knocked at: libvirt takes the
        first that is free, and of a range that the configuration names the last is kept free (`Node.spare_port`).
        """

    def available_kib(self, node: str) -> int | None:
        """How much memory the kernel of ``node`` would give without swapping, in KiB. ``None``: it does not say."""

    def vitals(self, node: str, programs: Collection[str]) -> Vitals:
        """What ``node`` says of itself, and which of ``programs`` it lacks."""

    def evidence(self, node: str, instance: str) -> Mapping[str, str]:
        """What ``node`` says for a report of a defect (DRBD's state, the ends of logs), by what it is.

        It may hold secrets: `lvmigrate.redaction`.
        """

    def keepalive_s(self, node: str) -> float:
        """Seconds until the libvirt daemon of ``node`` gives up a peer that does not answer during a migration."""

    def close(self) -> None:
        """End every connection and process of the adapter."""
