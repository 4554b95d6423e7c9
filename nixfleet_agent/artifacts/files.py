"""Signed artifacts on disk: each as the bytes and the signature it verified with, to be verified again when read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.errors import StorageError
from nixfleet_agent.proto import ids
from nixfleet_agent.reading import read_regular
from nixfleet_agent.trust.verify import FLEET_LIMIT, MANIFEST_LIMIT, SIGNATURE_LIMIT

log = logging.getLogger("nixfleet_agent.manifest_cache")

_BODY, _SIGNATURE = ".json", ".sig"
_FLEET = "fleet.resolved"


class ArtifactFiles:
    """``fleet/`` and ``rollouts/`` of the state directory. The names can be given to ``nixfleet-agent verify``."""

    def __init__(self, state_dir: Path) -> None:
        self._fleet = state_dir / "fleet"
        self._rollouts = state_dir / "rollouts"

    def fleet(self) -> tuple[bytes, bytes] | None:
        """Bytes and signature of the fleet; None where there is none that can be read."""
        return _read_pair(self._fleet, _FLEET, FLEET_LIMIT)

    def manifest(self, rollout_id: str) -> tuple[bytes, bytes] | None:
        """Bytes and signature of one rollout's manifest; None where there is none that can be read."""
        return _read_pair(self._rollouts, rollout_id, MANIFEST_LIMIT)

    def rollout_ids(self) -> Iterator[str]:
        """Rollouts that have a manifest here; names that are none are passed over."""
        try:
            names = sorted(entry.name for entry in self._rollouts.iterdir())
        except OSError:
            return
        for name in names:
            if name.endswith(_BODY) and ids.ROLLOUT_ID.fullmatch(name.removesuffix(_BODY)):
                yield name.removesuffix(_BODY)

    def write_fleet(self, raw: bytes, signature: bytes) -> None:
        """Raises StorageError."""
        _write_pair(self._fleet, _FLEET, raw, signature)

    def write_manifest(self, rollout_id: str, raw: bytes, signature: bytes) -> None:
        """Raises StorageError."""
        _write_pair(
            self._rollouts, ids.require(ids.ROLLOUT_ID, rollout_id, "the rollout id of a manifest"), raw, signature
        )

    def remove_manifest(self, rollout_id: str) -> None:
        """Raises StorageError."""
        for suffix in (_BODY, _SIGNATURE):
            durable.remove(self._rollouts / f"{rollout_id}{suffix}")


def _read_pair(folder: Path, name: str, limit: int) -> tuple[bytes, bytes] | None:
    raw = _read(folder / f"{name}{_BODY}", limit)
    signature = _read(folder / f"{name}{_SIGNATURE}", SIGNATURE_LIMIT)
    return None if raw is None or signature is None else (raw, signature)


def _read(path: Path, limit: int) -> bytes | None:
    try:
        return read_regular(path, limit)  # the verifier refuses what is longer than the limit
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("can't read the cached artifact %s: %s", path, error.strerror)
        return None


def _write_pair(folder: Path, name: str, raw: bytes, signature: bytes) -> None:
    """Not one step for both: after a crash in between the pair does not verify, and is fetched again."""
    try:
        durable.make_directory(folder)
        durable.write(folder / f"{name}{_BODY}", raw)
        durable.write(folder / f"{name}{_SIGNATURE}", signature)
    except StorageError as error:
        raise StorageError(f"the verified {name} is not cached: {error}", error.errno) from error
