"""A systemd that really runs: PID 1 of namespaces of its own, over a read-only view of this machine.

    with RealSystemd({"etc/systemd/system/x.service": "..."}) as machine:     # raises Unavailable where it can't be had
        machine.run("systemctl", "start", "x.service")                         # any program, inside

Inside are the host's programs (``/usr`` under an overlay that is thrown away), this project, and else nothing: an
``/etc``, ``/var``, ``/nix`` and ``/run`` of its own, and of units only what a service needs to start. ``/proc/sys`` is
read-only, for a booting systemd sets kernel variables, and those would be the host's. The network is the host's.
All mounts are in the container's own namespace and end with it; its processes end when this one does, however.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import ClassVar

TOP = Path(__file__).resolve().parent.parent.parent
SYSTEMD = next((p for p in (Path("/usr/lib/systemd/systemd"), Path("/lib/systemd/systemd")) if p.exists()), None)
_TOOLS = ("unshare", "nsenter", "setpriv", "pivot_root", "mount", "umount", "mknod", "systemctl", "systemd-run")
BOOT_SECS = 30.0
#: A container that nobody ends any more (its creator was killed in a way that took no notice) ends by itself.
LIFE_SECS = 450
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_SETUP = """
set -eu
cd "$1"; top=$2 cgroup=$3 systemd=$4; shift 4
mount --make-rprivate /
mount --bind . . && cd "$PWD"
mkdir -p proc sys dev run tmp var/log var/lib root nix etc usr old .usr/upper .usr/work
for name in bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$name" ]; then ln -sfn "usr/$name" "$name"; elif [ -d "/$name" ]; then
        mkdir "$name"; mount --bind "/$name" "$name"; mount -o remount,bind,ro "$name"; fi
done
mount -t overlay -o lowerdir=/usr,upperdir=.usr/upper,workdir=.usr/work overlay usr
for folder in "$top" "$@"; do
    mkdir -p ".$folder"; mount --bind "$folder" ".$folder"; mount -o remount,bind,ro ".$folder"
done
mount -t proc proc proc
mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
for node in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m 666 "dev/${node%:*}" c 1 "${node#*:}"; done
mknod -m 666 dev/tty c 5 0
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -sfn ../run var/run; ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd
chmod 1777 tmp
pivot_root . old
umount -l /old
exec env -i container=test PATH="$PATH" \
    SYSTEMD_UNIT_PATH=/run/systemd/transient:/etc/systemd/system SYSTEMD_GENERATOR_PATH=/etc/systemd/none \
    "$systemd" --system --unit=basic.target --log-target=console --show-status=no </dev/null
"""
_BARE = "[Unit]\nDefaultDependencies=no\n"
_FILES: Mapping[str, str] = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "etc/fstab": "",
    "etc/machine-id": "6e697866" * 4 + "\n",
    "etc/os-release": "ID=test\nNAME=test\n",
    "etc/nix/nix.conf": "build-users-group =\n",
    # No journal runs: what a unit says goes where its drop-in says.
    "etc/systemd/system.conf": "[Manager]\nDefaultStandardOutput=null\nDefaultStandardError=inherit\n",
    "etc/systemd/system/sysinit.target": _BARE,
    "etc/systemd/system/shutdown.target": _BARE,
    "etc/systemd/system/umount.target": _BARE,
    "etc/systemd/system/network-online.target": _BARE,
    "etc/systemd/system/timers.target": _BARE,
    "etc/systemd/system/multi-user.target": _BARE,
    "etc/systemd/system/basic.target": f"{_BARE}Requires=sysinit.target\nAfter=sysinit.target\n",
}


class Unavailable(Exception):
    """No systemd can be started here; the message says why."""


class RealSystemd:
    """One container, made by the constructor and taken away by ``close``; ``root`` is its ``/`` as seen from here.

    Args:
        files: more files, by their path inside without the first slash; one that begins with ``#!`` can be run.

    Raises:
        Unavailable: this machine or user may not, or lacks a program.
    """

    def __init__(self, files: Mapping[str, str] | None = None) -> None:
        require()
        # On a file system with room and user attributes: an overlay's upper part needs both.
        shm = Path("/dev/shm")
        roomy = shm.is_dir() and os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 1 << 29
        self.root = Path(tempfile.mkdtemp(prefix="systemd-", dir=shm if roomy else None)).resolve()
        self._cgroup: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        try:
            self._write({**_FILES, **(files or {})})
            self._cgroup = _make_cgroup(self.root.name)
            self._boot()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RealSystemd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def cgroup(self) -> Path:
        """The control group that everything inside is in."""
        assert self._cgroup is not None
        return self._cgroup

    def run(
        self, *arguments: str, timeout: float = 60, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside, in the container's cgroup, with this environment alone; any exit code is an answer."""
        given = {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", "container": "test", **(environment or {})}
        return subprocess.run(
            ["nsenter", f"--target={self.pid}", "--all", "--", *arguments],
            env=given,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    @staticmethod
    def python(*arguments: str) -> list[str]:
        """The command that runs this Python inside, with the project to import from."""
        return ["env", f"PYTHONPATH={TOP}", sys.executable, "-B", *arguments]

    def until_down(self, seconds: float) -> bool:
        """Whether it goes down by itself within that time."""
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def reboot(self) -> None:
        """The plug is pulled, and it boots anew: what is on its disk stays, and of ``/run`` and ``/dev`` nothing."""
        self._end()
        assert self._cgroup is not None
        deadline = time.monotonic() + BOOT_SECS
        while (self._cgroup / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.pid = 0
        self._boot()

    def close(self) -> None:
        """End every process inside, and leave nothing: no mount, no control group, no file."""
        self._end()
        if self._cgroup is not None:
            remove_cgroup(self._cgroup)
        shutil.rmtree(self.root)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if self.pid:
                _kill(self.pid)  # the kernel ends all others of its namespace
            else:
                _kill(process.pid)
            process.wait()

    def _write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            place = self.root / (f".usr/upper/{name[4:]}" if name.startswith("usr/") else name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
            if text.startswith("#!"):
                place.chmod(0o755)

    def _command(self) -> list[str]:
        """What becomes the container's PID 1, or has it for a child."""
        assert self._cgroup is not None
        namespaces = ["--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"]
        enter = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
        # Whoever dies takes the next one along; the last is the container's PID 1, and the kernel ends what is below.
        tied = ["setpriv", "--pdeathsig", "KILL"]
        command = ["/bin/sh", "-c", enter, str(self._cgroup), *tied, "timeout", "-s", "KILL", str(LIFE_SECS)]
        command += [*tied, "unshare", *namespaces, "/bin/sh", "-c", _SETUP, "setup"]
        return [*command, str(self.root), str(TOP), str(self._cgroup), str(SYSTEMD), *_other_prefixes()]

    def _boot(self) -> None:
        command = self._command()
        with (self.root / "console").open("wb") as console:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env={"PATH": PATH}
            )
        deadline = time.monotonic() + BOOT_SECS
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.root / "console").read_text(errors="replace").strip()
                raise Unavailable(f"systemd does not start in namespaces of its own: {said[-600:] or '(not a word)'}")
            time.sleep(0.02)

    def _is_up(self) -> bool:
        assert self._process is not None
        if not self.pid:
            self.pid = _systemd_below(self._process.pid)
        if not self.pid:
            return False
        return self.run("systemctl", "is-active", "basic.target").stdout.strip() == "active"


class RealNspawn(RealSystemd):
    """The same inside ``systemd-nspawn``, which shows the container a boot id of its own."""

    program: ClassVar[str | None] = shutil.which("systemd-nspawn")

    def __init__(self, files: Mapping[str, str] | None = None) -> None:
        if self.program is None:
            raise Unavailable("systemd-nspawn is not installed: apt-get install systemd-container")
        super().__init__(files)

    def _command(self) -> list[str]:
        for name in (".usr/upper", ".usr/work", "usr", "root", "var/log"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        folders = [Path(f"/{name}") for name in ("bin", "sbin", "lib", "lib64") if Path(f"/{name}").exists()]
        binds = [f"--bind-ro={place}" for place in (*folders, TOP, *_other_prefixes())]
        overlay = f"--overlay=/usr:{self.root}/.usr/upper:/usr"
        quiet = ["--register=no", "--keep-unit", "--link-journal=no", "--resolv-conf=off", "--timezone=off"]
        where = [f"--directory={self.root}", f"--machine={self.root.name.replace('_', '-')}", overlay, *binds]
        units = "SYSTEMD_UNIT_PATH=/run/systemd/transient:/etc/systemd/system"
        given = [f"--setenv={units}", "--setenv=SYSTEMD_GENERATOR_PATH=/etc/systemd/none", f"--setenv=PATH={PATH}"]
        init = ["--system", "--unit=basic.target", "--log-target=console", "--show-status=no"]
        enter = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
        limited = ["setpriv", "--pdeathsig", "KILL", "timeout", "-s", "KILL", str(LIFE_SECS)]
        spawn = ["env", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1", str(self.program), "--quiet", "--console=pipe"]
        return [
            *("/bin/sh", "-c", enter, str(self._cgroup), *limited),
            *(*spawn, *quiet, *where, *given, "--boot", "--", *init),
        ]


def require() -> None:
    """Raises Unavailable unless the machine could start one."""
    if not sys.platform.startswith("linux") or SYSTEMD is None:
        raise Unavailable("systemd is not installed here")
    if os.geteuid() != 0:
        raise Unavailable("only root may make the namespaces")
    missing = [name for name in _TOOLS if shutil.which(name, path=PATH) is None]
    if missing:
        raise Unavailable(f"not installed: {', '.join(missing)}")
    _cgroup_mount()


def _cgroup_mount() -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _device, place, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(place)
    raise Unavailable("no cgroup2 file system is mounted for writing")


def _make_cgroup(name: str) -> Path:
    place = _cgroup_mount() / name
    try:
        place.mkdir()
    except OSError as error:
        raise Unavailable(f"can't make a control group at {place}: {error.strerror}") from error
    return place


def remove_cgroup(place: Path) -> None:
    """Groups inside first; a group is busy for a moment after its last process."""
    deadline = time.monotonic() + 10
    while place.exists():
        for path, _folders, _files in os.walk(place, topdown=False):
            try:
                Path(path).rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
        time.sleep(0.01)


def _other_prefixes() -> list[str]:
    """Where this Python and Nix live, when that is neither in /usr nor in the project."""
    nix = shutil.which("nix-store")
    places = [Path(sys.prefix), Path(sys.base_prefix), *([Path(nix).resolve()] if nix else [])]
    if any(place.is_relative_to("/nix") for place in places):
        raise Unavailable("Python or Nix run from /nix, and the container has a store of its own")
    known = (Path("/usr"), TOP, *(Path(f"/{name}") for name in ("bin", "lib", "lib64")))
    folders = [place if place.is_dir() else place.parent for place in places]
    return sorted({str(f) for f in folders if not any(f.is_relative_to(k) for k in known)})


def _systemd_below(pid: int) -> int:
    """The container's PID 1: the descendant that runs systemd by now."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in map(int, children):
            if Path(f"/proc/{child}/exe").readlink().name == "systemd":
                return child
            if found := _systemd_below(child):
                return found
    except OSError:  # one that is just ending, or still becoming another program
        return 0
    return 0


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
