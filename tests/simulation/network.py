"""The network between one host and the control plane, as connections that the agent is given instead of sockets.

A request is a call of the control plane's own handler, in the thread that sends it; what a network does to bytes is
done to the call: it never arrives, or arrives and its answer does not, late, cut, or something else answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

import requests
from requests.structures import CaseInsensitiveDict

from nixfleet_agent.errors import TransportError
from nixfleet_agent.identity.credentials import Identity
from nixfleet_agent.local_cp.server import Peer, Request, Response
from nixfleet_agent.net.answers import Answer
from nixfleet_agent.net.budget import CallBudget, aborted
from nixfleet_agent.net.failures import AnswerTooLargeError, ClientCertificateRefusedError
from nixfleet_agent.net.sockets import Endpoint
from tests.simulation.primitives import SimClock
from tests.simulation.scheduler import Scheduler

_PAGE = b"<!doctype html><html><head><title>Sign in</title></head></html>"
#: What stands between may answer: status, headers, body.
_FRONTS = (
    (403, {"Content-Type": "text/html"}, _PAGE),
    (200, {"Content-Type": "text/html"}, _PAGE),
    (302, {"Location": "https://portal.invalid/"}, b""),
    (503, {"Content-Type": "text/html", "Retry-After": "5"}, _PAGE),
    (404, {}, b""),
    (400, {"Content-Type": "text/plain"}, b"Bad Request"),
)


@dataclass(slots=True)
class Weather:
    """How the network behaves now; rates are per request, from 0 to 1.

    ``lost``: nothing ever comes back, and half of the time the request had arrived. ``reset``: the same, told at once.
    ``front``: something between answers. ``slow``: seconds that an answer takes at most. ``cut``: no way through.
    """

    lost: float = 0.0
    reset: float = 0.0
    front: float = 0.0
    slow: float = 0.02
    cut: bool = False


@dataclass(slots=True)
class Network:
    """One host's. ``serve`` answers a request (None: nobody listens)."""

    host: str
    scheduler: Scheduler
    clock: SimClock
    rng: random.Random
    serve: Callable[[Request], Response | None]
    weather: Weather = field(default_factory=Weather)
    #: Every request that was answered: method and path, and the status.
    calls: int = 0

    def connect(self, endpoint: Endpoint, budget: CallBudget, identity: Identity | None) -> SimConnection:
        return SimConnection(self, budget, identity)


class HungUp:
    """As a condition: whoever waits for the answer does not any more."""

    def __init__(self, network: Network, budget: CallBudget) -> None:
        self._network = network
        self._budget = budget

    def is_set(self) -> bool:
        return self._network.weather.cut or self._budget.cancel.is_set


class SimConnection:
    """As ``net.session.Session``."""

    def __init__(self, network: Network, budget: CallBudget, identity: Identity | None) -> None:
        self.generation = 0 if identity is None else identity.generation
        self._network = network
        self._budget = budget
        self._identity = identity
        self._hung_up = HungUp(network, budget)

    def exchange(self, request: requests.PreparedRequest, deadline: float, limit: int) -> Answer:
        network, weather, rng = self._network, self._network.weather, self._network.rng
        self._budget.start(deadline, limit)
        network.calls += 1
        self._pass(rng.random() * weather.slow)
        if weather.cut:
            self._cut()
        fate = rng.random()
        if fate < weather.front:
            status, headers, body = _FRONTS[rng.randrange(len(_FRONTS))]
            return Answer(status, CaseInsensitiveDict(headers), body)
        gone = weather.front <= fate < weather.front + weather.lost + weather.reset
        silently = fate < weather.front + weather.lost
        if gone and rng.random() < 0.5:
            self._gone(silently=silently)
        answer, undelivered = self._answered(request)
        if gone or weather.cut:
            if undelivered is not None:
                undelivered()
            self._gone(silently=silently)
        if len(answer.body) > limit:
            raise AnswerTooLargeError("too large", "too_large")
        self._pass(rng.random() * weather.slow)
        return answer

    def close(self) -> None:
        """Nothing is held."""

    def _answered(self, request: requests.PreparedRequest) -> tuple[Answer, Callable[[], None] | None]:
        url = urlsplit(str(request.url))
        body = request.body or b""
        asked = Request(
            method=str(request.method),
            path=url.path,
            params=dict(parse_qsl(url.query)),
            headers={name.lower(): str(value) for name, value in request.headers.items()},
            body=body if isinstance(body, bytes) else body.encode(),
            peer=self._peer(),
            gone=self._hung_up.is_set,
        )
        task = self._network.scheduler.current
        task.hangup = self._hung_up
        try:
            response = self._network.serve(asked)
        finally:
            task.hangup = None
        if response is None:
            raise TransportError("connection refused", "refused")
        self._budget.remaining()
        headers = CaseInsensitiveDict({"Content-Type": response.content_type} if response.body else {})
        headers.update(response.headers)
        return Answer(int(response.status), headers, response.body), response.undelivered

    def _peer(self) -> Peer | None:
        identity = self._identity
        if identity is None:
            return None
        if identity.certificate.expired(self._network.clock.now()):
            raise ClientCertificateRefusedError("the server ended the connection: certificate expired", "tls")
        leaf = identity.certificate.leaf
        return Peer(self._network.host, identity.key.public_raw, leaf.not_valid_before_utc)

    def _cut(self) -> None:
        """Nothing gets through; some networks say so."""
        if self._network.rng.random() < 0.5:
            raise TransportError("no route to host", "refused")
        self._gone(silently=True)

    def _gone(self, *, silently: bool) -> None:
        if silently:
            while True:
                self._pass(self._budget.remaining() + 0.001)
        raise TransportError("connection reset by peer", "reset")

    def _pass(self, seconds: float) -> None:
        """Let time go by in the call; raises what ends it."""
        cancel = self._budget.cancel
        left = self._budget.remaining()
        if self._network.scheduler.block(cancel.event, min(seconds, left)):
            raise aborted()
        self._budget.remaining()
