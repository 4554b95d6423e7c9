"""Owns what the agent logs: JSON lines or text, escaped, cut, and never the same line in a flood."""

from __future__ import annotations

import logging
import sys
import threading
from collections import OrderedDict, deque
from datetime import datetime, timezone
from typing import Any, TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from nixfleet_agent.config import LoggingConfig
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.telemetry.line_writer import LineWriter
from nixfleet_agent.text import FOREIGN_LIMIT, clip, clip_tail, printable
from nixfleet_agent.threads.clock import Clock

#: A stack is worth more than a foreign string, and its end more than its beginning (bytes).
STACK_LIMIT = 16 * 1024
#: The same line is written this often a window (seconds), then only counted.
REPEAT_BURST = 5
REPEAT_WINDOW_SECS = 60.0
#: How many different lines are watched for repeats, and how many of the last ones are kept for `support`.
REPEAT_MEMORY = 256
RECENT_LINES = 200

#: Libraries whose chatter is not the operator's business below this level.
_QUIET_LIBRARIES = ("urllib3", "schedule", "requests", "charset_normalizer")

#: Arguments that don't fit their message, or can't be shown: no reason for a worker to die.
_UNPRINTABLE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class JsonLines(JsonFormatter):
    """One ASCII line of JSON a record: ``timestamp, level, logger, message, thread``, then the record's own fields."""

    def __init__(self) -> None:
        super().__init__(["message"], json_ensure_ascii=True)

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        log_data["timestamp"] = format_time(datetime.fromtimestamp(record.created, tz=timezone.utc))
        log_data["level"] = record.levelname.lower()
        log_data["logger"] = record.name
        log_data["message"] = record.getMessage()
        log_data["thread"] = record.threadName
        super().add_fields(log_data, record, message_dict)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {key: _cut(key, value) for key, value in log_data.items()}


class TextLines(logging.Formatter):
    """For people: time, level, thread, message and fields on one line; a stack on indented lines below."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = datetime.fromtimestamp(record.created, tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        fields = "".join(f"  {key}={printable(value)}" for key, value in extra_fields(record).items())
        where = record.threadName or record.name
        line = f"{stamp} {record.levelname:<7} {where:<14} {printable(record.getMessage())}{fields}"
        for stack in (self.formatException(record.exc_info) if record.exc_info else "", record.stack_info or ""):
            shown = clip_tail(stack.encode("utf-8", "replace"), STACK_LIMIT)
            line += "".join(f"\n    {printable(part)}" for part in shown.splitlines())
        return line


class Repeats(logging.Filter):
    """Lets the same line through a few times a window; the next one after that says how many were held back.

    A worker in a tight failure loop would otherwise fill the disk of the host that it should keep alive.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, int, str], tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True  # who asked for debug wants all of it
        try:
            key = (record.name, record.levelno, record.getMessage())
        except _UNPRINTABLE:
            return True  # the formatter counts it
        now = self._clock.monotonic()
        with self._lock:
            began, count = self._seen.pop(key, (now, 0))
            if now - began >= REPEAT_WINDOW_SECS:
                if count > REPEAT_BURST:
                    record.held_back = count - REPEAT_BURST
                began, count = now, 0
            self._seen[key] = (began, count + 1)
            while len(self._seen) > REPEAT_MEMORY:
                self._seen.popitem(last=False)
        return count < REPEAT_BURST


class Output(logging.Handler):
    """Formats lines where they are logged, keeps the last ones, and leaves the writing to a ``LineWriter``."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.recent: deque[str] = deque(maxlen=RECENT_LINES)
        self.writer = LineWriter(stream, self._lost_line)
        self._unformatted = 0

    @property
    def lost(self) -> int:
        return self.writer.lost + self._unformatted

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except _UNPRINTABLE:
            self.handleError(record)
            return
        self.recent.append(line)
        self.writer.put(f"{line}\n")

    def _lost_line(self, count: int) -> str:
        message = "%d log lines were lost: nobody took them"
        record = logging.LogRecord("nixfleet_agent.logs", logging.WARNING, "", 0, message, (count,), None)
        record.lost = count
        return f"{self.format(record)}\n"

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 # logging's own name
        # There is nowhere left to say it; the count is shown in status and metrics.
        self._unformatted += 1

    def close(self) -> None:
        super().close()
        self.writer.close()


class Logs:
    """The logging of this process, from ``configure`` until ``close``."""

    def __init__(self, output: Output, root: logging.Logger) -> None:
        self._output = output
        self._root = root

    @property
    def lost(self) -> int:
        """Lines that were not written: nobody took them, the queue was full, or the disk was."""
        return self._output.lost

    def flush(self, seconds: float) -> bool:
        """Wait until all lines so far are written or refused; False when ``seconds`` are over first."""
        return self._output.writer.flush(seconds)

    def recent(self) -> list[str]:
        """The last lines, oldest first."""
        return list(self._output.recent)

    def set_level(self, level: str) -> None:
        """``debug``, ``info``, ``warning`` or ``error``, from now on."""
        self._root.setLevel(level.upper())

    def close(self) -> None:
        """Write what is left while somebody takes it, a second at most; log no more through this object."""
        self._root.removeHandler(self._output)
        logging.captureWarnings(False)
        self._output.close()


def configure(config: LoggingConfig, clock: Clock, stream: TextIO | None = None) -> Logs:
    """Send every logger of this process to ``stream`` (stdout) in the configured form."""
    output = Output(sys.stdout if stream is None else stream)
    output.setFormatter(JsonLines() if config.format == "json" else TextLines())
    output.addFilter(Repeats(clock))
    root = logging.getLogger()
    root.addHandler(output)
    logs = Logs(output, root)
    logs.set_level(config.level)
    for library in _QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    return logs


def extra_fields(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller gave in ``extra``."""
    return {key: value for key, value in vars(record).items() if key not in _KNOWN and not key.startswith("_")}


_KNOWN = {*RESERVED_ATTRS, "message", "asctime", "taskName"}


def _cut(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if key in ("exc_info", "stack_info"):
        return clip_tail(value.encode("utf-8", "replace"), STACK_LIMIT)
    return clip(value, FOREIGN_LIMIT, "...")
