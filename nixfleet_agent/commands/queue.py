"""``queue list|show|retry|drop``: events that the control plane has not taken."""

from __future__ import annotations

import json
from dataclasses import replace

from nixfleet_agent import durable
from nixfleet_agent.commands import journal_view
from nixfleet_agent.commands.invocation import Invocation, Parser, add_action
from nixfleet_agent.commands.journal_view import Found
from nixfleet_agent.commands.times import ago
from nixfleet_agent.errors import EXIT_OK, EXIT_USAGE, AgentError, ProtoError
from nixfleet_agent.journal.folders import DROPPED, QUEUE
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.telemetry.status_socket import AgentNotRunningError, ask
from nixfleet_agent.threads.clock import SystemClock

#: What `--all` means: events that are out of the way already. One that still waits is named by hand.
_ASIDE = ("rejected", "corrupt")
_TOUCHABLE = (*_ASIDE, "queued")


class QueueEntryError(AgentError):
    """What was named is not there, or can't be treated like that."""

    exit_code = EXIT_USAGE


def configure(parser: Parser) -> None:
    parser.details(
        "`retry` and `drop` with --all act on rejected and corrupt events; one that still waits is retried or dropped"
        " by its ID."
    )
    parser.example(
        "nixfleet-agent queue list", "nixfleet-agent queue show stable@def4567abc/3", "nixfleet-agent queue retry --all"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|retry|drop")
    listing = add_action(actions, "list", "undelivered, rejected and corrupt events")
    listing.add_argument("--all", action="store_true", help="delivered and dropped ones too")
    show = add_action(actions, "show", "one event with all that is known of it")
    show.add_argument("id", metavar="ID", help="as `queue list` shows it: ROLLOUT/SEQ or a file's name")
    for action, what in (
        ("retry", "send refused events again, or a waiting one now"),
        ("drop", "give events up; they are kept in outbound-dropped/"),
    ):
        command = add_action(actions, action, what)
        named = command.add_mutually_exclusive_group(required=True)
        named.add_argument("id", metavar="ID", nargs="?", help="ROLLOUT/SEQ or a file's name")
        named.add_argument("--all", action="store_true", help="all rejected and corrupt ones")


def run(call: Invocation) -> int:
    {"list": _list, "show": _show, "retry": _retry, "drop": _drop}[call.options.action](call)
    return EXIT_OK


def _list(call: Invocation) -> None:
    places = journal_view.PLACES if call.options.all else _TOUCHABLE
    found = _scan(call, tuple(places))
    if call.json:
        call.print_json([_row(item) for item in found])
        return
    if not found:
        call.print("the queue is empty: every event was delivered.")
        return
    now = SystemClock().now()
    rows = []
    for item in found:
        try:
            entry = item.read()
            refusal = entry.refusal or {}
            said = f"{refusal.get('status')}: {refusal.get('answer')}" if refusal else ""
            rows.append((item.id, entry.kind, item.where, ago(entry.created_at, now), said))
        except ProtoError as error:
            rows.append((item.id, item.name.kind if item.name else "?", item.where, "?", str(error)))
    call.table(("ID", "EVENT", "WHERE", "CREATED", "WHY"), rows)


def _show(call: Invocation) -> None:
    item = _find(_scan(call, tuple(journal_view.PLACES)), call.options.id)
    row = _row(item)
    if call.json:
        call.print_json(row)
        return
    for key, value in row.items():
        if value is not None:
            call.print(f"{key + ':':<11} {json.dumps(value) if isinstance(value, dict) else value}")


def _retry(call: Invocation) -> None:
    queue, chosen = call.config.state_dir / QUEUE, _chosen(call)
    moved: list[str] = []
    stuck: list[str] = []
    try:
        for item in chosen:
            if item.place == "queued":
                moved.append(item.id)
                continue
            try:
                entry = replace(item.read(), refusal=None)
            except ProtoError as error:
                stuck.append(f"{item.id} can't be sent as it is: {error}: repair {item.path}, or drop it")
                continue
            durable.write(queue / entry.name, entry.encode())
            durable.remove(item.path)
            moved.append(item.id)
    finally:
        # Whatever ended this early: the agent does not look at its queue's folder by itself.
        if moved or not chosen:
            _report(call, moved, "queued again", _rescan(call) if moved else "")
    if stuck:
        more = f" (and {len(stuck) - 1} more: see `nixfleet-agent queue list`)" if len(stuck) > 1 else ""
        raise QueueEntryError(stuck[0] + more)


def _drop(call: Invocation) -> None:
    folder, chosen = call.config.state_dir / DROPPED, _chosen(call)
    durable.make_directory(folder)
    moved: list[str] = []
    try:
        for item in chosen:
            durable.move(item.path, folder / item.path.name, sync=True)
            moved.append(item.id)
    finally:
        if moved or not chosen:
            if moved:
                _rescan(call)  # or status and alerts go on counting what is gone
            _report(call, moved, f"dropped (kept in {folder})", "")


def _rescan(call: Invocation) -> str:
    try:
        ask(call.config.state_dir, "rescan-queue")
    except AgentNotRunningError:
        return "; the agent does not run: it sends them when it is started"
    return ""


def _report(call: Invocation, moved: list[str], what: str, note: str) -> None:
    if call.json:
        call.print_json({"entries": moved})
    else:
        call.print(f"{what}: {', '.join(moved)}{note}" if moved else "there is nothing rejected or corrupt.")


def _chosen(call: Invocation) -> list[Found]:
    if call.options.all:
        return _scan(call, _ASIDE)
    try:
        return [_find(_scan(call, _TOUCHABLE), call.options.id)]
    except QueueEntryError:
        elsewhere = _find(_scan(call, tuple(journal_view.PLACES)), call.options.id)
        raise QueueEntryError(
            f"{elsewhere.id} is {elsewhere.where}: only waiting, rejected and corrupt events can be retried or dropped"
        ) from None


def _scan(call: Invocation, places: tuple[str, ...]) -> list[Found]:
    return journal_view.scan(call.config.state_dir, call.config.machine_id, places)


def _find(found: list[Found], wanted: str) -> Found:
    for item in found:
        if wanted in (item.id, item.path.name):
            return item
    raise QueueEntryError(f"there is no event {wanted!r}: see `nixfleet-agent queue list --all`")


def _row(item: Found) -> dict[str, object]:
    row: dict[str, object] = {"id": item.id, "where": item.where, "path": str(item.path), "problem": None}
    try:
        entry = item.read()
    except ProtoError as error:
        return row | {"problem": str(error)}
    return row | {
        "rollout_id": entry.rollout_id,
        "seq": entry.seq,
        "kind": entry.kind,
        "created_at": format_time(entry.created_at),
        "event": dict(entry.event),
        "refusal": dict(entry.refusal) if entry.refusal else None,
    }
