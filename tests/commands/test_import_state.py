"""``import-state``: what the Rust agent left is told, taken over once, and never changed."""

from __future__ import annotations

from tests.commands.host_case import HostCase
from tests.runtime.test_swap_in import queued


class ImportState(HostCase):
    def setUp(self) -> None:
        super().setUp()
        self.old = self.folder / "old"
        (self.old / "outbound-queue").mkdir(parents=True)
        name, content = queued(1, "DispatchAck", hostname=str(self.settings["machine_id"]))
        (self.old / "outbound-queue" / name).write_bytes(content)
        self.queue = self.state / "outbound-queue"

    def test_a_dry_run_says_what_it_would_do_and_does_nothing(self) -> None:
        before = sorted(self.state.rglob("*"))
        ran = self.call("import-state", "--from", str(self.old), "--dry-run")
        self.assertEqual(ran.code, 0, ran)
        self.assertRegex(ran.out, r"event +would +stable@def4567abc/1 DispatchAck is queued")
        self.assertEqual(sorted(self.state.rglob("*")), before)

    def test_events_are_taken_over_once(self) -> None:
        for outcome, text in (("done", "is queued"), ("keep", "was taken over before")):
            ran = self.call("import-state", "--from", str(self.old), "--json")
            [row] = ran.json
            self.assertEqual((row["what"], row["outcome"]), ("event", outcome))
            self.assertIn(text, row["text"])
            self.assertEqual(len(list(self.queue.glob("*-DispatchAck.json"))), 1)

    def test_a_folder_with_nothing_of_it_is_said(self) -> None:
        ran = self.call("import-state", "--from", str(self.folder / "nowhere"))
        self.assertEqual((ran.code, ran.out), (0, f"there is nothing of the Rust agent in {self.folder}/nowhere.\n"))
