"""One event, one file: how its name is built and read, and how its content is written and checked."""

from __future__ import annotations

import errno
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto import ids
from nixfleet_agent.proto.events import from_wire, local_fields, to_wire
from nixfleet_agent.proto.heartbeat import MAX_SEQ
from nixfleet_agent.proto.heartbeat import seq as parse_seq
from nixfleet_agent.proto.strict_json import BODY_LIMIT, DEPTH_LIMIT, loads_strict
from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.reading import read_regular
from nixfleet_agent.state_machine.events import Event

#: Largest content of one entry, in bytes: a control plane takes bodies up to 1 MiB.
_LIMIT = 4 * 1024 * 1024
#: Errors of a read that mean that this file can't be read, and not that the machine is short of something.
DAMAGED = frozenset(
    {errno.ENOENT, errno.EIO, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EUCLEAN, errno.ENXIO}
)
#: Longest part of a host's name that goes into a file name, which has room for 255 bytes.
_HOST_PART = 64
_SOAK_LEFT = "soakLeftSecs"
#: Made once: `json.dumps` with options of its own makes one for each call.
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
HASH = re.compile("[0-9a-f]{64}", re.ASCII)
_BOOT = "boot"


class Name(NamedTuple):
    """What a journal file's name says without its content."""

    seq: int
    rollout_id: str
    kind: str


def file_name(seq: int, hostname: str, rollout_id: str, kind: str) -> str:
    """``{seq:020}-{hostname}-{rollout_id}-{kind}.json``, sortable by seq."""
    return f"{seq:020}-{ids.file_part(hostname)[:_HOST_PART]}-{ids.file_part(rollout_id)}-{ids.file_part(kind)}.json"


def parse_name(name: str, hostname: str) -> Name | None:
    """The parts of ``name``, or None when it is no journal file of this host."""
    match = _names_of(hostname).fullmatch(name)
    if match is None or (seq := int(match["seq"])) > MAX_SEQ:
        return None
    return Name(seq, match["rollout"], match["kind"])


@cache
def _names_of(hostname: str) -> re.Pattern[str]:
    host, rollout = re.escape(ids.file_part(hostname)[:_HOST_PART]), ids.ROLLOUT_ID.pattern
    return re.compile(rf"(?P<seq>\d{{20}})-{host}-(?P<rollout>{rollout})-(?P<kind>[A-Za-z]+)\.json", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The content of one journal file; ``event`` is what goes on the wire, ``local`` what stays here.

    ``refusal`` is what the control plane answered to an entry that it rejected; ``previous`` is what the event follows
    in its rollout (``journal.chain``), None in the files of a version that wrote none.
    """

    seq: int
    hostname: str
    rollout_id: str
    kind: str
    created_at: datetime
    event: Mapping[str, Any]
    local: Mapping[str, Any] = field(default_factory=dict)
    refusal: Mapping[str, Any] | None = None
    previous: str | None = None

    @property
    def name(self) -> str:
        return file_name(self.seq, self.hostname, self.rollout_id, self.kind)

    def encode(self, previous: str | None = None) -> bytes:
        """The bytes of the file; half a surrogate pair, as in a file name that is no UTF-8, becomes a `?`.

        ``previous`` is what the event follows, where the entry itself does not say so.
        """
        follows = self.previous or previous
        body: dict[str, Any] = {
            "seq": self.seq,
            "hostname": self.hostname,
            "rolloutId": self.rollout_id,
            "eventKind": self.kind,
            "createdAt": format_time(self.created_at),
            "event": self.event,
        }
        if self.local:
            body["local"] = self.local
        if follows is not None:
            body["previous"] = follows
        if self.refusal is not None:
            body["refusal"] = self.refusal
        return _ENCODE(body).encode("utf-8", "replace")

    @property
    def soak_left(self) -> float | None:
        """Seconds that the soak still had to go when this was written, as measured then; None where nobody measured."""
        value = self.local.get(_SOAK_LEFT)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return float(value) if 0 <= value < math.inf else None

    @property
    def boot_id(self) -> str | None:
        """The boot in which this was written; None in logs of agents that did not say."""
        value = self.local.get(_BOOT)
        return value if isinstance(value, str) and value else None

    def remote_event(self) -> Event:
        """The event as the mirror half of the state machine takes it; raises ProtoError."""
        return from_wire(self.event, remote=True, local=self.local)


def entry_of(
    event: Event,
    hostname: str,
    rollout_id: str,
    created_at: datetime,
    soak_left: float | None = None,
    boot_id: str = "",
) -> Entry:
    """The journal entry of an event that has its seq; ``soak_left`` in seconds, where its rollout soaks."""
    measured: dict[str, Any] = {} if soak_left is None else {_SOAK_LEFT: round(soak_left, 3)}
    if boot_id:
        measured[_BOOT] = boot_id
    return Entry(
        seq=event.seq,
        hostname=hostname,
        rollout_id=rollout_id,
        kind=event.kind,
        created_at=created_at,
        event=to_wire(event),
        local=local_fields(event) | measured,
    )


def read_raw(path: str | Path) -> bytes:
    """The bytes of a file, as many as ``decode`` takes.

    Raises:
        OSError: it can't be read, or is no file.
    """
    return read_regular(path, _LIMIT)


_DECODER = json.JSONDecoder()


def _loads(raw: bytes) -> Any:
    """A restart reads ten thousand files of our own writing: the strict reader is for those that don't look like it."""
    if b"\\u" not in raw and raw.count(b"[") + raw.count(b"{") <= DEPTH_LIMIT and len(raw) <= BODY_LIMIT:
        try:
            value, end = _DECODER.raw_decode(text := raw.decode())
        except ValueError:
            pass  # the strict reader says what is wrong with it
        else:
            if end == len(text):
                return value
    return loads_strict(raw, limit=_LIMIT, what="a journal file")


def _of_the_rust_agent(body: dict[str, Any]) -> dict[str, Any]:
    """Its queue's files have the names of ours, and other words for the same things inside."""
    words = {"rollout_id": "rolloutId", "event_kind": "eventKind", "created_at": "createdAt", "payload": "event"}
    return {words.get(name, name): value for name, value in body.items()}


def decode(raw: bytes) -> Entry:
    """The entry in a file's bytes; fields of a newer version are ignored.

    Raises:
        ProtoError: neither what ``encode`` writes nor what the Rust agent queues.
    """
    body = _loads(raw)
    if isinstance(body, dict) and "payload" in body:
        body = _of_the_rust_agent(body)
    if not isinstance(body, dict) or not isinstance(body.get("event"), dict):
        raise ProtoError("not a journal entry: it has no event")
    local, refusal, previous = body.get("local"), body.get("refusal"), body.get("previous")
    return Entry(
        seq=parse_seq(body.get("seq"), "seq"),
        hostname=ids.require(ids.HOSTNAME, body.get("hostname"), "hostname"),
        rollout_id=ids.require(ids.ROLLOUT_ID, body.get("rolloutId"), "rolloutId"),
        kind=str(body.get("eventKind")),
        created_at=parse_time(body.get("createdAt"), "createdAt"),
        event=body["event"],
        local=local if isinstance(local, dict) else {},
        refusal=refusal if isinstance(refusal, dict) else None,
        previous=previous if isinstance(previous, str) and HASH.fullmatch(previous) else None,
    )
