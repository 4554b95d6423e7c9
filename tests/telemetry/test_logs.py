"""What the agent logs is one line, escaped, cut, and not the same line for ever."""

from __future__ import annotations

import io
import json
import logging
import threading
import unittest
import warnings
from datetime import datetime

from nixfleet_agent.config import LoggingConfig
from nixfleet_agent.telemetry import logs
from nixfleet_agent.text import FOREIGN_LIMIT
from tests.support.clock import PATIENCE, FakeClock

EVIL = 'a\nb\x1b[2J\x7f\u202e\x9b31m"quote\r\x00'


class Case(unittest.TestCase):
    def configure(self, **config: str) -> logs.Logs:
        self.stream = io.StringIO()
        self.clock = FakeClock()
        configured = self.configured = logs.configure(LoggingConfig(**config), self.clock, self.stream)
        self.addCleanup(configured.close)
        self.addCleanup(logging.getLogger().setLevel, logging.getLogger().level)
        self.log = logging.getLogger("nixfleet_agent.longpoll")
        return configured

    def lines(self) -> list[str]:
        self.assertTrue(self.configured.flush(PATIENCE))
        return self.stream.getvalue().splitlines()

    def objects(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines()]


class Json(Case):
    def test_a_line_has_the_fields_that_a_reader_looks_for(self) -> None:
        self.configure()
        thread = threading.Thread(
            target=lambda: self.log.info("accepted %s", "x", extra={"rollout_id": "stable@ab", "seq": 3}),
            name="longpoll",
        )
        thread.start()
        thread.join()
        (line,) = self.objects()
        stamp = line.pop("timestamp")
        self.assertIsInstance(datetime.strptime(str(stamp), "%Y-%m-%dT%H:%M:%S.%fZ"), datetime)
        self.assertEqual(
            line,
            {
                "level": "info",
                "logger": "nixfleet_agent.longpoll",
                "message": "accepted x",
                "thread": "longpoll",
                "rollout_id": "stable@ab",
                "seq": 3,
            },
        )

    def test_nothing_from_outside_reaches_the_terminal_raw(self) -> None:
        self.configure()
        self.log.error("said: %s", EVIL, extra={"closure": EVIL})
        (line,) = self.lines()
        self.assertTrue(line.isascii() and line.isprintable(), line)
        self.assertEqual(json.loads(line)["closure"], EVIL)

    def test_a_long_foreign_string_is_cut(self) -> None:
        self.configure()
        self.log.error("%s", "ä" * 5000, extra={"closure": "y" * 5000})
        (line,) = self.objects()
        self.assertLessEqual(len(str(line["message"]).encode()), FOREIGN_LIMIT + 3)
        self.assertLessEqual(len(str(line["closure"])), FOREIGN_LIMIT + 3)

    def test_a_stack_is_one_line_and_keeps_its_end(self) -> None:
        self.configure()
        try:
            raise KeyError("deep" * 10_000)
        except KeyError:
            self.log.exception("died")
        (line,) = self.objects()
        self.assertIn("deepdeep", str(line["exc_info"]))
        self.assertLessEqual(len(str(line["exc_info"])), logs.STACK_LIMIT)

    def test_what_json_cannot_hold_is_still_one_line(self) -> None:
        self.configure()
        self.log.error("odd", extra={"thing": object(), "when": datetime(2026, 1, 1), "raw": b"\xff", "bad": "\ud800"})
        self.assertEqual(len(self.objects()), 1)


class Text(Case):
    def test_fields_follow_the_message_on_one_line(self) -> None:
        self.configure(format="text")
        self.log.warning("refused", extra={"rollout_id": "stable@ab"})
        (line,) = self.lines()
        self.assertRegex(line, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ WARNING MainThread +refused  rollout_id=stable@ab$")

    def test_an_escape_sequence_or_newline_in_a_foreign_string_forges_nothing(self) -> None:
        self.configure(format="text")
        self.log.error("said: %s", EVIL, extra={"closure": EVIL})
        (line,) = self.lines()
        self.assertTrue(line.isprintable(), line)
        self.assertEqual(line.count("\\x1b[2J"), 2)

    def test_a_stack_is_indented_below_so_that_it_cannot_look_like_lines_of_ours(self) -> None:
        self.configure(format="text")
        try:
            raise KeyError("x\n2026-01-01T00:00:00Z INFO forged")
        except KeyError:
            self.log.exception("died")
        first, *rest = self.lines()
        self.assertIn("died", first)
        self.assertTrue(rest)
        self.assertTrue(all(line.startswith("    ") for line in rest))


class Repeats(Case):
    def test_a_flood_of_one_line_is_held_back_and_counted(self) -> None:
        self.configure()
        for _ in range(1000):
            self.log.warning("no route to %s", "cp")
        self.assertEqual(len(self.lines()), logs.REPEAT_BURST)
        self.clock.advance(logs.REPEAT_WINDOW_SECS)
        self.log.warning("no route to %s", "cp")
        self.assertEqual(self.objects()[-1]["held_back"], 1000 - logs.REPEAT_BURST)

    def test_other_lines_and_debug_pass(self) -> None:
        self.configure(level="debug")
        for number in range(50):
            self.log.warning("event %d", number)
            self.log.debug("same")
        self.assertEqual(len(self.lines()), 100)

    def test_the_memory_for_repeats_is_bounded(self) -> None:
        repeats = logs.Repeats(FakeClock())
        for number in range(10_000):
            repeats.filter(logging.LogRecord("x", logging.INFO, "", 0, "%d", (number,), None))
        self.assertEqual(len(repeats._seen), logs.REPEAT_MEMORY)


class Life(Case):
    def test_the_level_changes_while_running(self) -> None:
        configured = self.configure(level="warning")
        self.log.info("one")
        configured.set_level("debug")
        self.log.debug("two")
        self.assertEqual([line["message"] for line in self.objects()], ["two"])

    def test_libraries_chatter_only_from_warning_on(self) -> None:
        self.configure(level="debug")
        logging.getLogger("urllib3.connectionpool").debug("GET /")
        logging.getLogger("urllib3.connectionpool").warning("pool is full")
        self.assertEqual([line["message"] for line in self.objects()], ["pool is full"])

    def test_a_warning_of_python_goes_to_the_log(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            self.configure()
            warnings.warn("odd", UserWarning, stacklevel=1)
        self.assertIn("odd", str(self.objects()[0]["message"]))

    def test_a_full_disk_costs_lines_and_not_the_caller(self) -> None:
        class Full(io.StringIO):
            def write(self, text: str) -> int:
                raise OSError(28, "No space left on device")

        configured = logs.configure(LoggingConfig(), FakeClock(), Full())
        self.addCleanup(configured.close)
        logging.getLogger("nixfleet_agent.x").error("lost")
        self.assertTrue(configured.flush(PATIENCE))
        self.assertEqual(configured.lost, 1)
        self.assertIn("lost", configured.recent()[0])

    def test_only_the_last_lines_are_kept_in_memory(self) -> None:
        configured = self.configure()
        for number in range(logs.RECENT_LINES + 10):
            self.log.info("line %d", number)
        kept = configured.recent()
        self.assertEqual(len(kept), logs.RECENT_LINES)
        self.assertIn("line 10", kept[0])


if __name__ == "__main__":
    unittest.main()
