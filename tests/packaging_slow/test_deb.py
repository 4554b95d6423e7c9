"""The Debian package: what is in it, that its program runs with nothing but what came with it, its life on a host."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from nixfleet_agent import __version__

TOP = Path(__file__).resolve().parents[2]


class Deb(unittest.TestCase):
    folder: tempfile.TemporaryDirectory[str]
    package: Path
    before: set[str]

    @classmethod
    def setUpClass(cls) -> None:
        cls.before = {path.name for path in TOP.iterdir()}
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        command = [str(TOP / "packaging" / "build-deb"), cls.folder.name]
        subprocess.run(
            command,
            env={**os.environ, "PYTHON": sys.executable, "COMPRESSION": "1"},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (cls.package,) = Path(cls.folder.name).glob("*.deb")

    def field(self, name: str) -> str:
        return subprocess.run(
            ["dpkg-deb", "--field", str(self.package), name], capture_output=True, text=True, check=True
        ).stdout.strip()

    def test_it_says_what_it_is_and_which_python_it_fits(self) -> None:
        self.assertEqual(self.field("Version"), __version__)
        self.assertIn(f"python3 (>= 3.{sys.version_info[1]})", self.field("Depends"))
        self.assertIn(f"python3 (<< 3.{sys.version_info[1] + 1})", self.field("Depends"))

    def test_the_program_in_it_runs_with_what_came_with_it(self) -> None:
        root = Path(self.folder.name) / "root"
        subprocess.run(["dpkg-deb", "--extract", str(self.package), str(root)], check=True)
        for path in (
            "usr/lib/systemd/system/nixfleet-agent.service",
            "usr/lib/systemd/system/nixfleet-agent-boot.service",
            "etc/init.d/nixfleet-agent",
            "usr/share/man/man8/nixfleet-agent.8.gz",
            "usr/share/bash-completion/completions/nixfleet-agent",
            "usr/share/zsh/vendor-completions/_nixfleet-agent",
            "usr/share/fish/vendor_completions.d/nixfleet-agent.fish",
            "usr/lib/nixfleet-agent/nixfleet_agent/conf/schemas/agent.schema.json",
            "usr/lib/nixfleet-agent/nixfleet_agent/activation/scripts/wrapper.sh",
        ):
            self.assertTrue((root / path).is_file(), path)
        program = root / "usr" / "bin" / "nixfleet-agent"
        environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(TOP), "NIXFLEET_AGENT_MACHINE_ID": "web-01"}
        # With the interpreter that it was built with, which need not be this machine's /usr/bin/python3.
        command = [sys.executable, "-I", str(program), "check", "--print-config", "--control-plane-url", "https://cp"]
        ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        self.assertIn('machine_id = "web-01"', ran.stdout)
        code = f"import sys; sys.path.insert(0, {str(root / 'usr/lib/nixfleet-agent')!r}); " + (
            "import nixfleet_agent.runtime.daemon as d, requests; print(d.__file__, requests.__file__)"
        )
        ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
        for path in ran.stdout.split():
            self.assertTrue(path.startswith(str(root)), path)

    @unittest.skipUnless(shutil.which("lintian"), "lintian is not installed: apt-get install lintian")
    def test_lintian_finds_nothing(self) -> None:
        command = ["lintian", "--allow-root", "--no-cfg", "--fail-on", "error,warning", str(self.package)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual((ran.returncode, ran.stdout), (0, ""))

    @unittest.skipUnless(os.geteuid() == 0 and shutil.which("dash"), "only root may install into another root")
    def test_it_is_installed_upgraded_removed_and_purged(self) -> None:
        root = self.bare_root()

        def dpkg(*arguments: str) -> list[str]:
            """Run dpkg on that root; the calls that its scripts made."""
            calls = root / "calls"
            calls.write_text("")
            command = ["dpkg", f"--root={root}", "--force-depends", "--force-confold", *arguments]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)
            return calls.read_text().split("\n")[:-1]

        compiled = "py3compile -p nixfleet-agent /usr/lib/nixfleet-agent"
        self.assertEqual(dpkg("--install", str(self.package)), [compiled, "update-rc.d nixfleet-agent defaults"])
        for path in (
            "usr/bin/nixfleet-agent",
            "etc/init.d/nixfleet-agent",
            "usr/lib/systemd/system/nixfleet-agent.service",
        ):
            self.assertTrue((root / path).is_file(), path)
        for folder in ("etc/nixfleet", "etc/nixfleet/agent"):
            self.assertEqual((root / folder).stat().st_mode & 0o777, 0o755, "the guide's next steps write there")
        self.assertEqual(list((root / "etc/nixfleet").iterdir()), [root / "etc/nixfleet/agent"], "the operator's")

        # An operator's change of a configuration file outlives an upgrade; what runs is restarted.
        changed = root / "etc/logrotate.d/nixfleet-agent"
        changed.write_text("# changed\n")
        cleaned, asked = "py3clean -p nixfleet-agent", "invoke-rc.d nixfleet-agent status"
        calls = dpkg("--install", str(self.package))
        again = ["update-rc.d nixfleet-agent defaults", asked, "invoke-rc.d nixfleet-agent restart"]
        self.assertEqual(calls, [cleaned, compiled, *again])
        (root / "run/systemd/system").mkdir(parents=True)
        calls = dpkg("--install", str(self.package))
        again = ["systemctl daemon-reload", "systemctl try-restart nixfleet-agent.service"]
        self.assertEqual(calls, [cleaned, compiled, *again])
        self.assertEqual(changed.read_text(), "# changed\n")

        state = root / "var/lib/nixfleet-agent"
        state.mkdir(parents=True)
        disabled = "systemctl --no-reload disable --now nixfleet-agent.service"
        mine = root / "etc/nixfleet/agent.toml"
        mine.write_text("# mine\n")
        self.assertEqual(dpkg("--remove", "nixfleet-agent"), [disabled, cleaned, "systemctl daemon-reload"])
        self.assertEqual(mine.read_text(), "# mine\n")
        self.assertFalse((root / "usr/lib/nixfleet-agent").exists())
        self.assertTrue(state.exists() and changed.exists(), "a package that is only removed may come back")
        dpkg("--purge", "nixfleet-agent")
        self.assertFalse(state.exists() or changed.exists())

    def bare_root(self) -> Path:
        """A root with a shell, `rm`, and what writes down how it was called in place of the init system's tools."""
        root = Path(self.folder.name) / "bare"
        for folder in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "usr/bin", "usr/sbin", "dev", "tmp"):
            (root / folder).mkdir(parents=True)
        for file in ("var/lib/dpkg/status", "dev/null"):
            (root / file).write_text("")
        for link in ("bin", "sbin", "lib", "lib64"):
            (root / "usr" / link).mkdir(exist_ok=True)
            (root / link).symlink_to(f"usr/{link}")
        for program in ("dash", "rm"):
            found = shutil.which(program)
            assert found is not None
            shutil.copy(found, root / "usr/bin")
            libraries = subprocess.run(["ldd", found], capture_output=True, text=True, check=True).stdout
            for library in re.findall(r"(/\S+)", libraries):
                place = root / library.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(library, place)
        (root / "usr/bin/sh").symlink_to("dash")
        for tool in ("systemctl", "update-rc.d", "invoke-rc.d", "py3compile", "py3clean"):
            script = root / "usr/sbin" / tool
            script.write_text(f'#!/bin/sh\necho "{tool} $*" >>/calls\n')
            script.chmod(0o755)
        return root

    def test_nothing_is_left_in_the_checkout(self) -> None:
        # Linters and property tests of the same run keep caches here, and may begin while the package is built.
        left = {path.name for path in TOP.iterdir()} - self.before - {".mypy_cache", ".ruff_cache", ".hypothesis"}
        self.assertEqual(left, set())


if __name__ == "__main__":
    unittest.main()
