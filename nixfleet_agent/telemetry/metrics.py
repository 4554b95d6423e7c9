"""The agent's metrics in Prometheus form: counters as they happen, everything else read off the status board."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

import prometheus_client
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from nixfleet_agent import __version__
from nixfleet_agent.state_machine import Mode, ProbeStatus, State
from nixfleet_agent.telemetry.contacts import Contacts
from nixfleet_agent.telemetry.status import JOURNAL_ERROR, StatusBoard
from nixfleet_agent.threads.clock import Clock

PREFIX = "nixfleet_agent"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Upper bounds in seconds; the long poll ends near its 60.
_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 65.0)

#: What workers count on the board, by the counter's name: (help, labels).
COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "transitions": ("State transitions of rollouts", ("before", "after")),
    "events_queued": ("Events made durable for the control plane", ("kind",)),
    "events_sent": ("Events that the control plane has taken", ("kind",)),
    "events_rejected": ("Events that the control plane refused for good", ("kind",)),
    "verification_failures": ("Signed artifacts that were refused", ("reason",)),
    "dispatches": ("Dispatches by what became of them", ("outcome",)),
    "dispatches_refused": ("Dispatches refused for good", ("reason",)),
    "probe_results": ("Results of health probes", ("probe", "status")),
    "worker_restarts": ("Workers that died and were started again", ("worker",)),
    "rollback_failures": ("Attempts to roll back that failed", ()),
    "realise_retries": ("Tries before a switch that failed and are made again", ("reason",)),
    "prefetches": ("Fetches before a turn, by how they ended", ("outcome",)),
    "requests": ("Requests to the control plane", ("endpoint", "outcome")),
}


class Metrics:
    """One registry; several of them do not disturb each other, as tests and `demo` need."""

    def __init__(self, board: StatusBoard, clock: Clock) -> None:
        # A `_created` series beside each histogram would double the exposition and tell nobody anything.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._contacts = Contacts(board, clock)
        self._registry = CollectorRegistry()
        self._registry.register(_BoardCollector(board, clock))
        ProcessCollector(namespace=PREFIX, registry=self._registry)
        self._latency = Histogram(
            f"{PREFIX}_request_duration_seconds",
            "Time that requests to the control plane took",
            ["endpoint"],
            registry=self._registry,
            buckets=_LATENCY_BUCKETS,
        )

    def observe_request(self, endpoint: str, outcome: str, seconds: float) -> None:
        """The observer of ``net.client.ControlPlane``: ``outcome`` is a status code or the kind of a failure."""
        self._latency.labels(endpoint).observe(seconds)
        self._contacts.observe_request(endpoint, outcome, seconds)

    def exposition(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self._registry)


class _BoardCollector(Collector):
    """Turns the board's sections into gauges at the moment of the scrape; a section not yet published gives none."""

    def __init__(self, board: StatusBoard, clock: Clock) -> None:
        self._board = board
        self._clock = clock

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield _gauge("build_info", "The running version", [({"version": __version__}, 1)])
        yield from self._counters()
        yield from self._rollouts()
        yield from self._queue()
        yield from self._certificate()
        yield from self._contacts()
        yield from self._release()
        yield from self._window()
        yield from self._reboot()
        yield from self._next()
        yield _flag("drift", "Whether another closure runs than the rollout left", self._board.get("drift"))
        yield _flag("hold", "Whether an operator holds back new activations", self._board.get("hold"))
        yield _flag("journal_failing", "Whether events can't be made durable", self._board.read(JOURNAL_ERROR))
        yield _flag("trust_failing", "Whether the trust file can't be used", self._board.get("trust_error"))
        if (wait := getattr(self._board.get("poll"), "wait", None)) is not None:
            yield _gauge(
                "poll_wait_seconds", "What long polls ask for; less than configured where they are cut", [({}, wait)]
            )
        quarantined = self._board.get("quarantine")
        if isinstance(quarantined, (list, tuple, dict)):
            yield _gauge("quarantined_closures", "Closures that this host refuses", [({}, len(quarantined))])
        lost = self._board.get("log_lines_lost")
        if isinstance(lost, int):
            yield _counter("log_lines_lost", "Log lines that could not be written", (), [((), lost)])

    def _counters(self) -> Iterator[Metric]:
        values: dict[str, list[tuple[tuple[str, ...], int]]] = {name: [] for name in COUNTERS}
        for (name, given), value in self._board.counters().items():
            values[name].append((tuple(dict(given)[label] for label in COUNTERS[name][1]), value))
        for name, (text, labels) in COUNTERS.items():
            yield _counter(name, text, labels, values[name] if labels else values[name] or [((), 0)])

    def _rollouts(self) -> Iterator[Metric]:
        newest = self._board.rollouts.active
        states = [({"state": str(state)}, int(newest is not None and newest.state is state)) for state in State]
        yield _gauge("rollout_state", "1 for the state of the newest rollout", states)
        if newest is None:
            return
        info = {"rollout_id": newest.rollout_id, "target_closure": newest.target_closure}
        yield _gauge("rollout_info", "The newest rollout", [(info, 1)])
        yield _flag("rollback_owed", "Whether a rollback is under way", newest.rollback_owed)
        rollback = self._board.get("rollback")
        deferred = newest.rollback_owed and isinstance(rollback, dict) and rollback.get("deferred")
        yield _flag("rollback_deferred", "Whether a rollback needs a reboot", deferred)
        probes = [
            ({"probe": name, "mode": str(probe.mode)}, int(probe.status is ProbeStatus.PASS))
            for name, probe in newest.probes.items()
            if probe.mode is not Mode.DISABLED
        ]
        yield _gauge("probe_passing", "Whether a probe's latest result is a pass", probes)

    def _queue(self) -> Iterator[Metric]:
        queue = self._board.get("queue")
        if not isinstance(queue, dict):
            return
        yield _gauge("queue_depth_events", "Events not yet delivered", [({}, queue["queued"])])
        yield _gauge("queue_rejected_events", "Refused events that wait for an operator", [({}, queue["rejected"])])
        oldest = queue.get("oldest")
        age = max(0.0, (self._clock.now() - oldest).total_seconds()) if isinstance(oldest, datetime) else 0.0
        yield _gauge("queue_oldest_age_seconds", "Age of the oldest undelivered event", [({}, age)])

    def _certificate(self) -> Iterator[Metric]:
        not_after = getattr(self._board.get("certificate"), "not_after", None)
        if isinstance(not_after, datetime):
            stamp = not_after.timestamp()
            yield _gauge("certificate_expiry_timestamp_seconds", "When the certificate expires", [({}, stamp)])

    def _release(self) -> Iterator[Metric]:
        release = self._board.get("release")
        signed_at, since = (getattr(release, name, None) for name in ("signed_at", "behind_since"))
        if isinstance(signed_at, datetime):
            stamp = signed_at.timestamp()
            yield _gauge("release_signed_timestamp_seconds", "When CI signed what it has for this host", [({}, stamp)])
            behind = since.timestamp() if isinstance(since, datetime) else 0.0
            text = "Since when CI has a release for this host whose turn has not come; 0 while there is none"
            yield _gauge("release_behind_since_timestamp_seconds", text, [({}, behind)])

    def _window(self) -> Iterator[Metric]:
        maintenance = self._board.get("maintenance")
        if maintenance is None:
            return
        is_open, changes = getattr(maintenance, "open", False), getattr(maintenance, "changes_at", None)
        yield _flag("maintenance_open", "Whether a maintenance window is open", is_open)
        stamp = changes.timestamp() if isinstance(changes, datetime) and not is_open else 0.0
        text = "When the next maintenance window opens; 0 while one is open, or where none does"
        yield _gauge("maintenance_opens_timestamp_seconds", text, [({}, stamp)])

    def _reboot(self) -> Iterator[Metric]:
        waits_for = getattr(self._board.get("reboot"), "waits_for", None)
        yield _flag("reboot_due", "Whether a release or a rollback needs a reboot", waits_for is not None)
        if waits_for is not None:
            rows = [({"reason": str(each)}, int(each is waits_for)) for each in type(waits_for)]
            yield _gauge("reboot_waits_for", "1 for what a reboot that is due waits for", rows)

    def _next(self) -> Iterator[Metric]:
        """The release that comes next; no rows while none does, for then there is nothing to be ready for."""
        coming = self._board.get("next")
        state = getattr(getattr(coming, "state", None), "value", None)
        if state is None:
            return
        fetched = 1.0 if state in ("checking", "ready", "obstructed") else (getattr(coming, "percent", 0) or 0) / 100
        yield _flag("next_ready", "Whether the next release is fetched and nothing is in its way", state == "ready")
        yield _gauge("next_fetched_ratio", "How much of the next release is in the store", [({}, fetched)])

    def _contacts(self) -> Iterator[Metric]:
        contacts = self._board.get("contacts")
        if isinstance(contacts, dict):
            rows = [
                ({"endpoint": endpoint}, contact["answered_at"].timestamp())
                for endpoint, contact in sorted(contacts.items())
                if "answered_at" in contact
            ]
            yield _gauge("last_contact_timestamp_seconds", "When an endpoint last answered", rows)


def _gauge(name: str, text: str, rows: Sequence[tuple[dict[str, str], float]]) -> GaugeMetricFamily:
    labels = list(rows[0][0]) if rows else []
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for row, value in rows:
        family.add_metric(list(row.values()), value)
    return family


def _flag(name: str, text: str, value: object) -> GaugeMetricFamily:
    return _gauge(name, text, [({}, 1 if value else 0)])


def _counter(
    name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], int]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family
