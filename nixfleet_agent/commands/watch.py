"""``watch``: this host live, redrawn in a terminal; elsewhere one line for each thing that changes."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from nixfleet_agent.commands.invocation import Invocation, Parser
from nixfleet_agent.commands.snapshot import NEWEST, snapshot_of
from nixfleet_agent.commands.status import show
from nixfleet_agent.errors import EXIT_OK
from nixfleet_agent.output import write_stdout
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.threads.clock import Clock, SystemClock

Snapshot = Mapping[str, Any]

#: Seconds between two looks; a state lasts longer, and asking costs the agent a millisecond.
INTERVAL = 1.0
#: The terminal's other screen with a hidden cursor, and back: what was on the screen before is there again at the end.
_OPEN, _CLOSE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def configure(parser: Parser) -> None:
    parser.details("Where stdout is no terminal: one line for each thing that changes. Ctrl-C ends it.")
    parser.example("nixfleet-agent watch --turns 1")
    parser.add_argument("--turns", metavar="N", type=int, help="end after N looks, a second apart; default: never")


def run(call: Invocation) -> int:
    clock, never = SystemClock(), threading.Event()
    live = sys.stdout is not None and sys.stdout.isatty() and call.environ.get("TERM") != "dumb"
    with _terminal() if live else contextlib.nullcontext():
        before: Snapshot | None = None
        turns = 0
        while call.options.turns is None or turns < call.options.turns:
            if turns:
                clock.wait(never, INTERVAL)
            turns += 1
            snapshot = snapshot_of(call.config, NEWEST)
            if live:
                _draw(call, snapshot, clock)
            else:
                for line in changes(before, snapshot):
                    call.print(f"{format_time(clock.now())} {line}")
                write_stdout(flush=True)
            before = snapshot
    return EXIT_OK


def changes(before: Snapshot | None, after: Snapshot) -> Iterator[str]:
    """What differs between two looks, a line each; everything worth a line at the first."""
    old = _facts(before) if before is not None else {}
    new = _facts(after)
    for name, text in new.items():
        if old.get(name) != text:
            yield f"{name}: {text}"
    for name in old:
        if name not in new:
            yield f"{name}: over"


def _facts(snapshot: Snapshot) -> dict[str, str]:
    """The things that a watcher waits for, by name; without times and ages, which always change."""
    facts = {"agent": "running" if snapshot.get("running") else f"not running ({snapshot.get('not_running')})"}
    facts["runs"] = str(snapshot.get("current_closure") or "unknown")
    active_id = (snapshot.get("host") or {}).get("active_id")
    for record in snapshot.get("rollouts") or ():
        if record["rollout_id"] == active_id:
            facts[record["rollout_id"]] = record["state"]
            for name, probe in sorted(record["probes"].items()):
                reason = f" ({probe['failure_reason']})" if probe.get("failure_reason") else ""
                facts[f"probe {name}"] = f"{probe['status']}{reason}"
    if activation := snapshot.get("activation"):
        facts["last finished step"] = activation["phase"]
    if dispatch := snapshot.get("dispatch"):
        facts["waiting"] = f"{dispatch['rollout_id']}: {dispatch.get('reason') or 'being verified'}"
    if coming := snapshot.get("next"):
        facts["next"] = f"{coming['rollout_id']}: {coming['state']}"
    for name in ("drift", "journal_error", "trust_error"):
        if snapshot.get(name):
            facts[name.replace("_", " ")] = str(snapshot[name])
    if hold := snapshot.get("hold"):
        facts["hold"] = hold["reason"]
    if rollback := snapshot.get("rollback"):
        facts["rollback"] = str(rollback.get("reason") or "see why")
    facts["queue"] = f"{(snapshot.get('queue') or {}).get('queued', 0)} events"
    return facts


class _Frame(io.StringIO):
    """One picture, before it is drawn at once: a picture that comes in pieces flickers."""

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    print(_OPEN, end="", flush=True)
    try:
        yield
    finally:
        print(_CLOSE, end="", flush=True)


def _draw(call: Invocation, snapshot: Snapshot, clock: Clock) -> None:
    frame = _Frame()
    with contextlib.redirect_stdout(frame):
        call.print(_title(snapshot, clock.now()))
        call.print()
        show(call, snapshot, clock.now())
    lines = frame.getvalue().replace("\n", f"{_REST_OF_LINE}\n")
    print(f"{_HOME}{lines}{_REST_OF_SCREEN}", end="", flush=True)


def _title(snapshot: Snapshot, now: datetime) -> str:
    activation = snapshot.get("activation") if snapshot.get("switching") else None
    doing = f", switching (last finished step: {activation['phase']})" if activation else ""
    return f"nixfleet-agent on {snapshot.get('machine_id')}, {now.astimezone():%H:%M:%S}{doing}. Ctrl-C ends."
