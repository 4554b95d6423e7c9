"""`why`: each situation has its sentence, with since when, what comes next and what would unblock it."""

from __future__ import annotations

import unittest
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any

from nixfleet_agent.commands.explain import explain
from nixfleet_agent.commands.times import ago, length
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.state_machine import DeclaredProbe, Mode, Policy, ProbeRecord, ProbeStatus, RolloutRecord, State
from nixfleet_agent.telemetry.status import as_json
from tests.support.signing import closure_name

NOW = datetime(2026, 5, 16, 12, 0, tzinfo=timezone.utc)
OLD, NEW = closure_name("old"), closure_name("new")
RECORD = RolloutRecord(
    rollout_id="stable@abc",
    hostname="web-01",
    channel="stable",
    target_closure=NEW,
    dispatched_at=NOW - timedelta(hours=1),
    current_closure_at_dispatch=OLD,
    soak_due_at=NOW + timedelta(minutes=10),
)
WEB = DeclaredProbe(probe_name="web", kind="http", mode=Mode.ENFORCE)
PASS = ProbeRecord(status=ProbeStatus.PASS, mode=Mode.ENFORCE, last_observed_at=NOW)
FAIL = ProbeRecord(
    status=ProbeStatus.FAIL,
    mode=Mode.ENFORCE,
    last_observed_at=NOW,
    failing_since=NOW - timedelta(minutes=1),
    failures_in_row=2,
    failure_reason="status 500",
)


def soaking(**changes: Any) -> RolloutRecord:
    return replace(RECORD, state=State.SOAKING, topology=(WEB,), **changes)


def at(**ago_: float) -> datetime:
    return NOW - timedelta(**ago_)


def reboot(waits_for: str, reason: str, until: datetime | None = None) -> dict[str, Any]:
    """The section of a reboot that is due."""
    return {"waits_for": waits_for, "reason": reason, "until": format_time(until) if until else None}


#: Situation -> (record, other sections, parts of the paragraph).
SITUATIONS: dict[str, tuple[RolloutRecord | None, dict[str, Any], tuple[str, ...]]] = {
    "nothing yet": (None, {}, ("accepted no rollout yet",)),
    "withheld": (
        None,
        {"release": {"rollout_id": "stable@bb", "behind_since": format_time(at(hours=3))}},
        ("CI signed stable@bb for this host 3 h ago; no turn has come", "withholds"),
    ),
    "pending": (RECORD, {}, ("accepted 60 min ago", "about to be activated")),
    "fetching": (
        replace(RECORD, state=State.ACTIVATING, dispatch_acked_at=at(minutes=5)),
        {"activation": {"phase": "realise"}},
        (NEW, "fetched and prepared", "5 min ago", "realise"),
    ),
    "switching": (
        replace(RECORD, state=State.ACTIVATING, activation_started_at=at(minutes=3)),
        {"switching": True},
        ("switched to", "3 min ago"),
    ),
    "deferred": (replace(RECORD, state=State.DEFERRED), {}, ("needs a reboot", "a part of it", "Reboot the host")),
    "deferred until the next window": (
        replace(RECORD, state=State.DEFERRED, deferred_component="kernel"),
        {"reboot": reboot("window", "it reboots in the next maintenance window", NOW + timedelta(hours=3))},
        (
            "stable@abc needs a reboot",
            "kernel can't be replaced",
            "It reboots in the next maintenance window (in 3 h, at ",
            "run-now",
        ),
    ),
    "deferred while users have time": (
        replace(RECORD, state=State.DEFERRED),
        {"reboot": reboot("users", "logged-in users were warned: kim", NOW + timedelta(minutes=4))},
        ("It reboots by itself, but not yet: logged-in users were warned: kim (in 4 min",),
    ),
    "deferred and rebooted in vain": (
        replace(RECORD, state=State.DEFERRED),
        {"reboot": reboot("operator", "it was rebooted for this once already")},
        ("Reboot the host to go on: it was rebooted for this once already.",),
    ),
    "soaking, all well": (
        soaking(probes=MappingProxyType({"web": PASS})),
        {},
        ("soaks for another 10 min", "probes pass"),
    ),
    "soaked, all well": (
        soaking(probes=MappingProxyType({"web": PASS}), soak_due_at=at(minutes=1)),
        {},
        ("within seconds",),
    ),
    "a probe fails": (
        soaking(probes=MappingProxyType({"web": FAIL})),
        {},
        ("can't converge", "web since", "status 500"),
    ),
    "a probe is silent": (soaking(soak_due_at=at(minutes=1)), {}, ("soaked long enough", "first result of: web")),
    "no probes declared": (replace(RECORD, state=State.SOAKING), {}, ("not been declared yet",)),
    "converged": (
        replace(RECORD, state=State.CONVERGED, converged_at=at(hours=3)),
        {},
        ("converged 3 h ago", "next release"),
    ),
    "failed, halt": (
        replace(RECORD, state=State.FAILED, failed_at=at(minutes=9), policy_applied=Policy.HALT),
        {},
        ("failed 9 min ago", "no rollback follows", "halt", "stays as it is"),
    ),
    "failed at a probe": (
        replace(
            RECORD,
            state=State.FAILED,
            failed_at=at(minutes=9),
            policy_applied=Policy.HALT,
            probes=MappingProxyType({"web": FAIL, "watched": replace(FAIL, mode=Mode.OBSERVE)}),
        ),
        {},
        ("failed 9 min ago (probe web: status 500), and no rollback follows",),
    ),
    "failed at its activation": (
        replace(RECORD, state=State.FAILED, failed_at=at(minutes=9), activation_failed_at=at(minutes=9)),
        {},
        ("(its activation did: `nixfleet-agent history` shows where",),
    ),
    "failed, no way back": (
        replace(
            RECORD,
            state=State.FAILED,
            failed_at=at(minutes=9),
            current_closure_at_dispatch=None,
            policy_applied=Policy.ROLLBACK_AND_HALT,
        ),
        {},
        ("no way back is known",),
    ),
    "rolling back": (
        replace(RECORD, state=State.FAILED, failed_at=at(minutes=9), rollback_owed=True),
        {},
        (f"on its way back to {OLD}",),
    ),
    "rollback fails": (
        replace(RECORD, state=State.FAILED, failed_at=at(minutes=9), rollback_owed=True),
        {"rollback": {"failures": 4, "reason": "disk full", "next_try_at": format_time(NOW + timedelta(seconds=40))}},
        ("failed 4 times", "disk full", "tried again in 40 s", "rollback retry"),
    ),
    "rollback stands by": (
        replace(RECORD, state=State.FAILED, failed_at=at(minutes=9), rollback_owed=True),
        {"rollback": {"drift": "a-third-closure"}},
        ("stands by, for an operator has switched this host to a-third-closure", "rollback retry"),
    ),
    "rollback needs a reboot": (
        replace(RECORD, state=State.FAILED, failed_at=at(minutes=9), rollback_owed=True),
        {"rollback": {"deferred": "dbus-implementation", "closure": OLD}},
        (f"its rollback needs a reboot: {OLD} is what boots next", "dbus-implementation can't be replaced", "Reboot"),
    ),
    "soaking without a way back": (
        soaking(current_closure_at_dispatch=None, probes=MappingProxyType({"web": PASS})),
        {},
        ("Nothing is known that ran here before", "no way back"),
    ),
    "rollback given up": (
        replace(RECORD, state=State.FAILED, failed_at=at(minutes=9), rollback_owed=True),
        {"rollback": {"given_up": True}},
        ("gave its rollback up", "takes that back"),
    ),
    "reverted": (
        replace(RECORD, state=State.REVERTED, reverted_at=at(minutes=2), reverted_to=OLD),
        {"quarantine": [{"closure": NEW, "channel": "stable", "since": format_time(at(hours=1))}]},
        (
            "rolled back 2 min ago",
            OLD,
            "needs a new one",
            "refused on stable until",
            f"`nixfleet-agent quarantine clear {NEW.partition('-')[0]}`",
        ),
    ),
    "reverted because of a probe": (
        replace(
            RECORD,
            state=State.REVERTED,
            reverted_at=at(minutes=2),
            reverted_to=OLD,
            probes=MappingProxyType({"web": FAIL}),
        ),
        {},
        ("stable@abc failed (probe web: status 500) and was rolled back 2 min ago",),
    ),
    "a kept Dispatch": (
        None,
        {
            "dispatch": {
                "rollout_id": "edge@ff",
                "received_at": format_time(at(minutes=4)),
                "reason": "stale",
                "next_try_at": format_time(NOW + timedelta(seconds=30)),
            }
        },
        ("edge@ff is kept since 4 min ago: stale", "tried again in 30 s"),
    ),
    "a refused Dispatch": (
        None,
        {
            "refusals": [
                {
                    "at": format_time(at(minutes=4)),
                    "outcome": "refused",
                    "reason": "bad signature",
                    "rollout_id": "edge@ff",
                }
            ]
        },
        ("edge@ff, refused 4 min ago: bad signature",),
    ),
    "a refused Dispatch, and a later one that was kept until it could be taken": (
        RECORD,
        {
            "refusals": [
                {"at": format_time(at(minutes=4)), "outcome": "refused", "reason": "forged", "rollout_id": "edge@ff"},
                {"at": format_time(at(minutes=3)), "outcome": "kept", "reason": "stale", "rollout_id": "edge@ab"},
            ]
        },
        ("edge@ff, refused 4 min ago: forged",),
    ),
    "no maintenance window": (
        None,
        {
            "maintenance": {
                "open": False,
                "changes_at": format_time(NOW + timedelta(hours=3)),
                "windows": ["Sat"],
                "run_now": None,
            }
        },
        ("wait for a maintenance window", "opens in 3 h", "nixfleet-agent run-now"),
    ),
    "no maintenance window, and an operator's word": (
        None,
        {"maintenance": {"open": False, "changes_at": None, "windows": ["Sat"], "run_now": "security fix"}},
        ("need not wait", "security fix"),
    ),
    "a hold": (
        None,
        {"hold": {"reason": "disk swap", "until": format_time(NOW + timedelta(hours=1))}},
        ("holds back new activations", "disk swap", "nixfleet-agent release"),
    ),
    "drift": (RECORD, {"drift": OLD}, ("by hand", OLD, "switch back, or roll out")),
    "a full disk": (RECORD, {"journal_error": "No space left"}, ("can't be made durable", "No space left", "free")),
    "no trust": (
        RECORD,
        {"trust_error": "the trust file /t is not JSON"},
        ("no release is taken: the trust file /t is not JSON.", "read again"),
    ),
    "no certificate": (
        None,
        {"certificate": {"state": "expired", "path": "/c", "failure": "status 403"}},
        ("/c has expired (status 403)", "check"),
    ),
    "no key for it": (
        None,
        {"certificate": {"state": "no_key", "path": "/c", "failure": "can't read /k: Permission denied"}},
        ("client key can't be used", "can't read /k", "/c is of no use without it"),
    ),
    "a certificate that is not renewed": (
        None,
        {"certificate": {"state": "due", "path": "/c", "failure": "renewal answered status 403"}},
        ("No new certificate: renewal answered status 403.",),
    ),
    "something in place of the control plane": (
        None,
        {"foreign": {"/v1/agent/events": "status 200, a page titled 'Sorry'", "/v1/agent/heartbeat": "status 302"}},
        ("in place of the control plane (status 200, a page titled 'Sorry'; status 302)", "control_plane_url"),
    ),
    "long polls that are cut": (
        None,
        {"poll": {"wait": 15.0, "longest": 60.0, "cut_after": 30.0}},
        ("after about 30 s of quiet", "ask for 15 s instead of 60 s"),
    ),
    "long polls that are not cut any more": (
        None,
        {"poll": {"wait": 60.0, "longest": 60.0, "cut_after": 30.0}},
        ("accepted no rollout yet.",),
    ),
    "a silent worker": (None, {"silent_workers": ["probe"]}, ("Worker unresponsive: probe.",)),
    "no control plane": (
        None,
        {
            "contacts": {
                "/v1/agent/dispatch": {"last_outcome": "refused", "answered_at": format_time(at(hours=5))},
                "/v1/enroll": {
                    "last_outcome": "200",
                    "answered_at": format_time(at(hours=9)),
                    "last_at": format_time(at(hours=9)),
                },
            },
            "queue": {"queued": 12},
        },
        ("not answered for 5 h (refused)", "12 events wait"),
    ),
    "never a control plane": (
        None,
        {"contacts": {"/v1/agent/dispatch": {"last_outcome": "dns"}}},
        ("since the agent started", "dns"),
    ),
    "an old event, and nobody knows why": (
        None,
        {"queue": {"queued": 1, "oldest": format_time(at(minutes=20))}},
        ("An event waits to be sent. The oldest is from 20 min ago.",),
    ),
    "refused events": (None, {"queue": {"rejected": 2}}, ("2 events were refused", "queue list")),
    "drift while it soaks": (
        soaking(probes=MappingProxyType({"web": PASS})),
        {"drift": OLD},
        ("by hand", "neither converges nor goes back"),
    ),
    "events that nobody takes": (
        None,
        {
            "contacts": {"/v1/agent/events": {"last_outcome": "500", "answered_at": format_time(NOW)}},
            "queue": {"queued": 3, "trouble": {"a": "status 500"}},
        },
        ("3 events wait", "status 500"),
    ),
}


def snapshot(record: RolloutRecord | None, sections: dict[str, Any]) -> dict[str, Any]:
    return {
        "running": True,
        "host": {"active_id": record.rollout_id if record else None},
        "rollouts": [as_json(record)] if record else [],
        **sections,
    }


class Explain(unittest.TestCase):
    def test_every_situation_has_its_sentence(self) -> None:
        for name, (record, sections, says) in SITUATIONS.items():
            with self.subTest(name):
                text = explain(snapshot(record, sections), NOW, quarantine_hours=24)
                for part in says:
                    self.assertIn(part, text)
                self.assertNotIn("None", text)
                self.assertNotIn("unknown time", text)
                self.assertNotIn("\n", text)

    def test_what_drifted_is_not_said_to_converge(self) -> None:
        for due in (RECORD.soak_due_at, at(minutes=1)):
            record = soaking(probes=MappingProxyType({"web": PASS}), soak_due_at=due)
            text = explain(snapshot(record, {"drift": OLD}), NOW, quarantine_hours=24)
            self.assertNotIn("It converges", text)
            self.assertNotIn("it converges", text)

    def test_every_state_is_covered(self) -> None:
        covered = {record.state for record, _, _ in SITUATIONS.values() if record is not None}
        self.assertEqual(covered, set(State))

    def test_an_agent_that_does_not_run(self) -> None:
        text = explain({"running": False, "not_running": "no agent answers"}, NOW, quarantine_hours=24)
        self.assertIn("does not run (no agent answers)", text)
        self.assertIn("systemctl start nixfleet-agent", text)

    def test_an_agent_that_runs_and_says_nothing_is_not_one_to_start(self) -> None:
        silent = {"running": False, "not_running": "timed out", "holder_pid": 4711}
        text = explain(silent, NOW, quarantine_hours=24)
        self.assertIn("(pid 4711) runs and does not answer (timed out)", text)
        self.assertIn("kill -USR1 4711", text)
        self.assertNotIn("systemctl start", text)

    def test_quarantine_that_is_over_is_not_mentioned(self) -> None:
        record, sections, _ = SITUATIONS["reverted"]
        self.assertNotIn("quarantine clear", explain(snapshot(record, sections), NOW, quarantine_hours=0.5))


class Lengths(unittest.TestCase):
    def test_two_units_at_most(self) -> None:
        for seconds, text in ((-5, "0 s"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"),
                              (7260, "2 h 1 min"), (172799, "47 h 59 min"), (172800, "2 days")):  # fmt: skip
            self.assertEqual(length(seconds), text)
        self.assertEqual(ago(NOW + timedelta(minutes=5), NOW), "in 5 min")
        self.assertEqual(ago(NOW, NOW), "0 s ago")


if __name__ == "__main__":
    unittest.main()
