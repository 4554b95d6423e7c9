"""Lines that nobody takes: whoever logs goes on at once, what is lost is counted, the end waits a second at most."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import select
import threading
import time
import unittest
from collections.abc import Iterator
from typing import TextIO
from unittest import mock

from nixfleet_agent.config import LoggingConfig
from nixfleet_agent.telemetry import line_writer, logs
from tests.support.clock import PATIENCE, FakeClock

#: As little as Linux lets a pipe hold, in bytes.
PIPE_BYTES = 4096


class Case(unittest.TestCase):
    def setUp(self) -> None:
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.reader = os.fdopen(reader, "rb", buffering=0)
        self.stream = os.fdopen(writer, "w", encoding="utf-8")
        self.addCleanup(self.stream.close)
        self.addCleanup(self.reader.close)
        self.addCleanup(logging.getLogger().setLevel, logging.getLogger().level)
        self.log = logging.getLogger("nixfleet_agent.longpoll")

    def configure(self, stream: TextIO | None = None) -> logs.Logs:
        configured = logs.configure(LoggingConfig(), FakeClock(), stream or self.stream)
        self.addCleanup(configured.close)
        return configured

    def fill(self) -> None:
        """Until not one byte more goes into the pipe."""
        os.set_blocking(self.stream.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self.stream.fileno(), b"\n" * PIPE_BYTES)
        os.set_blocking(self.stream.fileno(), True)

    @contextlib.contextmanager
    def reading(self) -> Iterator[list[bytes]]:
        """Somebody reads again, until the pipe is closed."""
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.extend(iter(lambda: self.reader.read(65536), b"")))
        thread.start()
        try:
            yield got
        finally:
            self.stream.close()
            thread.join(PATIENCE)


class NobodyReads(Case):
    def test_whoever_logs_never_waits_and_the_first_line_after_says_how_many_were_lost(self) -> None:
        configured = self.configure()
        self.fill()
        many = line_writer.MAX_LINES + 500
        began = time.monotonic()
        for number in range(many):
            self.log.warning("line %d", number)
        self.assertLess(time.monotonic() - began, PATIENCE)
        lost = configured.lost
        # One line may be on its way to the pipe.
        self.assertIn(lost, (500, 499))
        with self.reading() as got:
            self.assertTrue(configured.flush(PATIENCE))
            self.log.warning("news")
            self.assertTrue(configured.flush(PATIENCE))
        lines = [json.loads(line) for line in b"".join(got).splitlines() if line]
        messages = [line["message"] for line in lines]
        self.assertEqual(messages[: many - lost], [f"line {number}" for number in range(many - lost)])
        self.assertEqual(messages[many - lost :], [f"{lost} log lines were lost: nobody took them", "news"])
        self.assertEqual((lines[-2]["lost"], lines[-2]["level"], configured.lost), (lost, "warning", lost))

    def test_long_lines_fill_no_more_memory_than_a_megabyte(self) -> None:
        configured = self.configure()
        self.fill()
        for number in range(1500):
            self.log.warning("%d", number, extra={"stack": "x" * 1500})
        output = configured._output.writer
        self.assertLessEqual(sum(len(item) for item in output._waiting if isinstance(item, str)), line_writer.MAX_CHARS)
        self.assertGreater(configured.lost, 500)

    def test_the_end_of_the_process_waits_for_a_reader_a_bounded_time(self) -> None:
        configured = self.configure()
        self.fill()
        self.log.warning("last words")
        began = time.monotonic()
        configured.close()
        self.assertLess(time.monotonic() - began, line_writer.FLUSH_SECS + 5)
        self.assertEqual(configured.lost, 1)
        self.assertNotIn("log_writer", [thread.name for thread in threading.enumerate()])

    def test_the_last_words_reach_a_reader_that_is_merely_slow(self) -> None:
        configured = self.configure()
        for number in range(200):
            self.log.warning("line %d", number)
        with self.reading() as got:
            configured.close()
        self.assertIn(b"line 199", b"".join(got))
        self.assertEqual(configured.lost, 0)

    def test_closing_twice_is_harmless_and_what_is_logged_afterwards_goes_nowhere(self) -> None:
        configured = self.configure()
        configured.close()
        configured.close()
        self.log.warning("too late")
        self.assertEqual(select.select([self.reader], [], [], 0)[0], [])


class Refused(Case):
    def test_a_reader_that_went_away_costs_lines_only(self) -> None:
        configured = self.configure()
        self.reader.close()
        self.log.error("one")
        self.log.error("two")
        self.assertTrue(configured.flush(PATIENCE))
        self.assertEqual(configured.lost, 2)

    def test_half_a_line_on_a_full_disk_is_not_glued_to_the_next_one(self) -> None:
        # With one page, a pipe that holds a byte has no room at all.
        fcntl.fcntl(self.stream.fileno(), fcntl.F_SETPIPE_SZ, 4 * PIPE_BYTES)
        configured = self.configure()
        real, full = os.write, [True]

        def write(descriptor: int, data: bytes) -> int:
            if descriptor != self.stream.fileno() or not full[0]:
                return real(descriptor, data)
            if len(data) > 10:
                return real(descriptor, data[:10])
            raise OSError(28, "No space left on device")

        with mock.patch.object(line_writer.os, "write", write):
            with mock.patch.object(line_writer.select, "PIPE_BUF", 12):
                self.log.error("cut")
                self.assertTrue(configured.flush(PATIENCE))
            full[0] = False
            self.log.error("whole")
            self.assertTrue(configured.flush(PATIENCE))
        half, *whole = os.read(self.reader.fileno(), 65536).splitlines()
        self.assertFalse(half.endswith(b"}"), half)
        said = [json.loads(line)["message"] for line in whole]
        self.assertEqual(said, ["1 log lines were lost: nobody took them", "whole"])

    def test_arguments_that_do_not_fit_cost_one_line_and_not_the_worker(self) -> None:
        buffer = io.StringIO()
        configured = self.configure(buffer)
        self.log.error("%d", "no number")
        self.log.error("next")
        self.assertTrue(configured.flush(PATIENCE))
        self.assertEqual(
            (configured.lost, [json.loads(x)["message"] for x in buffer.getvalue().splitlines()]), (1, ["next"])
        )


class Ready(Case):
    def test_a_last_word_to_stderr_is_said_where_there_is_room_and_waits_for_nobody(self) -> None:
        self.assertTrue(line_writer.write_if_ready(self.stream.fileno(), "refused\n"))
        self.assertEqual(os.read(self.reader.fileno(), 100), b"refused\n")
        self.fill()
        self.assertFalse(line_writer.write_if_ready(self.stream.fileno(), "refused\n"))
        self.reader.close()
        self.assertFalse(line_writer.write_if_ready(self.stream.fileno(), "refused\n"))


if __name__ == "__main__":
    unittest.main()
