"""What is wrong with the requests of an agent, read from the recording alone. Pure.

Each function gives one line for the first thing that is wrong, or None. Events are compared as they were sent; those
that a control plane refused or forgot count as sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from nixfleet_agent.conformance.recording import Exchange
from nixfleet_agent.proto.contract import DISPATCH, EVENTS, FLEET, HEARTBEAT, is_of_the_protocol, request_faults
from nixfleet_agent.proto.times import parse_time

Event = Mapping[str, Any]
#: Calls that a host makes before it has a certificate.
WITHOUT_CERTIFICATE = frozenset({"/v1/enroll", "/v1/agent/bootstrap-report"})
#: Long polls that a control plane answers at once may come this often, a second.
MOST_POLLS = 1.5
SHORT_POLLS = 4


def contract(exchanges: Sequence[Exchange]) -> tuple[str | None, str | None]:
    """The first request whose headers, and the first whose body does not fit the schemas of the wire."""
    wrong_headers = wrong_body = None
    for exchange in exchanges:
        for fault in request_faults(exchange.method, exchange.path, exchange.headers, exchange.body):
            if ": headers" in fault or ": accept" in fault:
                wrong_headers = wrong_headers or fault
            else:
                wrong_body = wrong_body or fault
    return wrong_headers, wrong_body


def known_endpoints(exchanges: Sequence[Exchange]) -> str | None:
    """A request for something that the protocol does not have, such as the target of a redirect."""
    found = (e for e in exchanges if not is_of_the_protocol(e.method, e.path))
    return next((f"{e.method} {e.path} is not of the protocol" for e in found), None)


def identity(exchanges: Sequence[Exchange], hostname: str) -> str | None:
    """A call without this host's certificate."""
    for exchange in exchanges:
        if exchange.path not in WITHOUT_CERTIFICATE and exchange.peer != hostname:
            return f"{exchange.method} {exchange.path} with the certificate of {exchange.peer or 'nobody'}"
    return None


def etags(exchanges: Sequence[Exchange]) -> str | None:
    """The fleet is fetched again and again as if it were new."""
    fetched = [exchange for exchange in exchanges if exchange.path == FLEET and exchange.status in (200, 304)]
    if len(fetched) > 1 and not any("if-none-match" in exchange.headers for exchange in fetched[1:]):
        return f"the fleet was fetched {len(fetched)} times, and never with If-None-Match"
    return None if fetched else "the fleet was never fetched"


def polls(exchanges: Sequence[Exchange]) -> str | None:
    """Long polls that ask for nothing to wait for, or come like rain."""
    asked = [exchange for exchange in exchanges if exchange.path == DISPATCH]
    for exchange in asked:
        wait = exchange.params.get("wait", "")
        if not wait.replace(".", "", 1).isdecimal() or not 0 < float(wait) <= 60:
            return f"wait={wait or '(none)'} is not from 1 to 60"
    quick = [exchange.began for exchange in asked if exchange.status == 204 and exchange.ended - exchange.began < 0.1]
    for first, last in zip(quick, quick[SHORT_POLLS:], strict=False):
        if SHORT_POLLS / max(last - first, 0.001) > MOST_POLLS:
            return f"{SHORT_POLLS + 1} long polls within {last - first:.1f} s, each answered at once"
    return None if asked else "there was no long poll"


def first_heartbeat(exchanges: Sequence[Exchange], running: str) -> str | None:
    """The first heartbeat of a process names no rollout, and says what runs."""
    beat = next((exchange.sent() for exchange in exchanges if exchange.path == HEARTBEAT), None)
    if beat is None:
        return "there was no heartbeat"
    if beat.get("rollout_id") is not None:
        return f"the first heartbeat names {beat['rollout_id']}"
    return None if beat.get("current_closure") == running else f"current_closure is {beat.get('current_closure')}"


def events_sent(exchanges: Iterable[Exchange], rollout_id: str, since: float = 0.0) -> list[Event]:
    """The events of a rollout as they were posted, repeats included."""
    posted = (e for e in exchanges if e.path == EVENTS and e.began >= since)
    return [exchange.event() for exchange in posted if exchange.sent().get("rolloutId") == rollout_id]


def log(exchanges: Iterable[Exchange], rollout_id: str) -> list[Event]:
    """The events of a rollout, each once, in the order in which they were first posted."""
    found: dict[str, Event] = {}
    for event in events_sent(exchanges, rollout_id):
        found.setdefault(repr(event.get("seq")), event)
    return list(found.values())


def rollouts(exchanges: Iterable[Exchange]) -> list[str]:
    """The rollouts that events were posted of."""
    posted = (exchange.sent().get("rolloutId") for exchange in exchanges if exchange.path == EVENTS)
    return sorted({rollout_id for rollout_id in posted if isinstance(rollout_id, str)})


def gapless(exchanges: Sequence[Exchange]) -> str | None:
    """Seqs that do not begin at 1, leave one out, or are first sent out of order."""
    for rollout_id in rollouts(exchanges):
        seqs = [event.get("seq") for event in log(exchanges, rollout_id)]
        if seqs != list(range(1, len(seqs) + 1)):
            return f"{rollout_id}: first sent in the order {seqs}"
    return None


def same_bytes(exchanges: Iterable[Exchange]) -> str | None:
    """An event that was sent again with another content: it loses one of both for certain."""
    first: dict[str, bytes] = {}
    for exchange in exchanges:
        if exchange.path == EVENTS:
            which = f"{exchange.sent().get('rolloutId')}: seq {exchange.event().get('seq')}"
            if first.setdefault(which, exchange.body) != exchange.body:
                return f"{which} was sent with two contents"
    return None


def one_in_flight(exchanges: Iterable[Exchange]) -> str | None:
    """Two events of a rollout under way at the same moment: the later one may come first."""
    busy: dict[str, Exchange] = {}
    for exchange in sorted((e for e in exchanges if e.path == EVENTS), key=lambda e: e.began):
        rollout_id = str(exchange.sent().get("rolloutId"))
        before = busy.get(rollout_id)
        if before is not None and exchange.began < before.ended:
            return f"{rollout_id}: {_named(exchange)} was sent before {_named(before)} was answered"
        busy[rollout_id] = exchange
    return None


def signatures_or_none(events: Sequence[Exchange]) -> str | None:
    """An event that is signed by another key than the certificate's is refused by the control plane with 422."""
    bad = (e for e in events if e.path == EVENTS and e.status == 422 and b"ignature is not" in e.answer)
    return next((f"{_named(exchange)}: {exchange.answer.decode(errors='replace')}" for exchange in bad), None)


def in_order(events: Sequence[Event], *kinds: str) -> str | None:
    """These kinds come, in this order; others may come between."""
    have = [str(event.get("kind")) for event in events]
    rest: Iterator[str] = iter(have)
    missing = next((kind for kind in kinds if kind not in rest), None)
    return None if missing is None else f"{missing} is not where it should be in {_shown(have)}"


def without(events: Sequence[Event], *kinds: str) -> str | None:
    """None of these kinds comes."""
    found = next((event for event in events if event.get("kind") in kinds), None)
    return None if found is None else f"{found.get('kind')} came"


def fields(events: Sequence[Event], kind: str, **expected: Any) -> str | None:
    """The first event of a kind has these values, given by the names on the wire; a function judges by itself."""
    event = next((event for event in events if event.get("kind") == kind), None)
    if event is None:
        return f"{kind} never came"
    for name, value in expected.items():
        have = event.get(name)
        if callable(value):
            if not value(have):
                return f"{name} of {kind} is {have!r}"
        elif have != value:
            return f"{name} of {kind} is {have!r}, not {value!r}"
    return None


def probes_declared_first(events: Sequence[Event]) -> str | None:
    """A result of a probe that no topology named before, or a first result that was not announced."""
    declared: set[str] = set()
    observed: set[str] = set()
    for event in events:
        kind, name = event.get("kind"), str(event.get("probeName"))
        if kind == "ProbeTopologyDeclared":
            probes = event.get("probes")
            named = probes if isinstance(probes, list) else []
            declared = {str(probe.get("probeName")) for probe in named if isinstance(probe, Mapping)}
        elif kind == "ProbeObservedFirst":
            observed.add(name)
        elif kind in ("ProbeResult", "ProbeFailureFirst") and name not in declared & observed:
            return f"{kind} of {name} comes before it is declared and observed first"
    return None if declared else "no topology was declared"


def soaked(events: Sequence[Event], until: datetime) -> str | None:
    """Converged before its time."""
    at = next((event.get("convergedAt") for event in events if event.get("kind") == "Converged"), None)
    if at is None:
        return "Converged never came"
    return None if parse_time(at) >= until else f"it converged at {at}, before {until.isoformat()}"


def replayed(again: Sequence[Event], before: Sequence[Event]) -> str | None:
    """``again`` begins at the first event and goes up to the last one, lowest first, the same contents."""
    wanted = {repr(event.get("seq")): event for event in before}
    kept = [event for event in again if repr(event.get("seq")) in wanted]
    seqs = [event.get("seq") for event in kept]
    if seqs[: len(wanted)] != list(range(1, len(wanted) + 1)):
        return f"of seqs 1 to {len(wanted)} came again: {seqs}"
    changed = next((event for event in kept if wanted[repr(event.get("seq"))] != event), None)
    return None if changed is None else f"seq {changed.get('seq')} came again with another content"


def _named(exchange: Exchange) -> str:
    event = exchange.event()
    return f"{event.get('kind')} (seq {event.get('seq')})"


def _shown(kinds: Sequence[str]) -> str:
    """A log without its repeats."""
    kept = [kind for kind, before in zip(kinds, ("", *kinds), strict=False) if kind != before]
    return ", ".join(kept) or "an empty log"
