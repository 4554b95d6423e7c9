"""Reads what a switch says while it says it: the wrapper writes one file and renames it when it is full."""

from __future__ import annotations

import os
from pathlib import Path

from nixfleet_agent.activation.records import OUTPUTS


class OutputReader:
    """Everything that one record's script has said, piece by piece and each byte once, across the renames."""

    def __init__(self, record: Path) -> None:
        self._record = record
        self._read: dict[int, int] = {}

    def new(self) -> bytes:
        """What has come since the last call."""
        pieces: list[bytes] = []
        known: dict[int, int] = {}
        for name in OUTPUTS:
            try:
                with (self._record / name).open("rb") as stream:
                    inode = os.fstat(stream.fileno()).st_ino
                    if inode in known:
                        continue  # it was renamed while we looked
                    stream.seek(self._read.get(inode, 0))
                    pieces.append(stream.read())
                    known[inode] = stream.tell()
            except FileNotFoundError:
                continue
        self._read = {**self._read, **known}
        return b"".join(pieces)
