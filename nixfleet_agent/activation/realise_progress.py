"""Reads what ``nix-store --realise`` says while it works: new bytes and paths, and the words of its errors."""

from __future__ import annotations

from pathlib import Path

from nixfleet_agent.activation.failures import is_refused_signature, plain
from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.strict_json import loads_strict

#: Numbers of Nix's own protocol for its log (``ActivityType`` and ``ResultType`` in its logging.hh).
_COPY_PATH, _FILE_TRANSFER, _PROGRESS = 100, 101, 105
_TEXT_LIMIT = 64 * 1024
_LINE_LIMIT = 1024 * 1024


class Progress:
    """Fed with standard error; ``moved`` counts every sign that something has come in.

    ``refusal`` is the first message by which a signature was refused, however much was said after it.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.paths: set[str] = set()
        self.moved = 0
        self.refusal: str | None = None
        self._done: dict[int, int] = {}
        self._copies: dict[int, str] = {}
        self._rest = b""
        self._text = bytearray()
        self._written = 0

    @property
    def text(self) -> str:
        """The messages so far, without the progress lines; the last ones when there are many."""
        return plain(bytes(self._text) + b"\n" + (b"" if self._rest.startswith(b"@nix ") else self._rest))

    def feed(self, piece: bytes) -> None:
        """Take the next piece, which may end anywhere."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._rest) > _LINE_LIMIT:
            self._rest = b""

    def look_at(self, pid: int) -> None:
        """Count what the process has written: for a Nix that reports no bytes (before 2.4), or not often."""
        try:
            counters = Path(f"/proc/{pid}/io").read_text(encoding="ascii")
        except OSError:
            return
        written = int(counters.partition("wchar: ")[2].split()[0])
        if written > self._written:
            self._written = written
            self.moved += 1

    def _line(self, line: bytes) -> None:
        if not line.startswith(b"@nix "):
            self._say(line)
            if line.startswith(b"copying path"):
                # `copying path '/nix/store/...' from ...`; cut short by a limit or a crash it names none.
                _, quoted, rest = line.decode("utf-8", "replace").partition("'")
                if quoted:
                    self._path(rest.partition("'")[0])
            return
        try:
            entry = loads_strict(line[5:])
        except ProtoError:
            self._say(line)
            return
        if isinstance(entry, dict):
            self._entry(entry)

    def _entry(self, entry: dict[str, object]) -> None:
        action, number, fields = entry.get("action"), entry.get("id"), entry.get("fields")
        if action == "msg":
            self._say(str(entry.get("msg", "")).encode("utf-8", "replace"))
        elif not isinstance(number, int):
            return
        elif action == "start" and isinstance(fields, list) and fields:
            if entry.get("type") == _COPY_PATH:
                self._copies[number] = str(fields[0])
                self._path(str(fields[0]))
            elif entry.get("type") == _FILE_TRANSFER:
                self._done.setdefault(number, 0)
        elif action == "result" and entry.get("type") == _PROGRESS and isinstance(fields, list) and fields:
            self._bytes(number, fields[0])
        elif action == "stop":
            self._done.pop(number, None)
            self._copies.pop(number, None)

    def _bytes(self, number: int, done: object) -> None:
        if number in self._done:
            before = self._done[number]
        elif number in self._copies:
            before = self._done.setdefault(-number, 0)
            number = -number
        else:
            return
        if isinstance(done, int) and done > before:
            self._done[number] = done
            self.moved += 1
            # The same bytes come down and then go into the store: only the first of the two is the download.
            if number > 0:
                self.bytes += done - before

    def _path(self, path: str) -> None:
        if path not in self.paths:
            self.paths.add(path)
            self.moved += 1

    def _say(self, line: bytes) -> None:
        if self.refusal is None and is_refused_signature(said := plain(line)):
            self.refusal = said
        self._text += line + b"\n"
        del self._text[:-_TEXT_LIMIT]
