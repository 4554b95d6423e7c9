"""What a health probe is once its declaration has been read: one frozen type per kind, valid by construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nixfleet_agent.state_machine.states import Mode

#: The one name and kind that a declarations file which can't be read is reported under.
FILE_PROBE = "health-checks.json"
CONFIG_KIND = "config"

DEFAULT_INTERVAL = 30.0
DEFAULT_TIMEOUT = 10.0
DEFAULT_CONNECT_TIMEOUT = 5.0
DEFAULT_EVIDENCE = Path("/var/lib/nixfleet-compliance/evidence.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeDecl:
    """One declared probe. ``interval`` is in seconds and never below the configured floor."""

    name: str
    kind: str
    mode: Mode = Mode.ENFORCE
    interval: float = DEFAULT_INTERVAL
    run_once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpDecl(ProbeDecl):
    """GET ``url``; ``timeout`` seconds for all of it, redirects and body included."""

    kind: str = "http"
    url: str
    expect_status: int = 200
    body_contains: str | None = None
    timeout: float = DEFAULT_TIMEOUT


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpDecl(ProbeDecl):
    """Open a connection within ``connect_timeout`` seconds, name lookup included."""

    kind: str = "tcp"
    host: str = "127.0.0.1"
    port: int
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecDecl(ProbeDecl):
    """Run ``command`` (argv, no shell) for at most ``timeout`` seconds."""

    kind: str = "exec"
    command: tuple[str, ...]
    expect_exit_code: int = 0
    timeout: float = DEFAULT_TIMEOUT


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """What a declaration says of one control; ``mode`` None leaves the mode to the next rule in line."""

    mode: Mode | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceDecl(ProbeDecl):
    """Judge signed evidence: every control of ``framework``, or exactly ``controls``; never both, never neither."""

    kind: str = "evidence"
    framework: str | None = None
    controls: Mapping[str, Override] | None = None
    overrides: Mapping[str, Override] = field(default_factory=dict)
    path: Path = DEFAULT_EVIDENCE
    max_age: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BadDecl(ProbeDecl):
    """A declaration that can't be honoured: it fails with ``reason`` each time it is run, and enforces.

    Only one that says `disabled` is disabled: it would not have run in any case.
    """

    kind: str = CONFIG_KIND
    reason: str


@dataclass(frozen=True, slots=True)
class DeclaredProbes:
    """All declarations in the order of the file; ``broken`` when the file as a whole could not be read."""

    probes: tuple[ProbeDecl, ...] = ()
    broken: bool = False
