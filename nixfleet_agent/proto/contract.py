"""The wire as a contract: what a request or an answer of the protocol breaks of it, by `conf/schemas/wire/`.

For those who test an agent or a control plane; the agent itself reads the other side more leniently than this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto import schemas
from nixfleet_agent.proto.strict_json import BODY_LIMIT, loads_strict
from nixfleet_agent.text import printable

EVENTS = "/v1/agent/events"
HEARTBEAT = "/v1/agent/heartbeat"
DISPATCH = "/v1/agent/dispatch"
FLEET = "/v1/fleet.resolved"
ROLLOUTS = "/v1/rollouts/"
#: The schema of the body of each POST.
BODIES: Mapping[str, str] = {
    EVENTS: "event",
    HEARTBEAT: "heartbeat",
    "/v1/enroll": "enroll",
    "/v1/agent/renew": "renew",
    "/v1/agent/bootstrap-report": "bootstrap-report",
}
#: The schema of what a 200 holds, where it holds anything.
ANSWERS: Mapping[str, str] = {
    DISPATCH: "dispatch",
    HEARTBEAT: "heartbeat-answer",
    "/v1/enroll": "certificate-answer",
    "/v1/agent/renew": "certificate-answer",
}


def is_of_the_protocol(method: str, path: str) -> bool:
    """Whether the protocol has this endpoint."""
    if method == "POST":
        return path in BODIES
    return method == "GET" and (path in (DISPATCH, FLEET, f"{FLEET}/sig") or path.startswith(ROLLOUTS))


def request_faults(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Iterator[str]:
    """What a request of an agent breaks; ``path`` is without its query. Nothing for endpoints of others."""
    if not is_of_the_protocol(method, path):
        return
    where = f"{method} {printable(path, 200)}"
    lower = {name.lower(): value for name, value in headers.items()}
    yield from _faults("request-headers", lower, f"{where}: headers")
    accept = "application/octet-stream" if path.endswith("/sig") else "application/json"
    if lower.get("accept") != accept:
        yield f"{where}: accept is {printable(lower.get('accept'), 80)!r}, not {accept!r}"
    if method == "GET" and body:
        yield f"{where}: it has a body"
    if method == "POST":
        yield from _body_faults(BODIES[path], body, where)


def answer_faults(path: str, status: int, headers: Mapping[str, str], body: bytes) -> Iterator[str]:
    """What an answer of a control plane breaks; signed artifacts are not looked into."""
    where = f"answer {status} of {printable(path, 200)}"
    yield from _faults("answer-headers", {name.lower(): value for name, value in headers.items()}, f"{where}: headers")
    if status == 200 and path in ANSWERS and body.strip() not in (b"", b"null"):
        yield from _body_faults(ANSWERS[path], body, where)
    elif status in range(400, 500) and body:
        yield from _body_faults("error", body, where)


def _body_faults(schema: str, body: bytes, where: str) -> Iterator[str]:
    try:
        value = loads_strict(body, limit=BODY_LIMIT, what=where)
    except ProtoError as error:
        yield str(error)
        return
    yield from _faults(schema, value, where)


def _faults(schema: str, value: Any, where: str) -> Iterator[str]:
    fault = schemas.worst(f"wire/{schema}", value)
    if fault is not None:
        yield f"{where}: {schemas.place(fault.absolute_path)}: {printable(fault.message, 300)}"
