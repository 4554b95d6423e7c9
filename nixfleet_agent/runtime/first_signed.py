"""Since when CI has a release for this host, kept over restarts: what is withheld does not grow young with one."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.errors import ProtoError, StorageError
from nixfleet_agent.proto.strict_json import BODY_LIMIT, loads_strict
from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.reading import read_regular
from nixfleet_agent.runtime.release import SignedRelease

FILE_NAME = "signed-release.json"
log = logging.getLogger("nixfleet_agent.manifest_poll")


class FirstSigned:
    """One small file in the state directory, written when CI has signed another closure for this host."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE_NAME

    def read(self) -> SignedRelease | None:
        """The release as it was kept, its two times the same; None without a file, or with one that says nothing."""
        try:
            body = loads_strict(read_regular(self._path, BODY_LIMIT), what=str(self._path))
            signed_at = parse_time(body["firstSignedAt"])
            return SignedRelease(str(body["rolloutId"]), str(body["targetClosure"]), signed_at, signed_at)
        except FileNotFoundError:
            return None
        except (OSError, ProtoError, KeyError, TypeError) as error:
            log.warning("%s can't be read (%s): how long a release is withheld counts from now on", self._path, error)
            return None

    def keep(self, release: SignedRelease) -> None:
        """Write it; a disk that refuses costs what the file is for, and nothing else."""
        body = {
            "rolloutId": release.rollout_id,
            "targetClosure": release.target_closure,
            "firstSignedAt": format_time(release.first_signed_at),
        }
        try:
            durable.write(self._path, json.dumps(body).encode() + b"\n")
        except StorageError as error:
            log.debug("%s", error)
