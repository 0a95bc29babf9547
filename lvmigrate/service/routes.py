"""Everything that can be asked: one table of routes, each with the role that it needs, what comes and what is answered.

The table is all that there is: who may is judged by it, requests are read by it, the OpenAPI description is made of it.

Long, because the table and what stands behind each of its lines are read together.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from lvmigrate.audit import Audit
from lvmigrate.bundle import Bundle
from lvmigrate.cluster import Cluster
from lvmigrate.doctor import Diagnosis
from lvmigrate.errors import Code, UsageError
from lvmigrate.explanation import Explanation, explained
from lvmigrate.journal import Story
from lvmigrate.page import page
from lvmigrate.plan import Options
from lvmigrate.service import orders, work
from lvmigrate.service.access import Subject, allow
from lvmigrate.service.events import Hub
from lvmigrate.service.files import REPORT
from lvmigrate.service.job import Job, Wish
from lvmigrate.service.jobs import Jobs
from lvmigrate.service.ledger import Ledger
from lvmigrate.service.messages import (
    EVENT_ID,
    Checked,
    Defaults,
    Errands,
    Forgotten,
    JobList,
    Nodes,
    NodeView,
    Nothing,
    OfHistory,
    OfJobs,
    OfTrail,
    Prune,
    Said,
    SetNode,
    Status,
    Trail,
    Whoami,
    WishDrain,
)
from lvmigrate.service.orders import Guest, NodeName, Order
from lvmigrate.service.settings import Role

_Code = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$(?!\n)")]
_Id = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9-]+$(?!\n)")]
Key = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$(?!\n)")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What the routes work with."""

    cluster: Cluster
    jobs: Jobs
    ledger: Ledger
    hub: Hub


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, read and judged."""

    subject: Subject
    path: Mapping[str, str]
    query: Any
    body: Any
    key: str | None

    def may(self, needed: Role) -> None:
        """Raise unless the role is enough for what the body asks."""
        allow(self.subject, needed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a handler says where the value alone does not say it."""

    value: object
    status: int = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)
    #: The job that this was about, for the trail.
    job: str = ""
    #: What is no JSON is a text.
    media_type: str = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One thing that can be asked."""

    method: str
    path: str
    #: The operation's name in the description.
    name: str
    summary: str
    #: What whoever asks must have at least; a body may need more.
    role: Role
    #: What is called with it, in a thread; ``None``: the app itself answers (streams, texts).
    handler: Callable[[Service, Call], object] | None = None
    body: Any = None
    query: type[Struct] = Nothing
    #: The type of the answer; of a text, its media type.
    answer: Any = Said
    status: int = HTTPStatus.OK
    #: It asks the nodes, which may take as long as a silent one is waited for.
    slow: bool = False
    #: It takes an Idempotency-Key.
    keyed: bool = False
    #: It ends something: it is done at once, whether or not that can be written.
    ends: bool = False

    @property
    def written_first(self) -> bool:
        """Whether it is done only once the trail says who asked: it is there to change something."""
        return self.method != "GET" and self.role > Role.LOOK and not self.ends


# ---- looking


def whoami(subject: Subject) -> Whoami:
    """What somebody is told of themselves."""
    return Whoami(subject=subject.name, role=subject.role, signed_in=subject.signed_in)


def _code(_service: Service, call: Call) -> Explanation:
    return explained(call.path["code"])


def _nodes(service: Service, _call: Call) -> Nodes:
    closed, known = service.cluster.closed(), service.cluster.node_states()
    return Nodes(
        nodes=[NodeView(node=name, closed=why or None, by_command=known.get(name)) for name, why in closed.items()]
    )


def _defaults(service: Service, _call: Call) -> Defaults:
    return Defaults(policies=dict(service.cluster.config.policies), drain=service.cluster.drain_limits())


def _status(service: Service, call: Call) -> Status:
    instance = call.path.get("instance")
    nodes = service.cluster.status(instance)
    if instance and not any(node.guests or node.trouble is not None for node in nodes):
        raise UsageError(
            f"No node knows a guest called {instance}.",
            hint="`lvmigrate status` lists the guests of all nodes.",
            code=Code.INSTANCE_UNKNOWN,
        )
    return Status(nodes=nodes)


def _options(service: Service, call: Call) -> Options:
    return service.cluster.options(call.path["instance"])


def _check(service: Service, call: Call) -> Checked:
    order: Order = call.body
    if isinstance(order, orders.Failover) and order.definition_text is not None:
        call.may(Role.MOVE)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".xml") as file:
            file.write(order.definition_text)
            file.flush()
            return work.check(service.cluster, order, definition=Path(file.name))
    return work.check(service.cluster, order)


def _audit(service: Service, _call: Call) -> Audit:
    return service.cluster.audit()


def _doctor(service: Service, _call: Call) -> Diagnosis:
    return service.cluster.doctor()


def _history(service: Service, call: Call) -> Errands:
    return Errands(errands=service.cluster.history(call.query.instance, most=call.query.most))


def _story(service: Service, call: Call) -> Story:
    return service.cluster.story(call.path["id"])


def _report(service: Service, call: Call) -> Answer:
    return Answer(value=page(service.cluster.story(call.path["id"])), media_type="text/html", headers=REPORT)


def _bundle(service: Service, call: Call) -> Bundle:
    return service.cluster.bundle(call.path["id"])


def _trail(service: Service, call: Call) -> Trail:
    return Trail(asked=service.ledger.trail(call.query.most))


# ---- changing


def _set_node(service: Service, call: Call) -> Nodes:
    service.cluster.set_node(call.path["node"], call.body.state, call.body.reason)
    return _nodes(service, call)


def _wish_drain(service: Service, call: Call) -> Said:
    service.cluster.wish(call.path["node"], call.body.wish)
    return Said(status=f"asked to {call.body.wish.value}")


def _prune(service: Service, call: Call) -> Forgotten:
    return Forgotten(forgotten=service.cluster.prune(call.body.days))


def _order(collection: str) -> Callable[[Service, Call], Answer]:
    def add(service: Service, call: Call) -> Answer:
        order: Order = call.body
        call.may(orders.role_of(order))
        fingerprint = hashlib.sha256(collection.encode() + msgspec.json.encode(order)).hexdigest()
        before = service.hub.position
        job, new = service.jobs.add(order, subject=call.subject.name, key=call.key, fingerprint=fingerprint)
        # Who follows a new job from there on is told everything of it; of an old one, how it stands.
        return _about(collection, job, HTTPStatus.ACCEPTED, {EVENT_ID: before} if new else {})

    return add


def _list(collection: str) -> Callable[[Service, Call], JobList]:
    def some(service: Service, call: Call) -> JobList:
        query = call.query
        states = None if query.state is None else (query.state,)
        what = orders.WHAT[collection]
        return JobList(
            jobs=service.jobs.some(
                what=what, states=states, about=query.about, most=query.most, left_open=query.left_open
            )
        )

    return some


def _one(collection: str) -> Callable[[Service, Call], Job]:
    return lambda service, call: service.jobs.one(call.path["id"], orders.WHAT[collection])


def _wish(collection: str, wanted: Wish) -> Callable[[Service, Call], Answer]:
    def wish(service: Service, call: Call) -> Answer:
        job = service.jobs.wish(service.jobs.one(call.path["id"], orders.WHAT[collection]), wanted)
        return _about(collection, job, HTTPStatus.ACCEPTED)

    return wish


def _post_copy(service: Service, call: Call) -> Answer:
    job = service.jobs.post_copy(service.jobs.one(call.path["id"], orders.WHAT["moves"]))
    return _about("moves", job, HTTPStatus.ACCEPTED)


def _about(collection: str, job: Job, status: int, headers: Mapping[str, str] | None = None) -> Answer:
    where = {"Location": f"/v1/{collection}/{job.id}"}
    return Answer(value=job, status=status, headers={**where, **(headers or {})}, job=job.id)


def _of_jobs(collection: str, kind: Any, one: str) -> list[Route]:  # noqa: ANN401 -- a union of Structs
    """What every collection of jobs has."""
    path = f"/v1/{collection}"
    accepted: dict[str, Any] = {"role": Role.MOVE, "answer": Job, "status": HTTPStatus.ACCEPTED}
    looks: dict[str, Any] = {"method": "GET", "role": Role.LOOK}
    routes = [
        Route(
            **looks,
            path=path,
            name=f"list_{collection}",
            summary=f"The newest {collection}.",
            handler=_list(collection),
            query=OfJobs,
            answer=JobList,
        ),
        Route(
            **accepted,
            method="POST",
            path=path,
            name=f"order_{one}",
            summary=f"Order a {one}; it is done as soon as the queue lets it.",
            handler=_order(collection),
            body=kind,
            keyed=True,
        ),
        Route(
            **looks,
            path=f"{path}/{{id}}",
            name=f"get_{one}",
            summary=f"One {one}: how far it is, what became of it.",
            handler=_one(collection),
            answer=Job,
        ),
        Route(
            **looks,
            path=f"{path}/{{id}}/events",
            name=f"follow_{one}",
            summary=f"What happens to one {one}, as server-sent events, until it has ended.",
            answer="text/event-stream",
        ),
        Route(
            **accepted,
            method="POST",
            path=f"{path}/{{id}}/abort",
            name=f"abort_{one}",
            summary=f"End a {one}; every guest stays, or arrives, whole.",
            handler=_wish(collection, Wish.ABORT),
            ends=True,
        ),
    ]
    if collection == "drains":
        routes.append(
            Route(
                **accepted,
                method="POST",
                path=f"{path}/{{id}}/stop",
                name="stop_drain",
                summary="Begin nothing more; those under way arrive.",
                handler=_wish(collection, Wish.STOP),
                ends=True,
            )
        )
    if collection == "moves":
        routes.append(
            Route(
                **accepted,
                method="POST",
                path=f"{path}/{{id}}/post-copy",
                name="begin_post_copy",
                summary="Let the guest go on at the target now, where its order allows it.",
                handler=_post_copy,
            )
        )
    return routes


def _look(path: str, name: str, summary: str, **more: Any) -> Route:  # noqa: ANN401 -- as a Route takes them
    return Route(**{"method": "GET", "path": path, "name": name, "summary": summary, "role": Role.LOOK, **more})


ROUTES: Final[tuple[Route, ...]] = (
    _look("/health", "health", "Whether the service lives."),
    _look("/ready", "ready", "Whether it takes jobs; 503 with the reason while it does not."),
    _look("/metrics", "metrics", "For Prometheus.", answer="text/plain"),
    _look("/v1/openapi.json", "description", "This description.", answer="application/json"),
    _look("/v1/events", "follow_all", "What happens to any job, as server-sent events.", answer="text/event-stream"),
    _look(
        "/v1/whoami",
        "whoami",
        "Who asks, and what they may.",
        handler=lambda _service, call: whoami(call.subject),
        answer=Whoami,
    ),
    Route(
        method="POST",
        path="/v1/session",
        name="sign_in",
        summary="Have a browser keep the token of the Authorization header as a cookie, until it ends.",
        role=Role.LOOK,
        answer=Whoami,
    ),
    Route(
        method="DELETE",
        path="/v1/session",
        name="sign_out",
        summary="Have it keep none any more.",
        role=Role.LOOK,
    ),
    _look("/v1/codes/{code}", "explain", "What a code or an exit code means.", handler=_code, answer=Explanation),
    _look("/v1/nodes", "list_nodes", "The nodes, and who may come.", handler=_nodes, answer=Nodes),
    Route(
        method="PUT",
        path="/v1/nodes/{node}/state",
        name="set_node",
        summary="Have a node be drained, offline or online.",
        role=Role.MOVE,
        handler=_set_node,
        body=SetNode,
        answer=Nodes,
    ),
    Route(
        method="POST",
        path="/v1/nodes/{node}/drain",
        name="wish_drain",
        summary="Have the drain of a node that is under way pause, go on, or stop, whoever began it.",
        role=Role.MOVE,
        handler=_wish_drain,
        body=WishDrain,
        ends=True,
    ),
    _look(
        "/v1/instances",
        "list_instances",
        "Every guest, its nodes, its disks.",
        handler=_status,
        answer=Status,
        slow=True,
    ),
    _look("/v1/instances/{instance}", "get_instance", "One guest.", handler=_status, answer=Status, slow=True),
    _look(
        "/v1/instances/{instance}/options",
        "get_options",
        "What holds for a guest where nothing else is chosen.",
        handler=_options,
        answer=Options,
        slow=True,
    ),
    _look("/v1/defaults", "get_defaults", "Policies, and a drain's limits.", handler=_defaults, answer=Defaults),
    Route(
        method="POST",
        path="/v1/checks",
        name="check",
        summary="What an order would do, or every reason against it. Changes nothing.",
        role=Role.LOOK,
        handler=_check,
        body=Order,
        answer=Checked,
        slow=True,
    ),
    *_of_jobs("moves", orders.MoveOrder, "move"),
    *_of_jobs("drains", orders.DrainOrder, "drain"),
    *_of_jobs("cleanups", orders.Cleanup, "cleanup"),
    _look(
        "/v1/audit", "audit", "Everything that moves have left on any node.", handler=_audit, answer=Audit, slow=True
    ),
    _look("/v1/doctor", "doctor", "What is to be mended, and how.", handler=_doctor, answer=Diagnosis, slow=True),
    _look("/v1/history", "history", "What was done, newest first.", handler=_history, query=OfHistory, answer=Errands),
    _look(
        "/v1/history/{id}", "story", "All that is known of one errand (or of the `last`).", handler=_story, answer=Story
    ),
    _look("/v1/history/{id}/page", "report", "The same as a page to read.", handler=_report, answer="text/html"),
    _look(
        "/v1/history/{id}/bundle",
        "bundle",
        "What a report of a defect needs of one errand, without secrets.",
        role=Role.MOVE,
        handler=_bundle,
        answer=Bundle,
        slow=True,
    ),
    Route(
        method="POST",
        path="/v1/history/prune",
        name="prune",
        summary="Have the journal forget what is older, for good.",
        role=Role.FORCE,
        handler=_prune,
        body=Prune,
        answer=Forgotten,
    ),
    _look("/v1/trail", "trail", "Who asked for what.", role=Role.FORCE, handler=_trail, query=OfTrail, answer=Trail),
)

#: What stands for what in paths.
PARAMETERS: Final[Mapping[str, Any]] = {"node": NodeName, "instance": Guest, "id": _Id, "code": _Code}
