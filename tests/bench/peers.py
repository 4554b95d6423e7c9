"""What comparable agents cost that wait beside this one: memory, CPU, wake-ups, threads, in the same minute.

Each is pointed at a closed port of this machine, so that what is measured is waiting and not work. Bar: no more memory
than any other that Python or Ruby runs; how near one can come is said by a process that imports pyopenssl, which is
this agent's TLS, and sleeps.

The others are fetched into a folder that is removed afterwards: Debian packages are unpacked (`apt-get download`,
`dpkg -x`) and not installed, Python packages go into environments of their own. What can't be had is left out and said.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import figures
from tests.bench.figures import Figure
from tests.bench.processes import Cost, cost, family, fresh_byte_code
from tests.bench.startup import MACHINE, settings_of
from tests.support.signing import CiSigner
from tests.support.tls import Authority, write_host_key

SETTLE_SECS, SPAN_SECS = 60.0, 60.0
#: Nobody listens there.
CLOSED = "127.0.0.1:1"
OURS = "nixfleet-agent"

#: What salt's package does not ask for everywhere and its minion imports.
_SALT_NEEDS = (
    *("aiohttp", "croniter", "cryptography", "distro", "jinja2", "jmespath", "looseversion", "msgpack", "networkx"),
    *("packaging", "psutil", "pycryptodomex", "pyopenssl", "python-gnupg", "pyyaml", "pyzmq", "requests", "tornado"),
)


#: Puppet's agent and what of its dependencies is not on every Debian machine.
_PUPPET_NEEDS = (
    *("puppet-agent", "facter", "hiera", "libaugeas0", "libgdbm6", "libruby3.1", "libyaml-0-2", "ruby3.1"),
    *("ruby-augeas", "ruby-concurrent", "ruby-deep-merge", "ruby-hocon", "ruby-json", "ruby-net-telnet", "ruby-rbtree"),
    *("ruby-rubygems", "ruby-sdbm", "ruby-semantic-puppet", "ruby-shadow", "ruby-sorted-set", "ruby-thor"),
    *("ruby-webrick", "ruby-xmlrpc", "rubygems-integration"),
)


@dataclass(frozen=True, slots=True)
class Peer:
    """One agent: its name with version, what runs it, and how it is started."""

    name: str
    language: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)


class MissingError(Exception):
    """A peer can't be had on this machine."""


def ours(folder: Path) -> Peer:
    """This agent with its defaults; a certificate is there, so that it asks for work and not for an identity."""
    fresh_byte_code()
    authority = Authority()
    key = write_host_key(folder / "key")
    authority.write_client(folder / "cert.pem", key, MACHINE)
    (folder / "trust.json").write_bytes(CiSigner().trust_bytes())
    (folder / "state").mkdir(mode=0o700)
    config = folder / "agent.toml"
    config.write_text(settings_of(folder, f"https://{CLOSED}", authority.write_ca(folder / "ca.pem")))
    return Peer(OURS, "Python", [sys.executable, "-m", "nixfleet_agent", "run", "--config", str(config)])


def floor(folder: Path) -> Peer:
    """No agent: what the one library that speaks TLS takes when it is imported."""
    return Peer("pyopenssl, imported", "", [sys.executable, "-c", "import OpenSSL.SSL, signal; signal.pause()"])


def salt(folder: Path) -> Peer:
    """The minion of SaltStack (Python): waits for orders of a master."""
    python = pip(folder, "salt==3007.1", *_SALT_NEEDS)
    config = folder / "minion"
    config.write_text(
        f"master: 127.0.0.1\nmaster_port: 1\nid: {MACHINE}\nroot_dir: {folder}/root\nuser: root\n"
        "log_level: quiet\nlog_level_logfile: quiet\nretry_dns: 0\n"
    )
    command = [str(python.parent / "salt-minion"), "-c", str(folder)]
    return Peer(f"salt-minion {version(python, 'salt')}", "Python", command)


def puppet(folder: Path) -> Peer:
    """Puppet's agent (Ruby): asks its server for a certificate every two minutes, and would for a catalogue."""
    number, *_ = (unpack(folder, package) for package in _PUPPET_NEEDS)
    root, own = folder / "usr", folder / "puppet"
    ruby = [root / "lib/ruby", *root.glob("lib/*-linux-gnu/ruby")]
    gems = root / "share/rubygems-integration/all"
    paths = [
        *(place / part for place in ruby for part in ("vendor_ruby", "vendor_ruby/3.1.0", "3.1.0")),
        *gems.glob("gems/*/lib"),
    ]
    for name in ("conf", "var", "run"):
        (own / name).mkdir(parents=True)
    command = [
        *(str(root / "bin/ruby3.1"), str(root / "bin/puppet"), "agent", "--no-daemonize", "--logdest", "console"),
        *("--server", "127.0.0.1", "--serverport", "1", "--certname", MACHINE, "--waitforcert", "120"),
        *("--confdir", str(own / "conf"), "--vardir", str(own / "var"), "--rundir", str(own / "run")),
        *("--ssldir", str(own / "ssl"), "--publicdir", str(own / "public")),
    ]
    environment = {
        "LD_LIBRARY_PATH": ":".join(map(str, root.glob("lib/*-linux-gnu"))),
        "RUBYLIB": ":".join(map(str, paths)),
        "GEM_PATH": str(gems),
    }
    return Peer(f"puppet-agent {number}", "Ruby", command, environment)


def supervisor(folder: Path) -> Peer:
    """supervisord (Python): waits for commands on a socket and for children, of which it has none."""
    python = pip(folder, "supervisor", "setuptools<81")
    config = folder / "supervisord.conf"
    config.write_text(
        f"[supervisord]\nnodaemon=true\nlogfile={folder}/log\npidfile={folder}/pid\nchildlogdir={folder}\nuser=root\n"
        f"[unix_http_server]\nfile={folder}/sock\n"
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
    )
    command = [str(python.parent / "supervisord"), "-c", str(config)]
    return Peer(f"supervisor {version(python, 'supervisor')}", "Python", command)


def node_exporter(folder: Path) -> Peer:
    """Prometheus' node exporter (Go): waits to be scraped."""
    number = unpack(folder, "prometheus-node-exporter")
    command = [str(folder / "usr/bin/prometheus-node-exporter"), "--web.listen-address=127.0.0.1:0"]
    return Peer(f"prometheus-node-exporter {number}", "Go", command)


def zabbix(folder: Path) -> Peer:
    """The Zabbix agent (C): asks its server for work every two minutes."""
    unpack(folder, "libmodbus5")
    number = unpack(folder, "zabbix-agent")
    config = folder / "zabbix.conf"
    config.write_text(
        f"PidFile={folder}/pid\nLogType=console\nServer=127.0.0.1\nListenIP=127.0.0.1\nListenPort=10950\n"
        f"ServerActive={CLOSED}\nHostname={MACHINE}\nAllowRoot=1\n"
    )
    libraries = {"LD_LIBRARY_PATH": str(next(folder.glob("usr/lib/*/libmodbus.so.5")).parent)}
    command = [str(folder / "usr/sbin/zabbix_agentd"), "-f", "-c", str(config)]
    return Peer(f"zabbix-agent {number}", "C", command, libraries)


def pip(folder: Path, *packages: str) -> Path:
    """The interpreter of a new environment with ``packages``."""
    python = folder / "venv" / "bin" / "python"
    run([sys.executable, "-m", "venv", str(folder / "venv")])
    run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
    return python


def version(python: Path, package: str) -> str:
    return run([str(python), "-c", f"from importlib.metadata import version; print(version({package!r}))"]).strip()


def unpack(folder: Path, package: str) -> str:
    """Unpack a Debian package into ``folder``; its version."""
    run(["apt-get", "download", "-qq", package], folder)
    (archive,) = folder.glob(f"{package}_*.deb")
    run(["dpkg", "-x", str(archive), str(folder)])
    return run(["dpkg-deb", "-f", str(archive), "Version"]).strip()


def run(command: Sequence[str], folder: Path | None = None) -> str:
    """Standard output; raises MissingError with what went wrong."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(str(error)) from error
    if done.returncode:
        raise MissingError(f"{' '.join(command[:4])}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout


def prepare(folder: Path, make: Callable[[Path], Peer]) -> Peer | str:
    place = folder / make.__name__
    place.mkdir()
    try:
        return make(place)
    except MissingError as error:
        return f"{make.__name__} is left out: {error}"


def watch(peers: Sequence[Peer], folder: Path, span: float, settle: float) -> dict[str, Cost | str]:
    """Start all, let them settle, and look at all of them in the same span."""
    started = {}
    for number, peer in enumerate(peers):
        with (folder / f"{number}.log").open("wb") as log:
            started[peer.name] = subprocess.Popen(
                peer.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **peer.environment}
            )
    threading.Event().wait(settle)
    found: dict[str, Cost | str] = {}

    def look(name: str) -> None:
        process = started[name]
        if process.poll() is None:
            found[name] = cost(family(process.pid), span)
        else:
            found[name] = f"{name} ended by itself with {process.returncode}"

    try:
        with ThreadPoolExecutor(len(started)) as pool:
            list(pool.map(look, started))
    finally:
        for process in started.values():
            for pid in reversed(family(process.pid) if process.poll() is None else []):
                try:
                    os.kill(pid, 15)
                except ProcessLookupError:
                    continue
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    return found


def measure(quick: bool) -> list[Figure]:
    makers = (ours, floor, *(() if quick else (salt, puppet)), supervisor, node_exporter, zabbix)
    shown = []
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        folder = Path(name)
        prepared = [prepare(folder, make) for make in makers]
        peers = [peer for peer in prepared if isinstance(peer, Peer)]
        costs = watch(peers, folder, 10 if quick else SPAN_SECS, 10 if quick else SETTLE_SECS)
    for line in [*prepared, *costs.values()]:
        if isinstance(line, str):
            print(line, file=sys.stderr)
    own = costs.get(OURS)
    for peer in peers:
        each = costs[peer.name]
        if not isinstance(each, Cost):
            continue
        name = f"{peer.name} ({peer.language})" if peer.language else peer.name
        shown += [
            Figure(what=f"{name}: RSS", value=each.rss, unit="MB"),
            Figure(what=f"{name}: CPU", value=each.cpu, unit="% of a core"),
            Figure(what=f"{name}: wake-ups", value=each.wakeups, unit="/s"),
            Figure(what=f"{name}: threads", value=each.threads, unit=""),
        ]
        if isinstance(own, Cost) and peer.name != OURS and peer.language in ("Python", "Ruby"):
            against = f"of {peer.name}"
            shown.append(Figure(what="our RSS", value=own.rss, unit="MB", baseline=each.rss, against=against, most=1.0))
    return shown


if __name__ == "__main__":
    sys.exit(figures.main(measure, __doc__))
