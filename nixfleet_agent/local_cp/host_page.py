"""The timeline of one host: what it has said of each of its rollouts, and whether its events follow one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.journal.chain_check import GOOD, MISSING
from nixfleet_agent.local_cp.markup import closure, count, link, page, seen, state, table, text
from nixfleet_agent.proto.ids import CLOSURE
from nixfleet_agent.proto.times import parse_time
from nixfleet_agent.text import clip_tail

#: The fields of an event that a timeline shows in columns of its own, or that are the same in each.
_ELSEWHERE = ("kind", "seq", "mode")
#: How much of one field is shown, in bytes.
_LONGEST = 400
_LINKS = {GOOD: "✓ follows", MISSING: "not linked"}


def render(picture: Mapping[str, Any]) -> str:
    """The page for what ``overview.of_host`` gives."""
    name, rollouts = picture["hostname"], picture["rollouts"]
    nothing = "" if rollouts else "<p class=note>It has had no turn yet.</p>"
    back = f"<p>{link('/', '← all hosts')}</p>"
    return page(name, _now(picture), [back, *map(_rollout, rollouts), nothing])


def _now(picture: Mapping[str, Any]) -> str:
    heard, rollouts = picture["heard"], picture["rollouts"]
    parts = [f"<strong>{text(picture['hostname'])}</strong>"]
    if rollouts:
        parts.append(f"{state(rollouts[0]['state'])} in {text(rollouts[0]['rollout_id'])}")
    if picture["waits"]:
        parts.append(f"waits for: {text(picture['waits'])}")
    if heard is None:
        parts.append("never heard of")
    else:
        parts.append(f"runs {closure(heard['current_closure'])}")
        parts.append(f"last heard of {seen(heard['seen_secs_ago'])}, version {text(heard['agent_version'])}")
    return "; ".join(parts)


def _rollout(rollout: Mapping[str, Any]) -> str:
    events = rollout["events"]
    target = f" {closure(rollout['target'])};" if rollout["target"] else ""
    note = (
        f"<p class=note>{state(rollout['state'])};{target} opened {text(rollout['opened_at'][11:19])} UTC; "
        f"{_chain(events)}</p>"
    )
    rows = [_row(each) for each in events]
    return table(rollout["rollout_id"], ("UTC", "event", "what it says", "arrived", "link"), rows, note=note)


def _chain(events: Sequence[Mapping[str, Any]]) -> str:
    """Whether the events that are here are the host's, one after the other and none left out."""
    if not events:
        return "no event has come"
    told = count(len(events), "event")
    if events[0]["event"]["seq"] > 1:
        told += f", from event {events[0]['event']['seq']} on"
    found = Counter(each["link"] for each in events)
    if set(found) == {GOOD}:
        return f"{told}, each signed together with the one before it"
    broken = ", ".join(f"{number} {text(verdict)}" for verdict, number in sorted(found.items()) if verdict != GOOD)
    kind = "note" if set(found) <= {GOOD, MISSING} else "halted"
    return f"{told}; <span class={kind}>links: {broken}</span>"


def _row(each: Mapping[str, Any]) -> tuple[str, ...]:
    event, verdict = each["event"], each["link"]
    at = next((value for key, value in event.items() if key.endswith("At") and isinstance(value, str)), "")
    kind = "note" if verdict in _LINKS else "halted"
    return (
        text(at[11:23]),
        f"{text(event['seq'])} {text(event['kind'])}",
        "; ".join(_details(event)),
        _after(at, each["received_at"]),
        f"<span class={kind}>{text(_LINKS.get(verdict, verdict))}{'' if each['signed'] else ', not signed'}</span>",
    )


def _details(event: Mapping[str, Any]) -> Iterator[str]:
    for key, value in event.items():
        if key in _ELSEWHERE or key.endswith("At"):
            continue
        if isinstance(value, str) and CLOSURE.fullmatch(value):
            shown = closure(value)
        elif isinstance(value, list):
            shown = text(", ".join(map(_short, value)))
        else:
            shown = text(clip_tail(str(value).encode(), _LONGEST))
        yield f"<span class=note>{text(key)}</span> {shown}"


def _short(value: object) -> str:
    return str(value.get("probeName", "…")) if isinstance(value, Mapping) else str(value)


def _after(at: str, received_at: str) -> str:
    """How long after the host's own time it came; the two clocks are not one."""
    try:
        seconds = (parse_time(received_at) - parse_time(at)).total_seconds()
    except ProtoError:
        return ""
    return f"{seconds:+.1f} s"
