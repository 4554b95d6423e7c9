"""``quarantine list|clear``: closures that failed here and are refused for some hours."""

from __future__ import annotations

from contextlib import suppress

from nixfleet_agent.commands.invocation import Invocation, Parser, add_action
from nixfleet_agent.commands.times import ago, local_time
from nixfleet_agent.errors import EXIT_OK, EXIT_USAGE, AgentError
from nixfleet_agent.operator.quarantine import Entry, QuarantineStore
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.threads.clock import SystemClock


class NotQuarantinedError(AgentError):
    """Nothing like what was named is in quarantine."""

    exit_code = EXIT_USAGE


def configure(parser: Parser) -> None:
    parser.details("They failed here, and are refused on the same channel for quarantine_hours.")
    parser.example("nixfleet-agent quarantine list", "nixfleet-agent quarantine clear --all")
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|clear")
    add_action(actions, "list", "what is refused, and until when")
    clear = add_action(actions, "clear", "let a closure be tried again, with a new rollout")
    what = clear.add_mutually_exclusive_group(required=True)
    what.add_argument("closure", metavar="CLOSURE", nargs="?", help="a closure, or how its name begins")
    what.add_argument("--all", action="store_true", help="everything")


def run(call: Invocation) -> int:
    store = QuarantineStore(call.config.state_dir)
    with suppress(FileNotFoundError):
        store.path.open("rb").close()  # the store takes a file that may not be read for one that is not there
    if call.options.action == "list":
        _list(call, store)
    else:
        _clear(call, store)
    return EXIT_OK


def _list(call: Invocation, store: QuarantineStore) -> None:
    now, hours = SystemClock().now(), call.config.quarantine_hours
    entries = [entry for entry in store.entries() if now < entry.until(hours)]
    if call.json:
        call.print_json([_as_json(entry, hours) for entry in entries])
    elif not entries:
        call.print("nothing is in quarantine.")
    else:
        head = ("CHANNEL", "CLOSURE", "SINCE", "UNTIL", "REASON")
        rows = [(e.channel, e.closure, ago(e.since, now), local_time(e.until(hours)), e.reason) for e in entries]
        call.table(head, rows)


def _as_json(entry: Entry, hours: float) -> dict[str, str]:
    return {
        "channel": entry.channel,
        "closure": entry.closure,
        "rollout_id": entry.rollout_id,
        "since": format_time(entry.since),
        "until": format_time(entry.until(hours)),
        "reason": entry.reason,
    }


def _clear(call: Invocation, store: QuarantineStore) -> None:
    begins = call.options.closure or ""
    closures = sorted({entry.closure for entry in store.entries() if entry.closure.startswith(begins)})
    if not call.options.all and len(closures) != 1:
        found = f"{len(closures)} closures begin" if closures else "nothing in quarantine begins"
        raise NotQuarantinedError(f"{found} with {begins!r}: see `nixfleet-agent quarantine list`")
    lifted = store.clear(None if call.options.all else closures[0])
    if call.json:
        call.print_json({"lifted": lifted})
    else:
        call.print(f"lifted: {lifted}. A new rollout may bring what was refused; one that was here never runs again.")
