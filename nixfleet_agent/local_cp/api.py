"""The endpoints that an agent with a certificate calls, one function each, and the table that finds them.

What a caller may not do is raised as ``RequestRefused``; ``Api.answer`` turns it into the error answer.
"""

from __future__ import annotations

import json
import logging
import math
import sqlite3
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from nixfleet_agent.errors import ProtoError, TrustError
from nixfleet_agent.journal import chain
from nixfleet_agent.journal.entries import HASH
from nixfleet_agent.local_cp import host_page, identity_api, markup, status_page
from nixfleet_agent.local_cp.control import ControlPlane
from nixfleet_agent.local_cp.errors import RequestRefused
from nixfleet_agent.local_cp.identity_api import Registrar
from nixfleet_agent.local_cp.overview import of_host, overview
from nixfleet_agent.local_cp.server import Peer, Request, Response
from nixfleet_agent.local_cp.wire import heartbeat, read_object
from nixfleet_agent.proto import ids
from nixfleet_agent.proto.contract import request_faults
from nixfleet_agent.proto.events import from_wire
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.text import printable
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.trust.canonical import canonical

LOG = logging.getLogger("nixfleet_agent.local_cp")

PROTOCOL = "1"
LONGEST_WAIT = 60.0
#: Breaches of the contract that are remembered: the newest.
BREACHES_KEPT = 100
#: How the programs that people look around with call themselves: they need not know the contract.
PEOPLE = ("curl/", "Mozilla/")
NO_CONTENT = Response(status=HTTPStatus.NO_CONTENT)


@dataclass(frozen=True, slots=True)
class Api:
    """All endpoints over one control plane; ``answer`` is what the server calls for each request.

    With ``strict`` each request of an agent is held against the contract of the wire. What it breaks is kept in
    ``breaches`` and told to the watcher; it is answered all the same.
    """

    control: ControlPlane
    registrar: Registrar
    clock: Clock
    strict: bool = False
    breaches: deque[str] = field(default_factory=lambda: deque(maxlen=BREACHES_KEPT))

    def answer(self, request: Request) -> Response:
        """The answer to any request, also to one that is wrong."""
        if self.strict and not request.headers.get("user-agent", "").startswith(PEOPLE):
            for breach in request_faults(request.method, request.path, request.headers, request.body):
                LOG.warning("the contract of the wire is broken: %s", breach)
                self.breaches.append(breach)
                self.control.breach("" if request.peer is None else request.peer.hostname, breach)
        try:
            return self._endpoint(request)(self, request)
        except RequestRefused as refusal:
            return refused(refusal.status, str(refusal))
        except (ProtoError, TrustError) as error:
            return refused(HTTPStatus.BAD_REQUEST, str(error))
        except sqlite3.Error as error:  # the agent keeps what it sent, and tries again
            LOG.warning("%s %s got 503: the database can't be used: %s", request.method, request.path, error)
            return refused(HTTPStatus.SERVICE_UNAVAILABLE, f"the database can't be used: {error}")

    def _endpoint(self, request: Request) -> Endpoint:
        if request.path in PAGES:
            return PAGES[request.path]
        if request.headers.get("x-nixfleet-protocol", PROTOCOL) != PROTOCOL:
            raise RequestRefused(HTTPStatus.UPGRADE_REQUIRED, f"this control plane speaks protocol {PROTOCOL}")
        methods = {method for method, path in ROUTES if path == request.path}
        if request.method == "GET" and request.path.startswith("/v1/rollouts/"):
            return artifact
        if not methods:
            raise RequestRefused(HTTPStatus.NOT_FOUND, f"no such endpoint: {printable(request.path, 200)}")
        if request.method not in methods:
            raise RequestRefused(HTTPStatus.METHOD_NOT_ALLOWED, f"use {' or '.join(sorted(methods))}")
        return ROUTES[request.method, request.path]


Endpoint = Callable[[Api, Request], Response]


def dispatch(api: Api, request: Request) -> Response:
    """``GET /v1/agent/dispatch?wait=60``."""
    peer = caller(api, request)
    try:
        wait = float(request.params.get("wait", "0"))
    except ValueError as error:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "wait is not a number of seconds") from error
    if math.isnan(wait):  # it is neither more nor less than any limit: the poll would never end
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "wait is not a number of seconds")
    turn = api.control.next_turn(
        peer.hostname, min(max(wait, 0.0), LONGEST_WAIT), lambda: request.gone() or api.registrar.revoked(peer)
    )
    if turn is None:
        caller(api, request)  # refused, where it was revoked while it waited
        return NO_CONTENT
    body = json.dumps(turn.to_json()).encode()
    return Response(status=HTTPStatus.OK, body=body, undelivered=lambda: api.control.not_delivered(turn))


def events(api: Api, request: Request) -> Response:
    """``POST /v1/agent/events``."""
    peer = caller(api, request)
    body = read_object(request.body, "the event's envelope")
    require_own(peer, body.get("hostname"))
    rollout_id = ids.require(ids.ROLLOUT_ID, body.get("rolloutId"), "rolloutId")
    wire = body.get("event")
    event = from_wire(wire, remote=True)
    if not isinstance(wire, Mapping) or event.seq < 1:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "seq starts at 1")
    if body.get("signature") is not None:
        check_signature(peer, wire, body["signature"], "signature")
    if body.get("previous") is not None or body.get("chainSignature") is not None:
        said = chain.statement(peer.hostname, rollout_id, wire, require_previous(body.get("previous")))
        check_signature(peer, said, body.get("chainSignature"), "chainSignature")
    api.control.take_event(event, {key: value for key, value in body.items() if value is not None})
    return NO_CONTENT


def beat(api: Api, request: Request) -> Response:
    """``POST /v1/agent/heartbeat``."""
    peer = caller(api, request)
    report = heartbeat(read_object(request.body, "the heartbeat"))
    require_own(peer, report.hostname)
    snapshots, replay_from = api.control.take_heartbeat(report)
    answer = {"received_at": format_time(api.clock.now()), "bootstrap_rollouts": snapshots}
    headers = {} if replay_from is None else {"X-Nixfleet-Replay-From": str(replay_from)}
    return Response(status=HTTPStatus.OK, body=json.dumps(answer).encode(), headers=headers)


def artifact(api: Api, request: Request) -> Response:
    """``GET /v1/fleet.resolved``, ``GET /v1/rollouts/{id}``, and each with ``/sig``: the bytes that CI signed."""
    caller(api, request)
    name = request.path.removeprefix("/v1/")
    found = api.control.catalogue.artifact(name)
    if found is None:
        if not api.control.catalogue.ready:
            raise RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, "control plane not ready: nothing is published yet")
        raise RequestRefused(HTTPStatus.NOT_FOUND, f"not published: {printable(name, 200)}")
    body, etag = found.body, found.etag
    if name.endswith("/sig") and name.removeprefix("rollouts/").removesuffix("/sig") in api.control.faults.tampered:
        body, etag = bytes([body[0] ^ 1]) + body[1:], '"tampered"'
    if request.headers.get("if-none-match") == etag:
        return Response(status=HTTPStatus.NOT_MODIFIED, headers={"ETag": etag})
    kind = "application/octet-stream" if name.endswith("/sig") else "application/json"
    return Response(status=HTTPStatus.OK, body=body, content_type=kind, headers={"ETag": etag})


def enroll(api: Api, request: Request) -> Response:
    """``POST /v1/enroll``, without a certificate."""
    if not api.control.catalogue.ready:
        raise RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, "control plane not ready")
    issued = api.registrar.enroll(read_object(request.body, "the enrollment"))
    return Response(status=HTTPStatus.OK, body=json.dumps(issued).encode())


def renew(api: Api, request: Request) -> Response:
    """``POST /v1/agent/renew``."""
    issued = api.registrar.renew(caller(api, request), read_object(request.body, "the renewal"))
    return Response(status=HTTPStatus.OK, body=json.dumps(issued).encode())


def bootstrap_report(api: Api, request: Request) -> Response:
    """``POST /v1/agent/bootstrap-report``, without a certificate."""
    report = identity_api.read_bootstrap_report(read_object(request.body, "the bootstrap report"))
    api.control.store.save_bootstrap_report(report, api.clock.now())
    return NO_CONTENT


def page(api: Api, request: Request) -> Response:
    """The status page for a browser."""
    return _html(status_page.render(overview(api.control, api.clock.now()), status_page.View.of(request.params)))


def host(api: Api, request: Request) -> Response:
    """``GET /host?name=web-01``: the timeline of one host for a browser."""
    name = request.params.get("name", "")
    picture = of_host(api.control, name, api.clock.now())
    if picture is None:
        raise RequestRefused(HTTPStatus.NOT_FOUND, f"no such host: {printable(name, 200)}")
    return _html(host_page.render(picture))


def _html(body: str) -> Response:
    kind = "text/html; charset=utf-8"
    return Response(status=HTTPStatus.OK, body=body.encode(), content_type=kind, headers=markup.headers())


def status(api: Api, request: Request) -> Response:
    """What the page shows, as JSON."""
    body = json.dumps(overview(api.control, api.clock.now()), indent=1)
    return Response(status=HTTPStatus.OK, body=body.encode())


ROUTES: dict[tuple[str, str], Endpoint] = {
    ("GET", "/v1/agent/dispatch"): dispatch,
    ("POST", "/v1/agent/events"): events,
    ("POST", "/v1/agent/heartbeat"): beat,
    ("GET", "/v1/fleet.resolved"): artifact,
    ("GET", "/v1/fleet.resolved/sig"): artifact,
    ("POST", "/v1/enroll"): enroll,
    ("POST", "/v1/agent/renew"): renew,
    ("POST", "/v1/agent/bootstrap-report"): bootstrap_report,
}

#: For people; the server listens on the loopback address, and no page changes anything.
PAGES: dict[str, Endpoint] = {"/": page, "/host": host, "/status.json": status}


def caller(api: Api, request: Request) -> Peer:
    """Who calls, by certificate.

    Raises:
        RequestRefused: there is none, or it was revoked.
    """
    peer = request.peer
    if peer is None:
        raise RequestRefused(HTTPStatus.UNAUTHORIZED, "a client certificate of this fleet is needed")
    if api.registrar.revoked(peer):
        raise RequestRefused(HTTPStatus.FORBIDDEN, f"the certificate of {printable(peer.hostname, 200)} was revoked")
    return peer


def require_own(peer: Peer, hostname: object) -> None:
    """A host speaks for itself only."""
    if hostname != peer.hostname:
        shown = f"{printable(hostname, 200)}, with the certificate of {printable(peer.hostname, 200)}"
        raise RequestRefused(HTTPStatus.FORBIDDEN, f"sent in the name of {shown}")


def require_previous(value: object) -> str:
    """What an event follows, as 64 hex digits (raises RequestRefused)."""
    if not isinstance(value, str) or not HASH.fullmatch(value):
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "previous is not a SHA-256 in hex")
    return value


def check_signature(peer: Peer, said: Mapping[str, Any], signature: object, field_name: str) -> None:
    """What is said is signed by the key that the certificate binds, which is the host's SSH key.

    Raises:
        RequestRefused: it is not.
    """
    try:
        raw = bytes.fromhex(str(signature))
        Ed25519PublicKey.from_public_bytes(peer.public_raw).verify(raw, canonical(dict(said)))
    except (ValueError, InvalidSignature) as error:
        message = f"{field_name} is not the host key's over the event"
        raise RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, message) from error


def refused(status_: HTTPStatus, message: str) -> Response:
    """An error answer: one line for the operator who reads the agent's log."""
    if status_ is HTTPStatus.SERVICE_UNAVAILABLE:
        return Response(status=status_, body=message.encode(), content_type="text/plain; charset=utf-8")
    return Response(status=status_, body=json.dumps({"error": message}).encode())
