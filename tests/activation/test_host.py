"""What the host says about itself: links, profiles, processes, locks, resolution inside a store's root."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

from nixfleet_agent.activation import host, locks
from nixfleet_agent.activation.context import child_environment
from nixfleet_agent.activation.inhibitors import inhibitor
from nixfleet_agent.config.model import ActivationConfig

A, B, C = ("0" * 31 + letter + "-system" for letter in "abc")


class Folder(unittest.TestCase):
    def setUp(self) -> None:
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.root = Path(made.name)

    def link(self, place: str, target: str) -> Path:
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
        return path


class LinksTest(Folder):
    def test_what_runs_is_the_basename_of_the_link(self) -> None:
        config = ActivationConfig(current_system=self.link("current", f"/nix/store/{A}"))
        self.assertEqual(host.read_current(config), A)

    def test_no_link_a_file_and_a_link_to_nonsense_are_unreadable(self) -> None:
        (self.root / "file").write_text("")
        for place in (self.root / "none", self.root / "file", self.link("odd", "/etc"), self.link("up", "..")):
            self.assertIsNone(host.read_current(ActivationConfig(current_system=place)), place)

    def test_a_profile_is_followed_through_its_generation(self) -> None:
        self.link("system-7-link", f"/nix/store/{A}")
        self.assertEqual(host.read_profile(self.link("system", "system-7-link")), A)

    def test_a_missing_or_circular_profile_leads_nowhere(self) -> None:
        self.link("b", "a")
        self.assertIsNone(host.read_profile(self.link("a", "b")))
        self.assertIsNone(host.read_profile(self.root / "none"))


class ResolveTest(Folder):
    def test_absolute_links_stay_inside_the_root(self) -> None:
        (self.root / "nix/store/x").mkdir(parents=True)
        (self.root / "nix/store/x/file").write_text("")
        self.link(f"nix/store/{A}/kernel", "/nix/store/x/file")
        self.link(f"nix/store/{A}/sw", "../x")
        self.assertEqual(host.resolve(str(self.root), f"/nix/store/{A}/kernel"), "/nix/store/x/file")
        self.assertEqual(host.resolve(str(self.root), f"/nix/store/{A}/sw/file"), "/nix/store/x/file")

    def test_missing_and_circular_links_are_none(self) -> None:
        self.link("loop", "/loop")
        self.assertIsNone(host.resolve(str(self.root), "/loop"))
        self.assertIsNone(host.resolve(str(self.root), "/nothing/here"))

    def test_a_component_counts_only_when_it_differs_and_exists_on_both_sides(self) -> None:
        for part in ("k1", "k2"):
            (self.root / "nix/store").mkdir(parents=True, exist_ok=True)
            (self.root / "nix/store" / part).write_text("")
        self.link(f"nix/store/{A}/kernel", "/nix/store/k1")
        self.link(f"nix/store/{B}/kernel", "/nix/store/k2")
        (self.root / "nix/store" / C).mkdir()
        root = str(self.root)
        self.assertEqual(inhibitor(root, A, B), "kernel")
        self.assertIsNone(inhibitor(root, A, A))
        self.assertIsNone(inhibitor(root, A, C))
        self.assertIsNone(inhibitor(root, C, B))
        self.assertIsNone(inhibitor(root, None, B))


class ProcessTest(Folder):
    def test_a_process_is_known_by_its_start_and_a_zombie_is_none(self) -> None:
        child = subprocess.Popen(["sleep", "60"], start_new_session=True)
        found = host.process(child.pid)
        assert found is not None
        self.assertEqual((found.pid, found.group), (child.pid, child.pid))
        self.assertEqual(host.group_members(child.pid), [child.pid])
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        self.assertIsNone(host.process(child.pid), "a zombie")
        child.wait()
        self.assertIsNone(host.process(child.pid))

    def test_a_name_with_parentheses_does_not_shift_the_fields(self) -> None:
        odd = self.root / "a) R 1 (b"
        odd.symlink_to("/bin/sleep")
        child = subprocess.Popen([str(odd), "60"])
        found = host.process(child.pid)
        assert found is not None
        self.assertEqual(found.group, os.getpgid(child.pid))
        child.kill()
        child.wait()


class LocksTest(Folder):
    def test_a_held_lock_names_its_holder_and_a_waiter_is_none(self) -> None:
        lock = self.root / "lock"
        with lock.open("w") as first:
            self.assertEqual(locks.holders(lock), [])
            fcntl.flock(first, fcntl.LOCK_EX)
            self.assertEqual(locks.holders(lock), [os.getpid()])
            table = self.root / "table"
            table.write_text(Path("/proc/locks").read_text().replace(": FLOCK", ": -> FLOCK"))
            self.assertEqual(locks.holders(lock, table), [])

    def test_no_lock_file_and_no_table_mean_no_holder(self) -> None:
        self.assertEqual(locks.holders(self.root / "none"), [])
        self.assertEqual(locks.holders(self.root, self.root / "none"), [])


class EnvironmentTest(unittest.TestCase):
    def test_children_do_not_speak_to_the_agents_service_manager(self) -> None:
        child = child_environment({"A": "1", "NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1"}, "")
        self.assertEqual(child, {"A": "1"})

    def test_a_store_root_names_the_store_whatever_its_characters(self) -> None:
        child = child_environment({"NIX_REMOTE": "daemon"}, "/a b&c%")
        self.assertEqual(child["NIX_REMOTE"], "local?root=/a%20b%26c%25")


if __name__ == "__main__":
    unittest.main()
