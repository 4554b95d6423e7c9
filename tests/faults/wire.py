"""What the control plane saw on the wire, event by event, and how its answers can be made to go wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass

from nixfleet_agent.local_cp.server import HttpsServer, Request, Response

EVENTS = "/v1/agent/events"
HEARTBEAT = "/v1/agent/heartbeat"


@dataclass(frozen=True, slots=True)
class Post:
    """One event as it came; ``raw`` is the whole body."""

    rollout_id: str
    seq: int
    kind: str
    raw: bytes


class Wire:
    """Stands between the server and its endpoints. ``misbehave`` may answer in their place (None: it does not)."""

    def __init__(self, server: HttpsServer) -> None:
        self.answer = server.answer
        self._lock = threading.Lock()
        self._posts: list[Post] = []
        self.requests = 0
        self.heartbeats = 0
        self.misbehave: Callable[[Request], Response | None] = lambda request: None
        server.answer = self._handle

    @property
    def posts(self) -> list[Post]:
        """Every event that came, repeats included, in order of arrival."""
        with self._lock:
            return list(self._posts)

    def changed(self) -> list[str]:
        """Seqs that came with two different contents: the one thing that loses an event for certain."""
        first: dict[tuple[str, int], bytes] = {}
        return [
            f"seq {post.seq} of {post.rollout_id} came with two contents"
            for post in self.posts
            if first.setdefault((post.rollout_id, post.seq), post.raw) != post.raw
        ]

    def _handle(self, request: Request) -> Response:
        if request.path == EVENTS:
            self._note(request.body)
        with self._lock:
            self.requests += 1
            self.heartbeats += request.path == HEARTBEAT
        return self.misbehave(request) or self.answer(request)

    def _note(self, raw: bytes) -> None:
        body = json.loads(raw)
        post = Post(body["rolloutId"], body["event"]["seq"], body["event"]["kind"], raw)
        with self._lock:
            self._posts.append(post)
