"""One file per platform, and the choice among them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from nixfleet_agent.activation.backends.base import Backend
from nixfleet_agent.activation.backends.darwin import DarwinBackend
from nixfleet_agent.activation.backends.setsid import SetsidBackend
from nixfleet_agent.activation.backends.systemd import SystemdBackend
from nixfleet_agent.activation.context import Context

_BACKENDS: dict[str, Callable[[Context], Backend]] = {
    "systemd": SystemdBackend,
    "setsid": SetsidBackend,
    "darwin": DarwinBackend,
}


def choose(context: Context) -> Backend:
    """The backend that the configuration names; ``auto``: macOS, a running systemd, or neither."""
    name = context.config.backend
    return _BACKENDS[_found() if name == "auto" else name](context)


def _found() -> str:
    if sys.platform == "darwin":
        return "darwin"
    # The folder exists exactly while systemd is the running init: sd_booted(3).
    if Path("/run/systemd/system").is_dir() and shutil.which("systemd-run") is not None:
        return "systemd"
    return "setsid"
