"""Which occasions the hooks have been told of, and what they answered: kept in the state directory.

An occasion is noted after its hooks have ended, so a crash in between runs them again: at least once, and the rollout
and the seq in their environment tell a hook that it sees one again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nixfleet_agent import durable
from nixfleet_agent.errors import ProtoError
from nixfleet_agent.hooks.moments import Occasion
from nixfleet_agent.hooks.runner import Ran
from nixfleet_agent.proto.ids import file_part
from nixfleet_agent.proto.strict_json import loads_strict

FOLDER = "hooks"
FILE_NAME = "told.json"
#: Outputs are kept for this many of the rollouts noted last; the marks of a few more cost nothing.
KEPT_OUTPUTS, KEPT_MARKS = 20, 200

log = logging.getLogger("nixfleet_agent.hooks")


class Ledger:
    """Owned by the hooks worker; commands read its files."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / FOLDER
        self._told: dict[str, int] | None = None

    def begin(self, last_seqs: Mapping[str, int]) -> None:
        """Read what was noted. Where nothing ever was, all that is in the logs now is history, and owed to nobody.

        Raises:
            StorageError: the folder can't be written.
        """
        self._told = _read(self._folder / FILE_NAME)
        if self._told is None:
            self._told = dict(last_seqs)
            self._write()

    def forget(self) -> None:
        """This host has no hooks: if it gets some, what happened until then is not theirs (raises StorageError)."""
        durable.remove(self._folder / FILE_NAME)

    def told(self, rollout_id: str) -> int:
        """The seq up to which the hooks have been told of this rollout."""
        return (self._told or {}).get(rollout_id, 0)

    def note(self, occasion: Occasion, ran: Sequence[Ran]) -> None:
        """Keep what the hooks answered, then that they did (raises StorageError)."""
        if ran:
            place = self._folder / file_part(occasion.rollout_id)
            durable.make_directory(place)
            body = [{"hook": done.hook, "exitCode": done.exit_code, "output": done.output} for done in ran]
            path = place / f"{occasion.seq:020}-{occasion.moment}.json"
            durable.write(path, json.dumps({"moment": occasion.moment, "hooks": body}).encode() + b"\n")
        told = self._told or {}
        told.pop(occasion.rollout_id, None)
        told[occasion.rollout_id] = occasion.seq
        self._told = dict(list(told.items())[-KEPT_MARKS:])
        self._write()
        self._prune()

    def _write(self) -> None:
        durable.make_directory(self._folder)
        durable.write(self._folder / FILE_NAME, json.dumps(self._told).encode() + b"\n")

    def _prune(self) -> None:
        kept = {file_part(rollout_id) for rollout_id in list(self._told or {})[-KEPT_OUTPUTS:]}
        for folder in self._folder.iterdir():
            if folder.is_dir() and folder.name not in kept:
                for path in folder.iterdir():
                    path.unlink(missing_ok=True)
                folder.rmdir()


class HookOutput(NamedTuple):
    """What one hook said at one moment; ``seq`` is that of the event it was told of."""

    seq: int
    moment: str
    hook: str
    exit_code: int
    output: str


def outputs(state_dir: Path, rollout_id: str) -> Iterator[HookOutput]:
    """What a rollout's hooks said, in the order of seq; files that can't be read are left out."""
    try:
        paths = sorted((state_dir / FOLDER / file_part(rollout_id)).iterdir())
    except OSError:
        return
    for path in paths:
        try:
            body = loads_strict(path.read_bytes())
            for done in body["hooks"]:
                yield HookOutput(
                    int(path.name[:20]),
                    str(body["moment"]),
                    str(done["hook"]),
                    int(done["exitCode"]),
                    str(done["output"]),
                )
        except (OSError, ProtoError, ValueError, KeyError, TypeError):
            log.debug("%s can't be read", path)


def _read(path: Path) -> dict[str, int] | None:
    try:
        value = loads_strict(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ProtoError) as error:
        log.warning("%s can't be read (%s): hooks are not told again of what is past", path, error)
        return None
    if not isinstance(value, dict):
        return None
    return {str(name): seq for name, seq in value.items() if isinstance(seq, int) and not isinstance(seq, bool)}
