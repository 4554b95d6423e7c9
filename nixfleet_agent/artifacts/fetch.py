"""Getting a signed artifact: bytes and signature are two requests, each "unchanged" where the server can say so."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nixfleet_agent.errors import TransportError
from nixfleet_agent.net.answers import Answer, retry_after
from nixfleet_agent.net.client import JSON, OCTETS, ControlPlane
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.trust.verify import SIGNATURE_LIMIT

#: Seconds for the bytes of an artifact, and for its signature: the largest fleet over a slow line still comes through.
BODY_DEADLINE = 60.0
SIGNATURE_DEADLINE = 15.0
#: What is left of it, at least, to a request that waited for another one's end.
LEAST_SECS = 1.0
#: An ETag is the server's and would travel with every request: a longer one is not sent back, nor one of other bytes
#: than a header may have (RFC 9110, 8.8.3), which a front may refuse for ever.
_TAG = re.compile(r'(W/)?"[\x21\x23-\x7e]{0,250}"|[\x21\x23-\x7e]{1,250}', re.ASCII)


class UnavailableError(TransportError):
    """The control plane answered, and not with the artifact; ``retry_after`` is the seconds it asks to wait, if any.

    ``objects`` says that it found fault with the request itself (4xx), of which the ETag is a part.
    """

    def __init__(
        self, message: str, kind: str = "status", after: float | None = None, *, objects: bool = False
    ) -> None:
        super().__init__(message, kind)
        self.retry_after = after
        self.objects = objects


@dataclass(frozen=True, slots=True)
class Tags:
    """The ETags of the bytes and of the signature, where the server gave some."""

    body: str | None = None
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """An artifact as it was served, nothing of it believed yet."""

    raw: bytes
    signature: bytes
    tags: Tags


def fetch_pair(
    control_plane: ControlPlane, path: str, limit: int, known: Fetched | None, clock: Clock, waited: float = 0.0
) -> Fetched:
    """What is at ``path`` and ``path``/sig; parts that the server calls unchanged are taken from ``known``.

    ``waited`` is how many seconds of the bytes' deadline are gone already.

    Raises:
        TransportError: no usable answer; UnavailableError for an answer that is neither 200 nor 304.
    """
    old = known or Fetched(b"", b"", Tags())
    raw, body_tag = _get(control_plane, path, JSON, BODY_DEADLINE - waited, limit, (old.raw, old.tags.body), clock)
    signature, signature_tag = _get(
        control_plane,
        f"{path}/sig",
        OCTETS,
        SIGNATURE_DEADLINE,
        SIGNATURE_LIMIT,
        (old.signature, old.tags.signature),
        clock,
    )
    return Fetched(raw, signature, Tags(body_tag, signature_tag))


def _get(
    control_plane: ControlPlane,
    path: str,
    accept: str,
    deadline: float,
    limit: int,
    old: tuple[bytes, str | None],
    clock: Clock,
) -> tuple[bytes, str | None]:
    content, tag = old
    answer = control_plane.get(path, deadline=deadline, limit=limit, accept=accept, etag=tag, signed=True)
    if answer.status == 304 and tag is not None:
        return content, tag
    if answer.status != 200:
        raise _unavailable(path, answer, clock)
    given = answer.headers.get("ETag")
    return answer.body, given if given and _TAG.fullmatch(given) else None


def _unavailable(path: str, answer: Answer, clock: Clock) -> UnavailableError:
    message = f"GET {path} answered {answer.told(120)}"
    return UnavailableError(
        message, f"status_{answer.status}", retry_after(answer, clock.now()), objects=400 <= answer.status < 500
    )
