"""What the manifest cache keeps on disk, and believes of it."""

from __future__ import annotations

import unittest
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.trust import errors
from tests.artifacts.release_base import MINUTE, ROLLOUT, SECOND, ReleaseTestCase, target


class OnDisk(ReleaseTestCase):
    FLEET, SIGNATURE = "fleet/fleet.resolved.json", "fleet/fleet.resolved.sig"

    def fill(self) -> None:
        release = self.publish()
        self.cache.terms(ROLLOUT, "web-01", target(release))
        self.cache.flush()

    def test_nothing_is_written_before_flush(self) -> None:
        release = self.publish()
        self.cache.terms(ROLLOUT, "web-01", target(release))
        self.assertEqual(list(self.state_dir.iterdir()), [])
        self.cache.flush()
        self.assertEqual((self.state_dir / self.FLEET).read_bytes(), release.fleet.raw)
        self.assertEqual((self.state_dir / self.SIGNATURE).read_bytes(), release.fleet.signature)
        manifest = release.rollout("stable")
        self.assertEqual((self.state_dir / f"rollouts/{ROLLOUT}.json").read_bytes(), manifest.raw)
        self.assertEqual((self.state_dir / f"rollouts/{ROLLOUT}.sig").read_bytes(), manifest.signature)
        self.assertEqual(self.marks_on_disk()["fleet"], "2026-05-16T01:00:00.000000Z")

    def test_what_did_not_change_is_not_written_again(self) -> None:
        self.fill()
        steps: list[str] = []
        before, durable.boundary = durable.boundary, lambda step, path: steps.append(f"{step} {path.name}")
        try:
            self.cache.fetch_fleet()
            self.cache.flush()
        finally:
            durable.boundary = before
        self.assertEqual(steps, [])

    def test_the_next_process_has_it_without_a_request_and_without_the_marks_file(self) -> None:
        self.fill()
        (self.state_dir / "trust-marks.json").unlink()
        self.server.requests.clear()
        store, cache = self.restarted()
        cache.load()
        self.assertEqual(cache.window_of("stable"), 60 * MINUTE)
        self.assertEqual(store.marks, self.store.marks)
        self.assertEqual(self.server.requests, [])

    def test_marks_are_rebuilt_from_a_cache_that_is_long_stale(self) -> None:
        self.fill()
        (self.state_dir / "trust-marks.json").write_bytes(b"{{{")
        self.clock.advance(30 * 24 * 3600)
        with self.assertLogs("nixfleet_agent.trust_store", "ERROR"):
            store, cache = self.restarted()
        cache.load()
        self.assertEqual(store.marks, self.store.marks)

    def test_a_tampered_cache_is_refused_and_said(self) -> None:
        self.fill()
        fleet, manifest = self.state_dir / self.FLEET, self.state_dir / f"rollouts/{ROLLOUT}.json"
        for path in (fleet, manifest):
            path.write_bytes(path.read_bytes().replace(b"web-01", b"web-11"))
        (self.state_dir / "trust-marks.json").unlink()
        store, cache = self.restarted()
        with self.assertLogs("nixfleet_agent.manifest_cache", "WARNING") as logs:
            cache.load()
        self.assertEqual(len(logs.output), 2)
        self.assertIsNone(cache.window_of("stable"))
        self.assertIsNone(store.marks.newest)
        self.assertEqual(self.failures(), {"bad_signature": 2})
        self.assertEqual(cache.fetch_fleet().signed_at, self.clock.now())

    def test_a_cached_manifest_under_another_ones_name_is_refused(self) -> None:
        self.fill()
        for suffix in ("json", "sig"):
            (self.state_dir / f"rollouts/{ROLLOUT}.{suffix}").rename(self.state_dir / f"rollouts/edge@aaaa.{suffix}")
        _, cache = self.restarted()
        with self.assertLogs("nixfleet_agent.manifest_cache", "WARNING"):
            cache.load()
        self.assertEqual(self.failures(), {"rollout_id": 1})

    def test_foreign_files_and_half_a_pair_are_passed_over(self) -> None:
        self.fill()
        (self.state_dir / self.SIGNATURE).unlink()
        (self.state_dir / "rollouts/notes.txt").write_bytes(b"x")
        (self.state_dir / "rollouts/..json").write_bytes(b"x")
        (self.state_dir / "rollouts/edge@bbbb.json").mkdir()
        _, cache = self.restarted()
        with self.assertLogs("nixfleet_agent.manifest_cache", "WARNING"):
            cache.load()
        self.assertIsNone(cache.window_of("stable"))

    def test_a_trust_file_that_is_bad_at_first_does_not_lose_the_cache(self) -> None:
        self.fill()
        good = self.trust_path.read_bytes()
        self.trust_path.write_bytes(b"")
        _, cache = self.restarted()
        self.assertRaises(errors.TrustFileError, cache.load)
        cache.flush()
        self.trust_path.write_bytes(good)
        cache.load()
        self.assertIsNotNone(cache.window_of("stable"))

    def test_manifests_of_long_ago_do_not_pile_up(self) -> None:
        for number in range(12):
            self.clock.advance(1)
            release = self.publish(self.release(commit=f"{number:04x}"))
            self.cache.terms(release.rollout_id("stable"), "web-01", target(release))
            self.cache.flush()
        left = sorted(path.name for path in (self.state_dir / "rollouts").glob("*.json"))
        self.assertEqual(left, [f"stable@{number:04x}.json" for number in (7, 8, 9, 10, 11)])

    def test_a_disk_that_refuses_is_said_once_and_tried_again(self) -> None:
        self.fill()
        self.clock.advance(1)
        release = self.publish()
        self.cache.terms(ROLLOUT, "web-01", target(release))

        def refuse(step: str, path: Path) -> None:
            raise OSError(30, "Read-only file system")

        before, durable.boundary = durable.boundary, refuse
        try:
            with self.assertLogs("nixfleet_agent", "WARNING") as logs:
                self.cache.flush()
                self.cache.flush()
        finally:
            durable.boundary = before
        self.assertEqual(len(logs.output), 2)  # one of the cache, one of the marks
        self.cache.flush()
        self.assertEqual((self.state_dir / self.FLEET).read_bytes(), release.fleet.raw)

    def test_an_older_artifact_that_comes_late_does_not_take_the_newer_ones_place(self) -> None:
        old = self.publish()
        seen = self.cache.fetch_fleet()
        self.clock.advance(5)
        new = self.publish()
        newer = self.cache.fetch_fleet()
        self.assertNotEqual(seen.hash, newer.hash)
        self.cache.flush()
        self.assertEqual((self.state_dir / self.FLEET).read_bytes(), new.fleet.raw)
        self.assertGreaterEqual(newer.signed_at - seen.signed_at, 5 * SECOND)
        self.assertNotEqual(old.fleet.raw, new.fleet.raw)


if __name__ == "__main__":
    unittest.main()
