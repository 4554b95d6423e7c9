"""Each proof holds on a disk that is right, and finds each single thing that is not."""

from __future__ import annotations

import json
import tempfile
import unittest
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, cast

from nixfleet_agent import durable
from nixfleet_agent.demo.agents import Host
from nixfleet_agent.demo.balancer import UNDRAIN_HOOK, Balancer
from nixfleet_agent.demo.closures import Release
from nixfleet_agent.demo.fleet import DemoFleet, rollout_id_of
from nixfleet_agent.demo.proofs import PROOFS
from nixfleet_agent.hooks.ledger import Ledger
from nixfleet_agent.hooks.moments import Occasion
from nixfleet_agent.hooks.runner import Ran
from nixfleet_agent.journal.entries import Entry
from nixfleet_agent.local_cp.store import Store
from nixfleet_agent.operator.run_now import FILE_NAME
from nixfleet_agent.proto.ids import file_part
from nixfleet_agent.proto.times import format_time
from tests.demo.stored import AROUND, V1, V2, StoredFleet, StoredPlane

NOON = datetime(2026, 5, 16, 12, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)
ROLLOUT = rollout_id_of("v1")


class OnDisk(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="proofs-")
        self.addCleanup(scratch.cleanup)
        folder = Path(scratch.name)
        self.store = Store(folder / "cp.sqlite")
        self.addCleanup(self.store.close)
        self.host = Host("web-01", folder / "web-01", AROUND)
        self.host.state_dir.mkdir(parents=True)
        self.balancer = Balancer(folder / "balancer")
        releases = {"v1": Release("v1", V1), "v2": Release("v2", V2)}
        plane = StoredPlane(folder / "cp.sqlite")
        self.fleet = StoredFleet(("web-01",), {"web-01": self.host}, releases, plane, self.balancer)

    def prove(self, proof: str) -> list[str]:
        return list(PROOFS[proof](cast(DemoFleet, self.fleet), self.host, "v1"))

    def assert_problem(self, proof: str, said: str) -> None:
        found = self.prove(proof)
        self.assertEqual(len(found), 1, found)
        self.assertIn(said, found[0])

    def events(self, *kinds: tuple[str, Mapping[str, Any]]) -> None:
        folder = self.host.state_dir / "outbound-sent" / file_part(ROLLOUT)
        folder.mkdir(parents=True)
        for seq, (kind, fields) in enumerate(kinds, start=1):
            event = {"kind": kind, "seq": seq, **fields}
            entry = Entry(seq=seq, hostname="web-01", rollout_id=ROLLOUT, kind=kind, created_at=NOON, event=event)
            (folder / entry.name).write_bytes(entry.encode())

    def began(self, at: datetime) -> None:
        self.events(("DispatchAck", {}), ("ActivationStarted", {"startedAt": format_time(at)}))

    def happened(self, *lines: str) -> None:
        self.host.switch_log.write_text("".join(f"{line}\n" for line in lines))


class Window(OnDisk):
    def setUp(self) -> None:
        super().setUp()
        self.host.set_windows(["12:00-13:00"])

    def published(self, at: datetime) -> None:
        self.store.open_rollout(ROLLOUT, "stable", at)

    def test_it_waited_and_began_in_the_window(self) -> None:
        self.published(NOON - MINUTE)
        self.began(NOON + MINUTE)
        self.assertEqual(self.prove("in-window"), [])

    def test_it_began_too_early(self) -> None:
        self.published(NOON - 2 * MINUTE)
        self.began(NOON - MINUTE)
        self.assert_problem("in-window", "outside its windows")

    def test_it_never_began(self) -> None:
        self.published(NOON - MINUTE)
        self.assert_problem("in-window", "began v1 at None")

    def test_there_was_nothing_to_wait_for(self) -> None:
        self.began(NOON + 2 * MINUTE)
        self.published(NOON + MINUTE)
        self.assert_problem("in-window", "no reason to wait")

    def test_without_windows_nothing_waits(self) -> None:
        self.host.set_windows([])
        self.published(NOON - MINUTE)
        self.began(NOON + MINUTE)
        self.assert_problem("in-window", "no reason to wait")

    def test_an_operators_word_is_for_the_rollout_that_used_it(self) -> None:
        self.began(NOON - MINUTE)
        self.assert_problem("by-run-now", "was not let through")
        for used, problems in ((None, 1), ("stable@other", 1), (ROLLOUT, 0)):
            (self.host.state_dir / FILE_NAME).write_text(json.dumps({"usedBy": used}))
            self.assertEqual(len(self.prove("by-run-now")), problems, used)

    def test_in_the_window_no_word_is_needed(self) -> None:
        self.began(NOON + MINUTE)
        (self.host.state_dir / FILE_NAME).write_text(json.dumps({"usedBy": ROLLOUT}))
        self.assert_problem("by-run-now", "not outside its windows")


class Reboot(OnDisk):
    def test_deferred_booted_completed(self) -> None:
        self.events(("ActivationDeferred", {}), ("ActivationCompleted", {}))
        self.happened(f"boot {V1}", f"booted {V1}")
        self.assertEqual(self.prove("rebooted"), [])

    def test_never_deferred_or_never_completed(self) -> None:
        self.happened(f"booted {V1}")
        for kinds in (("ActivationCompleted",), ("ActivationDeferred",), ("ActivationCompleted", "ActivationDeferred")):
            with self.subTest(kinds):
                self.events(*((kind, {}) for kind in kinds))
                self.assert_problem("rebooted", "did not complete v1 after it was deferred")
            for path in self.host.state_dir.rglob("*.json"):
                path.unlink()
            (self.host.state_dir / "outbound-sent" / file_part(ROLLOUT)).rmdir()

    def test_never_booted(self) -> None:
        self.events(("ActivationDeferred", {}), ("ActivationCompleted", {}))
        self.happened(f"switch {V1}", f"booted {V2}")
        self.assert_problem("rebooted", "was never booted into v1")


class Drain(OnDisk):
    def setUp(self) -> None:
        super().setUp()
        self.balancer.add("web-01", self.host.hooks)
        self.noted(0)

    def noted(self, code: int) -> None:
        ledger = Ledger(self.host.state_dir)
        ledger.begin({})
        ledger.note(Occasion("converged", ROLLOUT, 5, V1, None, {}), [Ran(UNDRAIN_HOOK, code, "")])

    def test_out_before_the_switch_and_in_after_it(self) -> None:
        self.happened(f"drain {V1}", f"switch {V1}", f"undrain {V1}", f"switch {V2}")
        self.assertEqual(self.prove("drained"), [])

    def test_a_switch_with_clients_or_none_at_all(self) -> None:
        for lines in (
            (f"switch {V1}", f"drain {V1}", f"undrain {V1}"),
            (f"drain {V1}", f"undrain {V1}", f"switch {V1}"),
            (f"drain {V1}", f"switch {V1}", f"undrain {V1}", f"switch {V1}"),
            (f"drain {V1}",),
        ):
            with self.subTest(lines):
                self.happened(*lines)
                self.assert_problem("drained", "was not out of the load balancer when it was switched")

    def test_it_never_came_back(self) -> None:
        self.happened(f"drain {V1}", f"switch {V1}")
        durable.remove(self.balancer.folder / "web-01")
        self.assert_problem("drained", "does not serve web-01 any more")

    def test_the_hook_failed_by_its_record(self) -> None:
        self.happened(f"drain {V1}", f"switch {V1}", f"undrain {V1}")
        self.noted(1)
        self.assert_problem("drained", "has no record of 10-undrain that ended well")


if __name__ == "__main__":
    unittest.main()
