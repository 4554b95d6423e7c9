"""``log [ROLLOUT]``: what the switches of this host have said, also while they say it."""

from __future__ import annotations

import threading
from datetime import datetime

from nixfleet_agent.activation.host import read_boot_id
from nixfleet_agent.activation.output import OutputReader
from nixfleet_agent.activation.records import Record, Records
from nixfleet_agent.commands.invocation import BOLD, Invocation, Parser
from nixfleet_agent.commands.times import local_time
from nixfleet_agent.errors import EXIT_OK, EXIT_USAGE, AgentError
from nixfleet_agent.output import write_stdout
from nixfleet_agent.proto.times import parse_time
from nixfleet_agent.threads.clock import SystemClock

#: Seconds between two looks at a switch that is followed.
INTERVAL = 0.25
#: All that is kept of a switch.
_ALL = 3 * 1024 * 1024


class LogUsageError(AgentError):
    """There is no such switch on record, or what was asked for makes no sense."""

    exit_code = EXIT_USAGE


def configure(parser: Parser) -> None:
    parser.details(
        "Of each switch the end of what it said, at most 3 MiB; the last 20 switches are kept. With --follow what "
        "comes is shown as it comes: of a ROLLOUT until its switches have ended, else until Ctrl-C."
    )
    parser.example("nixfleet-agent log", "nixfleet-agent log stable@def4567abc", "nixfleet-agent log --json")
    parser.add_argument("rollout", metavar="ROLLOUT", nargs="?", help="a rollout id, or how it begins; default: newest")
    parser.add_argument("--follow", action="store_true", help="show what comes as it comes")


def run(call: Invocation) -> int:
    if call.options.follow and call.json:
        raise LogUsageError("--follow shows text: leave out --json")
    records = Records(call.config.state_dir, read_boot_id())
    chosen = _chosen(records, call.options.rollout)
    if not chosen and not (call.options.follow and call.options.rollout is None):
        raise LogUsageError(_nothing(call.options.rollout))
    if call.options.follow:
        return _follow(call, records)
    if call.json:
        call.print_json([_as_json(record) for record in chosen])
        return EXIT_OK
    for record in chosen:
        _head(call, record)
        _say(call, OutputReader(record.path).new())
        _tail(call, record)
    return EXIT_OK


def _chosen(records: Records, wanted: str | None) -> list[Record]:
    """The switches of one rollout, oldest first; of the newest switch's where none is named."""
    switches = [record for record in records.all() if record.started is not None]
    if not switches:
        return []
    if wanted is None:
        return [r for r in switches if r.intent.rollout_id == switches[-1].intent.rollout_id]
    exact = [record for record in switches if record.intent.rollout_id == wanted]
    beginning = [record for record in switches if record.intent.rollout_id.startswith(wanted)]
    if not exact and len({record.intent.rollout_id for record in beginning}) > 1:
        raise LogUsageError(f"several rollouts begin with {wanted!r}: see `nixfleet-agent history --list`")
    return exact or beginning


def _nothing(wanted: str | None) -> str:
    if wanted is None:
        return "this host has not switched yet"
    return f"no switch of a rollout that begins with {wanted!r}: see `nixfleet-agent history --list`"


def _follow(call: Invocation, records: Records) -> int:
    clock, never = SystemClock(), threading.Event()
    readers: dict[int, OutputReader] = {}
    ended: set[int] = set()
    newest_only = call.options.rollout is None
    while True:
        chosen = _chosen(records, call.options.rollout)
        for record in chosen:
            if record.number in ended:
                continue
            if record.number not in readers:
                readers[record.number] = OutputReader(record.path)
                _head(call, record)
            over = record.exit_code is not None
            _say(call, readers[record.number].new())
            if over:
                _tail(call, record)
                ended.add(record.number)
        write_stdout(flush=True)
        if not newest_only and chosen and all(record.number in ended for record in chosen):
            return EXIT_OK
        clock.wait(never, INTERVAL)


def _head(call: Invocation, record: Record) -> None:
    intent = record.intent
    call.print(f"{intent.rollout_id}: {intent.action} to {intent.target} ({intent.direction}), {_at(record)}", BOLD)


def _tail(call: Invocation, record: Record) -> None:
    code = record.exit_code
    call.print("it has not ended, or was lost with the machine" if code is None else f"ended with {code}", BOLD)


def _at(record: Record) -> str:
    try:
        at: datetime = parse_time(record.intent.created_at)
    except AgentError:
        return "at an unknown time"
    return local_time(at)


def _say(call: Invocation, raw: bytes) -> None:
    """Lines as they came, with whatever a terminal could act on escaped."""
    if raw:
        call.print(raw.decode("utf-8", "replace").removesuffix("\n"))


def _as_json(record: Record) -> dict[str, object]:
    intent = record.intent
    return {
        "rollout_id": intent.rollout_id,
        "direction": intent.direction,
        "action": intent.action,
        "target": intent.target,
        "prepared_at": intent.created_at,
        "exit_code": record.exit_code,
        "output": record.output(_ALL),
    }
