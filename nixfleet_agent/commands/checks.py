"""What `check` looks at: each function yields one finding for each thing it looked at, and changes nothing."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nixfleet_agent import __version__
from nixfleet_agent.activation.backends import choose
from nixfleet_agent.activation.context import Context, child_environment
from nixfleet_agent.activation.errors import ActivationError
from nixfleet_agent.activation.host import read_link, read_profile
from nixfleet_agent.artifacts.trust_store import MARKS_FILE, TrustStore
from nixfleet_agent.commands.times import local_time
from nixfleet_agent.config.load import Loaded
from nixfleet_agent.config.model import Config
from nixfleet_agent.config.ownership import believed, unsafe
from nixfleet_agent.config.proxy import ignored_variables
from nixfleet_agent.config.windows import overlapping, parse_windows
from nixfleet_agent.errors import AgentError, ConfigError, IdentityError, ProtoError, TransportError
from nixfleet_agent.hooks import folder as hook_folder
from nixfleet_agent.hooks.moments import FOLDERS
from nixfleet_agent.identity.anchors import load_anchors
from nixfleet_agent.identity.certificate import load_certificate, name_is_ours
from nixfleet_agent.identity.host_key import load_host_key, permission_warnings
from nixfleet_agent.identity.token import check_token, load_token
from nixfleet_agent.net.client import OCTETS, ControlPlane
from nixfleet_agent.net.failures import ClientCertificateRefusedError
from nixfleet_agent.probes import health_checks
from nixfleet_agent.proto.ids import case_hint
from nixfleet_agent.proto.strict_json import BODY_LIMIT, loads_strict
from nixfleet_agent.reading import read_regular
from nixfleet_agent.text import printable
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.trust.errors import VerificationError
from nixfleet_agent.trust.marks import Marks
from nixfleet_agent.trust.roots import TrustRoots, parse_trust
from nixfleet_agent.trust.verify import CLOCK_SKEW, SIGNATURE_LIMIT

OK, WARN, FAIL = "ok", "warn", "fail"
#: Below this a release may not even fit its own journal (bytes).
_LITTLE_SPACE = 64 * 1024 * 1024
#: A rollout is some thirty files, and nothing is removed in its middle.
_FEW_INODES = 1000
_NIX_TIMEOUT_SECS = 20.0
_REACH_DEADLINE_SECS = 10.0
_NO_WAY = "is the address right, is it up, does a firewall stand between, is a proxy needed (proxy_url)?"
#: Exists exactly while systemd is the running init: sd_booted(3).
SYSTEMD_RUNS = Path("/run/systemd/system")
#: On every NixOS host, and made by its installer; elsewhere (Nix on Debian) a host begins without a system.
_NIXOS_MARK = Path("/etc/NIXOS")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is (``ok``, ``warn`` or ``fail``), and what to do about it."""

    what: str
    level: str
    text: str


def program() -> Finding:
    """Whether this very program can be started: that all of it, and all it needs, is there."""
    try:
        importlib.import_module("nixfleet_agent.runtime.daemon")
    except ImportError as error:
        return Finding("program", FAIL, f"{error}: the package is not whole, install it again")
    return Finding("program", OK, f"nixfleet-agent {__version__}, Python {platform.python_version()}")


def configuration(loaded: Loaded) -> Iterator[Finding]:
    file, given = loaded.file, sum(origin != "default" for _, origin in loaded.provenance.values())
    where = str(file) if file else "environment and flags, no file"
    yield Finding("configuration", OK, f"{where}; {given} keys set (see --print-config)")


def ownership(loaded: Loaded) -> Iterator[Finding]:
    """What the agent refuses to start with: a file that somebody else than root may change."""
    # The trust file is refused by whoever reads it, and told of below.
    paths = [path for path in believed(loaded.config, loaded.file) if path != loaded.config.trust_file]
    problems = dict.fromkeys(problem for path in paths if (problem := unsafe(path)) is not None)
    for problem in problems:
        yield Finding("ownership", FAIL, problem)
    if not problems:
        yield Finding("ownership", OK, "nobody else can change what the agent believes or runs")


def state_directory(config: Config) -> Iterator[Finding]:
    path = config.state_dir
    if not path.exists():
        yield Finding("state directory", WARN, f"{path} does not exist yet: the agent makes it at its first start")
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if not path.is_dir():
        yield Finding("state directory", FAIL, f"{path} is not a directory: set state_dir")
        return
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        yield Finding("state directory", FAIL, f"{path} is on a read-only file system: remount it, or set state_dir")
        return
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("state directory", FAIL, f"{path} can't be written: run this as root, or set state_dir")
        return
    if mode & 0o077:
        yield Finding("state directory", FAIL, f"{path} is open to others (mode {mode:04o}): run `chmod 700 {path}`")
    yield _room(path)


def _room(path: Path) -> Finding:
    """A disk can run out of bytes and out of inodes; some file systems make inodes as they need them, and say 0."""
    disk = os.statvfs(path)
    free = disk.f_bavail * disk.f_frsize
    inodes = f"{disk.f_favail} inodes" if disk.f_files else "inodes as needed"
    little = free < _LITTLE_SPACE or (disk.f_files > 0 and disk.f_favail < _FEW_INODES)
    advice = ": make room, or set state_dir" if little else ""
    return Finding("state directory", WARN if little else OK, f"{path}, {free >> 20} MiB and {inodes} free{advice}")


def trust_file(config: Config, clock: Clock) -> Iterator[Finding]:
    try:
        roots = TrustStore(config).trust()
    except VerificationError as error:
        yield Finding("trust file", FAIL, str(error))
        return
    yield from _release_keys(config, roots, clock)


def trust_content(config: Config, clock: Clock) -> Iterator[Finding]:
    """What a trust file says, whoever may have written it."""
    try:
        raw = read_regular(config.trust_file, BODY_LIMIT)
        roots = parse_trust(raw, f"the trust file {config.trust_file}")
    except OSError as error:
        yield Finding("trust file", FAIL, f"can't read {config.trust_file}: {error.strerror}")
    except VerificationError as error:
        yield Finding("trust file", FAIL, str(error))
    else:
        yield from _release_keys(config, roots, clock)


def _release_keys(config: Config, roots: TrustRoots, clock: Clock) -> Iterator[Finding]:
    for skipped in roots.warnings:
        yield Finding("trust file", WARN, skipped)
    active = roots.ci_release_key.active(clock.now())
    usable = [f"{slot} ({key.algorithm})" for slot, key in active if key.supported]
    unusable = [f"{slot} ({key.algorithm})" for slot, key in active if not key.supported]
    if not usable:
        why = f"its keys are of unknown kinds: {', '.join(unusable)}" if unusable else "it has no ciReleaseKey"
        yield Finding("trust file", FAIL, f"{config.trust_file} can verify nothing: {why}; put the fleet's there")
        return
    yield Finding("trust file", OK, f"{config.trust_file}; releases may be signed by: {', '.join(usable)}")


def ca_file(config: Config) -> Iterator[Finding]:
    """What the control plane's certificate is judged by."""
    if config.ca_cert is None:
        yield Finding("CA", OK, "ca_cert is not set: the control plane's certificate is judged by the system's CAs")
        return
    try:
        count = len(load_anchors((), config.ca_cert))
    except IdentityError as error:
        yield Finding("CA", FAIL, f"{error}; unset, ca_cert means the system's CAs")
        return
    text = f"{config.ca_cert}: {count} certificate{'' if count == 1 else 's'}, the only ones that are trusted"
    yield Finding("CA", OK, text)


def clock_and_marks(config: Config, clock: Clock) -> Iterator[Finding]:
    path = config.state_dir / MARKS_FILE
    try:
        newest = Marks.parse(loads_strict(read_regular(path, BODY_LIMIT), limit=BODY_LIMIT, what=str(path))).newest
    except FileNotFoundError:
        return  # nothing was accepted yet
    except OSError as error:
        yield Finding("trust marks", FAIL, f"can't read {path}: {error.strerror}: run this as root")
        return
    except ProtoError as error:
        yield Finding("trust marks", WARN, f"{error}: the agent rebuilds it at its next start")
        return
    if newest is not None and clock.now() + CLOCK_SKEW < newest:
        yield Finding("clock", FAIL, f"it reads {clock.now():%F %T}Z, but CI signed at {newest:%F %T}Z: set the clock")


def identity(config: Config, clock: Clock) -> Iterator[Finding]:
    try:
        key = load_host_key(config.client_key)
    except IdentityError as error:
        yield Finding("host key", FAIL, str(error))
        return
    yield Finding("host key", OK, f"{config.client_key}, fingerprint {key.fingerprint}")
    secrets = (config.client_key, config.ssh_host_key_file, config.bootstrap_token_file)
    for warning in permission_warnings(*secrets):
        yield Finding("permissions", FAIL, warning)
    try:
        if load_host_key(config.ssh_host_key_file).public_raw != key.public_raw:
            yield Finding("host key", WARN, "client_key and ssh_host_key_file differ: the fleet expects one key")
    except IdentityError as error:
        yield Finding("host key", WARN, f"events go unsigned: {error}")
    yield _certificate(config, clock, key.public_raw)
    if config.bootstrap_token_file is not None and not config.client_cert.exists():
        try:
            check_token(load_token(config.bootstrap_token_file), machine_id=config.machine_id, key=key, now=clock.now())
        except AgentError as error:
            yield Finding("bootstrap token", FAIL, str(error))
        else:
            yield Finding("bootstrap token", OK, f"{config.bootstrap_token_file} fits this host and its key")


def _certificate(config: Config, clock: Clock, public_raw: bytes) -> Finding:
    try:
        certificate = load_certificate(config.client_cert)
    except IdentityError as error:
        waiting = config.bootstrap_token_file is not None and not config.client_cert.exists()
        told = f"{config.client_cert} is not there yet: the agent enrolls with the token when it starts"
        return Finding("certificate", WARN if waiting else FAIL, told if waiting else str(error))
    where, left = config.client_cert, certificate.remaining_fraction(clock.now())
    if not certificate.belongs_to(public_raw):
        return Finding("certificate", FAIL, f"{where} is for another key than client_key: remove it and enroll again")
    if not name_is_ours(certificate.common_name, config.machine_id):
        hint = case_hint(certificate.common_name, config.machine_id)
        text = f"{where} is for {certificate.common_name!r}, not {config.machine_id!r}{hint}"
        return Finding("certificate", FAIL, text)
    if certificate.not_before > clock.now():
        text = f"{where} is valid from {certificate.not_before:%F %T}Z on, and this host's clock reads"
        return Finding("certificate", FAIL, f"{text} {clock.now():%F %T}Z: set the clock")
    if certificate.expired(clock.now()):
        expired = (
            f"{where} expired at {certificate.not_after:%F %T}Z, if this host's clock is right ({clock.now():%F %T}Z)"
        )
        return Finding(
            "certificate", FAIL, f"{expired}: `nixfleet-agent renew --force`; where that is refused, enroll again"
        )
    return Finding("certificate", OK, f"{where}, valid until {certificate.not_after:%F %T}Z ({left:.0%} left)")


def hooks(config: Config) -> Iterator[Finding]:
    """The programs that are told what happens; silent where this host has none."""
    folder = config.hooks.folder
    for problem in hook_folder.problems(folder):
        yield Finding("hooks", FAIL, problem)
    counts = {moment: len(hook_folder.find(folder, moment).hooks) for moment in FOLDERS}
    told = ", ".join(f"{count} {moment}" for moment, count in counts.items() if count)
    if told:
        yield Finding("hooks", OK, f"{folder}: {told}")


def reboots(config: Config) -> Iterator[Finding]:
    """Who reboots this host when a release needs it; silent where nothing but an operator does."""
    rule = config.reboot.after_deferred
    if rule == "never":
        return
    missing = [name for name in ("systemctl", "wall") if shutil.which(name) is None]
    if missing:
        text = f"reboot.after_deferred is {rule}, and {' and '.join(missing)} can't be found on the PATH"
        yield Finding("reboots", WARN, text)
        return
    when = "at once" if rule == "now" else "in the next maintenance window"
    yield Finding("reboots", OK, f"a release that needs a reboot gets it {when}")


def windows(config: Config, clock: Clock) -> Iterator[Finding]:
    """The maintenance windows; silent where there are none."""
    found = parse_windows(config.maintenance.windows, config.maintenance.time_zone)
    if not found:
        return
    for one, other in overlapping(found):
        yield Finding("windows", WARN, f"{one!r} and {other!r} overlap: harmless, if it is meant")
    now = clock.now()
    change = found.next_change(now)
    state, verb = ("open", "closes") if found.is_open(now) else ("closed", "opens")
    when = f", {verb} {local_time(change)}" if change else ""
    yield Finding("windows", OK, f"{len(found.windows)} maintenance windows, {state} now{when}")


def health_check_file(config: Config, *, strict: bool = False) -> Iterator[Finding]:
    """``strict``: a word that is not known fails, although the agent itself reads on (it may be of a newer agent)."""
    path = config.health_checks_file
    try:
        raw = read_regular(path, health_checks.FILE_LIMIT)
    except FileNotFoundError:
        yield Finding("health checks", OK, f"{path} is not there: no probes, a rollout only has to soak")
        return
    except OSError as error:
        yield Finding("health checks", FAIL, f"can't read {path}: {error.strerror or error}")
        return
    floor = config.tuning.probe_min_interval
    declared = health_checks.parse(raw, floor)
    for finding in health_checks.lint(raw, floor):
        fails = finding.fails or (strict and finding.unknown)
        yield Finding("health checks", FAIL if fails else WARN, f"{path}: {finding.text}")
    if not declared.broken:
        names = ", ".join(printable(decl.name, 80) for decl in declared.probes)
        text = printable(f"{path} declares {len(declared.probes)}{': ' if names else ''}{names}")
        yield Finding("health checks", OK, text)


def nix(config: Config, context: Context) -> Iterator[Finding]:
    try:
        done = subprocess.run(  # nosec B603 B607 # fixed words; PATH is what is being checked
            ["nix-store", "--version"],
            env=child_environment(os.environ, config.activation.store_root),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_NIX_TIMEOUT_SECS,
            text=True,
            check=True,
        )
        yield Finding("nix", OK, done.stdout.strip())
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().rpartition("\n")[2]
        yield Finding("nix", FAIL, f"nix-store does not run ({said}): is Nix installed and in the agent's PATH?")
    try:
        method = choose(context).method
        if config.activation.backend == "systemd" and not SYSTEMD_RUNS.is_dir():
            text = "activation.backend is systemd, which does not run this host: set auto or setsid"
            yield Finding("backend", FAIL, text)
        else:
            yield Finding("backend", OK, f"switches run by {method}")
    except ActivationError as error:
        yield Finding("backend", FAIL, str(error))
    activation = config.activation
    (current, why), profile = read_link(activation.current_system), read_profile(activation.profile)
    empty = profile is None and not os.path.lexists(activation.current_system)
    if current is None and empty and not _NIXOS_MARK.exists():
        text = (
            f"no closure runs on this host yet ({why}), and releases wait until one does: run the first one's "
            "bin/switch-to-configuration by hand"
        )
        yield Finding("system", WARN, text)
    elif current is None:
        text = f"{why}: is this a NixOS host? (activation.current_system)"
        yield Finding("system", FAIL, text)
    else:
        after = "" if profile == current else f"; the profile is at {profile or 'nothing'}"
        yield Finding("system", OK if not after else WARN, f"{current} runs{after}")


def proxy(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    """The way out, where it is not the straight one, or somebody thinks that it is not."""
    if config.proxy_url is not None:
        yield Finding("proxy", OK, f"the control plane is reached through {config.proxy_url} (proxy_url)")
    elif names := ignored_variables(environ):
        yield Finding("proxy", WARN, f"{', '.join(names)} is set, and ignored on purpose: set proxy_url to use a proxy")


def reachability(config: Config, control_plane: ControlPlane, *, enrolled: bool) -> Iterator[Finding]:
    """One small request; a host that is not enrolled yet can only see whether anybody is there."""
    url, path = config.control_plane_url, "/v1/fleet.resolved/sig"
    try:
        answer = control_plane.get(
            path, deadline=_REACH_DEADLINE_SECS, limit=SIGNATURE_LIMIT, accept=OCTETS, signed=True
        )
        status = answer.status
    except ClientCertificateRefusedError as error:
        yield _welcome(url, enrolled, str(error))
        return
    except TransportError as error:
        # Somebody was there, or nobody could be asked: neither the network nor a firewall is to blame.
        if error.kind in ("foreign", "proxy"):
            yield Finding("control plane", FAIL, str(error))
            return
        tls = "is that the control plane, and ca_cert the CA of its fleet?"
        cause = tls if error.kind == "tls" else _NO_WAY
        yield Finding("control plane", FAIL, f"{error}: {cause}")
        return
    except ConfigError as error:
        yield Finding("control plane", FAIL, str(error))
        return
    if status in (401, 403):
        yield _welcome(url, enrolled, f"status {status}")
    elif status == 200:
        yield Finding(
            "control plane", OK, f"{url} answers" + (" and takes this host's certificate" if enrolled else "")
        )
    else:
        yield Finding("control plane", WARN, f"{url} answers, with status {status} for {path}")


def _welcome(url: str, enrolled: bool, said: str) -> Finding:
    if enrolled:
        text = f"{url} refuses this host's certificate ({said}): is the host in the fleet, or was it revoked?"
        return Finding("control plane", FAIL, text)
    return Finding("control plane", OK, f"{url} answers; it lets nobody in without a certificate")
