"""A controller's way to the nodes' DRBD: fulfils `lvmigrate.protocols.Storage` over a simulated world.

Long, because every method of the Protocol stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, TypeVar

from lvmigrate.certificates import Certificates
from lvmigrate.errors import Code, CommandFailed, DeviceHeld, TokenLost
from lvmigrate.premises import Match, Premises, Wanted
from lvmigrate.protocols import Watch
from lvmigrate.replication import (
    OLD,
    ConnectionOptions,
    ConnectionState,
    DiskState,
    Lineage,
    Opener,
    Place,
    Reach,
    Resource,
    Role,
    Surroundings,
    VerifyEnd,
)
from lvmigrate.simulator.called import Called
from lvmigrate.simulator.controller import Controller
from lvmigrate.simulator.drbd import KernelRefused, Replicated
from lvmigrate.simulator.guard import Guard
from lvmigrate.simulator.host import Host, TokenFile
from lvmigrate.simulator.watch import SimulatedWatch
from lvmigrate.token import Guarded, Held, Token, Traces
from lvmigrate.vitals import Vitals

T = TypeVar("T")

_HELD: Final = 97


class SimulatedStorage:
    """Replicated disks on nodes, and what lvmigrate leaves there."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._world = controller.world
        self._called = Called(controller)

    # ---- looking

    def locate(self, node: str, paths: Collection[str]) -> Mapping[str, Place]:
        """Which resource and volume each block device is on ``node``."""

        def look() -> Mapping[str, Place]:
            return {
                path: Place(resource=name, volume=number)
                for name, resource in self._called.here(node)
                for path in paths
                if (number := resource.at(node, path)) is not None
            }

        return self._ask("locate", node, look)

    def shared(self, node: str, paths: Collection[str]) -> Mapping[str, Reach]:
        """No path leads to shared storage here."""
        nothing: Mapping[str, Reach] = {}
        return self._ask("shared", node, lambda: nothing) if paths else nothing

    def observe(self, node: str, names: Collection[str] | None = None) -> Mapping[str, Resource]:
        """What the node's kernel says now of these resources, or of all."""

        def look() -> Mapping[str, Resource]:
            found = self._called.here(node) if names is None else self._called.asked(node, names)
            views = {name: resource.view_as(node, name) for name, resource in found}
            return {name: seen for name, seen in views.items() if seen is not None}

        return self._ask("observe", node, look)

    def generations(self, node: str, names: Collection[str]) -> Mapping[str, str]:
        """The generation of the data of each volume (``RESOURCE/NUMBER``)."""

        def look() -> Mapping[str, str]:
            return {
                f"{name}/{number}": resource.ends[node].generation
                for name, resource in self._called.asked(node, names)
                for number in resource.ends[node].disks
            }

        return self._ask("generations", node, look)

    def lineages(self, node: str, peer: str, names: Collection[str]) -> Mapping[str, Lineage]:
        """Where the data of each volume (``RESOURCE/NUMBER``) on ``node`` come from, as seen towards ``peer``."""

        def look() -> Mapping[str, Lineage]:
            return {
                f"{name}/{number}": Lineage(current=end.generation, earlier=end.earlier)
                for name, resource in self._called.asked(node, names)
                if peer in resource.nodes and (end := resource.ends[node]).up
                for number in end.disks
            }

        return self._ask("lineages", node, look) if names else {}

    @contextmanager
    def watch(
        self, nodes: Sequence[str], names: Collection[str], *, on_change: Callable[[str], None] | None = None
    ) -> Iterator[Watch]:
        """Follow these resources on these nodes. Inside the context every node has answered once."""
        for node in nodes:
            self._ask("watch", node, lambda: None)
        found = {resource.name: name for node in nodes for name, resource in self._called.asked(node, names)}
        absent = {name: name for name in names if name not in found.values()}
        watch = SimulatedWatch(self._controller, nodes, found | absent, on_change)
        self._controller.watches.append(watch)
        try:
            yield watch
        finally:
            watch.close()
            if watch in self._controller.watches:
                self._controller.watches.remove(watch)

    def options(self, node: str, name: str, peer: str) -> ConnectionOptions:
        """What is set on the connection from ``node`` to ``peer`` now."""
        return self._ask("options", node, lambda: self._set(node, name, peer))

    def _set(self, node: str, name: str, peer: str) -> ConnectionOptions:
        resource = self._connection(node, name, peer)
        end = resource.ends[node]
        return ConnectionOptions(
            allow_two_primaries=end.two_primaries,
            protocol=None if end.protocol == "C" else end.protocol,
            auto_promote=resource.auto_promote,
            verify_alg=resource.verify_alg,
        )

    def two_primaries(self, node: str) -> frozenset[str]:
        """The resources of ``node`` with a connection on which two primaries are allowed now."""
        return self._ask(
            "two_primaries",
            node,
            lambda: frozenset(
                name
                for name, r in self._called.here(node)
                if r.ends[node].two_primaries and (view := r.view(node)) is not None and view.connections
            ),
        )

    def surroundings(self, node: str, names: Collection[str]) -> Surroundings:
        """The version; what was allowed for good; and nobody else has a hand in it."""

        def look() -> Surroundings:
            here = self._called.asked(node, names)
            return Surroundings(
                version=here[0][1].version.module if here else "",
                two_primaries_for_good=frozenset(n for n, r in here if r.for_good and r.ends[node].two_primaries),
            )

        return self._ask("surroundings", node, look) if names else Surroundings()

    def verify_ends(self, node: str, name: str, peer: str) -> Mapping[int, VerifyEnd]:
        """By volume: the last online verify with ``peer`` that came to its end."""

        def look() -> Mapping[int, VerifyEnd]:
            resource = self._resource(node, name)
            found = resource.verified.items() if peer in resource.nodes else ()
            return {volume: VerifyEnd(at=f"{at:.3f}") for (where, volume), at in found if where == node}

        return self._ask("verify_ends", node, look)

    def openers(self, node: str, names: Collection[str]) -> tuple[Opener, ...]:
        """What has a device of these resources open on ``node`` now, in any mode."""

        def look() -> tuple[Opener, ...]:
            return tuple(
                Opener(resource=name, volume=number, what=hold.who, process=hold.process, guest=hold.guest)
                for name, resource in self._called.asked(node, names)
                for hold in resource.ends[node].holds
                for number in resource.ends[node].disks
            )

        return self._ask("openers", node, look)

    # ---- changing

    def allow_two_primaries(self, node: str, name: str, peer: str, token: Token) -> ConnectionOptions:
        """Allow two primaries on this one connection, protocol C; what is set then. Raises also `TokenLost`."""
        what = f"Allowing two primaries of {name}"

        def act() -> ConnectionOptions:
            self._ours(node, token, what)
            self._connection(node, name, peer)
            self._kernel(node, what, lambda r: r.set_options(node, two_primaries=True, protocol="C"), name)
            self._world.tell(f"two primaries are allowed for {name} on {node}")
            return self._set(node, name, peer)

        return self._act("allow_two_primaries", node, act, what)

    def restore_options(
        self, node: str, name: str, peer: str, options: ConnectionOptions, token: Token
    ) -> ConnectionOptions:
        """Set allow-two-primaries and the protocol to ``options``; off only while Connected; what is set then."""
        what = f"{'Allowing' if options.allow_two_primaries else 'Forbidding'} two primaries of {name}"

        def act() -> ConnectionOptions:
            self._ours(node, token, what)
            resource = self._connection(node, name, peer)
            end = resource.ends[node]
            if (end.two_primaries, end.protocol) == (options.allow_two_primaries, options.protocol or "C"):
                return self._set(node, name, peer)
            if end.two_primaries and not options.allow_two_primaries:
                self._need_connected(node, name, what)
            self._kernel(node, what, lambda r: self._world.set_options(node, r.name, options), name)
            return self._set(node, name, peer)

        return self._act("restore_options", node, act, what)

    def reconnect(self, node: str, name: str, peer: str, options: ConnectionOptions, token: Token) -> None:
        """Try to connect ``node`` to ``peer`` again, with ``options``, if that connection is StandAlone."""
        what = f"Connecting {name} again"

        def act() -> None:
            self._ours(node, token, what)
            resource = self._resource(node, name)
            end = resource.ends[node]
            if peer not in resource.nodes or end.state is not ConnectionState.STANDALONE:
                return
            allowed, protocol = options.allow_two_primaries, options.protocol or "C"
            self._kernel(node, what, lambda r: r.set_options(node, two_primaries=allowed, protocol=protocol), name)
            resource.reconnect(node)
            self._world.tell(f"{name} on {node} is connected again, by {self._world.actor}")

        self._act("reconnect", node, act, what)

    def promote(self, node: str, name: str, token: Token, *, beside: str | None = None) -> None:
        """Make the node Primary, ``beside`` a connected peer. Idempotent; never by force. Raises also `TokenLost`."""
        what = f"Promoting {name}"

        def act() -> None:
            self._ours(node, token, what)
            if beside is not None:
                self._need_connected(node, name, what)
            self._kernel(node, what, lambda resource: resource.promote(node), name)
            self._world.tell(f"{name} is Primary on {node}, by {self._world.actor}")

        self._act("promote", node, act, what)

    def promote_by_force(self, node: str, name: str, token: Token) -> None:
        """Make the node Primary although its copies are old; refused as node.sh does. Raises also `TokenLost`."""
        what = f"Promoting {name} by force"

        def act() -> None:
            self._ours(node, token, what)
            end = self._resource(node, name).ends[node]
            whole = set(end.disks.values()) <= {DiskState.UP_TO_DATE, *OLD}
            if end.state is ConnectionState.CONNECTED or not whole:
                raise CommandFailed(
                    node, what, status=89, hint="Look at drbdadm status.", code=Code.NOT_UPTODATE, detail="(89)"
                )
            self._kernel(node, what, lambda resource: self._world.force(node, resource.name), name)

        self._act("promote_by_force", node, act, what)

    def demote(self, node: str, name: str, token: Token) -> None:
        """Make the node Secondary. Refuses with `DeviceHeld` while anything has a device open in any mode."""
        what = f"Demoting {name}"

        def act() -> None:
            self._ours(node, token, what)
            end = self._resource(node, name).ends[node]
            if end.role is Role.SECONDARY:
                return
            if end.holds:
                who = "; ".join(hold.who for hold in end.holds)
                raise DeviceHeld(
                    node, what, status=_HELD, hint=f"Still open by {who}: end that first.", code=Code.DEVICE_HELD
                )
            self._kernel(node, what, lambda r: self._world.demote(node, r.name), name)

        self._act("demote", node, act, what)

    def begin_verify(self, node: str, name: str, volume: int, peer: str, guest: str) -> None:
        """Have DRBD compare both copies; refused while the guest has a token, and unless replication is Established."""
        what = f"Beginning to verify {name}/{volume} with {peer}"

        def act() -> None:
            if guest in self._host(node).tokens:
                raise CommandFailed(node, what, status=92, hint="Wait for its end.", code=Code.LOCKED, detail="(92)")
            resource = self._connection(node, name, peer)
            if not resource.connected or resource.syncing is not None or volume in resource.verifying:
                raise CommandFailed(
                    node, what, status=96, hint="Wait for the connection.", code=Code.NOT_CONNECTED, detail="(96)"
                )
            self._kernel(node, what, lambda r: r.verify(node, volume), name)

        self._act("begin_verify", node, act, what)

    # ---- marks

    def take_token(
        self, node: str, token: Token, *, replaces: str | None = None, known: str | None = None
    ) -> Held | None:
        """Leave the token on ``node``. ``None``: it is ours; otherwise the one that was there first, and still is."""

        def act() -> Held | None:
            host = self._host(node)
            held = host.held(token.uuid, self._world.now)
            if held is not None and held.id not in (token.id, replaces):
                unknown = known is not None and held.id not in (known, f"over-{known}")
                if held.alive or unknown:
                    return held
            host.tokens[token.uuid] = TokenFile(token=token, deadline_s=host.uptime(self._world.now) + token.lease_s)
            return None

        return self._act("take_token", node, act, "Taking the token")

    def renew_token(self, node: str, token: Token) -> None:
        """Put the deadline ahead. Raises `TokenLost`, or `CommandFailed` (`Code.GUARD_LOST`)."""

        def act() -> None:
            self._ours(node, token, "Renewing the token")
            host = self._host(node)
            host.tokens[token.uuid] = TokenFile(token=token, deadline_s=host.uptime(self._world.now) + token.lease_s)
            guard = host.guards.get(token.uuid)
            if token.guarded and (guard is None or not guard.alive):
                raise CommandFailed(
                    node, "Renewing the token", status=98, hint="Look at the guard.", code=Code.GUARD_LOST
                )

        self._act("renew_token", node, act, "Renewing the token")

    def drop_token(self, node: str, token: Token) -> None:
        """Remove our token from ``node``. Nothing if it is not ours."""

        def act() -> None:
            host = self._host(node)
            file = host.tokens.get(token.uuid)
            if file is not None and file.token.id == token.id:
                del host.tokens[token.uuid]

        self._act("drop_token", node, act, "Dropping the token")

    def guard_trouble(self, node: str) -> str | None:
        """Guards can be armed everywhere."""
        return self._ask("guard_trouble", node, lambda: None)

    def arm_guard(self, node: str, token: Token, guarded: Sequence[Guarded], *, resume: bool) -> None:
        """Start the dead-man's guard of this guest on ``node``. Idempotent."""

        def act() -> None:
            self._ours(node, token, "Arming the guard")
            host = self._host(node)
            before = host.guards.pop(token.uuid, None)
            known = {} if before is None else before.generations
            if before is not None:
                before.end()
            links = [(order, self._resource(node, order.resource)) for order in guarded]
            guard = Guard(
                world=self._world,
                host=host,
                uuid=token.uuid,
                instance=token.instance,
                guarded=tuple(replace(order, resource=r.called[node]) for order, r in links),
                resume=resume and token.errand is not None,
                ran=token.errand is not None and token.errand.ran,
                generations={r.called[node]: known.get(r.called[node], r.ends[node].generation) for _, r in links},
            )
            host.guards[token.uuid] = guard
            guard.start()

        self._act("arm_guard", node, act, "Arming the guard")

    def disarm_guard(self, node: str, token: Token) -> None:
        """End this guest's guard on ``node``. Nothing if there is none. Raises also `TokenLost`."""

        def act() -> None:
            self._ours(node, token, "Disarming the guard")
            guard = self._host(node).guards.pop(token.uuid, None)
            if guard is not None:
                guard.end()

        self._act("disarm_guard", node, act, "Disarming the guard")

    def traces(self, node: str) -> Traces:
        """Every token and every guard that is on ``node`` now."""

        def look() -> Traces:
            host = self._host(node)
            held = (host.held(uuid, self._world.now) for uuid in host.tokens)
            return Traces(
                node=node,
                tokens=tuple(token for token in held if token is not None),
                guards=tuple(self._called.told(node, guard.seen()) for guard in host.guards.values()),
            )

        return self._ask("traces", node, look)

    def certificates(self, node: str) -> Certificates:
        """Every node has good ones."""
        return self._ask(
            "certificates", node, lambda: Certificates(node=node, folder="/etc/pki/qemu", names=frozenset({node}))
        )

    def premises(self, node: str, wanted: Wanted) -> Premises:
        """All that is wanted, and every node reaches every other."""

        def look() -> Premises:
            return Premises(
                node=node,
                paths=wanted.paths,
                interfaces=wanted.interfaces,
                programs=wanted.programs,
                after_drbd={"libvirtd.service": True},
                peer=Match.YES,
                memory=Match.YES,
            )

        return self._ask("premises", node, look)

    def available_kib(self, node: str) -> int | None:
        """All that is free."""
        return self._ask("available_kib", node, lambda: self._world.hosts[node].free_memory_kib)

    def vitals(self, node: str, programs: Collection[str]) -> Vitals:  # noqa: ARG002 -- every node has all
        """One clock for all, and nothing is missing."""

        def look() -> Vitals:
            here = self._called.here(node)
            module = here[0][1].version.module if here else ""
            after = {"libvirtd.service": True}
            return Vitals(node=node, clock_s=0.0, clock_error_s=0.0, module=module, max_sessions=10, after_drbd=after)

        return self._ask("vitals", node, look)

    def evidence(self, node: str, instance: str) -> Mapping[str, str]:  # noqa: ARG002 -- all of the node's
        """What the node's kernel says of its resources."""

        def look() -> Mapping[str, str]:
            return {"drbd": "\n".join(str(resource.view_as(node, name)) for name, resource in self._called.here(node))}

        return self._ask("evidence", node, look)

    @contextmanager
    def inhibit(self, node: str, token: Token) -> Iterator[None]:  # noqa: ARG002
        """Nobody shuts a node down in an orderly way here."""
        yield

    def keepalive_s(self, node: str) -> float:
        """Seconds until the libvirt daemon of ``node`` gives up a peer that does not answer during a migration."""
        return self._ask("keepalive_s", node, lambda: self._world.settings.keepalive_s)

    def close(self) -> None:
        """Nothing is open."""

    # ---- how

    def _ask(self, method: str, node: str, look: Callable[[], T]) -> T:
        what = method.replace("_", " ")
        return self._controller.call(method, node, look, acts=False, libvirt=False, what=what)

    def _act(self, method: str, node: str, act: Callable[[], T], what: str) -> T:
        return self._controller.call(method, node, act, acts=True, libvirt=False, what=what)

    def _host(self, node: str) -> Host:
        return self._world.hosts[node]

    def _resource(self, node: str, name: str) -> Replicated:
        resource = self._called.find(node, name)
        if resource is None:
            raise CommandFailed(node, f"Finding {name}", status=95, hint="Bring it up.", code=Code.STORAGE_FAILED)
        return resource

    def _connection(self, node: str, name: str, peer: str) -> Replicated:
        """The resource, if it has a connection to the peer: 8.4 has none while StandAlone."""
        resource = self._resource(node, name)
        view = resource.view(node)
        if view is None or view.towards(peer) is None:
            raise CommandFailed(
                node,
                f"Finding the connection of {name} to {peer}",
                status=0,
                hint="Look at drbdadm status on both nodes.",
                code=Code.NOT_CONNECTED,
            )
        return resource

    def _ours(self, node: str, token: Token, what: str) -> None:
        file = self._host(node).tokens.get(token.uuid)
        if file is None or file.token.id != token.id:
            raise TokenLost(
                f"{what} was not tried on {node}: the token of {token.instance} there is not ours any more.",
                hint="Somebody else took this guest over: look at what runs, and where, before anything else.",
            )

    def _need_connected(self, node: str, name: str, what: str) -> None:
        if not self._resource(node, name).connected:
            raise CommandFailed(
                node, what, status=96, hint="Wait for the connection.", code=Code.NOT_CONNECTED, detail="(96)"
            )

    def _kernel(self, node: str, what: str, act: Callable[[Replicated], object], name: str) -> None:
        try:
            act(self._resource(node, name))
        except KernelRefused as refusal:
            raise CommandFailed(
                node,
                what,
                status=refusal.status,
                hint="Look at drbdsetup status on both nodes.",
                detail=refusal.words,
                code=Code.STORAGE_FAILED,
            ) from refusal
