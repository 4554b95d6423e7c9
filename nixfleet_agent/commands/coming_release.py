"""The release that comes next, in words: for `status` and `why`, from the section `next` of a snapshot. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from nixfleet_agent.commands.times import ago, local_time
from nixfleet_agent.proto.times import parse_time

Snapshot = Mapping[str, Any]


def in_short(coming: Snapshot, now: datetime) -> tuple[str, bool]:
    """A line of `status`, and whether somebody should look at it."""
    state = coming["state"]
    how = {
        "waiting": _waits(coming, now),
        "failed": f"could not be fetched yet: {_waits(coming, now)}",
        "fetching": f"being fetched{_so_far(coming, now)}",
        "checking": "fetched, being looked at",
        "ready": f"ready{_since(coming)}{_remarks(coming)}",
        "obstructed": f"fetched, and this stands in its way: {_obstacles(coming)}",
    }[state]
    return f"{coming['rollout_id']}: {how}", state in ("failed", "obstructed")


def in_a_sentence(coming: Snapshot, now: datetime) -> str:
    """What `why` says about it."""
    rollout_id, state = coming["rollout_id"], coming["state"]
    if state == "ready":
        return f"Next is {rollout_id}: it is in the store and ready for its turn{_remarks(coming)}."
    if state == "obstructed":
        return f"Next is {rollout_id}: it is in the store, and its switch would fail now: {_obstacles(coming)}."
    if state == "fetching":
        return f"Next is {rollout_id}: it is being fetched before its turn{_so_far(coming, now)}."
    if state == "checking":
        return f"Next is {rollout_id}: it is in the store, and what its switch needs is being looked at."
    late = " It is fetched at its turn in any case." if state == "failed" else ""
    return f"Next is {rollout_id}, which is not fetched before its turn yet: {_waits(coming, now)}.{late}"


def _waits(coming: Snapshot, now: datetime) -> str:
    again = parse_time(coming["next_try_at"]) if coming["next_try_at"] else None
    reason = coming["reason"] or "it is about to begin"
    return f"{reason} (again {ago(again, now)})" if again and again > now else reason


def _so_far(coming: Snapshot, now: datetime) -> str:
    done = f", {coming['percent']} % so far" if coming["percent"] is not None else ""
    ready = f", ready {ago(parse_time(coming['ready_at']), now)}" if coming["ready_at"] else ""
    return done + ready


def _since(coming: Snapshot) -> str:
    return f" since {local_time(parse_time(coming['ready_at']))}" if coming["ready_at"] else ""


def _remarks(coming: Snapshot) -> str:
    return f"; {_obstacles(coming)}" if coming["obstacles"] else ""


def _obstacles(coming: Snapshot) -> str:
    blocking = [obstacle for obstacle in coming["obstacles"] if obstacle["blocks"]]
    return "; ".join(obstacle["text"] for obstacle in blocking or coming["obstacles"])
