"""``support``: one archive for a bug report. What goes in is named below, and no secret is among it."""

from __future__ import annotations

import io
import json
import platform
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from nixfleet_agent import __version__, durable
from nixfleet_agent.activation.host import read_boot_id
from nixfleet_agent.activation.records import Records
from nixfleet_agent.commands import journal_view
from nixfleet_agent.commands.explain import explain
from nixfleet_agent.commands.invocation import Invocation, Parser
from nixfleet_agent.commands.masking import mask_secrets
from nixfleet_agent.commands.snapshot import snapshot_of
from nixfleet_agent.errors import EXIT_OK, AgentError
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.telemetry.status_socket import AgentNotRunningError, ask
from nixfleet_agent.threads.clock import SystemClock

#: Rollouts whose whole log goes in.
_ROLLOUTS = 5
#: Of each switch's output.
_SWITCH_BYTES = 1024 * 1024
_JOURNAL_LINES = "1000"
_JOURNALCTL_SECS = 20.0


def configure(parser: Parser) -> None:
    parser.details(
        "Status, history, configuration, the end of the log and what the switches said, with what looks like a secret "
        "masked; no key, token or certificate."
    )
    parser.example("nixfleet-agent support", "nixfleet-agent support --output /tmp/report.tar.gz")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="default: nixfleet-agent-support-HOST-TIME.tar.gz here"
    )


def run(call: Invocation) -> int:
    now = SystemClock().now()
    stem = f"nixfleet-agent-support-{call.config.machine_id}-{now:%Y%m%dT%H%M%SZ}"
    path = (call.options.output or Path(f"{stem}.tar.gz")).absolute()
    durable.write(path, archive(stem, _members(call, now), now))
    if call.json:
        call.print_json({"archive": str(path)})
    else:
        call.print(f"{path}: status, history, configuration and the end of the log; no keys, tokens or certificates.")
    return EXIT_OK


def archive(stem: str, members: Iterator[tuple[str, bytes]], now: datetime) -> bytes:
    """A gzipped tar of the members, in a folder named ``stem``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(f"{stem}/{name}")
            info.size, info.mode, info.mtime = len(content), 0o600, int(now.timestamp())
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _members(call: Invocation, now: datetime) -> Iterator[tuple[str, bytes]]:
    """Each part on its own, so that one that can't be had leaves its reason and not a hole."""
    parts: dict[str, Callable[[], Any]] = {
        "versions.json": lambda: _versions(now),
        "configuration.json": lambda: {
            name: {"value": str(value), "from": origin} for name, (value, origin) in call.loaded.provenance.items()
        },
        "status.json": lambda: snapshot_of(call.config),
        "why.txt": lambda: explain(snapshot_of(call.config), now, call.config.quarantine_hours),
        "queue.json": lambda: _queue(call),
        "files.json": lambda: _files(call.config.state_dir),
        "log-of-the-agent.txt": lambda: _recent_log(call),
        "journalctl.txt": _journalctl,
    }
    for name, read in parts.items():
        yield name, _content(read)
    for record in Records(call.config.state_dir, read_boot_id()).all():
        yield f"switches/{record.path.name}.txt", mask_secrets(record.output(_SWITCH_BYTES)).encode()
    for replay in journal_view.rollouts(call.config.state_dir, call.config.machine_id)[:_ROLLOUTS]:
        log = [{"where": step.place, "refused": step.refused, **dict(step.entry.event)} for step in replay.steps]
        yield f"history/{replay.record.rollout_id}.json", json.dumps(log, indent=1).encode()


def _content(read: Callable[[], Any]) -> bytes:
    try:
        value = read()
    except (AgentError, OSError, subprocess.SubprocessError) as error:
        value = f"not available: {error}"
    return value.encode() if isinstance(value, str) else json.dumps(value, indent=1, default=str).encode()


def _versions(now: datetime) -> dict[str, str]:
    return {
        "agent": __version__,
        "python": sys.version,
        "system": platform.platform(),
        "taken_at": format_time(now),
    }


def _queue(call: Invocation) -> list[dict[str, str]]:
    found = journal_view.scan(call.config.state_dir, call.config.machine_id, ("queued", "rejected", "corrupt"))
    return [{"id": item.id, "where": item.place} for item in found]


def _files(state_dir: Path) -> list[dict[str, object]]:
    """Names, sizes and modes of what is in the state directory; of no file the content."""
    found: list[dict[str, object]] = []
    for path in sorted(state_dir.rglob("*")):
        with suppress(FileNotFoundError):  # a running agent moves its files while they are listed
            info = path.lstat()
            found.append({"path": str(path.relative_to(state_dir)), "bytes": info.st_size, "mode": oct(info.st_mode)})
    return found


def _recent_log(call: Invocation) -> str:
    try:
        return "\n".join(ask(call.config.state_dir, "log"))
    except AgentNotRunningError as error:
        return f"not available: {error}"


def _journalctl() -> str:
    done = subprocess.run(  # nosec B603 B607 # fixed words; the operator's own PATH
        ["journalctl", "--unit=nixfleet-agent", f"--lines={_JOURNAL_LINES}", "--no-pager", "--output=short-iso"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_JOURNALCTL_SECS,
        text=True,
        errors="replace",
        check=False,
    )
    return done.stdout or done.stderr
