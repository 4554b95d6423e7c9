"""The status page: the fleet in a sentence, its open rollouts, and its hosts, those that need somebody first.

Rendered here and brought up to date by itself. Its frame is ``page.html``; without script a browser loads it anew every
two seconds. However many hosts there are, a page shows a hundred, and of a wave those that are not done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nixfleet_agent.local_cp.markup import LATE_SECS, closure, count, host, lines, link, page, seen, state, table, text
from nixfleet_agent.state_machine import State

#: Rollouts that are shown at most beside those that are open, newest first.
SHOWN = 6
#: Hosts on one page; in a wave that is shown whole; and of a larger one, those that need somebody.
ROWS, WHOLE, CHIPS = 100, 40, 20
#: The states of a host in the order in which they need somebody; ``None`` waits for its turn.
_ORDER: Sequence[str | None] = (
    *("Failed", "Reverted", "Deferred", "Pending", "Activating", "Soaking"),
    *(None, "Converged"),
)
_RANK = {value: number for number, value in enumerate(_ORDER)}
_CONVERGED = State.CONVERGED.value


@dataclass(frozen=True, slots=True)
class View:
    """What somebody wants to see: hosts in one state (None: all), and which hundred of them, from 1."""

    state: str | None = None
    page: int = 1

    @classmethod
    def of(cls, params: Mapping[str, str]) -> View:
        """As a link of the page says it; what no link says is not looked at."""
        wanted, number = params.get("state"), params.get("page", "")
        return cls(wanted if wanted in _RANK else None, int(number) if number.isdecimal() and len(number) < 6 else 1)


def render(picture: Mapping[str, Any], view: View | None = None) -> str:
    """The page for what ``overview`` gives."""
    rollouts = list(reversed(picture["rollouts"]))
    # Every channel has one rollout that is open; where CI's files are gone, the newest that is known.
    current = [rollout for rollout in rollouts if rollout["waves"] is not None] or rollouts[:1]
    earlier = [rollout for rollout in rollouts[:SHOWN] if rollout not in current]
    broken = [f"{name}, {of}: event {seq}: {said}" for name, of, seq, said in picture["broken_links"]]
    return page(
        "NixFleet local control plane",
        _now(picture, current),
        [
            *map(_rollout, current),
            _hosts(picture["hosts"], view or View()),
            _earlier(earlier),
            lines("Events that do not follow the one before them", broken),
            lines("Quarantine", [f"{channel}: {name}" for channel, name in picture["quarantine"]]),
            lines("Revoked", [f"{name}: certificates before {at}" for name, at in picture["revoked"].items()]),
            lines("Bootstrap reports", [_report(report) for report in picture["bootstrap_reports"]]),
            _events(picture["events"]),
        ],
    )


def _now(picture: Mapping[str, Any], current: Sequence[Mapping[str, Any]]) -> str:
    """The whole fleet in a sentence."""
    hosts = count(len(picture["hosts"]), "host")
    if not current:
        return f"{hosts}, nothing released yet."
    return "; ".join([hosts, *map(_progress, current)]) + "."


def _progress(rollout: Mapping[str, Any]) -> str:
    waiting = f", {len(rollout['waiting']):,} waiting" if rollout["waiting"] else ""
    told = ", ".join(link("/", shown, state=name) for name, shown in _counts(rollout).items())
    return f"{text(rollout['rollout_id'])}: {told or 'no turn given yet'}{waiting}"


def _counts(rollout: Mapping[str, Any]) -> dict[str, str]:
    """How many hosts are in each state, by its name."""
    states = Counter(rollout["states"].values())
    return {name: f"<span class={text(name)}>{states[name]:,} {text(name)}</span>" for name in sorted(states)}


def _rollout(rollout: Mapping[str, Any]) -> str:
    states, members = rollout["states"], [name for wave in rollout["waves"] or () for name in wave]
    done = sum(states.get(name) == _CONVERGED for name in members)
    bar = f"<progress value={done} max={len(members)} aria-label=converged></progress>" if members else ""
    told = f"{done:,} of {len(members):,} converged" if members else f"{len(states):,} took part"
    head = f"<p class=note>{bar}{told}; opened {text(rollout['opened_at'][11:19])} UTC</p>"
    halted = f"<p class=halted>{text(rollout['halted'])}</p>" if rollout["halted"] else ""
    waves: Sequence[Sequence[str]] = rollout["waves"] or [list(states)]
    parts = []
    for number, wave in enumerate(waves, start=1):
        title = f"<h3>Wave {number}</h3>" if rollout["waves"] else ""
        parts.append(f"{title}{_wave(wave, states)}")
    reasons = dict.fromkeys(reason for reason in rollout["waiting"].values() if reason != rollout["halted"])
    waiting = "".join(f"<p class=note>Others wait: {text(reason)}.</p>" for reason in reasons)
    return f"<section><h2>{text(rollout['rollout_id'])}</h2>{head}{halted}{''.join(parts)}{waiting}</section>"


def _wave(wave: Sequence[str], states: Mapping[str, str]) -> str:
    """Every host of a small wave; of a large one those that need somebody, and how many others there are."""
    shown, rest = list(wave), ""
    if len(wave) > WHOLE:
        open_ = [name for name in wave if states.get(name) not in (None, _CONVERGED)]
        shown = sorted(open_, key=lambda name: _RANK[states[name]])[:CHIPS]
        others = Counter(states.get(name) for name in set(wave) - set(shown))
        told = ", ".join(f"{others[name]:,} {name or 'waiting'}" for name in _ORDER if others[name])
        rest = f"<p class=note>{'and ' if shown else ''}{told}</p>"
    chips = "".join(f"<li>{host(name)} {state(states.get(name))}</li>" for name in shown)
    return f"<ul class=hosts>{chips}</ul>{rest}" if chips else rest


def _hosts(hosts: Sequence[Mapping[str, Any]], view: View) -> str:
    """With each host's state in the newest rollout that it has, or waits for, a part in."""
    if not hosts:
        return "<h2>Hosts</h2><p class=note>None has been heard of yet.</p>"
    chosen = [each for each in hosts if view.state is None or each["state"] == view.state]
    if len(hosts) > ROWS:
        chosen.sort(key=lambda each: (each["seen_secs_ago"] < LATE_SECS, _RANK[each["state"]], each["hostname"]))
    pages = max(1, -(-len(chosen) // ROWS))
    number = min(max(1, view.page), pages)
    rows = [
        (
            host(each["hostname"]),
            state(each["state"]) if each["rollout_id"] else "",
            text(each["waits"]),
            closure(each["current_closure"]),
            seen(each["seen_secs_ago"]),
        )
        for each in chosen[(number - 1) * ROWS : number * ROWS]
    ]
    note = _which(len(chosen), number, pages, view)
    return table("Hosts", ("host", "newest rollout", "waits for", "runs", "last heard of"), rows, note=note)


def _which(found: int, number: int, pages: int, view: View) -> str:
    """Which hosts the table shows, and the way to the others; nothing where it shows all."""
    wanted = {} if view.state is None else {"state": view.state}
    parts = []
    if view.state is not None:
        parts.append(f"{found:,} in state {text(view.state)} ({link('/', 'show all')})")
    if pages > 1:
        first = (number - 1) * ROWS + 1
        parts.append(f"{first:,} to {min(found, first + ROWS - 1):,} of {found:,}, those that need somebody first")
        parts += [link("/", "previous", **wanted, page=number - 1)] if number > 1 else []
        parts += [link("/", "next", **wanted, page=number + 1)] if number < pages else []
    return f"<p class=note>{' · '.join(parts)}</p>" if parts else ""


def _earlier(rollouts: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (
            text(each["rollout_id"]),
            f"{text(each['opened_at'][11:19])} UTC",
            ", ".join(_counts(each).values()),
            text(each["halted"] or ""),
        )
        for each in rollouts
    ]
    return table("Earlier rollouts", ("rollout", "opened", "hosts", "halted"), rows) if rows else ""


def _events(events: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (text(event["received_at"][11:19]), host(event["hostname"]), text(event["kind"]), text(event["rollout_id"]))
        for event in events
    ]
    return table("Newest events", ("UTC", "host", "event", "rollout"), rows) if rows else ""


def _report(report: Mapping[str, Any]) -> str:
    return f"{report['hostname']}: {report['event']['kind']}: {report['event']['reason']}"
