"""What an operator says about a rollback that keeps failing: try again now, or give it up; it survives restarts."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.errors import ProtoError, StorageError
from nixfleet_agent.proto.strict_json import BODY_LIMIT, loads_strict
from nixfleet_agent.reading import read_regular

log = logging.getLogger("nixfleet_agent.activation")


class RollbackControl:
    """Two small files in the state directory, written by the command, read by the activation worker."""

    def __init__(self, state_dir: Path) -> None:
        self._given_up = state_dir / "rollback-given-up.json"
        self._retry = state_dir / "rollback-retry.json"

    def give_up(self, rollout_id: str) -> None:
        """Let the host stay as it is. Raises StorageError."""
        durable.write(self._given_up, json.dumps({"rolloutId": rollout_id}).encode())

    def ask_retry(self, rollout_id: str) -> None:
        """Try again now, and take back a giving up. Raises StorageError."""
        durable.remove(self._given_up, sync=True)
        durable.write(self._retry, json.dumps({"rolloutId": rollout_id}).encode())

    def given_up(self, rollout_id: str) -> bool:
        """Whether an operator gave this rollback up."""
        return _names(self._given_up) == rollout_id

    def take_retry(self, rollout_id: str) -> bool:
        """Whether an operator asked for a try since the last call.

        A wish that can't be taken off a read-only disk counts as none: it would be granted again and again.
        """
        if _names(self._retry) != rollout_id:
            return False
        try:
            durable.remove(self._retry)
        except StorageError as error:
            log.debug("%s", error)
            return False
        return True


def _names(path: Path) -> str | None:
    """The rollout that a file names; a file that is missing or damaged names none, and the agent keeps trying."""
    try:
        body = loads_strict(read_regular(path, BODY_LIMIT))
    except (OSError, ProtoError):
        return None
    return body.get("rolloutId") if isinstance(body, dict) else None
