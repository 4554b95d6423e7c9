"""What goes wrong between a request and its answer, in the agent's own terms."""

from __future__ import annotations

import http.client

import requests
import urllib3

from nixfleet_agent.errors import TransportError
from nixfleet_agent.text import printable


class ClientCertificateRefusedError(TransportError):
    """The server ended the TLS connection because of this host's certificate; ``kind`` is ``tls``."""


class ForeignAnswerError(TransportError):
    """Something in place of the control plane answered, with ``status``; ``kind`` is ``foreign``.

    ``told`` says what it was. It is no verdict on what was sent.
    """

    def __init__(self, message: str, status: int, told: str) -> None:
        super().__init__(message, "foreign")
        self.status = status
        self.told = told


class AnswerTooLargeError(TransportError):
    """The body is over the limit of its endpoint; ``kind`` is ``too_large``."""


def describe(error: requests.RequestException | urllib3.exceptions.HTTPError) -> TransportError:
    """Map what ``requests``, urllib3 and ``http.client`` raise; the agent's own errors pass them unchanged."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, TransportError):
            return cause
    for cause in causes:
        if isinstance(cause, (http.client.RemoteDisconnected, ConnectionError)):
            return TransportError("the server closed the connection without an answer", "reset")
        if isinstance(cause, (http.client.IncompleteRead, urllib3.exceptions.IncompleteRead)):
            return TransportError("the body of the answer is cut short or damaged", "reset")
    last = causes[-1]
    return TransportError(f"the answer is not HTTP ({type(last).__name__}: {printable(last, 200)})", "protocol")


def _causes(error: BaseException) -> list[BaseException]:
    """``error`` and what it was made from, outermost first: urllib3 keeps the cause in ``args`` or ``reason``."""
    found: list[BaseException] = []
    pending: list[BaseException] = [error]
    while pending and len(found) < 16:
        current = pending.pop(0)
        if current in found:
            continue
        found.append(current)
        inner = [*current.args, getattr(current, "reason", None), current.__cause__]
        pending.extend(value for value in inner if isinstance(value, BaseException))
    return found
