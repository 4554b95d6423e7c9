"""Mistakes that people make in a configuration, and what the one line about each must say."""

from __future__ import annotations

from dataclasses import dataclass, field

GOOD = 'control_plane_url = "https://cp.example:8443"\nmachine_id = "web-01"\n'


@dataclass(frozen=True)
class Mistake:
    """`says` are parts of the message; `toml` is appended to a good file unless `whole` is set."""

    name: str
    says: tuple[str, ...]
    toml: str = ""
    whole: str | bytes | None = None
    environ: dict[str, str] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)


MISTAKES = [
    Mistake(
        "unknown key", ("unknown key 'machine_idd'", "agent.toml", "did you mean 'machine_id'"), 'machine_idd = "x"'
    ),
    Mistake("camel case", ("unknown key 'stateDir'", "'state_dir'"), 'stateDir = "/x"'),
    Mistake("dashes", ("unknown key 'trust-file'", "'trust_file'"), 'trust-file = "/x"'),
    Mistake("a key nobody can guess", ("unknown key 'zzz'", "conf/agent.toml"), "zzz = 1"),
    Mistake("key in the wrong table", ("unknown key 'guard_secs'", "'guard_secs' in [activation]"), "guard_secs = 0"),
    Mistake("typo in a table", ("unknown key 'logging.levl'", "'level' in [logging]"), '[logging]\nlevl = "info"'),
    Mistake("unknown table", ("unknown key 'metric'",), '[metric]\nlisten = ""'),
    Mistake("number in quotes", ("'quarantine_hours'", "must be a number", "'24'"), 'quarantine_hours = "24"'),
    Mistake("string without quotes is no TOML", ("not valid TOML", "line 3"), "state_dir = /var/lib"),
    Mistake("number for a string", ("'trust_file'", "must be a string", "is 5"), "trust_file = 5"),
    Mistake("boolean for a number", ("must be a number, is true",), "quarantine_hours = true"),
    Mistake("list for a path", ("must be a string in quotes, is a list",), 'ca_cert = ["/a"]'),
    Mistake("date for a string", ("'trust_file'", "must be a string"), "trust_file = 2026-05-16"),
    Mistake("value for a table", ("'tuning'", "must be a table, is 3"), "tuning = 3"),
    Mistake("table for a value", ("'state_dir'", "must be a string in quotes, is a table"), "[state_dir]\nx = 1"),
    Mistake("duplicate key", ("not valid TOML", "line 4", "it is there twice"), 'ca_cert = "/a"\nca_cert = "/b"\n'),
    Mistake("table declared twice", ("it is there twice",), "[logging]\n[metrics]\n[logging]\n"),
    Mistake("nothing like it in the table", ("[logging] has level, format",), "[logging]\ncolour = 1"),
    Mistake("list of tables", ("'logging'", "must be a table, is a list"), "[[logging]]\n"),
    Mistake("negative seconds", ("at least 0, is -1",), "health_failure_threshold_secs = -1"),
    Mistake("zero interval", ("'tuning.drain_interval'", "more than 0"), "[tuning]\ndrain_interval = 0"),
    Mistake("dispatch wait too long", ("at most 60, is 90",), "[tuning]\ndispatch_wait = 90"),
    Mistake("fraction of one", ("'renewal_threshold_fraction'", "less than 1"), "renewal_threshold_fraction = 1"),
    Mistake("fraction of zero", ("more than 0, is 0",), "renewal_threshold_fraction = 0"),
    Mistake("not a number", ("finite number, is nan",), "quarantine_hours = nan"),
    Mistake("infinite", ("'tuning.backoff_max'",), "[tuning]\nbackoff_max = inf"),
    Mistake(
        "backend that does not exist",
        ("auto, systemd, setsid or darwin", "'systemd'?"),
        '[activation]\nbackend = "sytemd"',
    ),
    Mistake("log level in capitals", ("debug, info, warning or error", "is 'INFO'"), '[logging]\nlevel = "INFO"'),
    Mistake("log format", ("json or text, is 'xml'",), '[logging]\nformat = "xml"'),
    Mistake("relative path in the file", ("'state_dir'", "absolute path", "'var/lib'"), 'state_dir = "var/lib"'),
    Mistake("home path", ("'ca_cert'", "absolute path"), 'ca_cert = "~/ca.pem"'),
    Mistake("one window without a list", ("'maintenance.windows'", "must be a list"), '[maintenance]\nwindows = "Sat"'),
    Mistake("a number for a window", ("'maintenance.windows.0'", "a string"), "[maintenance]\nwindows = [5]"),
    Mistake("a window of no day", ("'Fre 22:00-05:00'", "Mon..Fri"), '[maintenance]\nwindows = ["Fre 22:00-05:00"]'),
    Mistake("a window that never opens", ("never opens",), '[maintenance]\nwindows = ["Mon 05:00-05:00"]'),
    Mistake("a zone that is none", ("'Mars/Base'", "Europe/Berlin"), '[maintenance]\ntime_zone = "Mars/Base"'),
    Mistake(
        "a window in the environment",
        ("NIXFLEET_AGENT_MAINTENANCE_WINDOWS in the environment", "'noon'"),
        environ={"NIXFLEET_AGENT_MAINTENANCE_WINDOWS": "Sat; noon"},
    ),
    Mistake(
        "reboots in windows that there are none of",
        ("'reboot.after_deferred'", "maintenance.windows has none"),
        '[reboot]\nafter_deferred = "window"',
    ),
    Mistake(
        "a rule for reboots that does not exist",
        ("'reboot.after_deferred'", "never, window or now"),
        '[reboot]\nafter_deferred = "always"',
    ),
    Mistake("empty path", ("'client_cert'", "is empty"), 'client_cert = ""'),
    Mistake("NUL in a path", ("'ca_cert'", "can't be printed"), 'ca_cert = "/a\\u0000b"'),
    Mistake("escape sequence in a name", ("can't be printed", "\\x1b"), 'trust_file = "/a\\u001b[2J"'),
    Mistake("root by another name", ("'state_dir'", "not /"), 'state_dir = "//etc/.."'),
    Mistake("root as state directory", ("'state_dir'", "not /"), 'state_dir = "/"'),
    Mistake(
        "guard too short", ("'activation.guard_secs'", "= 1200", "is 1200", "set 0"), "[activation]\nguard_secs = 1200"
    ),
    Mistake(
        "budget that outgrew the guard",
        ("'activation.guard_secs' (default)", "is 1500"),
        "[activation]\npoll_budget_secs = 900",
    ),
    Mistake("backoff upside down", ("backoff_max", "less than backoff_initial"), "[tuning]\nbackoff_initial = 120"),
    Mistake("metrics without a port", ("ADDRESS:PORT", "'127.0.0.1'"), '[metrics]\nlisten = "127.0.0.1"'),
    Mistake("metrics port out of range", ("ADDRESS:PORT",), '[metrics]\nlisten = "127.0.0.1:99999"'),
    Mistake("metrics on a bare IPv6", ("ADDRESS:PORT",), '[metrics]\nlisten = "::1:9110"'),
    Mistake("relative textfile", ("'metrics.textfile'", "absolute"), '[metrics]\ntextfile = "m.prom"'),
    Mistake(
        "plain http", ("uses http", "https://HOST:PORT"), whole='control_plane_url = "http://cp"\nmachine_id = "a"'
    ),
    Mistake("no scheme", ("must start with https://",), whole='control_plane_url = "cp:8443"\nmachine_id = "a"'),
    Mistake("space in a URL", ("contains a space",), whole='control_plane_url = " https://cp"\nmachine_id = "a"'),
    Mistake("no host", ("names no host",), whole='control_plane_url = "https://"\nmachine_id = "a"'),
    Mistake(
        "password in the URL", ("user or password",), whole='control_plane_url = "https://u:p@cp"\nmachine_id = "a"'
    ),
    Mistake("port out of range", ("is not a URL",), whole='control_plane_url = "https://cp:99999"\nmachine_id = "a"'),
    Mistake("no proxy", ("proxy_url", "must be http://HOST:PORT"), whole=GOOD + 'proxy_url = "https://proxy:3128"'),
    Mistake("a proxy's password", ("user or password",), whole=GOOD + 'proxy_url = "http://u:p@proxy:3128"'),
    Mistake("query in the URL", ("query",), whole='control_plane_url = "https://cp/?a=1"\nmachine_id = "a"'),
    Mistake("broken IPv6 in the URL", ("is not a URL",), whole='control_plane_url = "https://[::1"\nmachine_id = "a"'),
    Mistake(
        "host name with a space",
        ("'machine_id'", "not a host name"),
        whole='control_plane_url = "https://cp"\nmachine_id = "a b"',
    ),
    Mistake(
        "host name that climbs", ("not a host name",), whole='control_plane_url = "https://cp"\nmachine_id = "../x"'
    ),
    Mistake(
        "machine id missing", ("'machine_id' is not set", "--machine-id"), whole='control_plane_url = "https://cp"'
    ),
    Mistake("address missing", ("'control_plane_url' is not set", "NIXFLEET_AGENT_CP_URL"), whole='machine_id = "a"'),
    Mistake("not UTF-8", ("not UTF-8",), whole=b'machine_id = "\xff"'),
    Mistake("a binary file", ("not ",), whole=b"\x7fELF\x02\x01\x00\x00"),
    Mistake("nested past reason", ("nested too deeply",), whole="a = " + "[" * 100_000),
    Mistake("a huge file", ("larger than 1048576 bytes",), whole="#" * 1_100_000),
    Mistake("a number of five thousand digits", ("not valid TOML",), "quarantine_hours = " + "9" * 5000),
    Mistake("JSON instead of TOML", ("not valid TOML",), whole='{"machine_id": "a"}'),
    Mistake("empty file", ("'control_plane_url' is not set",), whole=""),
    Mistake(
        "unknown variable",
        ("unknown variable NIXFLEET_AGENT_MACHINEID", "did you mean NIXFLEET_AGENT_MACHINE_ID?"),
        environ={"NIXFLEET_AGENT_MACHINEID": "x"},
    ),
    Mistake("unknown variable, no idea", ("unset it",), environ={"NIXFLEET_AGENT_QQQQQ": "1"}),
    Mistake(
        "text for a number in the environment",
        ("NIXFLEET_AGENT_TUNING_DRAIN_INTERVAL in the environment must be a number, is 'fast'",),
        environ={"NIXFLEET_AGENT_TUNING_DRAIN_INTERVAL": "fast"},
    ),
    Mistake(
        "relative path in the environment",
        ("NIXFLEET_AGENT_STATE_DIR", "absolute"),
        environ={"NIXFLEET_AGENT_STATE_DIR": "x"},
    ),
    Mistake(
        "http in the environment",
        ("NIXFLEET_AGENT_CP_URL in the environment uses http",),
        environ={"NIXFLEET_AGENT_CP_URL": "http://cp"},
    ),
    Mistake(
        "flag out of range",
        ("--renewal-threshold-fraction must be less than 1, is 1.5",),
        flags={"renewal_threshold_fraction": "1.5"},
    ),
    Mistake(
        "flag that is no number",
        ("--renewal-threshold-fraction must be a number",),
        flags={"renewal_threshold_fraction": "half"},
    ),
    Mistake("empty flag", ("--ca-cert is empty",), flags={"ca_cert": ""}),
    Mistake("http as a flag", ("--control-plane-url uses http",), flags={"control_plane_url": "http://cp"}),
]
