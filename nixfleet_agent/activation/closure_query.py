"""Asks the store what two closures consist of: three questions to Nix, none to the network."""

from __future__ import annotations

from collections.abc import Sequence

from nixfleet_agent.activation import nix
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import ActivationError, CommandError
from nixfleet_agent.activation.host import STORE, store_path
from nixfleet_agent.activation.packages import ClosureDiff, compare

#: Some hundred thousand paths; a large system has five thousand.
_ANSWER_BYTES = 32 * 1024 * 1024
#: Paths on one command line, far below what the kernel takes.
_BATCH = 5000


class NotInStoreError(ActivationError):
    """The store does not have the closure, or not all of it."""


def difference(context: Context, running: str, coming: str) -> ClosureDiff:
    """What differs between two closures that are in the store.

    Raises:
        NotInStoreError: one of them is not.
        CommandError: Nix can't be run, or failed otherwise.
        PhaseInterrupted: there is something better to do.
    """
    before, after = _requisites(context, running), _requisites(context, coming)
    sizes = _sizes(context, sorted({*before, *after}))
    return compare(running, coming, {path: sizes[path] for path in before}, {path: sizes[path] for path in after})


def _requisites(context: Context, closure: str) -> list[str]:
    """The basenames of all paths that the closure refers to, itself included."""
    try:
        answer = _query(context, "--requisites", [store_path(closure)])
    except CommandError as error:
        if "is not valid" in str(error):
            raise NotInStoreError(f"{closure} is not in this host's store") from error
        raise
    return [line.removeprefix(f"{STORE}/") for line in answer]


def _sizes(context: Context, paths: Sequence[str]) -> dict[str, int]:
    """Bytes of each path's archive, as the store's database has them."""
    found: dict[str, int] = {}
    for begin in range(0, len(paths), _BATCH):
        batch = paths[begin : begin + _BATCH]
        answer = _query(context, "--size", [store_path(path) for path in batch])
        if len(answer) != len(batch) or not all(line.isdigit() for line in answer):
            raise CommandError(f"nix-store --query --size answered {len(answer)} lines for {len(batch)} paths")
        found.update(zip(batch, map(int, answer), strict=True))
    return found


def _query(context: Context, question: str, paths: Sequence[str]) -> list[str]:
    done = context.read(["nix-store", "--query", question, *paths], timeout=nix.QUERY_SECS, limit=_ANSWER_BYTES)
    if done.returncode != 0:
        raise CommandError(f"nix-store --query {question} failed ({done.returncode}): {nix.said_by(done)}")
    return done.stdout.decode("utf-8", "replace").split()
