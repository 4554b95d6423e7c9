"""What the host says about itself: links, profiles, processes, locks, resolution inside a store's root."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from nixfleet_agent.activation import host, locks
from nixfleet_agent.activation.context import child_environment
from nixfleet_agent.config.model import ActivationConfig

A, B, C = ("0" * 31 + letter + "-system" for letter in "abc")


#: The inode of the first namespace of processes: PROC_PID_INIT_INO of the kernel.
INITIAL_PID_NAMESPACE = 0xEFFFFFFC


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

    def test_a_link_that_leads_through_others_is_what_the_last_one_names(self) -> None:
        self.link("profiles/system-7-link", f"/nix/store/{A}")
        self.link("profiles/system", "system-7-link")
        for place in (self.link("run/abs", f"{self.root}/profiles/system"), self.link("run/rel", "../profiles/system")):
            self.assertEqual(host.read_current(ActivationConfig(current_system=place)), A)

    def test_a_link_that_leads_to_no_closure_is_told_why(self) -> None:
        self.link("loop-b", "loop-a")
        (self.root / "file").write_text("")
        told = {
            self.link("loop-a", "loop-b"): "leads in a circle",
            self.root / "none": "none does not exist",
            self.link("dangling", "gone"): "gone does not exist, where",
            self.root / "file": "is no link into /nix/store",
            self.link("odd", "/nix/store/no-closure!"): "which is no closure",
        }
        for place, words in told.items():
            found, why = host.read_link(place)
            self.assertIsNone(found)
            self.assertIn(words, why)

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


class BootTest(Folder):
    def test_a_container_that_boots_anew_on_the_same_machine_is_another_boot(self) -> None:
        machine = host.read_boot_id(self.root / "none")
        inside = host.read_boot_id(self.root)
        self.assertRegex(inside, f"^{machine}/[0-9]+$")
        self.assertTrue(host.same_boot(inside, inside))
        self.assertFalse(host.same_boot(inside, f"{machine}/999999999"))

    def test_an_id_from_before_containers_were_told_apart_is_that_of_the_machine(self) -> None:
        self.assertTrue(host.same_boot("b00t", "b00t/17"))
        self.assertFalse(host.same_boot("b00t", "other/17"))
        self.assertFalse(host.same_boot(None, "b00t"))


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
    def test_a_held_lock_names_its_holder(self) -> None:
        lock = self.root / "lock"
        with lock.open("w") as first:
            self.assertEqual(locks.holders(lock), [])
            fcntl.flock(first, fcntl.LOCK_EX)
            self.assertEqual(locks.holders(lock), [os.getpid()])

    def test_who_only_waits_for_it_holds_nothing(self) -> None:
        lock = self.root / "lock"
        proc = self.root / "proc"
        (proc / "1").mkdir(parents=True)
        with lock.open("w") as first:
            fcntl.flock(first, fcntl.LOCK_EX)
            (proc / "locks").write_text(Path("/proc/locks").read_text().replace(": FLOCK", ": -> FLOCK"))
            (proc / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
            self.assertEqual(locks.holders_of(lock.stat(), proc), [])
            (proc / "locks").write_text(Path("/proc/locks").read_text())
            self.assertEqual(locks.holders_of(lock.stat(), proc), [os.getpid()])

    def test_no_lock_file_and_no_table_mean_no_holder(self) -> None:
        self.assertEqual(locks.holders(self.root / "none"), [])
        self.assertEqual(locks.holders_of(self.root.stat(), self.root / "none"), [])
        self.assertIsNone(locks.claim(self.root / "none"))

    @unittest.skipUnless(
        Path("/proc/self/ns/pid").stat().st_ino == INITIAL_PID_NAMESPACE,
        "in a namespace of processes the kernel does not show locks whose taker has ended",
    )
    def test_a_lock_whose_taker_has_ended_is_held_by_who_has_its_file(self) -> None:
        lock = self.root / "lock"
        with lock.open("w") as file:
            child = os.fork()
            if child == 0:
                fcntl.flock(file, fcntl.LOCK_EX)
                os._exit(0)
            os.waitpid(child, 0)
            self.assertEqual(locks.holders(lock), [os.getpid()])

    @unittest.skipUnless(os.geteuid() == 0 and shutil.which("setpriv"), "only root can become another user")
    def test_a_holder_that_is_not_root_is_none_and_the_claimed_file_is_closed_to_it(self) -> None:
        self.root.chmod(0o755)
        lock = self.root / "lock"
        lock.touch(mode=0o644)
        lock.chmod(0o644)
        user = ["setpriv", "--reuid=65534", "--clear-groups"]
        take = ["flock", "--nonblock", str(lock), "-c"]
        stranger = subprocess.Popen([*user, *take, "echo held; read end"], stdin=-1, stdout=-1)
        assert stranger.stdin and stranger.stdout
        self.assertEqual(stranger.stdout.readline(), b"held\n")
        self.assertEqual(locks.holders(lock), [])
        self.assertIsNotNone(locks.claim(lock))
        self.assertIsNone(locks.claim(lock), "it is ours already")
        for command, code in (([*take, "true"], 0), ([*user, *take, "true"], 66)):
            self.assertEqual(subprocess.run(command, capture_output=True, check=False).returncode, code)
        stranger.communicate(b"\n")


class EnvironmentTest(unittest.TestCase):
    def test_children_do_not_speak_to_the_agents_service_manager(self) -> None:
        child = child_environment({"A": "1", "NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1"}, "")
        self.assertEqual(child, {"A": "1"})

    def test_children_get_neither_an_operators_word_nor_the_agents_settings_and_python(self) -> None:
        own = ("NIXOS_NO_CHECK", "NIXOS_ACTION", "NIXFLEET_AGENT_CP_URL", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        kept = {"PATH": "/bin", "NIX_SSL_CERT_FILE": "/x", "LOCALE_ARCHIVE": "/y", "NIXOS_INSTALL_BOOTLOADER": "1"}
        self.assertEqual(child_environment({**kept, **dict.fromkeys(own, "1")}, ""), kept)

    def test_a_store_root_names_the_store_whatever_its_characters(self) -> None:
        child = child_environment({"NIX_REMOTE": "daemon"}, "/a b&c%")
        self.assertEqual(child["NIX_REMOTE"], "local?root=/a%20b%26c%25")


if __name__ == "__main__":
    unittest.main()
