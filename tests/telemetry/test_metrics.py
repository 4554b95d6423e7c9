"""Metrics: what is exposed, under which names, and over which doors."""

from __future__ import annotations

import ast
import contextlib
import http.client
import re
import socket
import tempfile
import threading
import time
import unittest
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType

from prometheus_client.parser import text_string_to_metric_families

from nixfleet_agent.operator.maintenance import MaintenanceStatus
from nixfleet_agent.prefetch import decision
from nixfleet_agent.prefetch.status import NextStatus
from nixfleet_agent.reboots.decision import FORWARD, Due, Waiting, WaitsFor, status_of
from nixfleet_agent.runtime.dispatch.window import PollWindow
from nixfleet_agent.runtime.release import ReleaseStatus
from nixfleet_agent.state_machine import Mode, ProbeStatus, RolloutRecord, State
from nixfleet_agent.state_machine.record import ProbeRecord
from nixfleet_agent.telemetry.listener import CALL_DEADLINE, MAX_CALLERS, OPEN_AGAIN
from nixfleet_agent.telemetry.metrics import COUNTERS, Metrics
from nixfleet_agent.telemetry.metrics_server import MetricsServerWorker, MetricsTextfileWorker
from nixfleet_agent.telemetry.status import RolloutsView, StatusBoard
from nixfleet_agent.threads.clock import SystemClock
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.support.clock import EPOCH as START
from tests.support.clock import PATIENCE, FakeClock

PACKAGE = Path(__file__).resolve().parents[2] / "nixfleet_agent"


@dataclass(frozen=True)
class Certificate:
    not_after: datetime


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = FakeClock()
        self.board = StatusBoard()
        self.metrics = Metrics(self.board, self.clock)

    def samples(self) -> dict[str, float]:
        """name{label="value",...} -> value, parsed as Prometheus would."""
        found = {}
        for family in text_string_to_metric_families(self.metrics.exposition().decode()):
            for sample in family.samples:
                labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found


class Exposition(Case):
    def test_what_long_polls_ask_for_is_a_gauge(self) -> None:
        self.assertNotIn("nixfleet_agent_poll_wait_seconds", self.samples())
        self.board.publish("poll", PollWindow.of(60.0))
        self.assertEqual(60.0, self.samples()["nixfleet_agent_poll_wait_seconds"])

    def test_every_name_has_the_prefix_and_every_counter_is_there_from_the_start(self) -> None:
        text = self.metrics.exposition().decode()
        names = re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE)
        self.assertEqual([name for name in names if not name.startswith("nixfleet_agent_")], [])
        self.assertEqual(len(names), len(set(names)))
        for counter in COUNTERS:
            self.assertIn(f"nixfleet_agent_{counter}_total", names)
        self.assertNotIn("_created", text)

    def test_the_newest_rollout(self) -> None:
        probes = {
            "web": ProbeRecord(status=ProbeStatus.PASS, mode=Mode.ENFORCE, last_observed_at=START),
            "db": ProbeRecord(status=ProbeStatus.FAIL, mode=Mode.OBSERVE, last_observed_at=START),
        }
        old = RolloutRecord(
            rollout_id="stable@aa", hostname="h", channel="stable", target_closure="x", dispatched_at=START
        )
        new = RolloutRecord(
            rollout_id="stable@bb", hostname="h", channel="stable", target_closure="y", dispatched_at=START,
            state=State.SOAKING, probes=MappingProxyType(probes),
        )  # fmt: skip
        self.board.publish_rollouts(RolloutsView("stable@bb", True, "y", "y", records=(old, new)))
        samples = self.samples()
        self.assertEqual(samples['nixfleet_agent_rollout_state{state="Soaking"}'], 1)
        self.assertEqual(sum(v for k, v in samples.items() if k.startswith("nixfleet_agent_rollout_state{")), 1)
        self.assertEqual(samples['nixfleet_agent_rollout_info{rollout_id="stable@bb",target_closure="y"}'], 1)
        self.assertEqual(samples['nixfleet_agent_probe_passing{mode="enforce",probe="web"}'], 1)
        self.assertEqual(samples['nixfleet_agent_probe_passing{mode="observe",probe="db"}'], 0)
        self.assertEqual(samples["nixfleet_agent_rollback_owed"], 0)

    def test_a_rollback_that_needs_a_reboot_is_told_apart_from_one_that_fails(self) -> None:
        record = RolloutRecord(
            rollout_id="stable@bb", hostname="h", channel="stable", target_closure="y", dispatched_at=START,
            state=State.FAILED, rollback_owed=True,
        )  # fmt: skip
        self.board.publish_rollouts(RolloutsView("stable@bb", True, "y", "y", records=(record,)))
        for shown, value in (({"deferred": "dbus", "closure": "x"}, 1), ({"failures": 3}, 0), (None, 0)):
            self.board.publish("rollback", shown)
            self.assertEqual(self.samples()["nixfleet_agent_rollback_deferred"], value)

    def test_the_queue_grows_older_without_anybody_publishing(self) -> None:
        self.board.publish("queue", {"queued": 7, "rejected": 2, "oldest": START, "trouble": {}})
        self.clock.advance(90)
        samples = self.samples()
        self.assertEqual(samples["nixfleet_agent_queue_depth_events"], 7)
        self.assertEqual(samples["nixfleet_agent_queue_rejected_events"], 2)
        self.assertEqual(samples["nixfleet_agent_queue_oldest_age_seconds"], 90)

    def test_flags_certificate_and_counters(self) -> None:
        self.board.publish("drift", "some-closure")
        self.board.provide("hold", lambda: {"reason": "x"})
        self.board.provide("trust_error", lambda: "it is not JSON")
        self.board.publish("certificate", Certificate(START + timedelta(days=1)))
        self.board.provide("quarantine", lambda: [1, 2])
        self.board.count("worker_restarts", worker="longpoll")
        self.board.count("worker_restarts", worker="longpoll")
        self.board.count("transitions", before="Soaking", after="Converged")
        samples = self.samples()
        self.assertEqual(samples["nixfleet_agent_drift"], 1)
        self.assertEqual(samples["nixfleet_agent_hold"], 1)
        self.assertEqual(samples["nixfleet_agent_journal_failing"], 0)
        self.assertEqual(samples["nixfleet_agent_trust_failing"], 1)
        self.assertEqual(samples["nixfleet_agent_quarantined_closures"], 2)
        self.assertEqual(samples["nixfleet_agent_certificate_expiry_timestamp_seconds"], START.timestamp() + 86400)
        self.assertEqual(samples['nixfleet_agent_worker_restarts_total{worker="longpoll"}'], 2)
        self.assertEqual(samples['nixfleet_agent_transitions_total{after="Converged",before="Soaking"}'], 1)

    def test_the_next_maintenance_window(self) -> None:
        flag, opens = "nixfleet_agent_maintenance_open", "nixfleet_agent_maintenance_opens_timestamp_seconds"
        self.board.provide("maintenance", lambda: None)
        self.assertFalse({flag, opens} & set(self.samples()), "no windows are configured")
        changes = START + timedelta(hours=3)
        for is_open, at, stamp in ((False, changes, changes.timestamp()), (True, changes, 0), (False, None, 0)):
            status = MaintenanceStatus(is_open, at, ("Sat",), None)
            self.board.provide("maintenance", lambda status=status: status)
            samples = self.samples()
            self.assertEqual((samples[flag], samples[opens]), (is_open, stamp))

    def test_a_reboot_that_is_due_and_what_it_waits_for(self) -> None:
        self.assertEqual(self.samples()["nixfleet_agent_reboot_due"], 0)
        due = Due("stable@aa", FORWARD, "x", "kernel", START)
        self.board.publish("reboot", status_of(due, "now", Waiting(WaitsFor.USERS, "kim was warned")))
        samples = self.samples()
        self.assertEqual(samples["nixfleet_agent_reboot_due"], 1)
        waits = {name: value for name, value in samples.items() if "reboot_waits_for" in name}
        self.assertEqual(len(waits), len(WaitsFor))
        self.assertEqual(waits.pop('nixfleet_agent_reboot_waits_for{reason="users"}'), 1)
        self.assertEqual(set(waits.values()), {0})
        self.board.publish("reboot", None)
        self.assertEqual(self.samples()["nixfleet_agent_reboot_due"], 0)

    def test_a_release_whose_turn_has_not_come(self) -> None:
        signed, since = (
            "nixfleet_agent_release_signed_timestamp_seconds",
            "nixfleet_agent_release_behind_since_timestamp_seconds",
        )
        self.board.provide("release", lambda: None)
        self.assertFalse({signed, since} & set(self.samples()))
        for behind in (None, START - timedelta(hours=3)):
            status = ReleaseStatus("stable@bb", "y", START, behind)
            self.board.provide("release", lambda status=status: status)
            samples = self.samples()
            self.assertEqual(samples[signed], START.timestamp())
            self.assertEqual(samples[since], behind.timestamp() if behind else 0)

    def test_the_release_that_comes_next(self) -> None:
        ready, ratio = "nixfleet_agent_next_ready", "nixfleet_agent_next_fetched_ratio"
        self.assertFalse({ready, ratio} & set(self.samples()))
        for state, percent, values in (
            (decision.State.WAITING, None, (0, 0)),
            (decision.State.FETCHING, 73, (0, 0.73)),
            (decision.State.OBSTRUCTED, None, (0, 1)),
            (decision.State.READY, None, (1, 1)),
        ):
            self.board.publish("next", NextStatus("stable@bb", "y", state, percent=percent))
            samples = self.samples()
            self.assertEqual((samples[ready], samples[ratio]), values, state)

    def test_requests_by_endpoint_and_the_last_contact(self) -> None:
        self.metrics.observe_request("/v1/agent/events", "204", 0.02)
        self.clock.advance(60)
        self.metrics.observe_request("/v1/agent/events", "timeout", 10.0)
        samples = self.samples()
        events = 'endpoint="/v1/agent/events"'
        self.assertEqual(samples[f'nixfleet_agent_requests_total{{{events},outcome="204"}}'], 1)
        self.assertEqual(samples[f'nixfleet_agent_requests_total{{{events},outcome="timeout"}}'], 1)
        self.assertEqual(samples[f"nixfleet_agent_request_duration_seconds_count{{{events}}}"], 2)
        self.assertEqual(samples[f'nixfleet_agent_request_duration_seconds_bucket{{{events},le="0.025"}}'], 1)
        self.assertEqual(samples[f"nixfleet_agent_last_contact_timestamp_seconds{{{events}}}"], START.timestamp())
        self.assertEqual(self.board.snapshot()["contacts"]["/v1/agent/events"]["last_outcome"], "timeout")

    def test_a_hostile_label_cannot_add_a_metric(self) -> None:
        self.board.count("dispatches_refused", reason='x"} 1\nnixfleet_agent_drift 0\n#')
        self.board.publish("drift", "y")
        self.assertEqual(self.samples()["nixfleet_agent_drift"], 1)


class Counted(unittest.TestCase):
    def test_what_the_code_counts_is_what_is_exposed(self) -> None:
        """A counter that nobody declared would be found by the first scrape on a production host."""
        for path in PACKAGE.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr == "count"
                    and node.args
                    and isinstance(node.args[0], ast.Constant)
                    and isinstance(node.func.value, (ast.Attribute, ast.Name))
                    and "board" in ast.unparse(node.func.value)
                ):
                    with self.subTest(f"{path.name}:{node.lineno}"):
                        name = node.args[0].value
                        self.assertIn(name, COUNTERS)
                        given = {keyword.arg for keyword in node.keywords} - {"by"}
                        self.assertEqual(given, set(COUNTERS[name][1]))


class Http(Case):
    @contextlib.contextmanager
    def serving(self, problems: list[str]) -> Iterator[int]:
        clock = SystemClock()
        shutdown = ShutdownToken(clock)
        worker = MetricsServerWorker(shutdown, clock, ("127.0.0.1", 0), self.metrics, lambda: problems)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            self.assertTrue(worker.listening.wait(30))
            yield worker.port
        finally:
            shutdown.set()
            thread.join(30)
            self.assertFalse(thread.is_alive())

    def get(self, port: int, path: str, method: str = "GET") -> tuple[int, str, str]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read().decode()

    def test_metrics_and_health(self) -> None:
        problems: list[str] = []
        with self.serving(problems) as port:
            status, kind, body = self.get(port, "/metrics")
            self.assertEqual((status, kind), (200, "text/plain; version=0.0.4; charset=utf-8"))
            self.assertIn("nixfleet_agent_build_info", body)
            self.assertEqual(self.get(port, "/healthz")[::2], (200, "ok\n"))
            problems.append("longpoll has been silent for 300 s")
            self.assertEqual(self.get(port, "/healthz")[::2], (503, "longpoll has been silent for 300 s\n"))

    def test_a_port_that_another_program_has_is_one_line_and_is_taken_when_it_is_free(self) -> None:
        taken = socket.create_server(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        shutdown = ShutdownToken(self.clock)
        worker = MetricsServerWorker(shutdown, self.clock, ("127.0.0.1", port), self.metrics, list)
        thread = threading.Thread(target=worker.run)
        with self.assertLogs("nixfleet_agent.metrics_server", "ERROR") as heard:
            thread.start()
            for _ in range(2):
                self.clock.until_waiting(1)
                self.clock.advance(OPEN_AGAIN)
            self.clock.until_waiting(1)
            taken.close()
            self.clock.advance(OPEN_AGAIN)
            self.assertTrue(worker.listening.wait(30))
        self.assertEqual(self.get(port, "/healthz")[0], 200)
        shutdown.set()
        thread.join(30)
        said = (
            f"can't listen on 127.0.0.1 port {port} (metrics.listen): Address already in use; trying again every 15 s"
        )
        self.assertEqual([record.getMessage() for record in heard.records], [said])

    def test_an_address_that_this_host_has_not_does_not_hold_the_shutdown_up(self) -> None:
        shutdown = ShutdownToken(self.clock)
        worker = MetricsServerWorker(shutdown, self.clock, ("192.0.2.1", 1), self.metrics, list)
        thread = threading.Thread(target=worker.run)
        with self.assertLogs("nixfleet_agent.metrics_server", "ERROR") as heard:
            thread.start()
            self.clock.until_waiting(1)
            shutdown.set()
            thread.join(30)
        self.assertFalse(thread.is_alive())
        self.assertIn("Cannot assign requested address; trying again", heard.records[0].getMessage())

    def test_scrapers_that_hang_cost_the_others_nothing(self) -> None:
        with self.serving([]) as port, contextlib.ExitStack() as hung:
            for number in range(MAX_CALLERS + 4):
                caller = hung.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
                # Half of them never ask to the end, half never read what they asked for.
                caller.sendall(b"GET /metrics HTTP/1.1\r\n" if number % 2 else b"GET /metrics HTTP/1.1\r\n\r\n")
            began = time.monotonic()
            for _ in range(5):
                self.assertEqual(self.get(port, "/healthz")[0], 200)
            self.assertLess(time.monotonic() - began, CALL_DEADLINE)

    def test_one_more_than_it_serves_ends_the_oldest_call_and_not_the_newest(self) -> None:
        with self.serving([]) as port, contextlib.ExitStack() as hung:
            calls = [
                hung.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE)) for _ in range(MAX_CALLERS)
            ]
            self.assertEqual(self.get(port, "/healthz")[0], 200)
            began = time.monotonic()
            self.assertEqual(calls[0].recv(1), b"")
            self.assertLess(time.monotonic() - began, CALL_DEADLINE / 2)

    def test_anything_else_is_refused(self) -> None:
        with self.serving([]) as port:
            self.assertEqual(self.get(port, "/")[0], 404)
            self.assertEqual(self.get(port, "/metrics", "POST")[0], 405)
            self.assertEqual(self.get(port, "/metrics", "HEAD")[::2], (200, ""))
            for garbage in (
                b"\r\n\r\n",
                b"GET\r\n\r\n",
                b"\x16\x03\x01\x00\r\n\r\n",
                b"A" * 16_400,
                b"GET / HTTP/3\r\n\r\n",
            ):
                with self.subTest(garbage[:8]), socket.create_connection(("127.0.0.1", port), 5) as caller:
                    caller.sendall(garbage)
                    self.assertTrue(caller.recv(100).startswith(b"HTTP/1.1 400 "))


class Textfile(Case):
    def test_it_is_readable_by_the_collector_and_leaves_no_part(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "nixfleet-agent.prom"
            MetricsTextfileWorker(ShutdownToken(self.clock), self.clock, path, self.metrics).write()
            self.assertEqual(path.stat().st_mode & 0o777, 0o644)
            self.assertIn("nixfleet_agent_drift 0.0", path.read_text())
            self.assertEqual(list(Path(folder).iterdir()), [path])

    def test_a_folder_that_is_not_there_is_said_once(self) -> None:
        worker = MetricsTextfileWorker(ShutdownToken(self.clock), self.clock, Path("/nowhere/m.prom"), self.metrics)
        with self.assertLogs("nixfleet_agent.metrics_textfile", "WARNING") as heard:
            worker.write()
            worker.write()
        self.assertEqual(len(heard.records), 1)


if __name__ == "__main__":
    unittest.main()
