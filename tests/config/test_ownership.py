"""What root believes or runs is refused where anybody else may change it, be it a folder or a link on the way there."""

from __future__ import annotations

import os
import tempfile
import unittest
from pathlib import Path

from nixfleet_agent.config.model import Config
from nixfleet_agent.config.ownership import believed, require_safe, unsafe
from nixfleet_agent.errors import ConfigError

STRANGER = 65534


class Case(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        (self.folder / "etc").mkdir(mode=0o755)
        self.file = self.folder / "etc" / "trust.json"
        self.file.write_text("{}")
        self.file.chmod(0o644)

    def assert_unsafe(self, path: Path, *says: str) -> None:
        problem = unsafe(path)
        assert problem is not None, path
        for part in (str(path), *says):
            self.assertIn(part, problem)
        with self.assertRaisesRegex(ConfigError, "run `ch"):
            require_safe([path])


class Modes(Case):
    def test_a_file_of_our_own_in_a_folder_of_our_own_below_a_sticky_one_of_roots_is_safe(self) -> None:
        self.assertIsNone(unsafe(self.file))

    def test_a_file_that_others_may_write_is_not(self) -> None:
        for mode in (0o646, 0o666):
            self.file.chmod(mode)
            self.assert_unsafe(self.file, f"mode {mode:04o}", f"chmod go-w {self.file}")

    def test_a_group_counts_as_others_unless_it_is_our_own(self) -> None:
        self.file.chmod(0o664)
        self.assertIsNone(unsafe(self.file))
        if os.geteuid() == 0:
            os.chown(self.file, -1, STRANGER)
            self.assert_unsafe(self.file, "mode 0664")

    def test_a_folder_above_that_others_may_write_makes_all_below_it_unsafe(self) -> None:
        self.folder.joinpath("etc").chmod(0o777)
        self.assert_unsafe(self.file, "is not safe", f"chmod go-w {self.folder / 'etc'}")
        self.assert_unsafe(self.folder / "etc" / "not-there-yet")

    def test_a_sticky_folder_of_ours_protects_what_is_ours_in_it(self) -> None:
        (self.folder / "etc").chmod(0o1777)
        self.assertIsNone(unsafe(self.file))

    @unittest.skipUnless(os.geteuid() == 0, "only root can give a file away")
    def test_an_owner_can_change_what_is_his_whatever_its_mode(self) -> None:
        self.file.chmod(0o400)
        for place in (self.file, self.folder / "etc"):
            os.chown(place, STRANGER, -1)
            self.assert_unsafe(self.file, f"belongs to user {STRANGER}", f"chown root {place}")
            os.chown(place, 0, -1)
        (self.folder / "etc").chmod(0o1777)
        os.chown(self.folder / "etc", STRANGER, -1)
        # The owner of a sticky folder may rename what is in it.
        self.assert_unsafe(self.file, f"belongs to user {STRANGER}")


class Links(Case):
    def test_a_link_is_as_safe_as_where_it_lies_and_what_it_leads_through(self) -> None:
        """On NixOS every file in /etc is one: /etc/x -> /etc/static/x -> /nix/store/...-x."""
        store, static = self.folder / "store", self.folder / "static"
        store.mkdir(mode=0o755)
        (store / "x").write_text("{}")
        static.symlink_to("store")
        link = self.folder / "etc" / "x"
        link.symlink_to("../static/x")
        self.assertIsNone(unsafe(link))
        store.chmod(0o777)
        self.assert_unsafe(link, f"chmod go-w {store}")
        store.chmod(0o755)
        (store / "x").chmod(0o666)
        self.assert_unsafe(link, f"chmod go-w {store / 'x'}")
        link.unlink()
        link.symlink_to(store / "x")
        self.assert_unsafe(link, f"chmod go-w {store / 'x'}")

    def test_links_in_a_circle_end(self) -> None:
        (self.folder / "a").symlink_to("b")
        (self.folder / "b").symlink_to("a")
        self.assertIsNone(unsafe(self.folder / "a"))

    def test_what_is_not_there_is_somebody_elses_to_report(self) -> None:
        self.assertIsNone(unsafe(self.folder / "etc" / "a" / "b"))


class Believed(unittest.TestCase):
    def test_every_path_of_the_configuration_that_decides_something_is_looked_at(self) -> None:
        config = Config(control_plane_url="https://x", machine_id="h", ca_cert=Path("/ca"))
        config_file = Path("/etc/nixfleet/agent.toml")
        found = believed(config, config_file)
        named = {value for name in Config.__slots__ if isinstance(value := getattr(config, name), Path)}
        self.assertEqual(set(found), named | {config_file, Path("/etc/ssh/ssh_host_ed25519_key.pub")})


if __name__ == "__main__":
    unittest.main()
