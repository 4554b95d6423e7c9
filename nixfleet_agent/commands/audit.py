"""Whether events held elsewhere were signed by this host, and are the ones that this host's own log holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from nixfleet_agent.commands.files import InputFileError
from nixfleet_agent.commands.journal_view import Replay
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import AgentError, ProtoError
from nixfleet_agent.identity.host_key import load_host_key
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.trust.canonical import canonical

_LIMIT = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """``signature``: good, bad or missing; ``log``: same, differs or absent (pruned, or never ours)."""

    event: str
    signature: str
    log: str

    @property
    def genuine(self) -> bool:
        return self.signature == "good" and self.log != "differs"


def audit(raw: bytes, config: Config, replays: list[Replay]) -> list[Verdict]:
    """One verdict for each envelope ``{rolloutId, event, signature}`` in a JSON list.

    Raises:
        InputFileError: ``raw`` is not such a list.
        HostKeyError: this host's key can't be read.
    """
    try:
        envelopes = loads_strict(raw, limit=_LIMIT, what="the list of events")
    except ProtoError as error:
        raise InputFileError(f"{error}: give a JSON list of event envelopes") from error
    if not isinstance(envelopes, list) or not all(isinstance(item, Mapping) for item in envelopes):
        raise InputFileError("give a JSON list of event envelopes: [{rolloutId, event, signature}, ...]")
    key = Ed25519PublicKey.from_public_bytes(load_host_key(config.ssh_host_key_file).public_raw)
    log = {
        (replay.record.rollout_id, step.entry.seq): dict(step.entry.event)
        for replay in replays
        for step in replay.steps
    }
    return [_judge(envelope, key, log) for envelope in envelopes]


def _judge(envelope: Mapping[str, Any], key: Ed25519PublicKey, log: Mapping[tuple[str, int], object]) -> Verdict:
    event = envelope.get("event")
    seq = event.get("seq") if isinstance(event, Mapping) else None
    rollout_id = envelope.get("rolloutId")
    ours = log.get((rollout_id, seq)) if isinstance(rollout_id, str) and isinstance(seq, int) else None
    same = "absent" if ours is None else ("same" if ours == event else "differs")
    return Verdict(f"{rollout_id}/{seq}", _signature(event, envelope.get("signature"), key), same)


def _signature(event: object, signature: object, key: Ed25519PublicKey) -> str:
    if not isinstance(signature, str):
        return "missing"
    try:
        key.verify(bytes.fromhex(signature), canonical(event))
    except (ValueError, InvalidSignature, AgentError):
        return "bad"
    return "good"
