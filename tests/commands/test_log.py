"""``log``: what switches have said, whole and live; and ``support`` with the shapes of secrets masked."""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
import threading
import unittest
from pathlib import Path

from nixfleet_agent.activation import scripts
from nixfleet_agent.activation.host import read_boot_id
from nixfleet_agent.activation.output import OutputReader
from nixfleet_agent.activation.records import FORWARD, Intent, Record, Records
from nixfleet_agent.commands.masking import mask_secrets
from tests.activation.case import until
from tests.commands.host_case import NEW, OLD, HostCase

R = "stable@aa"


class SwitchCase(HostCase):
    """``switch`` runs a real wrapper around a shell script."""

    def setUp(self) -> None:
        super().setUp()
        self.records = Records(self.state, read_boot_id())
        self.records.folder.mkdir(parents=True)
        scripts.install(self.records.folder)

    def prepare(self, rollout_id: str = R) -> Record:
        boot = read_boot_id()
        intent = Intent(rollout_id, FORWARD, NEW, "switch", "setsid", "u", OLD, boot, 0.0, "2026-05-16T01:02:03Z")
        return self.records.prepare(intent)

    def begin(self, record: Record, script: str) -> subprocess.Popen[bytes]:
        wrapper = self.records.folder / scripts.WRAPPER
        return subprocess.Popen(["/bin/sh", str(wrapper), "run", str(record.path), "0", "/bin/sh", "-c", script])

    def switch(self, script: str, rollout_id: str = R) -> Record:
        record = self.prepare(rollout_id)
        self.begin(record, script).wait()
        return record


class LogTest(SwitchCase):
    def test_a_switch_is_shown_from_its_first_word_to_its_last(self) -> None:
        script = 'i=0; while [ $i -lt 2000 ]; do echo "line $i of a switch that has a lot to say"; i=$((i+1)); done'
        self.switch(f"{script}; exit 3")
        ran = self.call("log")
        self.assertEqual(ran.code, 0, ran.err)
        lines = ran.out.splitlines()
        self.assertIn(f"{R}: switch to {NEW} (forward)", lines[0])
        self.assertEqual(lines[1:-1], [f"line {n} of a switch that has a lot to say" for n in range(2000)])
        self.assertEqual(lines[-1], "ended with 3")

    def test_of_a_flood_the_last_mebibyte_is_kept_and_not_much_more(self) -> None:
        record = self.switch("head -c 8388608 /dev/zero | tr '\\000' x; echo; echo the last word")
        until(lambda: (record.path / "drained").exists(), "the end of what it said")
        kept = sum((record.path / name).stat().st_size for name in os.listdir(record.path) if name.startswith("output"))
        self.assertGreaterEqual(kept, 1 << 20)
        self.assertLessEqual(kept, 3 << 20)
        self.assertIn("the last word", self.call("log").out)

    def test_a_rollout_is_chosen_by_how_it_begins_and_one_that_never_switched_is_told(self) -> None:
        self.switch("echo first", "stable@aa")
        self.switch("echo second", "edge@bb")
        self.assertIn("second", self.call("log").out)
        self.assertIn("first", self.call("log", "stable").out)
        self.assertEqual([r["output"] for r in self.call("log", "edge@bb", "--json").json], ["second\n"])
        ran = self.call("log", "other")
        self.assertEqual((ran.code, ran.out), (2, ""))
        self.assertIn("no switch of a rollout that begins with 'other'", ran.err)

    def test_what_a_terminal_could_act_on_is_escaped(self) -> None:
        self.switch("printf 'a\\033[2Jb\\n'")
        self.assertNotIn("\x1b", self.call("log").out)

    def test_it_follows_a_switch_until_its_end(self) -> None:
        go = self.folder / "go"
        os.mkfifo(go)
        record = self.prepare()
        child = self.begin(record, f"echo begun; read x <{go}; echo done; exit 4")
        until(lambda: record.output(100), "the first word")
        ran = []
        thread = threading.Thread(target=lambda: ran.append(self.call("log", R, "--follow")))
        thread.start()
        go.write_text("on\n")
        child.wait()
        thread.join(60)
        self.assertEqual(ran[0].out.splitlines()[1:], ["begun", "done", "ended with 4"])

    def test_follow_and_json_together_are_refused(self) -> None:
        self.assertEqual(self.call("log", "--follow", "--json").code, 2)


class ReaderTest(unittest.TestCase):
    def test_each_byte_comes_once_across_the_renames(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            reader = OutputReader(folder)
            self.assertEqual(reader.new(), b"")
            (folder / "output").write_bytes(b"one ")
            self.assertEqual(reader.new(), b"one ")
            with (folder / "output").open("ab") as stream:
                stream.write(b"two ")
            (folder / "output").rename(folder / "output.1")
            (folder / "output").write_bytes(b"three")
            self.assertEqual(reader.new(), b"two three")
            (folder / "output.1").rename(folder / "output.2")
            (folder / "output").rename(folder / "output.1")
            self.assertEqual(reader.new(), b"")


#: (text, the secret in it)
SECRETS = (
    ("password=hunter22", "hunter22"),
    ('DB_PASSWORD: "correct horse"', "correct horse"),
    ('{"api_key": "abc123def"}', "abc123def"),
    ("curl --token t0psecret https://x", "t0psecret"),
    ("Authorization: Bearer abcdefgh.ijkl", "abcdefgh"),
    ("Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    ("fetching https://user:s3cr3t@cache.example/x", "s3cr3t"),
    ("machine cache.example login ci password s3cr3t", "s3cr3t"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "eyJzdWIiOiIxIn0"),
    ("key AKIAIOSFODNN7EXAMPLE used", "AKIAIOSFODNN7EXAMPLE"),
    ("ghp_0123456789abcdefghij", "0123456789abcdefghij"),
    ("AGE-SECRET-KEY-1QQQQQQQQQQQQQQQ", "QQQQQQQQQQQQQQQ"),
    ("root:$6$saltsalt$0123456789abcdefghij:1", "0123456789abcdefghij"),
    ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbn\n-----END OPENSSH PRIVATE KEY-----", "b3Blbn"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIICut off", "MIICut"),
)


class MaskTest(SwitchCase):
    def test_every_shape_is_masked_and_the_rest_stays(self) -> None:
        for text, secret in SECRETS:
            with self.subTest(text):
                masked = mask_secrets(f"before\n{text}\n")
                self.assertNotIn(secret, masked)
                self.assertTrue(masked.startswith("before\n"))

    def test_what_a_switch_says_every_day_stays(self) -> None:
        plain = (
            "stopping the following units: nginx.service, web-token.service\n"
            "copying path '/nix/store/rv5qgvh54za2cx77h7ch9k3kd7pknf1p-nixos-system-v' from 'https://c.example'\n"
            "warning: the following units failed: app.service\n"
        )
        self.assertEqual(mask_secrets(plain), plain)

    def test_the_support_archive_has_the_output_without_secrets(self) -> None:
        self.switch("echo starting app; echo token=abcdef123456")
        archive = self.folder / "support.tar.gz"
        self.assertEqual(self.call("support", "--output", str(archive)).code, 0)
        with tarfile.open(archive) as tar:
            name = next(n for n in tar.getnames() if "/switches/" in n)
            member = tar.extractfile(name)
            assert member is not None
            text = member.read().decode()
        self.assertIn("starting app", text)
        self.assertNotIn("abcdef123456", text)


if __name__ == "__main__":
    unittest.main()
