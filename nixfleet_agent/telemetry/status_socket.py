"""The door for commands on this host: a Unix socket that only the agent's user can open, one JSON line each way."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from nixfleet_agent.errors import AgentError, ProtoError
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.telemetry.listener import Listener
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.shutdown import ShutdownToken

SOCKET_NAME = "agent.sock"
#: Requests are a word or two; answers hold the status of a few dozen rollouts (bytes).
REQUEST_LIMIT = 4096
ANSWER_LIMIT = 8 * 1024 * 1024
#: Seconds that a command waits for the running agent.
ASK_DEADLINE = 5.0

#: One request: its arguments in, a JSON value out; AgentError becomes the caller's error message.
Handler = Callable[[Mapping[str, Any]], object]


class AgentNotRunningError(AgentError):
    """Nobody answers at the socket."""


class StatusSocketWorker(Listener):
    """Answers ``{"request": NAME, ...}`` with ``{"answer": ...}`` or ``{"error": "..."}``."""

    name = "status_socket"
    limit_bytes = REQUEST_LIMIT

    def __init__(self, shutdown: ShutdownToken, clock: Clock, state_dir: Path, handlers: Mapping[str, Handler]) -> None:
        super().__init__(shutdown, clock)
        self._state_dir = state_dir
        self.where = f"{state_dir / SOCKET_NAME} (state_dir)"
        self._handlers = handlers

    def open(self) -> socket.socket:
        """Bind under a temporary name with mode 0600, then rename: a stale socket is replaced, and never half open."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _short_path(self._state_dir) as folder:
            temporary = folder / f".{SOCKET_NAME}.{os.getpid()}"
            try:
                temporary.unlink(missing_ok=True)
                listening.bind(str(temporary))
                temporary.chmod(0o600)
                listening.listen(8)
                temporary.replace(folder / SOCKET_NAME)
            except BaseException:
                listening.close()
                raise
        return listening

    def answer(self, request: bytes) -> bytes:
        try:
            asked = loads_strict(request)
            handler = self._handlers[asked["request"]]
        except (ProtoError, KeyError, TypeError):
            reply: dict[str, object] = {"error": f"requests are: {', '.join(sorted(self._handlers))}"}
        else:
            try:
                reply = {"answer": handler(asked)}
            except AgentError as error:
                reply = {"error": str(error)}
        return json.dumps(reply).encode() + b"\n"


def ask(state_dir: Path, request: str, **arguments: object) -> Any:
    """Put one request to the agent that runs on ``state_dir``.

    Raises:
        AgentNotRunningError: no agent runs, or it does not answer in time.
        AgentError: what the agent answered instead of an answer.
    """
    line = json.dumps({"request": request, **arguments}).encode() + b"\n"
    try:
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
            connection.settimeout(ASK_DEADLINE)
            with _short_path(state_dir) as folder:
                connection.connect(str(folder / SOCKET_NAME))
            connection.sendall(line)
            got = b""
            while not got.endswith(b"\n") and len(got) < ANSWER_LIMIT:
                part = connection.recv(65536)
                if not part:
                    break
                got += part
        reply = loads_strict(got, limit=ANSWER_LIMIT, what="its answer")
    except (OSError, ProtoError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AgentNotRunningError(f"no agent answers at {state_dir / SOCKET_NAME}: {reason}") from error
    if "error" in reply:
        raise AgentError(f"the running agent says: {reply['error']}")
    return reply["answer"]


@contextmanager
def _short_path(folder: Path) -> Iterator[Path]:
    """``folder`` through a descriptor: a socket's address has room for 107 bytes, a path may be longer."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
