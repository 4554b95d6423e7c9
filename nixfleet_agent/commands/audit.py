"""Whether events held elsewhere were signed by a host, follow one another without a gap, and are as in its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from nixfleet_agent.commands.files import InputFileError, read_input
from nixfleet_agent.commands.journal_view import Replay
from nixfleet_agent.errors import AgentError, ProtoError
from nixfleet_agent.journal.chain_check import BAD, GOOD, MISSING, Standing, follow, start
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.trust.canonical import canonical

_LIMIT = 64 * 1024 * 1024
_KEY_LIMIT = 16 * 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one envelope.

    Attributes:
        signature: over the event alone: good, bad or missing.
        chain: over the host, the rollout and what the event follows, as ``journal.chain_check`` says it.
        log: same, differs, or absent (pruned, never ours, or not asked).
    """

    event: str
    signature: str
    chain: str
    log: str

    @property
    def genuine(self) -> bool:
        return self.signature == "good" and self.chain in (GOOD, MISSING) and self.log != "differs"


def public_key(path: Path) -> Ed25519PublicKey:
    """A host's public key as ``ssh_host_ed25519_key.pub`` holds it.

    Raises:
        InputFileError: it is not one.
    """
    try:
        key = load_ssh_public_key(read_input(path, _KEY_LIMIT).strip())
    except ValueError as error:
        raise InputFileError(f"{path} holds no public key: give a host's ssh_host_ed25519_key.pub") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputFileError(f"{path} is no Ed25519 key: give a host's ssh_host_ed25519_key.pub")
    return key


def audit(raw: bytes, key: Ed25519PublicKey, replays: Sequence[Replay]) -> list[Verdict]:
    """One verdict for each envelope in a JSON list, in its order; ``replays`` are the host's own logs, where at hand.

    Raises:
        InputFileError: ``raw`` is not such a list.
    """
    try:
        envelopes = loads_strict(raw, limit=_LIMIT, what="the list of events")
    except ProtoError as error:
        raise InputFileError(f"{error}: give a JSON list of event envelopes") from error
    if not isinstance(envelopes, list) or not all(isinstance(item, Mapping) for item in envelopes):
        raise InputFileError("give a JSON list of event envelopes: [{hostname, rolloutId, event, signature}, ...]")
    log = {
        (replay.record.rollout_id, step.entry.seq): dict(step.entry.event)
        for replay in replays
        for step in replay.steps
    }
    chains = _chains(envelopes, key)
    return [
        Verdict(
            f"{envelope.get('rolloutId')}/{_seq(envelope)}",
            _signed(envelope.get("event"), envelope.get("signature"), key),
            verdict,
            _compared(envelope, log),
        )
        for envelope, verdict in zip(envelopes, chains, strict=True)
    ]


def _seq(envelope: Mapping[str, Any]) -> int | None:
    event = envelope.get("event")
    seq = event.get("seq") if isinstance(event, Mapping) else None
    return seq if isinstance(seq, int) else None


def _compared(envelope: Mapping[str, Any], log: Mapping[tuple[str, int], object]) -> str:
    rollout_id, seq = envelope.get("rolloutId"), _seq(envelope)
    ours = log.get((rollout_id, seq)) if isinstance(rollout_id, str) and seq is not None else None
    return "absent" if ours is None else ("same" if ours == envelope.get("event") else "differs")


def _signed(value: object, signature: object, key: Ed25519PublicKey) -> str:
    if not isinstance(signature, str):
        return "missing"
    try:
        key.verify(bytes.fromhex(signature), canonical(value))
    except (ValueError, InvalidSignature, AgentError):
        return "bad"
    return "good"


@dataclass(slots=True)
class _Follows:
    """Where one rollout's chain stands, and the event before with its verdict, if that is sent twice."""

    standing: Standing
    last: Mapping[str, Any] | None = None
    verdict: str = ""


def _chains(envelopes: Sequence[Mapping[str, Any]], key: Ed25519PublicKey) -> list[str]:
    """The chain's verdict on each envelope, whatever order they come in."""
    verdicts = [BAD] * len(envelopes)
    followed: dict[tuple[str, str], _Follows] = {}
    for place in sorted(range(len(envelopes)), key=lambda place: _seq(envelopes[place]) or 0):
        envelope = envelopes[place]
        hostname, rollout_id, event = (envelope.get(name) for name in ("hostname", "rolloutId", "event"))
        if not (isinstance(hostname, str) and isinstance(rollout_id, str) and isinstance(event, Mapping)):
            # Without its host and rollout there is nothing to link: as older tools keep events.
            verdicts[place] = BAD if "chainSignature" in envelope else MISSING
            continue
        follows = followed.setdefault((hostname, rollout_id), _Follows(start(hostname, rollout_id)))
        if follows.last is None or dict(follows.last) != dict(envelope):  # it may be sent twice
            follows.verdict, follows.standing = follow(
                follows.standing, envelope, lambda said, signature: _signed(said, signature, key) == "good"
            )
            follows.last = envelope
        verdicts[place] = follows.verdict
    return verdicts
