"""Puts the effective configuration together: defaults, file, environment, flags; a later one wins."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints
from urllib.parse import urlsplit

from nixfleet_agent.config.model import (
    ActivationConfig,
    Config,
    HooksConfig,
    LoggingConfig,
    MaintenanceConfig,
    MetricsConfig,
    PrefetchConfig,
    RebootConfig,
    TuningConfig,
)
from nixfleet_agent.config.proxy import proxy_problem
from nixfleet_agent.config.schema import CONFIG_VARIABLE, Schema
from nixfleet_agent.config.sources import (
    DEFAULT_FILE,
    ConfigProblemsError,
    Setting,
    from_environment,
    from_file,
    from_flags,
)
from nixfleet_agent.config.windows import WindowError, parse_window, parse_zone
from nixfleet_agent.proto.ids import HOSTNAME

#: What the guard must leave for a slow disk, a busy lock and the agent's own restart, beyond both budgets (seconds).
GUARD_MARGIN_SECS = 300
DEFAULT_ORIGIN = "default"
#: A path that begins with the first is one of systemd's credentials (systemd.exec(5), LoadCredential). Only the unit's
#: own processes have the variable; to a command that an operator runs beside them, the second is the same folder.
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
CREDENTIALS_OF_THE_UNIT = "/run/credentials/nixfleet-agent.service"

_TABLES = {
    "activation": ActivationConfig,
    "maintenance": MaintenanceConfig,
    "reboot": RebootConfig,
    "hooks": HooksConfig,
    "prefetch": PrefetchConfig,
    "tuning": TuningConfig,
    "logging": LoggingConfig,
    "metrics": MetricsConfig,
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """The configuration, and for each dotted key its value and where it came from."""

    config: Config
    provenance: Mapping[str, tuple[object, str]]
    file: Path | None


def load(
    file: Path | None, environ: Mapping[str, str], flags: Mapping[str, str], *, default: Path | None = DEFAULT_FILE
) -> Loaded:
    """Read all sources; ``file`` None means ``NIXFLEET_AGENT_CONFIG``, else ``default`` where there is such a file.

    Raises:
        ConfigProblemsError: naming the key, where it was set and what to do, for all problems found in one source.
    """
    schema = Schema()
    chosen = _choose_file(file, environ, default)
    settings: dict[str, Setting] = {}
    problems: list[str] = []
    readers: tuple[Callable[[], dict[str, Setting]], ...] = (
        lambda: from_file(chosen, schema) if chosen else {},
        lambda: from_environment(environ, schema),
        lambda: from_flags(flags, schema),
    )
    for read in readers:
        try:
            settings |= read()
        except ConfigProblemsError as error:
            problems += error.problems
    problems = problems or _missing(settings, chosen)
    if problems:
        raise ConfigProblemsError(problems)
    settings = {name: _located(setting, schema.keys[name].kind, environ) for name, setting in settings.items()}
    config = _build(settings)
    if problems := _cross_field_errors(config, settings, schema):
        raise ConfigProblemsError(problems)
    return Loaded(config, _provenance(config, settings, schema), chosen)


def _choose_file(file: Path | None, environ: Mapping[str, str], default: Path | None) -> Path | None:
    if file is not None:
        return file
    if named := environ.get(CONFIG_VARIABLE):
        return Path(named)
    return default if default is not None and os.path.lexists(default) else None


def _located(setting: Setting, kind: str, environ: Mapping[str, str]) -> Setting:
    """The setting with a leading ``$CREDENTIALS_DIRECTORY`` of a path replaced by that folder."""
    variable, slash, rest = setting.value.partition("/") if kind == "path" else ("", "", "")
    if variable not in (f"${CREDENTIALS_VARIABLE}", f"${{{CREDENTIALS_VARIABLE}}}"):
        return setting
    folder = environ.get(CREDENTIALS_VARIABLE) or CREDENTIALS_OF_THE_UNIT
    return dataclasses.replace(setting, value=f"{folder}{slash}{rest}")


def _missing(settings: Mapping[str, Setting], file: Path | None) -> list[str]:
    where = str(file) if file else f"{DEFAULT_FILE} (there is no such file)"
    places = {
        "control_plane_url": "NIXFLEET_AGENT_CP_URL or --control-plane-url",
        "machine_id": "NIXFLEET_AGENT_MACHINE_ID or --machine-id",
    }
    return [
        f"{key!r} is not set: set it in {where}, or with {other}"
        for key, other in places.items()
        if key not in settings
    ]


def _build(settings: Mapping[str, Setting]) -> Config:
    """The typed object; the values have passed the schema."""
    tables: dict[str, Any] = {}
    for table, kind in _TABLES.items():
        tables[table] = kind(**_typed(kind, settings, f"{table}."))
    return Config(**_typed(Config, settings, ""), **tables)


def _typed(kind: type, settings: Mapping[str, Setting], prefix: str) -> dict[str, Any]:
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        setting = settings.get(prefix + field.name)
        if setting is not None:
            hint = hints[field.name]
            values[field.name] = _converted(setting.value, hint)
    if "control_plane_url" in values:
        values["control_plane_url"] = values["control_plane_url"].rstrip("/")
    return values


def _converted(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if Path in (hint, *get_args(hint)) else value


def _cross_field_errors(config: Config, settings: Mapping[str, Setting], schema: Schema) -> list[str]:
    """What no single type can say: forms, and values that contradict each other."""

    def subject(name: str) -> str:
        return settings[name].subject if name in settings else f"{name!r} (default)"

    problems = [
        f"{setting.subject} must be an absolute path, is {setting.value!r}"
        for name, setting in settings.items()
        if schema.keys[name].kind == "path" and setting.value and not setting.value.startswith("/")
    ]
    if reason := _url_problem(config.control_plane_url):
        problems.append(f"{subject('control_plane_url')} {reason}: write https://HOST:PORT")
    if config.proxy_url is not None and (wrong := proxy_problem(config.proxy_url)):
        problems.append(f"{subject('proxy_url')} {wrong}")
    if not HOSTNAME.fullmatch(config.machine_id):
        problems.append(f"{subject('machine_id')} is not a host name: {config.machine_id!r} (letters, digits, . _ -)")
    if not os.path.normpath(config.state_dir).strip("/"):
        problems.append(f"{subject('state_dir')} must be a folder of the agent's own, not /")
    problems += _window_problems(config.maintenance, subject)
    if config.reboot.after_deferred == "window" and not config.maintenance.windows:
        problems.append(
            f"{subject('reboot.after_deferred')} is 'window', and maintenance.windows has none: name one, or set 'now'"
        )
    activation, tuning = config.activation, config.tuning
    least = activation.poll_budget_secs + activation.settle_budget_secs + GUARD_MARGIN_SECS
    if activation.guard_secs and activation.guard_secs <= least:
        problems.append(
            f"{subject('activation.guard_secs')} must be more than poll_budget_secs + settle_budget_secs + "
            f"{GUARD_MARGIN_SECS} = {least:g}, is {activation.guard_secs:g}: raise it, or set 0 to do without the guard"
        )
    if tuning.backoff_max < tuning.backoff_initial:
        problems.append(
            f"{subject('tuning.backoff_max')} is {tuning.backoff_max:g}, less than backoff_initial "
            f"({tuning.backoff_initial:g}): raise it"
        )
    if config.metrics.listen and split_address(config.metrics.listen) is None:
        problems.append(
            f"{subject('metrics.listen')} must be ADDRESS:PORT such as 127.0.0.1:9110, is {config.metrics.listen!r}"
        )
    return problems


def _window_problems(maintenance: MaintenanceConfig, subject: Callable[[str], str]) -> Iterator[str]:
    for text in maintenance.windows:
        try:
            parse_window(text)
        except WindowError as error:
            yield f"{subject('maintenance.windows')}: {error}"
    try:
        parse_zone(maintenance.time_zone)
    except WindowError as error:
        yield f"{subject('maintenance.time_zone')}: {error}"


def split_address(text: str) -> tuple[str, int] | None:
    """(host, port) of ``127.0.0.1:9110`` or ``[::1]:9110``; None when it is neither."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 <= int(port[:6]) <= 65535:
        return None
    if ":" in host and not text.startswith("["):
        return None
    return host, int(port)


def _url_problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"is not a URL ({error})"
    if any(character.isspace() for character in url):
        return f"contains a space: {url!r}"
    if parts.scheme != "https":
        return f"must start with https://, is {url!r}" if parts.scheme != "http" else "uses http, which is not safe"
    if not parts.hostname or not HOSTNAME.fullmatch(parts.hostname.strip("[]").replace(":", "x")):
        return f"names no host: {url!r}"
    if parts.username or parts.password:
        return "must not contain a user or password"
    if parts.query or parts.fragment or "?" in url or "#" in url:
        return "must not have a query or a fragment"
    return "has port 0" if port == 0 else None


def _provenance(config: Config, settings: Mapping[str, Setting], schema: Schema) -> dict[str, tuple[object, str]]:
    origins: dict[str, tuple[object, str]] = {}
    for name in schema.keys:
        table, _, leaf = name.rpartition(".")
        value = getattr(getattr(config, table) if table else config, leaf)
        origins[name] = (value, settings[name].origin if name in settings else DEFAULT_ORIGIN)
    return origins
