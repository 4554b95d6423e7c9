"""A journal in a folder of its own."""

from __future__ import annotations

import os
import unittest
from pathlib import Path
from typing import Any

from nixfleet_agent.journal.entries import Entry, entry_of
from nixfleet_agent.journal.journal import Journal
from tests.runtime.harness import HOSTNAME, temporary
from tests.state_machine.machine import T0, event

R, S = "stable@aa", "my-edge_2@bb"


QUEUE, REJECTED, CORRUPT = "outbound-queue", "outbound-rejected", "outbound-corrupt"


def entry(seq: int, rollout_id: str = R, kind: str = "ProbeResult", **changes: Any) -> Entry:
    return entry_of(event(kind, seq, **changes), HOSTNAME, rollout_id, T0)


def seq_zero(rollout_id: str = R) -> Entry:
    return Entry(
        seq=0, hostname=HOSTNAME, rollout_id=rollout_id, kind="Dispatch", created_at=T0, event={"kind": "Dispatch"}
    )


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary(self)
        self.journal = self.opened()

    def opened(self) -> Journal:
        journal = Journal(self.folder, HOSTNAME)
        journal.open()
        return journal

    def fill(self, *seqs: int, rollout_id: str = R) -> None:
        self.journal.accept(seq_zero(rollout_id))
        for seq in seqs:
            self.journal.append(entry(seq, rollout_id))

    def deliver(self, rollout_id: str = R) -> int:
        path = self.journal.first(rollout_id)
        assert path is not None
        self.journal.delivered(rollout_id, path)
        return int(path.name[:20])

    def names(self, folder: str) -> list[str]:
        path = self.folder / folder
        return sorted(os.listdir(path)) if path.is_dir() else []

    def put_file(self, folder: str, name: str, content: bytes = b"x") -> Path:
        path = self.folder / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path
