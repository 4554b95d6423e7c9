"""What a control plane can do wrong, on command: each fault is one knob, off until it is turned.

Only the faults of the control plane and of its network are here. That an agent is killed, or that CI signs
something stale, is done where agents are started and artifacts are signed.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping


class Faults:
    """Read by the server and the endpoints on every request; set by a demo or a test from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._partition = False
        self._delay = 0.0
        self._tampered: frozenset[str] = frozenset()
        self._wrong_closures: dict[str, str] = {}
        self._forgotten: frozenset[str] = frozenset()
        self._forgot: set[tuple[str, str, str]] = set()

    def set(self, name: str, value: object) -> None:
        """Turn one knob by its name, with a value as JSON has it.

        Raises:
            ValueError: there is no such knob, or it can't take this value.
        """
        match name, value:
            case ("partition", bool()):
                self.partition = bool(value)
            case ("delay", float() | int()):
                self.delay = float(value)
            case ("tampered", list()):
                self.tampered = frozenset(map(str, value))
            case ("forgotten", list()):
                self.forgotten = frozenset(map(str, value))
            case ("wrong_closures", dict()):
                self.wrong_closures = {str(rollout_id): str(closure) for rollout_id, closure in value.items()}
            case _:
                raise ValueError(f"no fault {name!r} that could be {value!r}")

    @property
    def partition(self) -> bool:
        """Every connection is cut, and each new one is dropped before a byte is said."""
        with self._lock:
            return self._partition

    @partition.setter
    def partition(self, on: bool) -> None:
        with self._lock:
            self._partition = on

    @property
    def delay(self) -> float:
        """Seconds that each answer is held back."""
        with self._lock:
            return self._delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        with self._lock:
            self._delay = seconds

    @property
    def tampered(self) -> frozenset[str]:
        """Rollout ids whose manifest's signature is served with one bit flipped."""
        with self._lock:
            return self._tampered

    @tampered.setter
    def tampered(self, rollout_ids: frozenset[str]) -> None:
        with self._lock:
            self._tampered = rollout_ids

    @property
    def wrong_closures(self) -> Mapping[str, str]:
        """By rollout id, the closure that its turns name instead of the one that CI signed."""
        with self._lock:
            return dict(self._wrong_closures)

    @wrong_closures.setter
    def wrong_closures(self, closures: Mapping[str, str]) -> None:
        with self._lock:
            self._wrong_closures = dict(closures)

    @property
    def forgotten(self) -> frozenset[str]:
        """Kinds of events of which the first of each host and rollout is answered with 204 and not kept, as by a
        control plane whose cache is cold.
        """
        with self._lock:
            return self._forgotten

    @forgotten.setter
    def forgotten(self, kinds: frozenset[str]) -> None:
        with self._lock:
            self._forgotten = kinds
            self._forgot.clear()

    def forgets(self, hostname: str, rollout_id: str, kind: str) -> bool:
        """Whether this event is one to forget; True once for each."""
        with self._lock:
            event = (hostname, rollout_id, kind)
            if kind not in self._forgotten or event in self._forgot:
                return False
            self._forgot.add(event)
            return True
