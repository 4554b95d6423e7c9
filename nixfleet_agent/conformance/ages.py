"""The story of fleets of every age: the forms in which `fleet.resolved` is signed in the field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nixfleet_agent.conformance.stand import HOSTNAME, Stand
from nixfleet_agent.conformance.stories import runs
from nixfleet_agent.conformance.verdicts import Judge, Story
from nixfleet_agent.demo.closures import System
from nixfleet_agent.state_machine import State

Fleet = dict[str, Any]


def older(fleet: Fleet) -> Fleet:
    """`system`, listed waves, and all sections; times with an offset."""
    fleet["meta"]["signedAt"] = fleet["meta"]["signedAt"].replace("Z", "+00:00")
    return fleet


def newer(fleet: Fleet) -> Fleet:
    """`platform`, `null` for what is not set, selectors that combine others, and fields of later versions."""
    for host in fleet["hosts"].values():
        host.update(platform=host.pop("system"), pubkey=None, pin=None)
    selector = {"and": [{"all": True}, {"not": {"hosts": ["db-01"]}}]}
    for policy in fleet["rolloutPolicies"].values():
        policy["waves"] = [{"selector": selector, "soakMinutes": 0}]
    fleet["meta"].pop("signatureAlgorithm")
    return {**fleet, "generator": {"name": "mk-fleet", "version": 7}, "channelEdges": None}


def all_at_once(fleet: Fleet) -> Fleet:
    """The policy that is most common: no wave is listed anywhere."""
    fleet["rolloutPolicies"] = {key: {"strategy": "all-at-once", "waves": []} for key in fleet["rolloutPolicies"]}
    return {**fleet, "waves": {name: [] for name in fleet["waves"]}}


def lean(fleet: Fleet) -> Fleet:
    """Not one field more than is needed."""
    return {
        "schemaVersion": fleet["schemaVersion"],
        "hosts": {HOSTNAME: {key: fleet["hosts"][HOSTNAME][key] for key in ("channel", "closureHash")}},
        "channels": {
            name: {key: channel[key] for key in ("rolloutPolicy", "freshnessWindow")}
            for name, channel in fleet["channels"].items()
        },
        "rolloutPolicies": {key: {"strategy": "all-at-once"} for key in fleet["rolloutPolicies"]},
        "meta": {key: fleet["meta"][key] for key in ("schemaVersion", "signedAt", "ciCommit")},
    }


FORMS: Mapping[str, Callable[[Fleet], Fleet]] = {
    "older": older,
    "newer": newer,
    "all-at-once": all_at_once,
    "lean": lean,
}


def of_every_age(stand: Stand, judge: Judge) -> None:
    for name, form in FORMS.items():
        rollout = stand.publish(f"age-{name}", form=form)
        converged = stand.recorder.wait(
            lambda rollout=rollout: stand.state(rollout) is State.CONVERGED,  # type: ignore[misc]
            stand.settings.patience,
            stand.look_after,
        )
        judge.row(name, None if converged else f"the rollout is {stand.state(rollout)}", runs(stand, f"age-{name}"))


AGES = Story(
    name="ages",
    title="releases whose fleet is signed in the forms of every age",
    tell=of_every_age,
    systems=tuple(System(f"age-{name}") for name in FORMS),
    rows={
        "older": "a fleet with `system`, listed waves and all sections leads to a rollout",
        "newer": "so does one with `platform`, null, combined selectors, and fields of later versions",
        "all-at-once": "so does one without waves under an all-at-once policy",
        "lean": "so does one with not one field more than is needed",
    },
)
