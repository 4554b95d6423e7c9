"""What a prefetch leaves alone, what it holds, and what can go wrong with it."""

from __future__ import annotations

import os
import unittest
from pathlib import Path
from unittest import mock

from nixfleet_agent.operator.quarantine import Entry
from nixfleet_agent.prefetch import oversight
from nixfleet_agent.prefetch.decision import State
from nixfleet_agent.runtime.workers import prefetch
from nixfleet_agent.telemetry.status import RolloutsView
from nixfleet_agent.threads.backoff import Backoff
from nixfleet_agent.trust.errors import StaleError
from tests.activation.case import until
from tests.activation_slow.test_disk_full import mount_small
from tests.runtime.workers.prefetch_case import NEXT_ROLLOUT, PrefetchCase


class LeftAloneTest(PrefetchCase):
    def assert_left_alone(self, reason: str | None) -> None:
        self.waits_for(lambda: self.seen() and self.worker.limit != 180.0, "the worker sleeps")
        if reason is not None:
            self.assertIn(reason, str(self.until_state(State.WAITING).reason))
        self.assertEqual((self.nixery.server.requests, self.held(), self.host.switches()), ([], None, []))

    def test_what_ci_did_not_sign_or_what_is_too_old(self) -> None:
        self.known.refusal = StaleError("the manifest of stable@bb: signed too long ago")
        self.start()
        self.announce(self.v2)
        self.assert_left_alone("signed too long ago")

    def test_what_an_operator_holds_back(self) -> None:
        self.hold.set("moving racks")
        self.start()
        self.announce(self.v2)
        self.assert_left_alone("moving racks")

    def test_what_is_in_quarantine(self) -> None:
        self.quarantine.add(Entry("stable", self.v2, "stable@aa", self.clock.now(), "failed here"))
        self.start()
        self.announce(self.v2)
        self.assert_left_alone("in quarantine")

    def test_what_runs_already_and_what_had_its_turn(self) -> None:
        self.ran_here.add(NEXT_ROLLOUT)
        self.start()
        for closure in (self.v1, self.v2):
            self.announce(closure)
            self.until_asleep()
            self.assert_left_alone(None)
            self.assertIsNone(self.status)

    def test_a_hold_that_begins_ends_the_download(self) -> None:
        self.enterContext(mock.patch.object(oversight, "WANTED_SECS", 0.2))
        self.nixery.server.drip = (1024, 0.1)
        self.start()
        self.announce(self.big("held"))
        until(self.nars, "it is being fetched")
        self.hold.set("moving racks")
        self.assertIn("moving racks", str(self.until_state(State.WAITING).reason))
        self.assertEqual((self.nix_processes(), self.held()), ({}, None))

    def test_one_key_turns_it_off_and_what_was_held_goes(self) -> None:
        self.start()
        self.announce(self.v2)
        self.until_state(State.READY)
        self.restart(enabled=False)
        self.announce(self.v2)
        until(lambda: not self.root.is_symlink(), "its root goes")
        self.until_asleep()
        self.assertIsNone(self.status)


class RootTest(PrefetchCase):
    def test_the_next_process_keeps_what_is_still_next_and_asks_nobody_for_it(self) -> None:
        self.start()
        self.announce(self.v2)
        self.until_state(State.READY)
        self.restart()
        self.until_asleep()
        self.assertEqual(self.held(), self.v2, "nothing is known yet: it stays")
        self.nixery.server.requests.clear()
        self.announce(self.v2)
        self.until_state(State.READY)
        self.assertEqual((self.held(), self.nixery.server.requests), (self.v2, []))

    def test_the_next_process_lets_go_of_what_is_not_next_any_more(self) -> None:
        self.start()
        self.announce(self.v2)
        self.until_state(State.READY)
        self.restart()
        self.announce(None)
        until(lambda: not self.root.is_symlink(), "its root goes")

    def test_it_stays_while_its_rollout_is_under_way_and_goes_when_that_has_converged(self) -> None:
        self.start()
        self.announce(self.v2)
        self.until_state(State.READY)
        record = mock.Mock(target_closure=self.v2, rollout_id=NEXT_ROLLOUT, terminal=False)
        self.board.publish_rollouts(RolloutsView(NEXT_ROLLOUT, True, records=(record,)))
        self.handover.changed.set()
        until(lambda: self.status is None, "it has its turn")
        self.assertEqual(self.held(), self.v2)
        self.host.boot(self.v2)
        self.handover.changed.set()
        until(lambda: not self.root.is_symlink(), "its root goes")


class BadInputTest(PrefetchCase):
    """Nothing of it has any effect but on the status line, and no root is left."""

    def assert_failed(self, *words: str) -> None:
        reason = ""

        def failed() -> bool:
            nonlocal reason
            status = self.status
            reason = str(status.reason) if status is not None and status.state is State.FAILED else reason
            return all(word in reason for word in words)

        until(failed, f"it fails with {words}")
        self.assertFalse(os.path.lexists(self.root))
        self.assertEqual((self.host.running(), self.host.switches()), (self.v1, []))

    def test_a_closure_that_no_cache_has_is_asked_for_again(self) -> None:
        target = self.nixery.system("late")
        self.nixery.withdraw(target)
        self.start()
        with self.assertLogs("nixfleet_agent.prefetch", "WARNING") as logs:
            self.announce(target)
            self.assert_failed("no cache has it")
            tries = self.board.counters()[("prefetches", (("outcome", "failed"),))]
            until(lambda: self.board.counters()[("prefetches", (("outcome", "failed"),))] > tries, "it is tried again")
        self.assertEqual(len(logs.output), 1, "said once")
        self.nixery.publish(target)
        self.until_state(State.READY)

    def test_a_cache_with_wrong_bytes(self) -> None:
        target = self.nixery.system("wrong", files={"data": "right" * 1000})
        archive = next(self.nixery.cache.glob(f"nar/{self._nar_of(target)}"))
        archive.write_bytes(archive.read_bytes().replace(b"right", b"wrong"))
        self.start()
        self.announce(target)
        self.assert_failed("other bytes than were signed")

    def test_a_cache_with_endless_bytes(self) -> None:
        target = self.big("endless")
        self.nixery.server.endless = True
        self.start()
        self.announce(target)
        self.assert_failed("sends without end")
        self.stop()
        self.host.collect_garbage()
        self.assertFalse((self.host.store_root / "nix/store" / target).exists(), "half of a path is garbage")

    def test_a_disk_with_too_little_room_is_left_alone(self) -> None:
        self.stop()
        self.begin(min_free=0.9999)
        self.start()
        self.announce(self.big("large"))
        self.assert_failed("prefetch.min_free asks for")
        self.assertEqual(self.nars(), [])

    def test_a_disk_that_fills_under_it(self) -> None:
        small = self.nixery.host(f"{self.host.root.name}-small")
        mount_small(self, small.store_root, "16m")
        self.host = small
        self.host.boot(self.v1)
        self.nixery.server.requests.clear()
        self.enterContext(mock.patch.dict(os.environ, self.host.environment))
        self.enterContext(mock.patch.object(oversight, "LOOK_SECS", 0.1))
        self.nixery.server.drip = (4096, 0.05)
        self.stop()
        self.backoff = Backoff(600.0, 600.0)
        self.begin(min_free=0.1)
        self.start()
        self.announce(self.big("filling", 1_000_000))
        until(self.nars, "it is being fetched")
        free = os.statvfs(self.host.store_root)
        (self.host.store_root / "filled").write_bytes(bytes(free.f_bavail * free.f_frsize - (500 << 10)))
        self.assert_failed("bytes would be left on the store's disk")

    def test_a_release_that_is_no_system_stands_in_its_own_way(self) -> None:
        target = self.nixery.system("no-system", switchable=False)
        self.start()
        self.announce(target)
        found = self.until_state(State.OBSTRUCTED)
        self.assertIn("switch-to-configuration is missing", found.obstacles[0].text)
        self.assertIsNotNone(found.next_try_at)

    def test_an_obstacle_that_goes_is_seen(self) -> None:
        self.enterContext(mock.patch.object(prefetch, "OBSTRUCTED_SECS", 0.2))
        flag = self.host.root / "refuse"
        flag.touch()
        target = self.refusing(flag)
        self.start()
        self.announce(target)
        self.assertIn("pre-switch check", self.until_state(State.OBSTRUCTED).obstacles[0].text)
        flag.unlink()
        self.until_state(State.READY)

    def refusing(self, flag: Path) -> str:
        from nixfleet_agent.demo.nixos_switch import Switch

        return self.nixery.system("refusing", switch=Switch(checks={"flag": f"! [ -e {flag} ]"}))

    def _nar_of(self, closure: str) -> str:
        url = next(line for line in self.nixery.narinfo(closure).read_text().splitlines() if line.startswith("URL:"))
        return url.rpartition("/")[2]


if __name__ == "__main__":
    unittest.main()
