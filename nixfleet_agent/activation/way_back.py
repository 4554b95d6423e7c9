"""Makes sure, before anything is changed, that the host could return to where it is."""

from __future__ import annotations

import os
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.activation import host, nix
from nixfleet_agent.activation.backends.base import Backend
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import CommandError, PhaseFailed
from nixfleet_agent.activation.failures import Failure
from nixfleet_agent.activation.host import store_path
from nixfleet_agent.activation.model import ROLLBACK_AND_HALT, Forward
from nixfleet_agent.activation.patience import Patience
from nixfleet_agent.errors import StorageError
from nixfleet_agent.proto.ids import file_part

PHASE = "no-way-back"
_ENDS = ("target", "prior")


def root_of(state_dir: Path, rollout_id: str, end: str) -> Path:
    """The garbage collector's root that holds the ``target`` or the ``prior`` of a rollout."""
    return state_dir.absolute() / "gcroots" / f"{file_part(rollout_id)}-{end}"


def root_of_next(state_dir: Path) -> Path:
    """The root of what is fetched before its turn; of no rollout, so that none takes it for its own."""
    return state_dir.absolute() / "gcroots" / "next"


def leads_to(root: Path, closure: str) -> bool:
    """Whether the root holds the closure, so that no garbage collector can have taken it."""
    try:
        nix.check_root(closure, root)
    except CommandError:
        return False
    return True


def make_roots_folder(state_dir: Path) -> None:
    """Raises StorageError."""
    durable.make_directory(state_dir.absolute() / "gcroots")


def release_roots(state_dir: Path, rollout_id: str) -> None:
    """Let the garbage collector have a rollout's closures again (raises StorageError)."""
    for end in _ENDS:
        durable.remove(root_of(state_dir, rollout_id, end))


def holding(state_dir: Path) -> set[str]:
    """Rollouts that hold a root, by the names of the roots; empty while there is no folder."""
    try:
        names = os.listdir(state_dir.absolute() / "gcroots")
    except FileNotFoundError:
        return set()
    return {name.rpartition("-")[0] for name in names if name.rpartition("-")[2] in _ENDS}


def secure(context: Context, backend: Backend, intent: Forward, patience: Patience) -> None:
    """Hold the prior closure, which must be valid and have its switch script.

    Where the policy asks for a way back, what can pass (a busy database, a daemon that restarts) is tried again.

    Raises:
        PhaseFailed: there is no way back and the policy asks for one. Under another policy that is a warning.
    """
    prior = intent.way_back
    if prior is None:
        _say_no_way_back(context, intent)
        return
    root = root_of(context.state_dir, intent.rollout_id, "prior")

    def attempt() -> None:
        _hold(context, backend, prior, root)

    try:
        if intent.takes_back:
            patience.persist(attempt)
        else:
            attempt()
    except (CommandError, StorageError) as error:
        if intent.takes_back:
            raise PhaseFailed(PHASE, f"{prior}: {error}") from error
        context.log.warning("there is no way back to %s: %s", prior, error, extra={"rollout_id": intent.rollout_id})


def _say_no_way_back(context: Context, intent: Forward) -> None:
    """The first switch of a host, or one on which what runs can't be read: a signed rollback can't be kept."""
    if intent.prior is not None or intent.policy != ROLLBACK_AND_HALT:
        return
    _, why = host.read_link(context.config.current_system)
    context.log.error(
        "no way back from %s: nothing is known that ran here before, so if it fails the host stays with it%s",
        intent.target,
        f" ({why})" if why else "",
        extra={"rollout_id": intent.rollout_id, "closure": intent.target},
    )


def script_missing(context: Context, backend: Backend, closure: str) -> str | None:
    """Why the closure can't be switched to, or None."""
    place = host.on_disk(context.config.store_root, closure)
    script = backend.command(place, "switch")[0]
    if os.access(script, os.X_OK) and Path(script).is_file() and Path(script).stat().st_size:
        return None
    if not place.exists() or Path(script).exists():
        # The database knows the path and its files are gone or empty: a power cut, or somebody's rm.
        return f"{script} is missing or empty: {repair(closure)}"
    return f"{script} is missing or not executable: not a system closure, or {repair(closure)}"


def repair(closure: str) -> str:
    """How an operator mends a path of the store."""
    return f"the path is damaged; `nix-store --repair-path {store_path(closure)}` fetches it again"


def _hold(context: Context, backend: Backend, prior: str, root: Path) -> None:
    make_roots_folder(context.state_dir)
    if not nix.hold(context, prior, root):
        raise _final("it is not in the store")
    if (reason := script_missing(context, backend, prior)) is not None:
        raise _final(reason)


def _final(reason: str) -> CommandError:
    """What no second look would find otherwise."""
    return CommandError(reason, failure=Failure("way-back", False, reason, ""))
