"""One probe declaration made into its type, or refused with the field that is wrong."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.probes.declarations import (
    CONFIG_KIND,
    DEFAULT_CONNECT_TIMEOUT,
    DEFAULT_EVIDENCE,
    DEFAULT_INTERVAL,
    DEFAULT_TIMEOUT,
    BadDecl,
    EvidenceDecl,
    ExecDecl,
    HttpDecl,
    Override,
    ProbeDecl,
    TcpDecl,
)
from nixfleet_agent.state_machine.states import Mode
from nixfleet_agent.text import clip, printable

#: In UTF-8 bytes: a name goes into every event of its probe.
NAME_LIMIT = 200
#: No wait is longer than 30 days; far larger numbers overflow the waits of the operating system.
LONGEST_SECS = 30 * 86_400.0
#: An age is compared, not waited for: evidence that is collected once a year is evidence too.
LONGEST_AGE_SECS = 100 * 366 * 86_400.0

COMMON_KEYS = frozenset({"kind", "mode", "intervalSeconds", "runOnce"})
KIND_KEYS: Mapping[str, frozenset[str]] = {
    "http": frozenset({"timeoutSecs", "url", "expectStatus", "bodyContains"}),
    "tcp": frozenset({"host", "port", "connectTimeoutSecs"}),
    "exec": frozenset({"timeoutSecs", "command", "expectExitCode"}),
    "evidence": frozenset({"framework", "controls", "controlOverrides", "evidencePath", "maxAgeSecs"}),
}


class _Refused(ProtoError):
    """Why one declaration can't be honoured."""


def parse_one(name: str, fields: Mapping[str, Any], min_interval: float) -> ProbeDecl:
    """One declaration, or the ``BadDecl`` that stands for it."""
    try:
        if not name or len(name.encode()) > NAME_LIMIT:
            raise _Refused(f"a probe's name must have 1 to {NAME_LIMIT} bytes")
        return _typed(name, _Fields(fields), min_interval)
    except _Refused as error:
        kind = fields.get("kind")
        known = kind if isinstance(kind, str) and kind in KIND_KEYS else CONFIG_KIND
        shown = clip(name, NAME_LIMIT) or "(no name)"
        return BadDecl(
            name=shown,
            kind=known,
            # Whoever switched a probe off has said all that matters of it.
            mode=Mode.DISABLED if fields.get("mode") == Mode.DISABLED.value else Mode.ENFORCE,
            reason=f"bad declaration: {error}",
            interval=max(DEFAULT_INTERVAL, min_interval),
        )


def mode_of(value: object) -> Mode:
    """Anything that is not a known mode enforces: a typing mistake must not switch a probe off."""
    return Mode(value) if isinstance(value, str) and value in Mode.__members__.values() else Mode.ENFORCE


class _Fields:
    """Typed access to a declaration; null, {} and [] count as absent: so Nix modules write what is not set."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw = raw

    def get(self, key: str) -> Any:
        value = self._raw.get(key)
        return None if value in ({}, []) else value

    def text(self, key: str, default: str | None) -> str:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value:
            raise _Refused(f"`{key}` must be a string that is not empty")
        return value

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise _Refused(f"`{key}` must be true or false")

    def whole(self, key: str, default: int | None, lowest: int, highest: int) -> int:
        value = default if self.get(key) is None else self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            raise _Refused(f"`{key}` must be a whole number from {lowest} to {highest}")
        return value

    def seconds(self, key: str, default: float, *, above_zero: bool = True, most: float = LONGEST_SECS) -> float:
        value = default if self.get(key) is None else self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -math.inf < value <= most:
            raise _Refused(f"`{key}` must be a number of seconds, at most {most:.0f}")
        if above_zero and value <= 0:
            raise _Refused(f"`{key}` must be above 0")
        return float(value)


def _typed(name: str, fields: _Fields, min_interval: float) -> ProbeDecl:
    kind = fields.get("kind")
    build = _BUILDERS.get(kind) if isinstance(kind, str) else None
    if build is None:
        shown = "is missing" if kind is None else f"{printable(kind, 80)!r} is not known"
        raise _Refused(f"`kind` {shown}: it is one of {', '.join(KIND_KEYS)}")
    common = {
        "name": name,
        "mode": mode_of(fields.get("mode")),
        "interval": max(min_interval, fields.seconds("intervalSeconds", DEFAULT_INTERVAL, above_zero=False)),
        "run_once": fields.flag("runOnce"),
    }
    return build(common, fields)


def _http(common: dict[str, Any], fields: _Fields) -> ProbeDecl:
    url = fields.text("url", None)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, an IPv6 address without its bracket
        usable = False
    if not usable or not url.isprintable() or " " in url:
        raise _Refused("`url` must be an absolute http or https URL")
    needle = fields.get("bodyContains")
    return HttpDecl(
        **common,
        url=url,
        expect_status=fields.whole("expectStatus", 200, 100, 599),
        body_contains=None if needle is None else fields.text("bodyContains", None),
        timeout=fields.seconds("timeoutSecs", DEFAULT_TIMEOUT),
    )


def _tcp(common: dict[str, Any], fields: _Fields) -> ProbeDecl:
    host = fields.text("host", "127.0.0.1")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or not bare.isprintable() or " " in bare:
        raise _Refused("`host` must be a host name or an address")
    return TcpDecl(
        **common,
        host=bare,
        port=fields.whole("port", None, 1, 65_535),
        connect_timeout=fields.seconds("connectTimeoutSecs", DEFAULT_CONNECT_TIMEOUT),
    )


def _exec(common: dict[str, Any], fields: _Fields) -> ProbeDecl:
    return ExecDecl(
        **common,
        command=_argv(fields.get("command")),
        expect_exit_code=fields.whole("expectExitCode", 0, 0, 255),
        timeout=fields.seconds("timeoutSecs", DEFAULT_TIMEOUT),
    )


def _argv(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            words: list[Any] = shlex.split(value)
        except ValueError as error:
            raise _Refused(f"`command` can't be split into words: {error}") from error
    elif isinstance(value, list):
        words = value
    else:
        raise _Refused("`command` must be a list of strings, or one string")
    if not all(isinstance(word, str) and "\0" not in word for word in words):
        raise _Refused("`command` must hold strings only, without NUL characters")
    if not words or not words[0]:
        raise _Refused("`command` is empty")
    return tuple(words)


def _evidence(common: dict[str, Any], fields: _Fields) -> ProbeDecl:
    framework, controls, overrides = (fields.get(key) for key in ("framework", "controls", "controlOverrides"))
    if (framework is None) == (controls is None):
        raise _Refused("exactly one of `framework` and `controls` must be given")
    path = Path(fields.text("evidencePath", str(DEFAULT_EVIDENCE)))
    if not path.is_absolute() or "\0" in str(path):
        raise _Refused("`evidencePath` must be an absolute path")
    return EvidenceDecl(
        **common,
        framework=None if framework is None else fields.text("framework", None),
        controls=None if controls is None else _overrides("controls", controls),
        overrides={} if overrides is None else _overrides("controlOverrides", overrides),
        path=path,
        max_age=None if fields.get("maxAgeSecs") is None else fields.seconds("maxAgeSecs", 0.0, most=LONGEST_AGE_SECS),
    )


def _overrides(key: str, value: object) -> dict[str, Override]:
    if not isinstance(value, dict) or not all(isinstance(entry, dict) for entry in value.values()):
        raise _Refused(f"`{key}` must map control ids to objects with `mode` and `reason`")
    overrides = {}
    for control, entry in value.items():
        mode, reason = entry.get("mode"), entry.get("reason")
        if reason is not None and not isinstance(reason, str):
            raise _Refused(f"`{key}`: the reason of {printable(control, 80)!r} must be a string")
        overrides[control] = Override(mode=None if mode is None else mode_of(mode), reason=reason or "")
    return overrides


_BUILDERS: Mapping[str, Callable[[dict[str, Any], _Fields], ProbeDecl]] = {
    "http": _http,
    "tcp": _tcp,
    "exec": _exec,
    "evidence": _evidence,
}
