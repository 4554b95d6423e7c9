"""What can be configured, with its defaults: attributes are named as the keys of ``agent.toml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationConfig:
    """``[activation]``: where the host keeps its system, and how long each phase may take (seconds)."""

    backend: str = "auto"  # auto | systemd | setsid | darwin
    profile: Path = Path("/nix/var/nix/profiles/system")
    current_system: Path = Path("/run/current-system")
    switch_lock: Path = Path("/run/nixos/switch-to-configuration.lock")
    store_root: str = ""
    poll_interval_secs: float = 2.0
    poll_budget_secs: float = 300.0
    settle_budget_secs: float = 600.0
    realise_timeout_secs: float = 3600.0
    realise_stall_secs: float = 300.0
    guard_secs: float = 1500.0
    failed_units: str = "report"  # report | fail


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceConfig:
    """``[maintenance]``: when a new activation may begin; no window means always, an empty zone is the local one."""

    windows: tuple[str, ...] = ()
    time_zone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RebootConfig:
    """``[reboot]``: whether a release that needs a reboot gets it, and who is told before; an empty file is none."""

    after_deferred: str = "never"  # never | window | now
    warn_secs: float = 300.0
    required_file: str = "/run/reboot-required"


@dataclass(frozen=True, slots=True, kw_only=True)
class HooksConfig:
    """``[hooks]``: programs that are told what happens, and how many seconds each may take."""

    folder: Path = Path("/etc/nixfleet/agent/hooks.d")
    timeout_secs: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefetchConfig:
    """``[prefetch]``: fetching the next release before its turn.

    ``spread_secs``: starts of a fleet are spread over so many seconds. ``max_rate``: KiB a second, 0 for no limit.
    ``min_free``: the part of the store's disk that stays free, of its bytes and of its inodes.
    """

    enabled: bool = True
    spread_secs: float = 300.0
    max_rate: float = 0
    min_free: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningConfig:
    """``[tuning]``: intervals in seconds; fractions are for tests and demos."""

    dispatch_wait: float = 60
    heartbeat_interval: float = 60.0
    manifest_poll_interval: float = 30.0
    drain_interval: float = 15.0
    advance_interval: float = 1.0
    cert_check_interval: float = 60.0
    probe_min_interval: float = 5.0
    probe_repeat_interval: float = 60.0
    backoff_initial: float = 1.0
    backoff_max: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingConfig:
    """``[logging]``."""

    level: str = "info"  # debug | info | warning | error
    format: str = "json"  # json | text


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """``[metrics]``: an address such as ``127.0.0.1:9110``, a textfile, or neither."""

    listen: str = ""
    textfile: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that ``agent.toml``, the environment and the flags can say."""

    control_plane_url: str
    machine_id: str
    trust_file: Path = Path("/etc/nixfleet/agent/trust.json")
    ca_cert: Path | None = None
    proxy_url: str | None = None
    client_cert: Path = Path("/var/lib/nixfleet-agent/agent-cert.pem")
    client_key: Path = Path("/etc/ssh/ssh_host_ed25519_key")
    bootstrap_token_file: Path | None = None
    state_dir: Path = Path("/var/lib/nixfleet-agent")
    ssh_host_key_file: Path = Path("/etc/ssh/ssh_host_ed25519_key")
    health_checks_file: Path = Path("/etc/nixfleet/agent/health-checks.json")
    health_failure_threshold_secs: float = 120.0
    manifest_freshness_window_secs: float | None = None
    renewal_threshold_fraction: float = 0.5
    quarantine_hours: float = 24.0
    activation: ActivationConfig = field(default_factory=ActivationConfig)
    maintenance: MaintenanceConfig = field(default_factory=MaintenanceConfig)
    reboot: RebootConfig = field(default_factory=RebootConfig)
    hooks: HooksConfig = field(default_factory=HooksConfig)
    prefetch: PrefetchConfig = field(default_factory=PrefetchConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
