"""The demo's closures on real Nix: references travel, signatures count, and the broken release is really broken."""

from __future__ import annotations

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

from nixfleet_agent.demo.agents import Host, Surroundings
from nixfleet_agent.demo.cache import Cache
from nixfleet_agent.demo.closures import HOST_VARIABLE, STORE, Maker, Release, System, run_nix
from nixfleet_agent.demo.errors import DemoError
from nixfleet_agent.demo.processes import end_marked, remove_tree


class Closures(unittest.TestCase):
    folder: Path
    maker: Maker
    cache: Cache
    releases: dict[str, Release]

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = Path(tempfile.mkdtemp(prefix="demo-closures-")).resolve()
        cls.addClassCleanup(remove_tree, cls.folder)
        cls.maker = Maker(cls.folder / "ci")
        cls.cache = Cache(cls.maker.cache)
        cls.addClassCleanup(cls.cache.close)
        systems = [System("v1"), System("v3", healthy=False)]
        cls.releases = cls.maker.releases(systems, cls.cache.url)

    def host(self, name: str, key: str | None = None) -> Host:
        around = Surroundings(
            control_plane_url="https://127.0.0.1:1",
            ca_file=self.folder / "ca.pem",
            trust_file=b"{}",
            cache_url=self.cache.url,
            cache_key=self.maker.public_key if key is None else key,
            mark=str(self.folder / name),
            pace=1.0,
        )
        return Host(name, self.folder / "hosts" / name, around)

    def test_an_installed_host_has_the_system_and_what_it_refers_to(self) -> None:
        host = self.host("installed")
        host.install(self.releases["v1"].closure)
        closure = self.releases["v1"].closure
        self.assertEqual((host.running_closure(), host.profile_closure()), (closure, closure))
        listed = run_nix(["nix-store", "--query", "--references", f"{STORE}/{closure}"], host.environment)
        (app,) = listed.decode().split()
        self.assertRegex(app, f"^{STORE}/.*-demo-app-1$")
        self.assertTrue((host.store_root / app.removeprefix("/") / "bin/app").exists())

    def test_a_host_that_trusts_another_key_takes_nothing(self) -> None:
        host = self.host("stranger", key="other-1:" + "A" * 43 + "=")
        with self.assertRaisesRegex(DemoError, "nix-store --realise failed"):
            host.install(self.releases["v1"].closure)
        self.assertFalse((host.store_root / "nix/store" / self.releases["v1"].closure).exists())

    def test_the_health_of_a_release_is_that_of_what_runs(self) -> None:
        host = self.host("switching")
        host.install(self.releases["v1"].closure)
        run_nix(["nix-store", "--realise", f"{STORE}/{self.releases['v3'].closure}"], host.environment)
        self.assertEqual(self.check(host).returncode, 0)
        for release, code in (("v3", 1), ("v1", 0)):
            closure = self.releases[release].closure
            script = host.store_root / "nix/store" / closure / "bin/switch-to-configuration"
            run_nix([str(script), "switch"], host.environment)
            self.assertEqual(host.running_closure(), closure)
            self.assertEqual(self.check(host).returncode, code)

    def check(self, host: Host) -> subprocess.CompletedProcess[bytes]:
        command = ["sh", "-c", f'exec "${HOST_VARIABLE}/run/current-system/sw/bin/app" check']
        return subprocess.run(command, env=host.environment, capture_output=True, check=False)

    def test_boot_changes_what_boots_and_not_what_runs(self) -> None:
        host = self.host("booting")
        host.install(self.releases["v1"].closure)
        other = self.releases["v3"].closure
        run_nix(["nix-store", "--realise", f"{STORE}/{other}"], host.environment)
        run_nix([str(host.store_root / "nix/store" / other / "bin/switch-to-configuration"), "boot"], host.environment)
        self.assertEqual(host.running_closure(), self.releases["v1"].closure)
        self.assertEqual(host.booting_closure(), other)

    def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(self) -> None:
        host = self.host("x" * 100)
        with self.assertRaisesRegex(DemoError, "choose a shorter --dir"):
            host.install(self.releases["v1"].closure)
        self.assertFalse(host.folder.exists())

    def test_only_processes_with_the_mark_are_ended(self) -> None:
        ours = subprocess.Popen(["sleep", "600"], env={**os.environ, "FLEET_DEMO": f"{self.folder}/a"})
        other = subprocess.Popen(["sleep", "600"], env={**os.environ, "FLEET_DEMO": f"{self.folder}/ab"})
        for process in (ours, other):
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
        self.assertEqual(end_marked("FLEET_DEMO", f"{self.folder}/a"), [ours.pid])
        self.assertEqual(ours.wait(60), -9)
        self.assertIsNone(other.poll())


if __name__ == "__main__":
    unittest.main()
