"""The verdict finds what is wrong: each test breaks one thing on a disk or in a database that is otherwise right."""

from __future__ import annotations

import tempfile
import unittest
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import cast

from nixfleet_agent.demo.agents import Host
from nixfleet_agent.demo.balancer import Balancer
from nixfleet_agent.demo.closures import Release
from nixfleet_agent.demo.fleet import DemoFleet, rollout_id_of
from nixfleet_agent.demo.scenario import End, Scenario
from nixfleet_agent.demo.verdict import problems
from nixfleet_agent.journal.chain_check import GAP, GOOD, Standing
from nixfleet_agent.journal.entries import Entry
from nixfleet_agent.local_cp.store import Store
from nixfleet_agent.proto.ids import file_part
from nixfleet_agent.state_machine import RolloutRecord, State
from tests.demo.stored import AROUND, V1, V2, StoredFleet, StoredPlane

NOW = datetime(2026, 5, 16, 1, 30, tzinfo=timezone.utc)


class Verdict(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="verdict-")
        self.addCleanup(scratch.cleanup)
        folder = Path(scratch.name)
        self.store = Store(folder / "cp.sqlite")
        self.addCleanup(self.store.close)
        self.host = Host("web-01", folder / "web-01", AROUND)
        releases = {"v1": Release("v1", V1), "v2": Release("v2", V2)}
        self.fleet = StoredFleet(
            ("web-01",),
            {"web-01": self.host},
            releases,
            StoredPlane(folder / "cp.sqlite"),
            Balancer(folder / "balancer"),
        )
        self.runs(V1)
        self.boots(V1)
        self.profile(V1)
        self.record("v1", State.CONVERGED, 3)
        for seq in (1, 2, 3):
            self.took("v1", seq)
            self.delivered("v1", seq)

    def runs(self, closure: str) -> None:
        self.link(self.host.current_system, f"/nix/store/{closure}")

    def boots(self, closure: str) -> None:
        self.host.boot_entry.write_text(f"{closure}\n")

    def profile(self, closure: str) -> None:
        self.link(self.host.profile, "system-1-link")
        self.link(self.host.profile.parent / "system-1-link", f"/nix/store/{closure}")

    def link(self, path: Path, target: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    def record(self, version: str, state: State, seq: int) -> None:
        record = RolloutRecord(
            rollout_id=rollout_id_of(version),
            hostname="web-01",
            channel="stable",
            target_closure=V1,
            dispatched_at=NOW,
            soak_due_at=NOW,
            state=state,
            last_event_seq=seq,
        )
        self.store.save_record(record)

    def took(self, version: str, seq: int, secs: int | None = None) -> None:
        at = NOW + timedelta(seconds=seq if secs is None else secs)
        self.store.append_event("web-01", rollout_id_of(version), {"seq": seq, "kind": "ProbeResult"}, None, at)
        self.linked(version, seq, GOOD)

    def linked(self, version: str, seq: int, verdict: str) -> None:
        envelope = {"hostname": "web-01", "rolloutId": rollout_id_of(version), "event": {"seq": seq}}
        self.store.append_link(envelope, verdict, Standing("0" * 64))

    def delivered(self, version: str, seq: int) -> None:
        folder = self.host.state_dir / "outbound-sent" / file_part(rollout_id_of(version))
        folder.mkdir(parents=True, exist_ok=True)
        kind, rollout_id = "ProbeResult", rollout_id_of(version)
        event = {"kind": kind, "seq": seq}
        entry = Entry(seq=seq, hostname="web-01", rollout_id=rollout_id, kind=kind, created_at=NOW, event=event)
        (folder / entry.name).write_bytes(entry.encode())

    def judge(self, runs: str = "v1", **rollouts: str) -> list[str]:
        scenario = Scenario("t", "t", 1, ("v0", "v1"), frozenset(), 1.0, None, (), (End("all", runs, rollouts),))
        return problems(cast(DemoFleet, self.fleet), scenario)

    def assert_problem(self, found: list[str], said: str) -> None:
        self.assertEqual(len(found), 1, found)
        self.assertIn(said, found[0])

    def test_what_is_right_is_right(self) -> None:
        self.assertEqual(self.judge(v1="Converged", v2="none"), [])

    def test_another_system_runs(self) -> None:
        self.runs(V2)
        self.assert_problem(self.judge(v1="Converged"), f"web-01 runs {V2}, not {V1} (v1)")

    def test_another_system_would_boot(self) -> None:
        self.boots(V2)
        self.assert_problem(self.judge(v1="Converged"), f"web-01 would boot {V2}")

    def test_another_system_is_in_the_profile(self) -> None:
        self.profile(V2)
        self.assert_problem(self.judge(v1="Converged"), f"web-01 has {V2} in its profile")

    def test_nothing_would_boot(self) -> None:
        self.host.boot_entry.unlink()
        self.assert_problem(self.judge(v1="Converged"), "web-01 would boot None")

    def test_an_event_was_never_delivered(self) -> None:
        queue = self.host.state_dir / "outbound-queue"
        queue.mkdir(parents=True)
        (queue / "4.json").write_text("{}")
        self.assert_problem(self.judge(v1="Converged"), "undelivered events: 4.json")

    def test_the_control_plane_concludes_something_else(self) -> None:
        self.record("v1", State.FAILED, 3)
        self.assert_problem(self.judge(v1="Converged"), "has web-01 in v1 as Failed, not Converged")

    def test_an_event_is_missing_in_the_log(self) -> None:
        self.store.run("DELETE FROM events WHERE seq = 2")
        self.assert_problem(self.judge(v1="Converged"), "sent [1, 2, 3] of v1, the control plane took [1, 3]")

    def test_events_came_out_of_order(self) -> None:
        self.took("v1", 4, secs=0)
        self.delivered("v1", 4)
        self.assert_problem(self.judge(v1="Converged"), "took [4, 1, 2, 3]")

    def test_the_control_plane_has_more_than_was_sent(self) -> None:
        self.took("v1", 4)
        self.assert_problem(self.judge(v1="Converged"), "sent [1, 2, 3] of v1, the control plane took [1, 2, 3, 4]")

    def test_an_event_does_not_follow_the_one_before_it(self) -> None:
        self.store.run("DELETE FROM links WHERE seq = 2")
        self.assert_problem(self.judge(v1="Converged"), "do not follow one another: {2: None}")
        self.linked("v1", 2, GAP)
        self.assert_problem(self.judge(v1="Converged"), "do not follow one another: {2: 'gap'}")

    def test_a_host_got_what_it_should_never_have_been_given(self) -> None:
        self.record("v2", State.PENDING, 0)
        self.assert_problem(self.judge(v1="Converged", v2="none"), "in v2 as Pending, not none")

    def test_what_an_end_says_is_proven_is_looked_for(self) -> None:
        end = End("all", "v1", {"v1": "Converged"}, {"rebooted": ["v1"]})
        scenario = Scenario("t", "t", 1, ("v0", "v1"), frozenset(), 1.0, None, (), (end,))
        self.host.switch_log.write_text("")
        found = problems(cast(DemoFleet, self.fleet), scenario)
        self.assertIn("web-01 was never booted into v1", found)


if __name__ == "__main__":
    unittest.main()
