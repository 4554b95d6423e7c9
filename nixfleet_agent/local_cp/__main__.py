"""The local control plane as a process of its own: ``python -m nixfleet_agent.local_cp --dir DIR --org-root KEY``.

Started again on the same folder and port it is the same control plane: CA, database and releases are kept there.
Standard output carries one JSON object a line: ``listening`` first, then each ``happening``, and the answers to
orders. Each request of an agent is held against the contract of the wire; a breach is one of the happenings. With
``--orders`` it reads orders from standard input and ends with it, so that it never outlives its owner.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import logging
import queue
import resource
import signal
import sys
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from nixfleet_agent.errors import AgentError, ConfigError
from nixfleet_agent.local_cp import orders
from nixfleet_agent.local_cp.api import PAGES
from nixfleet_agent.local_cp.ca import CA_LIFETIME
from nixfleet_agent.local_cp.dispatcher import Options
from nixfleet_agent.local_cp.page_server import PageServer
from nixfleet_agent.local_cp.planner import REDELIVER_AFTER
from nixfleet_agent.local_cp.service import CERTIFICATE_LIFETIME, HOST, LocalControlPlane
from nixfleet_agent.text import printable
from nixfleet_agent.threads.clock import SystemClock

KEY_BYTES = 32
MOST_PORTS = 65535
#: As long as the CA itself is valid: nothing here lives longer.
MOST_SECS = CA_LIFETIME.total_seconds()


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT or the end of the orders; the process's exit code.

    With ``--conformance`` it is another program, which has a control plane of its own.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if "--conformance" in words:
        from nixfleet_agent.conformance.main import main as try_agent

        return try_agent(words)
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    _make_room_for_connections()
    told = _JsonWriter()
    try:
        plane = LocalControlPlane(
            options.dir,
            SystemClock(),
            options.org_root,
            port=options.port,
            options=_options(options),
            watcher=lambda happening: told.tell({"happening": happening.to_json()}),
            certificate_lifetime=timedelta(seconds=options.certificate_secs),
        )
        pages = _pages(plane, options.page_port)
    except (AgentError, OSError) as error:
        print(f"nixfleet-agent: {printable(error)}", file=sys.stderr)
        return error.exit_code if isinstance(error, AgentError) else 1
    ended: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: ended.put(received))
    plane.start()
    pages.start()
    told.tell({"listening": {"url": plane.url, "page": pages.url, "port": plane.server.port}})
    plane.control.tell_known()
    if options.orders:
        # A daemon thread: nothing can wake it from its reading when a signal ends the process.
        threading.Thread(target=_obey, args=(plane, told, ended), name="local-cp-orders", daemon=True).start()
    ended.get()
    pages.stop()
    plane.stop()
    return 0


def _options(told: argparse.Namespace) -> Options:
    soak, patience = timedelta(seconds=told.extra_soak), timedelta(seconds=told.redeliver_after)
    return Options(soak, patience, strict=True, hosts=told.hosts)


class _JsonWriter:
    """Standard output, a line at a time. Once its reader is gone nobody is told anything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gone = False

    def tell(self, value: Mapping[str, Any]) -> None:
        with self._lock:
            if self._gone:
                return
            try:
                print(json.dumps(value), flush=True)
            except BrokenPipeError:
                self._gone = True


def _obey(plane: LocalControlPlane, told: _JsonWriter, ended: queue.SimpleQueue[int | None]) -> None:
    for line in sys.stdin:
        told.tell(orders.carry_out(plane, line))
    ended.put(None)


def _pages(plane: LocalControlPlane, port: int) -> PageServer:
    try:
        return PageServer((HOST, port), dict.fromkeys(PAGES, plane.api.answer))
    except OSError as error:
        raise ConfigError(f"can't listen on {HOST}:{port}: {error.strerror or error}: free it or use 0") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nixfleet_agent.local_cp",
        description="The local control plane, for demos, tests and development.",
        epilog="--conformance drives an agent through the stories of the protocol instead: --conformance --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--dir", type=Path, required=True, help="database, certificates and published releases")
    parser.add_argument("--org-root", type=_key, required=True, metavar="BASE64", help="key of the bootstrap tokens")
    parser.add_argument("--port", type=_port, default=0, help="of the control plane (default: a free one)")
    parser.add_argument("--page-port", type=_port, default=0, help="of the status page (default: a free one)")
    lifetime, patience = CERTIFICATE_LIFETIME.total_seconds(), REDELIVER_AFTER.total_seconds()
    parser.add_argument("--certificate-secs", type=_seconds, default=lifetime, metavar="SECS")
    parser.add_argument("--extra-soak", type=_seconds, default=0.0, metavar="SECS", help="added to every soak hint")
    parser.add_argument("--redeliver-after", type=_seconds, default=patience, metavar="SECS")
    parser.add_argument("--hosts", type=Path, metavar="DIR", help="of agents on this machine: the page asks them")
    parser.add_argument("--orders", action="store_true", help="take orders from standard input, and end with it")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= MOST_PORTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from error
    if not 0 <= seconds <= MOST_SECS:  # no comparison is true of a NaN
        raise argparse.ArgumentTypeError(f"{text!r} is not from 0 to {MOST_SECS:.0f} seconds")
    return seconds


def _make_room_for_connections() -> None:
    """Every agent holds several at once; the usual limit of 1,024 files is there for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _key(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise argparse.ArgumentTypeError(f"not base64: {error}") from error
    if len(raw) != KEY_BYTES:
        raise argparse.ArgumentTypeError(f"a key has {KEY_BYTES} bytes, this has {len(raw)}")
    return raw


if __name__ == "__main__":
    raise SystemExit(main())
