"""Why a signed artifact, or what is asked in its name, is refused: one class for each reason.

``final`` refusals can't turn into an acceptance: the artifact is what it is. The others may pass, because the clock,
the trust file or what the control plane serves can change.
"""

from __future__ import annotations

from typing import ClassVar

from nixfleet_agent.errors import EXIT_CONFIG, TrustError


class VerificationError(TrustError):
    """Base of all refusals; ``reason`` is the label for metrics and status."""

    reason: ClassVar[str] = "refused"
    final: ClassVar[bool] = False


class TrustFileError(VerificationError):
    """The trust file is missing or can't be believed; nothing is verified until it can."""

    reason = "trust_file"
    exit_code = EXIT_CONFIG


class NoTrustRootsError(VerificationError):
    """The trust file names no active release key."""

    reason = "no_trust_roots"


class UnsupportedAlgorithmError(VerificationError):
    """Every active release key is of an algorithm that this agent does not know."""

    reason = "unsupported_algorithm"


class MalformedArtifactError(VerificationError):
    """The bytes are no JSON that can be read in one way only, or there are too many of them.

    Not final: half a body or a proxy's error page says nothing about what CI signed.
    """

    reason = "malformed"


class BadSignatureError(VerificationError):
    """No active release key signed these bytes."""

    reason = "bad_signature"
    final = True


class SchemaInvalidError(VerificationError):
    """CI signed something that does not have the form of this artifact."""

    reason = "schema"
    final = True


class UnsupportedSchemaVersionError(VerificationError):
    """The artifact is of a version that this agent does not know."""

    reason = "schema_version"
    final = True


class RolloutIdMismatchError(VerificationError):
    """A manifest that CI signed for another rollout was served in place of the one asked for."""

    reason = "rollout_id"
    final = True


class MissingSignedAtError(VerificationError):
    """Without a signing time neither age nor order can be judged."""

    reason = "missing_signed_at"
    final = True


class RejectedBeforeError(VerificationError):
    """Signed before the moment from which the trust file believes signatures again (a key was compromised)."""

    reason = "rejected_before"


class StaleError(VerificationError):
    """Signed longer ago than the freshness window allows: somebody may be holding newer intent back."""

    reason = "stale"


class FutureDatedError(VerificationError):
    """Signed further in the future than clocks may differ."""

    reason = "future_dated"


class OlderThanAcceptedError(VerificationError):
    """Signed before what this host has already accepted for the same thing: a replay."""

    reason = "older_than_accepted"


class ClockBehindError(VerificationError):
    """This host's clock reads less than a signing time that was already accepted: it is the clock that is wrong."""

    reason = "clock_behind"


class HostNotInManifestError(VerificationError):
    """The rollout's manifest does not name this host."""

    reason = "host_not_in_manifest"
    final = True


class DuplicateHostError(VerificationError):
    """The manifest names this host more than once: which closure is meant can't be known."""

    reason = "duplicate_host"
    final = True


class ClosureMismatchError(VerificationError):
    """The control plane asked for a closure that CI did not sign for this host."""

    reason = "closure_mismatch"
    final = True


class FleetPinMismatchError(VerificationError):
    """The manifest was made from another fleet than the one at hand."""

    reason = "fleet_pin"


class ChannelNotInFleetError(VerificationError):
    """The fleet does not have the manifest's channel, so there is no policy to act under."""

    reason = "channel_not_in_fleet"


class PolicyUnknownError(VerificationError):
    """The channel's rollout policy is missing, or says something this agent does not know."""

    reason = "policy_unknown"


class WaveNotInFleetError(VerificationError):
    """The fleet does not have the host's wave, so the signed soak is not known."""

    reason = "wave_not_in_fleet"
