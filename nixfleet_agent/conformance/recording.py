"""Every request of an agent with its answer, in order; and a hand between the server and its endpoints."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.local_cp.server import HttpsServer, Request, Response
from nixfleet_agent.proto.contract import EVENTS
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.threads.clock import Clock

#: How long a wait goes without looking after the agent, in seconds.
SLICE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and its answer.

    ``began`` and ``ended`` are monotonic seconds, ``peer`` is the name that the client's certificate has, ``body`` and
    ``answer`` are the bytes of both.
    """

    began: float
    ended: float
    method: str
    path: str
    params: Mapping[str, str]
    headers: Mapping[str, str]
    peer: str | None
    body: bytes
    status: int
    answer: bytes

    def sent(self) -> Mapping[str, Any]:
        """The JSON object of the request; an empty one where there is none."""
        return object_of(self.body)

    def got(self) -> Mapping[str, Any]:
        """The JSON object of the answer; an empty one where there is none."""
        return object_of(self.answer)

    def event(self) -> Mapping[str, Any]:
        """The event that was posted; empty where none was."""
        return event_in(self.path, self.body)

    @property
    def taken(self) -> bool:
        """Whether the control plane took what was sent."""
        return 200 <= self.status < 300


class Recorder:
    """Stands between ``server`` and its endpoints.

    ``instead`` may answer in their place, ``after`` change their answer; both are called from the server's threads.
    """

    def __init__(self, server: HttpsServer, clock: Clock) -> None:
        self._answer = server.answer
        self._clock = clock
        self._changed = threading.Condition()
        self._exchanges: list[Exchange] = []
        self._asked: list[tuple[float, str]] = []
        self.instead: Callable[[Request], Response | None] = lambda request: None
        self.after: Callable[[Request, Response], Response] = lambda request, response: response
        server.answer = self._handle

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """Those that were answered, in order of the answers."""
        with self._changed:
            return tuple(self._exchanges)

    def asked(self, path: str, since: float = 0.0) -> int:
        """How many requests for ``path`` came after ``since``, those included that have no answer yet."""
        with self._changed:
            return sum(1 for at, found in self._asked if found == path and at > since)

    def wait(self, done: Callable[[], object], seconds: float, look: Callable[[], None]) -> bool:
        """Until ``done``, for at most ``seconds``; ``look`` is called every now and then and may raise."""
        deadline = self._clock.monotonic() + seconds
        while not done():
            look()
            if self._clock.monotonic() >= deadline:
                return False
            with self._changed:
                self._changed.wait(SLICE)
        return True

    def _handle(self, request: Request) -> Response:
        began = self._clock.monotonic()
        with self._changed:
            self._asked.append((began, request.path))
            self._changed.notify_all()
        response = self.after(request, self.instead(request) or self._answer(request))
        exchange = Exchange(
            began=began,
            ended=self._clock.monotonic(),
            method=request.method,
            path=request.path,
            params=request.params,
            headers=request.headers,
            peer=None if request.peer is None else request.peer.hostname,
            body=request.body,
            status=response.status,
            answer=response.body,
        )
        with self._changed:
            self._exchanges.append(exchange)
            self._changed.notify_all()
        return response


def event_of(request: Request) -> Mapping[str, Any]:
    """The event that a request posts; empty where it posts none."""
    return event_in(request.path, request.body)


def event_in(path: str, body: bytes) -> Mapping[str, Any]:
    """The event in a body; empty where none is."""
    event = object_of(body).get("event") if path == EVENTS else None
    return event if isinstance(event, Mapping) else {}


def object_of(body: bytes) -> Mapping[str, Any]:
    """The JSON object in a body; an empty one where there is none."""
    try:
        value = loads_strict(body)
    except ProtoError:
        return {}
    return value if isinstance(value, Mapping) else {}
