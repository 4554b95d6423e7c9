"""What the local control plane refuses, each with the status that the wire gives it."""

from __future__ import annotations

from http import HTTPStatus

from nixfleet_agent.errors import AgentError


class RequestRefused(AgentError):
    """A request that gets an error answer; the message is the body, one line for the operator."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
