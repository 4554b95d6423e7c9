"""A control plane with real keys, real signatures and real mTLS, which tells the truth until a test makes it lie.

liar = Liar(world, server)              # serves, records, and hands out what a test queues
liar.publish(release)                   # fleet and manifests as CI signed them
liar.dispatch(rollout_id, closure)      # queue an order for the next long poll; `offer` queues any bytes
liar.lies["GET", "/v1/..."] = Reply(..) # any behaviour, or a function of the request (None: the honest answer)
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from nixfleet_agent.proto.times import format_time
from tests.support.behaviours import Behaviour, Reply, Request
from tests.support.https_server import HttpsServer
from tests.support.signing import Release, Signed
from tests.support.tls import DAY, Authority, now, pem_of

FLEET = "/v1/fleet.resolved"
DISPATCH = "/v1/agent/dispatch"
EVENTS = "/v1/agent/events"
HEARTBEAT = "/v1/agent/heartbeat"
RENEW = "/v1/agent/renew"
ENROLL = "/v1/enroll"

Lie: TypeAlias = "Behaviour | Callable[[Request], Behaviour | None]"


def rollout_path(rollout_id: str) -> str:
    return f"/v1/rollouts/{rollout_id}"


class LyingServer(HttpsServer):
    """The server, whose every request is answered by its owner."""

    answer: Callable[[Request], Behaviour] | None = None

    def behaviour_for(self, request: Request) -> Behaviour:
        self.requests.append(request)
        return Reply(503, b"not ready") if self.answer is None else self.answer(request)


@dataclass(frozen=True)
class _LongPoll:
    """Holds the request until there is something to hand out, or ``wait`` seconds are over."""

    liar: Liar
    wait: float

    def play(self, handler: Any) -> None:
        offer = self.liar.next_offer(self.wait, handler.connection)
        (offer if offer is not None else Reply(204)).play(handler)


class Liar:
    """Answers for one server; ``hostname`` is the host that its orders are for."""

    def __init__(self, server: LyingServer, authority: Authority, hostname: str) -> None:
        self.server = server
        self.hostname = hostname
        self.lies: dict[tuple[str, str], Lie] = {}
        #: Lies that outlast an attempt.
        self.standing: dict[tuple[str, str], Behaviour] = {}
        self.artifacts: dict[str, Signed] = {}
        self.snapshots: list[Any] = []
        self.replay_from: str | None = None
        self.events: list[dict[str, Any]] = []
        self.heartbeats: list[dict[str, Any]] = []
        self._authority = authority
        self._offers: deque[Behaviour] = deque()
        self._era = 0
        self._changed = threading.Condition()
        server.answer = self._answer

    # -- what it knows ------------------------------------------------------------------------

    def publish(self, release: Release) -> None:
        """Serve the release beside the manifests that were served before."""
        self.artifacts[FLEET] = release.fleet
        for rollout_id, manifest in release.manifests.items():
            self.artifacts[rollout_path(rollout_id)] = manifest

    def dispatch(self, rollout_id: str, closure: str, **changes: Any) -> None:
        """Hand out an order; ``changes`` replace its fields."""
        self.offer(json.dumps(self.order(rollout_id, closure, **changes)).encode())

    def order(self, rollout_id: str, closure: str, **changes: Any) -> dict[str, Any]:
        at = format_time(now())
        order = {"hostname": self.hostname, "rollout_id": rollout_id, "target_closure": closure}
        return {**order, "soak_due_at": at, "enqueued_at": at, **changes}

    def offer(self, body: bytes | Behaviour) -> None:
        """Hand out a body, or anything worse, at the next long poll."""
        with self._changed:
            self._offers.append(Reply(200, body) if isinstance(body, bytes) else body)
            self._changed.notify_all()

    def next_offer(self, wait: float, caller: socket.socket | None = None) -> Behaviour | None:
        """What is queued, or comes within ``wait`` seconds; nothing where the caller has gone meanwhile."""
        until = time.monotonic() + wait
        with self._changed:
            era = self._era
            while not self._offers and (left := until - time.monotonic()) > 0 and not self.server.stopping.is_set():
                self._changed.wait(min(left, 0.1))
                if era != self._era:
                    return None
            # Who waits for an answer says nothing: what can be read is the end of the connection.
            if caller is not None and select.select([caller], [], [], 0)[0]:
                return None
            return self._offers.popleft() if self._offers else None

    def hang_up(self) -> None:
        """Who polls now is gone: what comes next is for the next process."""
        with self._changed:
            self._era += 1
            self._changed.notify_all()

    def asked(self, path: str) -> list[Request]:
        """The requests for ``path`` so far."""
        return [request for request in list(self.server.requests) if request.path == path]

    def kinds(self, rollout_id: str) -> list[str]:
        """The kinds of a rollout's events, as they arrived."""
        return [e["event"]["kind"] for e in list(self.events) if e["rolloutId"] == rollout_id]

    # -- what it answers ----------------------------------------------------------------------

    def _answer(self, request: Request) -> Behaviour:
        lie = self.lies.get((request.method, request.path))
        told = lie(request) if callable(lie) else lie
        if told is None:
            told = self.standing.get((request.method, request.path))
        return told if told is not None else self._truth(request)

    def _truth(self, request: Request) -> Behaviour:
        if request.path == DISPATCH:
            return _LongPoll(self, float(request.query["wait"][0]))
        if request.path == EVENTS:
            self.events.append(request.json())
            return Reply(204)
        if request.path == HEARTBEAT:
            return self._heartbeat(request)
        if request.path in (RENEW, ENROLL):
            return self.certificate(request)
        return self._artifact(request.path)

    def _heartbeat(self, request: Request) -> Behaviour:
        body = request.json()
        self.heartbeats.append(body)
        headers = {} if self.replay_from is None else {"X-Nixfleet-Replay-From": self.replay_from}
        hints = self.snapshots if body.get("rollout_id") is None else []
        answer = {"received_at": format_time(now()), "bootstrap_rollouts": hints}
        return Reply(200, json.dumps(answer).encode(), headers)

    def certificate(self, request: Request, **options: Any) -> Reply:
        """A renewal as it should be; ``options`` make it another."""
        options.setdefault("not_after", now() + 60 * DAY)
        authority = options.pop("authority", self._authority)
        return self.certificate_answer(pem_of(authority.issue_for_csr(request.json()["csrPem"], **options)))

    @staticmethod
    def certificate_answer(pem: str) -> Reply:
        return Reply(200, json.dumps({"certPem": pem, "notAfter": format_time(now() + 60 * DAY)}).encode())

    def _artifact(self, path: str) -> Behaviour:
        artifact = self.artifacts.get(path.removesuffix("/sig"))
        if artifact is None:
            return Reply(404, b"unknown")
        return Reply(200, artifact.signature if path.endswith("/sig") else artifact.raw)

    # -- lies that are told often -------------------------------------------------------------

    def serve(
        self, path: str, raw: bytes | Behaviour | None = None, signature: bytes | Behaviour | None = None
    ) -> None:
        """From now on: these bytes, this signature, or both, in place of what CI made."""
        for place, content in ((path, raw), (f"{path}/sig", signature)):
            if content is not None:
                self.lies["GET", place] = Reply(200, content) if isinstance(content, bytes) else content

    def snapshot(self, rollout_id: str, closure: str, state: str = "Soaking", **changes: Any) -> dict[str, Any]:
        """A hint as the heartbeat's answer carries it."""
        hint: Mapping[str, Any] = {
            "rolloutId": rollout_id,
            "hostname": self.hostname,
            "channel": rollout_id.partition("@")[0],
            "state": state,
            "targetClosure": closure,
            "dispatchedAt": format_time(now()),
            "lastEventSeq": 0,
        }
        return {**hint, **changes}


def minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


def ago(count: float) -> datetime:
    """So many minutes before now, to the second."""
    return now() - minutes(count)
