"""The checks that stand between this host's own users and programs and the agent, for the table of defences."""

from __future__ import annotations

from tests.attacks.defence import Defence

_LINES = "tests.telemetry.test_line_writer.NobodyReads.test_"
_HTTP = "tests.telemetry.test_metrics.Http.test_"

LOCAL = (
    Defence(
        "logs: who logs waits for who reads",
        "telemetry/line_writer.py",
        "                self._waiting.append(line)\n",
        "                self._sink.write(line)\n",
        (_LINES + "whoever_logs_never_waits_and_the_first_line_after_says_how_many_were_lost",),
    ),
    Defence(
        "logs: lines wait without an end",
        "telemetry/line_writer.py",
        "len(self._waiting) >= MAX_LINES or ",
        "",
        (_LINES + "whoever_logs_never_waits_and_the_first_line_after_says_how_many_were_lost",),
    ),
    Defence(
        "logs: long lines fill the memory",
        "telemetry/line_writer.py",
        " or self._chars + len(line) > MAX_CHARS",
        "",
        (_LINES + "long_lines_fill_no_more_memory_than_a_megabyte",),
    ),
    Defence(
        "logs: the end waits for a reader",
        "telemetry/line_writer.py",
        "            self._sink.abandon()\n",
        "            self._thread.join()\n",
        (_LINES + "the_end_of_the_process_waits_for_a_reader_a_bounded_time",),
    ),
    Defence(
        "watchdog: telemetry that hangs ends the agent",
        "threads/supervisor.py",
        "any(not worker.telemetry for worker in self._silent())",
        "bool(self._silent())",
        ("tests.threads.test_supervisor.Case.test_one_that_only_tells_of_the_agent_is_named_and_endangers_nothing",),
    ),
    Defence(
        "metrics: callers that hang are never ended",
        "telemetry/listener.py",
        "if len(self._calls) >= MAX_CALLERS:",
        "if False:",
        (_HTTP + "one_more_than_it_serves_ends_the_oldest_call_and_not_the_newest",),
    ),
)
