"""Following logs: each line once, none in half, and only refusals of what the control plane serves are refusals."""

from __future__ import annotations

import json
import tempfile
import unittest
from pathlib import Path

from nixfleet_agent.demo.logs import LoggedRefusal, LogTail, refusal


class Following(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="logs-")
        self.addCleanup(scratch.cleanup)
        self.path = Path(scratch.name) / "agent.log"
        self.tail = LogTail(self.path)

    def write(self, raw: bytes) -> list[dict[str, object]]:
        with self.path.open("ab") as file:
            file.write(raw)
        return list(self.tail.new_lines())

    def test_a_file_that_is_not_there_yet_has_no_lines(self) -> None:
        self.assertEqual(list(self.tail.new_lines()), [])

    def test_a_line_is_read_once_and_only_when_it_is_whole(self) -> None:
        self.assertEqual(self.write(b'{"a": 1}\n{"b"'), [{"a": 1}])
        self.assertEqual(self.write(b": 2}"), [])
        self.assertEqual(self.write(b"\n"), [{"b": 2}])
        self.assertEqual(self.write(b""), [])

    def test_what_is_no_json_is_a_message(self) -> None:
        self.assertEqual(
            self.write(b"Traceback\n\xff\n[1]\n"), [{"message": m} for m in ("Traceback", "\ufffd", "[1]")]
        )


class Refusals(unittest.TestCase):
    def test_only_those_who_judge_what_is_served_refuse(self) -> None:
        line = {"logger": "nixfleet_agent.longpoll", "reason": "stale", "message": "too old"}
        self.assertEqual(refusal("web-01", line), LoggedRefusal("web-01", "stale", "too old"))
        for change in ({"logger": "nixfleet_agent.probe"}, {"reason": None}, {"reason": "window"}):
            with self.subTest(json.dumps(change)):
                self.assertIsNone(refusal("web-01", line | change))


if __name__ == "__main__":
    unittest.main()
