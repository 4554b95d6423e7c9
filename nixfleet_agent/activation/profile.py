"""Points the system profile at a closure; the bootloader's entries are made from its generations."""

from __future__ import annotations

from nixfleet_agent.activation import nix
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import CommandError, PhaseFailed
from nixfleet_agent.activation.host import read_profile
from nixfleet_agent.activation.patience import Patience

PHASE = "nix-env-set"


def point_at(context: Context, closure: str, patience: Patience | None = None) -> bool:
    """Set the profile unless it is there already (each call makes a generation); True when it had to move.

    With ``patience`` what can pass, such as a busy database, is tried again.

    Raises:
        PhaseFailed: the profile is where it was.
    """
    if read_profile(context.config.profile) == closure:
        return False

    def attempt() -> None:
        nix.set_profile(context, context.config.profile, closure)

    try:
        if patience is None:
            attempt()
        else:
            patience.persist(attempt)
    except CommandError as error:
        raise PhaseFailed(PHASE, str(error)) from error
    return True


def correct(context: Context, closure: str) -> None:
    """After a good switch: somebody moved the profile meanwhile, and the next boot would not bring what runs."""
    found = read_profile(context.config.profile)
    if found == closure:
        return
    context.log.warning("the profile led to %s after the switch: setting it again", found, extra={"closure": closure})
    try:
        point_at(context, closure)
    except PhaseFailed as failure:
        context.log.warning("%s", failure, extra={"closure": closure})
