"""What agents on this machine say they wait for: asked at their own door, as an operator's `why` asks there.

The wire has no words for it: a control plane elsewhere knows of a host that waits only that its turn was fetched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nixfleet_agent.errors import AgentError
from nixfleet_agent.proto.ids import file_part
from nixfleet_agent.telemetry.status_socket import ask
from nixfleet_agent.threads.clock import Clock

#: Seconds between two rounds, which are made only while somebody looks at the page.
EVERY_SECS = 1.0
VIEWED_SECS = 10.0
#: Agents that are asked in one round.
MOST_ASKED = 50


def waiting_reason(status: Mapping[str, Any]) -> str | None:
    """Why an agent of this status does not go on, in its own words; None while nothing holds it up."""
    for section in ("dispatch", "waiting"):
        reason = (status.get(section) or {}).get("reason")
        if isinstance(reason, str):
            return reason
    return None


class Neighbours:
    """A thread that asks the agents whose state directories are ``folder/<host name>/state``.

    Args:
        waiting: names of the hosts that are worth asking.
    """

    def __init__(self, folder: Path, waiting: Callable[[], Iterable[str]], clock: Clock) -> None:
        self._folder = folder
        self._waiting = waiting
        self._clock = clock
        self._words: Mapping[str, str] = {}
        self._viewed = -VIEWED_SECS
        self._ended = threading.Event()
        self._look = threading.Event()
        self._thread = threading.Thread(target=self._run, name="local-cp-neighbours")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; an agent that hangs is waited for up to the deadline of a command."""
        self._ended.set()
        self._look.set()
        self._thread.join()

    def words(self) -> Mapping[str, str]:
        """The last round's answers, by host name; somebody looks, so the next round is soon."""
        self._viewed = self._clock.monotonic()
        self._look.set()
        return self._words

    def _run(self) -> None:
        while not self._ended.is_set():
            self._look.wait()
            self._look.clear()
            while not self._ended.is_set() and self._clock.monotonic() - self._viewed < VIEWED_SECS:
                self._words = dict(self._round())
                self._clock.wait(self._ended, EVERY_SECS)

    def _round(self) -> Iterable[tuple[str, str]]:
        for hostname in list(self._waiting())[:MOST_ASKED]:
            if self._ended.is_set():
                return
            try:
                reason = waiting_reason(ask(self._folder / file_part(hostname) / "state", "status"))
            except (AgentError, OSError):
                continue  # it is down, or starts: nothing is known of it
            if reason is not None:
                yield hostname, reason
