"""The status page: rendered here, brought up to date by itself, readable on a phone and by a screen reader.

Its frame is ``page.html``. Without script a browser loads it anew every two seconds.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from nixfleet_agent.state_machine import State
from nixfleet_agent.text import printable

#: Rollouts that are shown at most beside those that are open, newest first.
SHOWN = 6
#: A host that has missed three heartbeats of a minute each.
LATE_SECS = 180
#: Columns whose cells do not say what they are.
NAMED = ("runs", "last heard of", "turn waiting")
CONVERGED = State.CONVERGED.value


@functools.cache
def frame() -> str:
    """The page around what changes."""
    return (resources.files("nixfleet_agent") / "local_cp" / "page.html").read_text(encoding="utf-8")


@functools.cache
def headers() -> Mapping[str, str]:
    """Only the page's own style and script run, so that no string of an agent's can become one."""
    style, script = (_digest(tag) for tag in ("style", "script"))
    policy = f"default-src 'none'; img-src data:; connect-src 'self'; style-src '{style}'; script-src '{script}'"
    return {
        "Content-Security-Policy": f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


def render(picture: Mapping[str, Any]) -> str:
    """The page for what ``overview`` gives; every string in it came over the wire at some time and is escaped."""
    rollouts = list(reversed(picture["rollouts"]))
    # Every channel has one rollout that is open; where CI's files are gone, the newest that is known.
    current = [rollout for rollout in rollouts if rollout["waves"] is not None] or rollouts[:1]
    parts = [
        *map(_rollout, current),
        _hosts(picture["hosts"], rollouts),
        *(_rollout(rollout) for rollout in rollouts[:SHOWN] if rollout not in current),
        _list("Quarantine", [f"{channel}: {closure}" for channel, closure in picture["quarantine"]]),
        _list("Revoked", [f"{hostname}: certificates before {at}" for hostname, at in picture["revoked"].items()]),
        _list("Bootstrap reports", [_report(report) for report in picture["bootstrap_reports"]]),
        _events(picture["events"]),
    ]
    fleet = "\n".join(filter(None, parts))
    return Template(frame()).substitute(now=_now(picture, current), fleet=fleet)


def _now(picture: Mapping[str, Any], current: Sequence[Mapping[str, Any]]) -> str:
    """The whole fleet in a sentence."""
    count = len(picture["hosts"])
    hosts = "1 host" if count == 1 else f"{count} hosts"
    if not current:
        return f"{hosts}, nothing released yet."
    return "; ".join([hosts, *map(_progress, current)]) + "."


def _progress(rollout: Mapping[str, Any]) -> str:
    states = Counter(rollout["states"].values())
    told = [f"<span class={_text(state)}>{number} {_text(state)}</span>" for state, number in sorted(states.items())]
    waiting = f", {len(rollout['waiting'])} waiting" if rollout["waiting"] else ""
    return f"{_text(rollout['rollout_id'])}: {', '.join(told) or 'no turn given yet'}{waiting}"


def _hosts(hosts: Iterable[Mapping[str, Any]], rollouts: Sequence[Mapping[str, Any]]) -> str:
    """With each host's state in the newest rollout that it has, or waits for, a part in."""
    rows = [
        (
            _text(host["hostname"]),
            next((_member_state(name, rollout) for rollout in rollouts if _has_part(name, rollout)), ""),
            _closure(host["current_closure"]),
            _seen(host["seen_secs_ago"]),
            _text(", ".join(host["queued"])),
        )
        for host in hosts
        for name in (host["hostname"],)
    ]
    if not rows:
        return "<h2>Hosts</h2><p class=note>None has been heard of yet.</p>"
    return _table("Hosts", ("host", "newest rollout", "runs", "last heard of", "turn waiting"), rows)


def _seen(seconds: int) -> str:
    """How long ago, in the largest unit that says enough."""
    if seconds < 120:
        shown = f"{seconds} s ago"
    else:
        shown = f"{seconds // 60} min ago" if seconds < 7200 else f"{seconds // 3600} h ago"
    return shown if seconds < LATE_SECS else f"<span class=late>{shown}</span>"


def _rollout(rollout: Mapping[str, Any]) -> str:
    states, members = rollout["states"], [host for wave in rollout["waves"] or () for host in wave]
    done = sum(states.get(host) == CONVERGED for host in members)
    bar = f"<progress value={done} max={len(members)} aria-label=converged></progress>" if members else ""
    count = f"{done} of {len(members)} converged" if members else f"{len(states)} took part"
    head = f"<p class=note>{bar}{count}; opened {_text(rollout['opened_at'][11:19])} UTC</p>"
    halted = f"<p class=halted>{_text(rollout['halted'])}</p>" if rollout["halted"] else ""
    waves: Sequence[Sequence[str]] = rollout["waves"] or [list(rollout["states"])]
    parts = []
    for number, wave in enumerate(waves, start=1):
        items = "".join(_member(hostname, rollout) for hostname in wave)
        title = f"<h3>Wave {number}</h3>" if rollout["waves"] else ""
        parts.append(f"{title}<ul class=hosts>{items}</ul>")
    reasons = dict.fromkeys(reason for reason in rollout["waiting"].values() if reason != rollout["halted"])
    waiting = "".join(f"<p class=note>Others wait: {_text(reason)}.</p>" for reason in reasons)
    return f"<section><h2>{_text(rollout['rollout_id'])}</h2>{head}{halted}{''.join(parts)}{waiting}</section>"


def _member(hostname: str, rollout: Mapping[str, Any]) -> str:
    return f"<li>{_text(hostname)} {_member_state(hostname, rollout)}</li>"


def _has_part(hostname: str, rollout: Mapping[str, Any]) -> bool:
    return hostname in rollout["states"] or hostname in rollout["waiting"]


def _member_state(hostname: str, rollout: Mapping[str, Any]) -> str:
    state = _text(rollout["states"].get(hostname, ""))
    return f'<span class="state {state}">{state}</span>' if state else "<span class=note>waits</span>"


def _events(events: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (_text(event["received_at"][11:19]), _text(event["hostname"]), _text(event["kind"]), _text(event["rollout_id"]))
        for event in events
    ]
    return _table("Newest events", ("UTC", "host", "event", "rollout"), rows) if rows else ""


def _report(report: Mapping[str, Any]) -> str:
    return f"{report['hostname']}: {report['event']['kind']}: {report['event']['reason']}"


def _list(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    return f"<section><h2>{title}</h2>" + "".join(f"<p>{_text(line)}</p>" for line in lines) + "</section>"


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already. On a phone each row is a card, where what does not speak for itself is named."""
    heads = "".join(f"<th scope=col>{name}</th>" for name in head)
    body = "".join(
        f"<tr><th scope=row>{row[0]}</th>"
        + "".join(
            f'<td data-label="{name}"{" class=named" if name in NAMED else ""}>{cell}</td>'
            for name, cell in zip(head[1:], row[1:], strict=True)
        )
        + "</tr>"
        for row in rows
    )
    name = title.lower().replace(" ", "-")
    return (
        f"<section><h2 id={name}>{title}</h2><table aria-labelledby={name}><thead><tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table></section>"
    )


def _closure(closure: str | None) -> str:
    """A store path's name is told by people, its hash by programs: the name, and all of it to who asks."""
    if closure is None:
        return "<span class=note>switching, or not known</span>"
    return f'<span title="{_text(closure)}"><span class=note>{_text(closure[:7])}…</span>{_text(closure[32:])}</span>'


def _text(value: object) -> str:
    return escape(printable(value))


def _digest(tag: str) -> str:
    inside = re.search(f"<{tag}>(.*?)</{tag}>", frame(), re.DOTALL)
    if inside is None:
        raise RuntimeError(f"page.html has no <{tag}>")
    return "sha256-" + base64.b64encode(hashlib.sha256(inside.group(1).encode()).digest()).decode("ascii")
