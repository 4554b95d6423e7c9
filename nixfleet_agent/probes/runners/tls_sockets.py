"""TLS for https probes, on Python's `ssl`; imported when the first one runs, because it costs 4 MB of memory."""

from __future__ import annotations

import ssl
from typing import Any

import requests.utils

from nixfleet_agent.threads.deadline import Deadline


class TlsSocket(ssl.SSLSocket):
    """A TLS connection whose every read gets only the time that the whole run has left."""

    deadline: Deadline | None = None

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        if self.deadline is not None:
            self.settimeout(self.deadline.left())
        return super().recv_into(*args, **kwargs)


def system_trust() -> ssl.SSLContext:
    """A client context with the system's trusted authorities, or with those that `requests` brings."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile or paths.capath:
        return ssl.create_default_context()
    return ssl.create_default_context(cafile=requests.utils.DEFAULT_CA_BUNDLE_PATH)
