"""Speaks systemd's notification protocol (sd_notify(3)): ready, reloading, stopping, watchdog, a status line."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping

from nixfleet_agent.text import printable
from nixfleet_agent.threads.clock import Clock

log = logging.getLogger("nixfleet_agent.notify")


class Notifier:
    """Tells the init system; without one (no ``NOTIFY_SOCKET``) every call does nothing."""

    def __init__(self, address: str | None, watchdog_secs: float | None, clock: Clock) -> None:
        self._address = address
        self._clock = clock
        self._failed = False
        #: Seconds within which ``watchdog`` must be called again; None when nobody watches.
        self.watchdog_secs = watchdog_secs

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str], clock: Clock) -> Notifier:
        """Take the variables out of ``environ``, so that no child of the agent can speak in its name."""
        address = environ.pop("NOTIFY_SOCKET", None)
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        watched = usec.isdigit() and int(usec) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(usec) / 1e6 if watched else None, clock)

    def ready(self, status: str = "") -> None:
        """Started, or done with reloading."""
        self._send("READY=1", status)

    def reloading(self) -> None:
        """SIGHUP is being handled; ``ready`` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(self._clock.monotonic() * 1e6)}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Every part of the agent has shown life."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send("", text)

    def _send(self, message: str, status: str = "") -> None:
        if self._address is None:
            return
        lines = [message] if message else []
        if status:
            lines.append(f"STATUS={printable(status, 300)}")
        # A name that starts with @ is in the abstract namespace, which the kernel writes with a NUL.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            # Said once: without the watchdog's message systemd restarts the agent anyway.
            if not self._failed:
                log.warning("can't notify the init system at %s: %s", self._address, error.strerror or error)
            self._failed = True
        else:
            self._failed = False
