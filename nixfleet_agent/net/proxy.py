"""The tunnel through an explicit HTTP proxy: CONNECT, and then TLS from end to end with the same checks as without.

The proxy sees the control plane's address and nothing else.
"""

from __future__ import annotations

import errno
import re
import socket

from nixfleet_agent.config.proxy import Proxy
from nixfleet_agent.errors import TransportError
from nixfleet_agent.net.budget import CallBudget
from nixfleet_agent.text import printable

#: What a proxy may say before the tunnel is open, in bytes.
_HEAD_LIMIT = 16 * 1024
_STATUS = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})(?: |\r|\n)")
_END = re.compile(rb"\r?\n\r?\n")
#: As much of an end as may have come with the piece before.
_END_BYTES = 3


def open_tunnel(raw: socket.socket, proxy: Proxy, host: str, port: int, budget: CallBudget) -> None:
    """Have the proxy connect ``raw`` to ``host``; afterwards the socket is the control plane's.

    Raises:
        TransportError: ``proxy``: it refuses; ``reset``, ``timeout`` or ``aborted``. ``raw`` is left to the caller.
    """
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    _send(raw, f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode("ascii"), budget)
    head = _read_head(raw, proxy, budget)
    status = _STATUS.match(head)
    if status is None:
        raise TransportError(f"the {proxy} does not answer as an HTTP proxy: {_shown(head)}", "proxy")
    if status[1][:1] != b"2":
        advice = "does it allow CONNECT to that host and port?"
        if status[1] == b"407":
            advice = "it wants a password, which is not supported: let it know this host by its address"
        raise TransportError(f"the {proxy} refuses to connect to {authority}: {_shown(head)}: {advice}", "proxy")


def _read_head(raw: socket.socket, proxy: Proxy, budget: CallBudget) -> bytes:
    """Its head and not a byte more: what follows belongs to TLS. So each piece is looked at before it is taken."""
    head = b""
    while True:
        if len(head) >= _HEAD_LIMIT:
            raise TransportError(f"the {proxy} answers with more than {_HEAD_LIMIT // 1024} KiB of headers", "proxy")
        budget.wait(raw.fileno(), write=False)
        try:
            piece = raw.recv(_HEAD_LIMIT - len(head), socket.MSG_PEEK)
            end = _END.search(head + piece, max(0, len(head) - _END_BYTES))
            piece = raw.recv(len(piece) if end is None else end.end() - len(head)) if piece else piece
        except BlockingIOError:
            continue
        except OSError as error:
            raise TransportError(f"the {proxy} broke the connection: {error.strerror}", "reset") from error
        if not piece:
            raise TransportError(f"the {proxy} closed the connection: {_shown(head)}", "reset")
        head += piece
        budget.received(len(piece))
        if end is not None:
            return head


def _send(raw: socket.socket, data: bytes, budget: CallBudget) -> None:
    while data:
        budget.wait(raw.fileno(), write=True)
        try:
            data = data[raw.send(data) :]
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise TransportError(f"the connection to the proxy broke: {error.strerror}", "reset") from error


def _shown(head: bytes) -> str:
    line = head.partition(b"\n")[0].strip()
    return printable(line.decode("utf-8", "replace"), 120) or "nothing"
