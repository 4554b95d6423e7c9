"""A fresh Debian 13 (Python 3.13, Nix 2.26): `packaging/dev` installs what is missing, and the fast tests pass.

The root is made by debootstrap and entered with chroot, in a mount and a process namespace of its own, so that nothing
of it is left. What this machine needs to reach the network is carried in: name servers, CAs, the settings of pip and
apt. The slow tests are left out, for time: they run on this machine, and on Debian 13 before a release.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
SUITE, MIRROR = "trixie", "http://deb.debian.org/debian"
#: Both are a few minutes on two idle cores.
MAKING_SECS, RUNNING_SECS = 600, 1500
#: What says how this machine reaches the network; nothing else of the environment comes along.
VARIABLES = re.compile(r"PIP_\w+|\w+_proxy|\w+_PROXY|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|NIX_SSL_CERT_FILE")
FILES = ("etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt", "etc/pip.conf")
LEFT_OUT = shutil.ignore_patterns(".venv", ".venv.lock", ".git", "__pycache__", ".*_cache", ".hypothesis", "dist")
#: Its arguments: the root, what to run in it, folders to show there. The shell stays, and reaps what is orphaned.
ENTER = """
root=$1 command=$2; shift 2
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t tmpfs tmpfs "$root/run"
for folder; do mkdir -p "$root$folder"; mount --bind "$folder" "$root$folder"; done
chroot "$root" sh -c "$command; exit \\$?"
"""


def index_folders() -> list[str]:
    """Folders that pip's settings name as sources of packages; an index may refer to what lies beside it."""
    ran = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    said = ran.stdout + " ".join(value for name, value in os.environ.items() if name.startswith("PIP_"))
    found = {path.parent for path in map(Path, re.findall(r"file://(/[\w./+-]+)", said))}
    found |= {Path(path) for path in re.findall(r"(?<![\w/:.])(/[\w./+-]+)", said)}
    return sorted(str(path) for path in found if path.is_dir() and path != Path("/"))


@unittest.skipUnless(os.geteuid() == 0, "only root can make a Debian root and enter it")
@unittest.skipUnless(shutil.which("debootstrap"), "debootstrap is not installed: apt-get install debootstrap")
@unittest.skipUnless(shutil.which("unshare"), "unshare is not installed: apt-get install util-linux")
class Debian13(unittest.TestCase):
    def make(self) -> Path:
        """A root with this machine's settings and a copy of the project; skips where it can't be made."""
        if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], check=False).returncode != 0:
            self.skipTest("this machine lets nobody make namespaces: a container without the right to mount")
        root = Path(self.enterContext(tempfile.TemporaryDirectory())) / "root"
        command = ["debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE, str(root), MIRROR]
        try:
            made = subprocess.run(command, capture_output=True, text=True, timeout=MAKING_SECS, check=False)
        except subprocess.TimeoutExpired:
            self.skipTest(f"debootstrap took more than {MAKING_SECS} s")
        if made.returncode != 0:
            self.skipTest(f"debootstrap could not make a root: {(made.stdout + made.stderr).strip()[-300:]}")
        for name in FILES:
            if Path("/", name).is_file():
                shutil.copy(Path("/", name), root / name)
        for settings in (Path.home() / ".config/pip/pip.conf", *Path("/etc/apt/apt.conf.d").glob("*prox*")):
            if settings.is_file():
                place = root / "root/.config/pip/pip.conf" if settings.name == "pip.conf" else root / str(settings)[1:]
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(settings, place)
        shutil.copytree(TOP, root / "root/nixfleet-agent", symlinks=True, ignore=LEFT_OUT)
        return root

    def enter(self, root: Path, command: str) -> subprocess.CompletedProcess[str]:
        environ = {name: value for name, value in os.environ.items() if VARIABLES.fullmatch(name)}
        environ |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", ENTER, "enter"]
        return subprocess.run(
            [*inside, str(root), command, *index_folders()],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUNNING_SECS,
            check=False,
        )

    def test_the_fast_tests_pass_on_a_fresh_one(self) -> None:
        root = self.make()
        ran = self.enter(root, "cd /root/nixfleet-agent && packaging/dev setup")
        if "apt-get could not install" in ran.stderr or "pip could not install" in ran.stderr:
            self.skipTest(f"packages can't be had in a Debian root here: {ran.stderr.strip()[-300:]}")
        self.assertEqual(ran.returncode, 0, ran.stderr)
        ran = self.enter(root, "/root/nixfleet-agent/.venv/bin/python -c 'import sys; print(sys.version_info[:2])'")
        self.assertEqual(ran.stdout, "(3, 13)\n")
        ran = self.enter(root, "cd /root/nixfleet-agent && packaging/dev test --fast")
        failed = [line for line in ran.stdout.splitlines() if line.startswith("FAILED")]
        self.assertEqual((ran.returncode, failed), (0, []), ran.stdout[-6000:])
        self.assertRegex(ran.stdout, r"(?m)^\d{4,} passed, 0 failed, \d+ skipped$")


if __name__ == "__main__":
    unittest.main()
