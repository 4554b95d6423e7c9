"""The SQLite file: schema, one connection, one lock, and transactions that nest.

WAL without a sync per commit: what a power cut takes is what a heartbeat asks to be replayed.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nixfleet_agent.errors import ConfigError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS hosts (hostname TEXT PRIMARY KEY, seen_at TEXT NOT NULL, agent_version TEXT NOT NULL,
    current_closure TEXT, rollout_id TEXT, uptime_secs INTEGER NOT NULL, reported TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rollouts (rollout_id TEXT PRIMARY KEY, channel TEXT NOT NULL, opened_at TEXT NOT NULL,
    number INTEGER NOT NULL, halted TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (rollout_id TEXT NOT NULL, hostname TEXT NOT NULL, state TEXT NOT NULL,
    terminal INTEGER NOT NULL, last_event_seq INTEGER NOT NULL, delivered_at TEXT, record TEXT NOT NULL,
    PRIMARY KEY (rollout_id, hostname)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_of_host ON records (hostname);
CREATE TABLE IF NOT EXISTS events (hostname TEXT NOT NULL, rollout_id TEXT NOT NULL, seq INTEGER NOT NULL,
    kind TEXT NOT NULL, event TEXT NOT NULL, signature TEXT, received_at TEXT NOT NULL,
    PRIMARY KEY (hostname, rollout_id, seq)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS events_by_time ON events (received_at);
CREATE TABLE IF NOT EXISTS links (hostname TEXT NOT NULL, rollout_id TEXT NOT NULL, seq INTEGER NOT NULL,
    previous TEXT, chain_signature TEXT, verdict TEXT NOT NULL, following TEXT NOT NULL,
    PRIMARY KEY (hostname, rollout_id, seq)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS links_by_verdict ON links (verdict);
CREATE TABLE IF NOT EXISTS queue (id INTEGER PRIMARY KEY, hostname TEXT NOT NULL, rollout_id TEXT NOT NULL,
    dispatch TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS queue_of_host ON queue (hostname);
CREATE TABLE IF NOT EXISTS nonces (nonce TEXT PRIMARY KEY, hostname TEXT NOT NULL, used_at TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS certificates (serial TEXT PRIMARY KEY, hostname TEXT NOT NULL, not_before TEXT NOT NULL,
    not_after TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revocations (hostname TEXT PRIMARY KEY, not_before TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS quarantine (channel TEXT NOT NULL, closure TEXT NOT NULL, hostname TEXT NOT NULL,
    since TEXT NOT NULL, PRIMARY KEY (channel, closure)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bootstrap_reports (id INTEGER PRIMARY KEY, received_at TEXT NOT NULL, report TEXT NOT NULL);
"""


class Database:
    """Thread-safe; ``transaction`` makes several calls one.

    With ``read_only`` the file must be there, and is another process's that may be writing to it.

    Raises:
        ConfigError: from the constructor, when the file is no database or can't be made.
        sqlite3.Error: from every call, when the disk is full or somebody holds the file for too long; nothing has
            changed then, and the same call may succeed later.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._read_only = read_only
        self._lock = threading.RLock()
        try:
            self._db = self._open()
        except sqlite3.Error as error:
            raise ConfigError(f"{path} can't be used: {error}: move it away, replays fill a new one") from error

    def _open(self) -> sqlite3.Connection:
        mode = "ro" if self._read_only else "rwc"
        address = f"file:{quote(str(self._path))}?mode={mode}"
        db = sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None, cached_statements=256)
        if self._read_only:
            return db
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_SCHEMA)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def wipe(self) -> None:
        """Lose everything, as a control plane does whose disk is gone: the file is deleted and made anew."""
        with self._lock:
            self._db.close()
            for suffix in ("", "-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            self._db = self._open()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and alone; inside another transaction, a part of it."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield

    def run(self, sql: str, *values: object) -> int:
        """One statement that changes something; the number of rows."""
        with self._lock:
            return self._db.execute(sql, values).rowcount

    def rows(self, sql: str, *values: object) -> list[Any]:
        """All rows of a query."""
        with self._lock:
            return self._db.execute(sql, values).fetchall()
