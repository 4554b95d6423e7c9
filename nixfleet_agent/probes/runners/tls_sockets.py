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


def for_probes(context: ssl.SSLContext) -> ssl.SSLContext:
    """``context`` with connections that obey a run's deadline, judging certificates as OpenSSL does by default.

    Python 3.13 began to ask more of them (RFC 5280 to the letter, so an Authority Key Identifier too) and less (any
    trusted certificate ends a chain, not only a root). The verdict on a release must not depend on the Python that
    this agent happens to run on, and it stays the one of `curl` or a browser's library on the same host.
    """
    context.sslsocket_class = TlsSocket
    context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST
    return context
