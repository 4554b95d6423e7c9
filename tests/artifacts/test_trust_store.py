"""The trust file counts as it is on disk now, and marks never fall, whatever becomes of their file."""

from __future__ import annotations

import json
import tempfile
import unittest
from datetime import datetime, timedelta, timezone
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.artifacts.trust_store import TrustStore
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import EXIT_CONFIG, StorageError
from nixfleet_agent.trust.errors import TrustFileError
from nixfleet_agent.trust.marks import Marks
from tests.support.signing import CiSigner

NOW = datetime(2026, 5, 16, 1, 27, tzinfo=timezone.utc)
LATER = NOW + timedelta(minutes=5)


class StoreTestCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.trust_path = self.folder / "trust.json"
        self.marks_path = self.folder / "trust-marks.json"
        self.ci = CiSigner()
        self.trust_path.write_bytes(self.ci.trust_bytes())
        self.store = self.started()

    def started(self) -> TrustStore:
        return TrustStore(
            Config(
                control_plane_url="https://cp", machine_id="web-01", trust_file=self.trust_path, state_dir=self.folder
            )
        )


class TrustFile(StoreTestCase):
    def test_is_read_again_when_it_changed(self) -> None:
        before = self.store.trust()
        self.assertIs(self.store.trust(), before)
        other = CiSigner()
        self.trust_path.write_bytes(other.trust_bytes())
        self.assertNotEqual(self.store.trust(), before)

    def test_is_read_again_when_another_file_took_its_place(self) -> None:
        before = self.store.trust()
        replacement = self.folder / "new"
        replacement.write_bytes(CiSigner().trust_bytes())
        replacement.replace(self.trust_path)
        self.assertNotEqual(self.store.trust(), before)

    def test_with_one_bad_key_beside_a_good_one_is_believed_and_said_once_per_change(self) -> None:
        keys = {"current": {"algorithm": "ed25519", "public": "AAAA"}, "previous": self.ci.public}
        self.trust_path.write_bytes(self.ci.trust_bytes(ciReleaseKey=keys))
        with self.assertLogs("nixfleet_agent.trust_store", "WARNING") as logs:
            self.store.trust()
            self.store.trust()
        (line,) = logs.output
        self.assertIn("ciReleaseKey.current.public", line)
        self.assertIsNone(self.store.problem())

    def test_that_became_invalid_while_running_fails_closed_until_it_is_good_again(self) -> None:
        good = self.store.trust()
        self.trust_path.write_bytes(b"{")
        for _ in range(2):
            self.assertRaises(TrustFileError, self.store.trust)
        self.assertIn("is not JSON", self.store.problem() or "")
        self.trust_path.write_bytes(self.ci.trust_bytes())
        self.assertEqual(self.store.trust(), good)
        self.assertIsNone(self.store.problem())

    def test_that_others_may_change_fails_closed_until_they_may_not(self) -> None:
        self.store.trust()
        self.trust_path.chmod(0o666)
        with self.assertRaisesRegex(TrustFileError, f"can be changed by others .* run `chmod go-w {self.trust_path}`"):
            self.store.trust()
        self.trust_path.chmod(0o644)
        self.store.trust()

    def test_that_is_gone_fails_closed(self) -> None:
        self.store.trust()
        self.trust_path.unlink()
        with self.assertRaises(TrustFileError) as caught:
            self.store.trust()
        self.assertEqual(caught.exception.exit_code, EXIT_CONFIG)
        self.assertIn(str(self.trust_path), str(caught.exception))

    def test_that_is_a_folder_or_endless_is_refused(self) -> None:
        self.trust_path.unlink()
        self.trust_path.mkdir()
        self.assertRaises(TrustFileError, self.store.trust)
        self.trust_path.rmdir()
        self.trust_path.symlink_to("/dev/zero")
        self.assertRaises(TrustFileError, self.store.trust)


class HighWaterMarks(StoreTestCase):
    def test_outlive_the_process(self) -> None:
        self.store.raise_marks(fleet=NOW, channel=("stable", LATER))
        self.store.flush()
        self.assertEqual(self.started().recover_marks([]), Marks(NOW, {"stable": LATER}))

    def test_are_written_only_when_they_changed(self) -> None:
        self.store.flush()
        self.assertFalse(self.marks_path.exists())
        self.store.raise_marks(fleet=NOW)
        self.store.flush()
        stamp = self.marks_path.stat().st_mtime_ns, self.marks_path.stat().st_ino
        self.store.raise_marks(fleet=NOW - timedelta(days=1))
        self.store.flush()
        self.assertEqual((self.marks_path.stat().st_mtime_ns, self.marks_path.stat().st_ino), stamp)
        self.assertEqual(self.store.marks, Marks(NOW))

    def test_are_lifted_to_what_accepted_dispatches_prove(self) -> None:
        self.store.raise_marks(fleet=NOW)
        self.store.flush()
        again = self.started()
        self.assertEqual(again.recover_marks([Marks(LATER), Marks(None, {"edge": NOW})]), Marks(LATER, {"edge": NOW}))
        again.flush()
        self.assertEqual(self.started().recover_marks([]), Marks(LATER, {"edge": NOW}))

    def test_in_a_damaged_file_are_rebuilt_and_said(self) -> None:
        for damage in (b"", b"{", b"[]", b'{"fleet":"x"}', b'{"channels":{"a":1}}', b"\xff\xfe", bytes(4096)):
            self.marks_path.write_bytes(damage)
            store = self.started()
            with self.subTest(damage=damage[:8]), self.assertLogs("nixfleet_agent.trust_store", "ERROR") as logs:
                self.assertEqual(store.recover_marks([Marks(NOW, {"stable": NOW})]), Marks(NOW, {"stable": NOW}))
            self.assertIn("rebuilt", logs.output[0])
            store.flush()
            self.assertEqual(
                json.loads(self.marks_path.read_bytes())["channels"], {"stable": "2026-05-16T01:27:00.000000Z"}
            )

    def test_of_a_file_that_can_not_be_read_do_not_end_the_agent(self) -> None:
        self.marks_path.mkdir()
        with self.assertLogs("nixfleet_agent.trust_store", "ERROR"):
            self.assertEqual(self.started().recover_marks([Marks(NOW)]), Marks(NOW))

    def test_of_a_newer_version_are_read(self) -> None:
        self.marks_path.write_bytes(b'{"schemaVersion":9,"fleet":"2026-05-16T01:27:00Z","channels":{},"later":1}')
        self.assertEqual(self.started().recover_marks([]), Marks(NOW))

    def test_that_the_disk_refuses_are_said_once_and_written_later(self) -> None:
        self.store.raise_marks(fleet=NOW)

        def refuse(step: str, path: Path) -> None:
            raise OSError(28, "No space left on device")

        before, durable.boundary = durable.boundary, refuse
        try:
            with self.assertLogs("nixfleet_agent.trust_store", "WARNING") as logs:
                self.assertRaises(StorageError, self.store.flush)
                self.store.flush_or_say()
                self.store.flush_or_say()
            self.assertEqual(len(logs.output), 1)
        finally:
            durable.boundary = before
        self.store.flush_or_say()
        self.assertEqual(self.started().recover_marks([]), Marks(NOW))


if __name__ == "__main__":
    unittest.main()
