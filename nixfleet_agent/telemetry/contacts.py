"""When each endpoint of the control plane was last asked and last answered, and how often with what outcome."""

from __future__ import annotations

from nixfleet_agent.telemetry.status import StatusBoard
from nixfleet_agent.threads.clock import Clock


class Contacts:
    """Sections ``contacts`` and the counter ``requests`` of the status board."""

    def __init__(self, board: StatusBoard, clock: Clock) -> None:
        self._board = board
        self._clock = clock

    def observe_request(self, endpoint: str, outcome: str, seconds: float) -> None:
        """The observer of ``net.client.ControlPlane``: ``outcome`` is a status code or the kind of a failure."""
        self._board.count("requests", endpoint=endpoint, outcome=outcome)
        contacts = self._board.get("contacts")
        before = contacts.get(endpoint, {}) if isinstance(contacts, dict) else {}
        contact = {**before, "last_at": self._clock.now(), "last_outcome": outcome}
        if outcome.isdigit():
            contact["answered_at"] = contact["last_at"]
        self._board.merge("contacts", endpoint, contact)
