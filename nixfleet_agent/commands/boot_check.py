"""``boot-check``: whether the release that this boot brought has proved itself, for a boot loader that counts boots.

systemd-boot tries a new entry a few times, and an older one after that, unless boot-complete.target is reached
(systemd's Automatic Boot Assessment). A unit that runs this before that target makes our "converged" what counts.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nixfleet_agent.activation.host import read_link
from nixfleet_agent.commands.checks import OK, WARN, Finding
from nixfleet_agent.commands.invocation import Invocation, Parser
from nixfleet_agent.commands.snapshot import snapshot_of
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import EXIT_CHECK_FAILED, EXIT_OK, AgentError
from nixfleet_agent.threads.clock import SystemClock

Snapshot = Mapping[str, Any]

#: Set by a boot loader that counts the tries of the entry it has started: systemd-bless-boot.service(8).
COUNTED = Path("/sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
#: Where systemd looks for what must have succeeded before a boot is good.
REQUIRED = Path("/etc/systemd/system/boot-complete.target.requires/nixfleet-agent-boot.service")
#: Seconds between two looks.
INTERVAL = 5.0

#: What is still to be decided, while somebody looks after it.
_OPEN = {"Pending", "Activating", "Deferred", "Soaking"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """``good`` is None while it is not decided."""

    good: bool | None
    reason: str


def configure(parser: Parser) -> None:
    parser.details("Exit code 0: it converged, or no rollout brought it. 1: it failed, or it is not decided yet.")
    parser.example("nixfleet-agent boot-check", "nixfleet-agent boot-check --wait")
    parser.add_argument("--wait", action="store_true", help="until it is decided")


def run(call: Invocation) -> int:
    booted = booted_system(call.config)
    verdict = judge(snapshot_of(call.config), booted)
    while verdict.good is None and call.options.wait:
        SystemClock().wait(threading.Event(), INTERVAL)
        verdict = judge(snapshot_of(call.config), booted)
    if call.json:
        call.print_json({"good": verdict.good, "reason": verdict.reason, "booted": booted})
    else:
        call.print(f"{booted}: {verdict.reason}")
    return EXIT_OK if verdict.good else EXIT_CHECK_FAILED


def booted_system(config: Config) -> str:
    """The closure that this boot began with, whatever was switched to since.

    Raises:
        AgentError: it can't be read.
    """
    closure, why = read_link(config.activation.current_system.with_name("booted-system"))
    if closure is None:
        raise AgentError(f"it can't be told what was booted: {why}")
    return closure


def judge(snapshot: Snapshot, booted: str) -> Verdict:
    """What the newest rollout of the booted closure says of this boot."""
    brought = [record for record in snapshot.get("rollouts") or () if record["target_closure"] == booted]
    record = max(brought, key=lambda each: str(each["dispatched_at"]), default=None)
    if record is None:
        return Verdict(True, "no rollout brought it")
    name, state = record["rollout_id"], record["state"]
    if state == "Converged":
        return Verdict(True, f"{name} converged")
    host = snapshot.get("host") or {}
    if state in _OPEN and name in (host.get("active_id"), *(host.get("watched") or ())):
        return Verdict(None, f"{name} is {state}")
    if state in _OPEN:
        return Verdict(False, f"{name} was superseded before it had proved itself")
    return Verdict(False, f"{name} failed")


def counting() -> Iterator[Finding]:
    """For ``check``; silent where the boot loader does not count."""
    if not COUNTED.exists():
        return
    if REQUIRED.is_symlink() or REQUIRED.exists():
        yield Finding("boot counting", OK, "a boot counts as good once its release has converged")
    else:
        text = "a boot counts as good before its release has proved itself: enable nixfleet-agent-boot.service"
        yield Finding("boot counting", WARN, text)
