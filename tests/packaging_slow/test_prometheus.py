"""Prometheus' own word on what the agent exposes, on when alerts fire, and on the dashboard's queries."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from tests.packaging.exposition import full_exposition

TOP = Path(__file__).resolve().parents[2]
RULES = TOP / "packaging" / "prometheus" / "nixfleet-agent.rules.yml"
DASHBOARD = TOP / "packaging" / "grafana" / "nixfleet-agent.json"
#: Beside the other tools that tests need; promtool alone, of a package that would start a server.
CACHE = TOP / ".venv" / "tools"
HEARTBEAT = '{endpoint="/v1/agent/heartbeat"}'

BUILD = 'build_info{instance="a"}'
STARTED, TOUCHED = "process_start_time_seconds", 'node_textfile_mtime_seconds{file="/t/nixfleet-agent.prom"}'

#: Alert -> (time of the look, series that fire it, series that don't); one value a minute, in promtool's notation.
ALERTS: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "NixfleetAgentGone": ("40m", {BUILD: "1x20"}, {BUILD: "1x60", TOUCHED: "0+60x60"}),
    "NixfleetRollbackOwed": ("20m", {"rollback_owed": "1x30"}, {"rollback_owed": "0x10 1x5 0x20"}),
    "NixfleetReleaseFailed": (
        "2m",
        {'rollout_state{state="Reverted"}': "1x5"},
        {'rollout_state{state="Reverted"}': "0x5", 'rollout_state{state="Soaking"}': "1x5"},
    ),
    "NixfleetDispatchRefused": (
        "90m",
        {'dispatches_refused_total{reason="bad_signature"}': "_x70 1x30"},
        {'dispatches_refused_total{reason="bad_signature"}': "1x100"},
    ),
    "NixfleetVerificationFails": (
        "60m",
        {'verification_failures_total{reason="stale"}': "0+1x70"},
        {'verification_failures_total{reason="stale"}': "0x10 5x60"},
    ),
    "NixfleetNoContact": (
        "30m",
        {f"last_contact_timestamp_seconds{HEARTBEAT}": "0x40"},
        {f"last_contact_timestamp_seconds{HEARTBEAT}": "0+60x40"},
    ),
    "NixfleetReleaseWithheld": (
        "25h",
        {"release_behind_since_timestamp_seconds": "60x1600"},
        {
            'release_behind_since_timestamp_seconds{instance="a"}': "0x1600",
            "release_behind_since_timestamp_seconds": "60x1000 0x600",
        },
    ),
    "NixfleetQueueOld": ("2m", {"queue_oldest_age_seconds": "3700x5"}, {"queue_oldest_age_seconds": "600x5"}),
    "NixfleetEventsRejected": ("2m", {"queue_rejected_events": "1x5"}, {"queue_rejected_events": "0x5"}),
    "NixfleetJournalFailing": ("5m", {"journal_failing": "1x9"}, {"journal_failing": "0x3 1x1 0x5"}),
    "NixfleetTrustFailing": ("10m", {"trust_failing": "1x20"}, {"trust_failing": "0x3 1x3 0x20"}),
    "NixfleetCertificateExpires": (
        "2m",
        {"certificate_expiry_timestamp_seconds": "250000x5"},
        {"certificate_expiry_timestamp_seconds": "300000x5"},
    ),
    "NixfleetDrift": ("40m", {"drift": "1x50"}, {"drift": "1x20 0x30"}),
    "NixfleetHeld": ("25h", {"hold": "1x1600"}, {"hold": "1x600 0x1000"}),
    "NixfleetWorkerRestarts": (
        "60m",
        {'worker_restarts_total{worker="probe"}': "0x10 0+1x60"},
        {'worker_restarts_total{worker="probe"}': "0x10 1x60"},
    ),
    "NixfleetDeferred": (
        "25h",
        {'rollout_state{state="Deferred"}': "1x1600"},
        {'rollout_state{state="Deferred"}': "1x600 0x1000"},
    ),
}
#: More of the same, where an alert has several ways to fire.
MORE: list[tuple[str, str, dict[str, str], dict[str, str]]] = [
    (
        "NixfleetAgentGone",
        "40m",
        {BUILD: "1x60", TOUCHED: "0x60"},
        {'build_info{instance="a",version="1"}': "1x20", 'build_info{instance="a",version="2"}': "_x20 1x40"},
    ),
    (
        "NixfleetNoContact",
        "40m",
        {STARTED: "0x60"},
        {STARTED: "0x60", f"last_contact_timestamp_seconds{HEARTBEAT}": "0+60x60"},
    ),
]


def find_promtool() -> str:
    """promtool from the path, or out of Debian's package; raises SkipTest with the reason where there is neither."""
    if found := shutil.which("promtool"):
        return found
    kept = CACHE / "promtool"
    if kept.exists():
        return str(kept)
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise unittest.SkipTest("promtool is not here, and neither is apt-get to fetch it: install prometheus")
    said = ""
    with tempfile.TemporaryDirectory() as folder:
        # A package of its own since Debian 13, and part of the server's before.
        for package in ("promtool", "prometheus"):
            command = ["apt-get", "download", package]
            ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
            said += ran.stderr.strip()[-200:]
            for archive in Path(folder).glob(f"{package}_*.deb"):
                subprocess.run(["dpkg-deb", "--extract", str(archive), f"{folder}/root"], timeout=120, check=True)
            if (program := Path(folder, "root/usr/bin/promtool")).exists():
                CACHE.mkdir(parents=True, exist_ok=True)
                shutil.move(program, kept)
                return str(kept)
    raise unittest.SkipTest(f"promtool is not here, and apt-get can't fetch it: {said}")


def series_name(words: str) -> str:
    """The metric with its labels; all but those of node-exporter are the agent's."""
    return words if words.startswith("node_") else f"nixfleet_agent_{words}"


class Prometheus(unittest.TestCase):
    promtool: str

    @classmethod
    def setUpClass(cls) -> None:
        cls.promtool = find_promtool()

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def passes(self, *arguments: str, given: str = "") -> None:
        ran = subprocess.run(
            [self.promtool, *arguments], input=given, capture_output=True, text=True, timeout=300, check=False
        )
        self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)

    def test_the_rules_are_sound(self) -> None:
        self.passes("check", "rules", str(RULES))

    def test_what_the_agent_exposes_follows_the_conventions(self) -> None:
        self.passes("check", "metrics", given=full_exposition())

    def test_each_alert_fires_when_it_should_and_only_then(self) -> None:
        alerts = re.findall(r"^ +- alert: (\w+)$", RULES.read_text(), re.MULTILINE)
        self.assertEqual(sorted(alerts), sorted(ALERTS))
        cases = []
        for name, at, fires, quiet in [*((name, *case) for name, case in ALERTS.items()), *MORE]:
            expr = f'count(ALERTS{{alertname="{name}", alertstate="firing"}})'
            for series, expected in ((fires, [{"labels": "{}", "value": 1}]), (quiet, [])):
                given = [{"series": series_name(words), "values": values} for words, values in series.items()]
                look = {"expr": expr, "eval_time": at, "exp_samples": expected}
                cases.append({"interval": "1m", "input_series": given, "promql_expr_test": [look]})
        # JSON is YAML.
        file = self.folder / "cases.yml"
        file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": cases}))
        self.passes("test", "rules", str(file))

    def test_the_dashboards_queries_are_sound(self) -> None:
        panels = json.loads(DASHBOARD.read_text())["panels"]
        queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
        self.assertGreater(len(queries), 20)
        rules = [{"record": f"query_{number}", "expr": expr} for number, expr in enumerate(queries)]
        file = self.folder / "queries.yml"
        file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
        self.passes("check", "rules", str(file))


if __name__ == "__main__":
    unittest.main()
