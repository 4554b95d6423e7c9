"""`check`: a host in order is told so, and each thing that can be wrong is one line with what to do."""

from __future__ import annotations

import json
import os
import subprocess
import unittest
from collections.abc import Callable
from datetime import timedelta
from unittest import mock

from nixfleet_agent.config.load import load
from nixfleet_agent.identity.host_key import HostKey
from nixfleet_agent.proto.times import format_time
from tests.commands.host_case import MACHINE, NEW, HostCase, Ran
from tests.support.behaviours import Reply, page
from tests.support.tls import DAY, Authority, new_host_key, now, write_host_key

PROOF = ("GET", "/v1/fleet.resolved/sig")


class Check(HostCase):
    def lines(self, ran: Ran, level: str) -> list[str]:
        return [line for line in ran.out.splitlines() if line.startswith(level)]

    def test_a_host_in_order(self) -> None:
        server = self.serve()
        server.route(*PROOF, Reply(200, bytes(64)))
        (self.folder / "health-checks.json").write_text('{"web": {"kind": "tcp", "mode": "enforce", "port": 1}}')
        ran = self.call("check")
        self.assertEqual((ran.code, ran.err), (0, ""), ran.out)
        looked_at = [line.split()[1] for line in ran.out.splitlines()]
        for what in (
            "configuration",
            "state",
            "trust",
            "CA",
            "host",
            "certificate",
            "health",
            "nix",
            "backend",
            "system",
            "control",
        ):
            self.assertIn(what, looked_at)
        self.assertEqual(len(self.lines(ran, "ok")), len(ran.out.splitlines()))
        self.assertIn("takes this host's certificate", ran.out)
        self.assertEqual(len(server.requests), 1)

    def test_health_checks_are_a_line_each_and_a_broken_file_is_never_ok(self) -> None:
        def lines() -> list[str]:
            return [line for line in self.call("check", "--local").out.splitlines() if "health checks" in line]

        self.health('{"a\\nb": {"kind": "tcp", "port": 1}, "c": {"kind": "tcp", "port": 2}}')
        (line,) = lines()
        self.assertTrue(line.startswith("ok ") and line.endswith("declares 2: a\\nb, c"), line)
        self.health("[")
        (line,) = lines()
        self.assertTrue(line.startswith("fail "), line)
        (self.folder / "health-checks.json").unlink()
        (self.folder / "health-checks.json").symlink_to(self.folder / "gone")
        (line,) = lines()
        self.assertTrue(line.startswith("fail ") and "leads nowhere" in line, line)

    def test_settings_of_the_rust_agent_are_a_warning_and_no_failure(self) -> None:
        old = ("--poll-interval", "60", "--compliance-gate-mode=enforce")
        ran = self.call("check", "--offline", *old, environ={"NIXFLEET_TAGS": "a"})
        [line] = [line for line in ran.out.splitlines() if "settings of another agent" in line]
        self.assertTrue(line.startswith("warn  configuration"), line)
        for name in ("--poll-interval", "--compliance-gate-mode", "NIXFLEET_TAGS"):
            self.assertIn(name, line)

    def test_json(self) -> None:
        found = self.call("check", "--local", "--json").json
        self.assertEqual({item["level"] for item in found}, {"ok"})
        self.assertTrue(all(set(item) == {"what", "level", "text"} for item in found))

    def test_each_thing_that_can_be_wrong(self) -> None:
        for name, (break_it, level, says) in BREAKS.items():
            with self.subTest(name):
                self.doCleanups()
                self.setUp()
                break_it(self)
                ran = self.call("check", "--local")
                found = [line for line in self.lines(ran, level) if all(part in line for part in says)]
                self.assertEqual(len(found), 1, ran.out)
                self.assertEqual(ran.code, 1 if level == "fail" else 0)

    def test_reboots_without_the_programs_for_them_are_a_warning(self) -> None:
        self.tables += '[reboot]\nafter_deferred = "now"\n'
        with mock.patch("shutil.which", lambda name: None if name == "wall" else f"/bin/{name}"):
            ran = self.call("check", "--local")
        self.assertEqual((self.lines(ran, "warn")[0].split()[1], ran.code), ("reboots", 0))
        self.assertIn("wall can't be found", ran.out)
        with mock.patch("shutil.which", lambda name: f"/bin/{name}"):
            self.assertIn("a release that needs a reboot gets it at once", self.call("check", "--local").out)

    def health(self, text: str) -> None:
        (self.folder / "health-checks.json").write_text(text)

    def second_key(self) -> None:
        write_host_key(self.folder / "other")
        self.settings["ssh_host_key_file"] = self.folder / "other"

    def move_profile(self) -> None:
        (self.folder / "profile").unlink()
        (self.folder / "profile").symlink_to(f"/nix/store/{NEW}")

    def clock_behind(self) -> None:
        ahead = format_time(self.now + timedelta(hours=1))
        marks = {"schemaVersion": 1, "fleet": ahead, "channels": {}}
        (self.state / "trust-marks.json").write_text(json.dumps(marks))

    def hide_marks(self) -> None:
        (self.state / "trust-marks.json").mkdir()

    def damage_marks(self) -> None:
        (self.state / "trust-marks.json").write_text("{")

    def test_a_host_that_is_not_nixos_may_wait_for_its_first_system(self) -> None:
        for name in ("current", "profile"):
            (self.folder / name).unlink()
        for there, level in ((False, "warn"), (True, "fail")):
            mark = self.folder / "NIXOS"
            if there:
                mark.touch()
            with mock.patch("nixfleet_agent.commands.checks._NIXOS_MARK", mark):
                ran = self.call("check", "--local")
            (line,) = [line for line in ran.out.splitlines() if line.split()[1] == "system"]
            self.assertTrue(line.startswith(level), line)
            self.assertEqual(ran.code, 1 if there else 0, ran.out)
            self.assertIn(f"{self.folder / 'current'} does not exist", line)
            self.assertEqual("releases wait" in line, not there)

    def wrong_backend(self) -> None:
        self.tables += 'backend = "systemd"\n'
        elsewhere = mock.patch("nixfleet_agent.commands.checks.SYSTEMD_RUNS", self.folder / "nothing")
        elsewhere.start()
        self.addCleanup(elsewhere.stop)

    def no_inodes(self) -> None:
        room = {"f_flag": 0, "f_bavail": 1 << 30, "f_frsize": 4096, "f_files": 1000, "f_favail": 12}
        few = mock.patch("nixfleet_agent.commands.checks.os.statvfs", return_value=mock.Mock(**room))
        few.start()
        self.addCleanup(few.stop)

    def test_a_control_plane_that_refuses_this_host(self) -> None:
        self.serve().route(*PROOF, Reply(403))
        ran = self.call("check")
        self.assertEqual(ran.code, 1)
        self.assertIn("refuses this host's certificate (status 403)", ran.out)

    def test_something_in_place_of_the_control_plane_is_named(self) -> None:
        self.serve().route(*PROOF, page(200, "Log in to the guest network"))
        (line,) = self.lines(self.call("check"), "fail")
        self.assertIn("in place of the control plane (status 200, a page titled 'Log in to the guest network'", line)
        self.assertNotIn("firewall", line)

    def test_a_proxy_in_the_environment_is_ignored_and_said_to_be(self) -> None:
        with mock.patch.dict(os.environ, {"HTTPS_PROXY": "http://proxy:3128"}):
            (line,) = self.lines(self.call("check", "--local"), "warn")
            self.assertIn("HTTPS_PROXY is set, and ignored on purpose: set proxy_url", line)
            self.settings["proxy_url"] = "http://127.0.0.1:9"
            ran = self.call("check")
        self.assertEqual([], self.lines(ran, "warn"))
        self.assertIn("reached through http://127.0.0.1:9", ran.out)
        self.assertIn("can't connect to 127.0.0.1 port 9", self.lines(ran, "fail")[0])

    def test_a_control_plane_that_is_not_there(self) -> None:
        ran = self.call("check")
        self.assertEqual(ran.code, 1)
        self.assertRegex(self.lines(ran, "fail")[0], "Connection refused.*is the address right")

    @unittest.skipUnless(os.geteuid() == 0, "only root can give a file away")
    def test_what_another_user_owns_he_can_change_whatever_its_mode(self) -> None:
        for path in (self.trust, self.ca, self.write_config()):
            os.chown(path, 65534, -1)
            (line,) = self.lines(self.bare("check", "--local", "--config", str(self.write_config())), "fail")
            self.assertIn(f"{path} belongs to user 65534", line)
            os.chown(path, 0, -1)

    def test_somebody_else_at_the_control_planes_address_is_no_matter_of_firewalls(self) -> None:
        self.serve()
        Authority().write_ca(self.ca)
        (line,) = self.lines(self.call("check"), "fail")
        self.assertIn("ca_cert the CA of its fleet?", line)
        self.assertNotIn("firewall", line)

    def test_a_state_directory_that_can_only_be_read_is_no_matter_of_rights(self) -> None:
        flags = mock.Mock(f_flag=os.ST_RDONLY)
        with mock.patch("nixfleet_agent.commands.checks.os.statvfs", return_value=flags):
            (line,) = self.lines(self.call("check", "--local"), "fail")
        self.assertIn("is on a read-only file system: remount it", line)

    def test_what_nix_said_is_shown_when_it_does_not_run(self) -> None:
        died = subprocess.CalledProcessError(1, ["nix-store"], stderr="warning: x\nerror: no store\n")
        with mock.patch("nixfleet_agent.commands.checks.subprocess.run", side_effect=died):
            (line,) = self.lines(self.call("check", "--local"), "fail")
        self.assertIn("nix-store does not run (error: no store)", line)

    def test_a_rate_that_this_nix_can_not_keep_is_told(self) -> None:
        self.assertFalse([line for line in self.lines(self.call("check", "--local"), "warn") if "prefetch" in line])
        with mock.patch.dict(self.environ, NIXFLEET_AGENT_PREFETCH_MAX_RATE="500"):
            for limits, told in ((False, 1), (None, 1), (True, 0)):
                with mock.patch("nixfleet_agent.activation.nix.limits_speed", return_value=limits):
                    lines = self.lines(self.call("check", "--local"), "warn")
                self.assertEqual(len([line for line in lines if "no setting download-speed" in line]), told)

    def test_a_host_that_is_not_enrolled_yet_learns_whether_anybody_is_there(self) -> None:
        self.serve()
        self.certificate.unlink()
        ran = self.call("check")
        self.assertIn("it lets nobody in without a certificate", "\n".join(self.lines(ran, "ok")), ran.out)

    def test_nothing_is_changed_by_looking(self) -> None:
        before = sorted(self.folder.rglob("*"))
        self.write_config()
        self.call("check", "--local")
        self.assertEqual(sorted(self.folder.rglob("*")), sorted([*before, self.folder / "agent.toml"]))

    def test_what_print_config_prints_is_a_configuration_again(self) -> None:
        self.settings["trust_file"] = '/etc/ñ "quoted"/trust.json'
        printed = self.call("check", "--print-config").out
        again = self.folder / "again.toml"
        again.write_text(printed)
        self.assertEqual(load(again, {}, {}).config, load(self.write_config(), {}, {}).config)
        self.assertIn("ñ", printed)

    def test_print_config_says_where_each_value_comes_from(self) -> None:
        ran = self.call(
            "check", "--print-config", "--machine-id", "other", environ={"NIXFLEET_AGENT_LOGGING_LEVEL": "debug"}
        )
        self.assertEqual(ran.code, 0)
        self.assertRegex(ran.out, r'(?m)^machine_id = "other" +# --machine-id$')
        self.assertRegex(ran.out, r'(?m)^level = "debug" +# NIXFLEET_AGENT_LOGGING_LEVEL \(environment\)$')
        self.assertRegex(ran.out, r"(?m)^guard_secs = 1500.0 +# default$")
        self.assertEqual(self.call("check", "--print-config", "--json").json["machine_id"]["value"], MACHINE)


def client(check: Check, key: HostKey | None = None, name: str = MACHINE, **options: object) -> None:
    check.authority.write_client(check.certificate, key or check.key, name, **options)


#: What is done to the host -> (how, level of the finding, parts of its line).
BREAKS: dict[str, tuple[Callable[[Check], object], str, tuple[str, ...]]] = {
    "trust file missing": (lambda c: c.trust.unlink(), "fail", ("trust file", "No such file")),
    "trust file damaged": (lambda c: c.trust.write_text("{"), "fail", ("trust file",)),
    "no release key": (
        lambda c: c.trust.write_text('{"schemaVersion": 1, "ciReleaseKey": {}}'),
        "fail",
        ("can verify nothing", "no ciReleaseKey"),
    ),
    "trust file that anybody can change": (lambda c: c.trust.chmod(0o666), "fail", ("chmod go-w",)),
    "key that anybody can read": (lambda c: (c.folder / "key").chmod(0o644), "fail", ("chmod 600",)),
    "key missing": (lambda c: (c.folder / "key").unlink(), "fail", ("host key", "ssh-keygen -A")),
    "two host keys": (Check.second_key, "warn", ("differ",)),
    "certificate missing": (lambda c: c.certificate.unlink(), "fail", ("certificate", "nixfleet-agent enroll")),
    "certificate of another key": (lambda c: client(c, new_host_key()), "fail", ("for another key",)),
    "certificate of another host": (lambda c: client(c, name="db-01"), "fail", ("'db-01', not 'web-01'",)),
    "certificate in capitals": (
        lambda c: client(c, name="WEB-01"),
        "fail",
        ("only upper and lower case differ, so set machine_id",),
    ),
    "certificate of tomorrow": (
        lambda c: client(c, not_before=now() + DAY),
        "fail",
        ("certificate", "valid from", "set the clock"),
    ),
    "trust file with a byte order mark": (
        lambda c: c.trust.write_bytes(b"\xef\xbb\xbf" + c.trust.read_bytes()),
        "fail",
        ("trust file", "byte order mark", "without one"),
    ),
    "certificate expired": (
        lambda c: client(c, not_before=now() - 2 * DAY, not_after=now() - DAY),
        "fail",
        ("expired", "renew --force", "enroll again"),
    ),
    "state directory is a file": (
        lambda c: (c.state.rmdir(), c.state.write_text("")),
        "fail",
        ("state directory", "is not a directory"),
    ),
    "CA missing": (lambda c: c.ca.unlink(), "fail", ("can't read ca_cert", "No such file", "the system's CAs")),
    "CA that is a key": (lambda c: c.ca.write_text("x"), "fail", ("is not a PEM certificate",)),
    "CA that anybody can change": (lambda c: c.ca.chmod(0o666), "fail", ("ownership", "ca.pem", "chmod go-w")),
    "no CA, so the system's": (lambda c: c.settings.pop("ca_cert"), "ok", ("judged by the system's CAs",)),
    "state directory open to others": (lambda c: c.state.chmod(0o755), "fail", ("chmod 700",)),
    "state directory without inodes": (Check.no_inodes, "warn", ("12 inodes free", "make room")),
    "health checks are no JSON": (lambda c: c.health("{"), "fail", ("health checks",)),
    "a probe that can only fail": (lambda c: c.health('{"a": {"kind": "htpp"}}'), "fail", ("a: ",)),
    "one whose name looks like a line of this": (lambda c: c.health('{"a: b": {}}'), "fail", ("a: b: ",)),
    "a probe key that is ignored": (
        lambda c: c.health('{"a": {"kind": "tcp", "mode": "enforce", "port": 1, "prot": 2}}'),
        "warn",
        ("prot",),
    ),
    "marks that can't be read": (Check.hide_marks, "fail", ("trust marks", "can't read")),
    "no system": (lambda c: (c.folder / "current").unlink(), "fail", ("does not exist: is this a NixOS host?",)),
    "profile elsewhere": (Check.move_profile, "warn", (NEW,)),
    "clock behind": (Check.clock_behind, "fail", ("clock", "set the clock")),
    "marks damaged": (Check.damage_marks, "warn", ("trust marks", "rebuilds")),
    "a backend for another kind of host": (Check.wrong_backend, "fail", ("systemd", "setsid")),
}


if __name__ == "__main__":
    unittest.main()
