"""Around the story: interrupted, kept, twice at once, as a normal user, on a full disk."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
import unittest
import urllib.request
from pathlib import Path

from nixfleet_agent.errors import EXIT_CHECK_FAILED, EXIT_INTERNAL
from tests.demo_slow.case import COMMAND, PATIENCE, DemoCase, children, marked

ROOT = Path(__file__).resolve().parent.parent.parent
ONE = ("--scenario", "canary", "--agents", "1")


def cmdline(pid: int) -> bytes:
    """Of a process that may be gone: the demo's other children (Nix, a switch) come and go."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


class Interrupted(DemoCase):
    def interrupt(self, words: str, *signals: signal.Signals, after: float = 0.0) -> None:
        """Signals at the moment when these words are said, or that many seconds later: nothing is left."""
        process = self.start("--agents", "2")
        self.until(process, words)
        time.sleep(after)
        for number in signals:
            process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 130, output)
        self.assertIn("interrupted: every process is ended, and every file removed", output)
        self.assertNotIn("Traceback", output)
        self.assertEqual(marked(self.folder), [])
        self.assertFalse(self.folder.exists())

    def test_while_keys_and_closures_are_made(self) -> None:
        self.interrupt("making keys", signal.SIGINT)

    def test_while_hosts_are_installed(self) -> None:
        self.interrupt("control plane is at", signal.SIGTERM)

    def test_at_one_moment_of_the_setting_up_after_the_other(self) -> None:
        """Threads and processes are started there: one that is not known yet when it ends would keep it for ever."""
        for step in range(10):
            with self.subTest(step):
                self.interrupt("making keys", signal.SIGTERM, after=step * 0.05)

    def test_in_the_middle_of_a_switch_by_an_impatient_user(self) -> None:
        self.interrupt("Activating", signal.SIGINT, signal.SIGINT, signal.SIGHUP)

    def test_a_demo_that_is_killed_leaves_neither_agent_nor_control_plane(self) -> None:
        process = self.start("--agents", "2")
        self.until(process, "agents started")
        until = time.monotonic() + PATIENCE
        while len(pids := [pid for pid in children(process.pid) if b"\0nixfleet_agent" in cmdline(pid)]) < 3:
            self.assertLess(time.monotonic(), until, pids)  # an agent's process is a wrapper's first
            time.sleep(0.02)
        ours = {pid: os.pidfd_open(pid) for pid in pids}
        process.kill()
        process.wait()
        for pid, descriptor in ours.items():
            self.addCleanup(os.close, descriptor)
            self.assertTrue(select.select([descriptor], [], [], 30)[0], f"{pid} has outlived its demo")


class Background(DemoCase):
    def test_one_that_was_started_with_nohup_goes_on_when_its_terminal_is_closed(self) -> None:
        process = self.start("--scenario", "canary", "--agents", "1", wrapper=("env", "--ignore-signal=HUP"))
        self.until(process, "making keys")
        process.send_signal(signal.SIGHUP)
        output, _ = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 0, output)
        self.assertIn("every host ended where it should", output)


class NobodyListens(DemoCase):
    def run_with(self, redirection: str, code: int, said: str) -> None:
        """As a shell starts it; ``said`` is all that comes on stderr. No process is left."""
        command = shlex.join([*COMMAND, *ONE, "--dir", str(self.folder)])
        done = subprocess.run(
            ["sh", "-c", f"exec {command} {redirection}"],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": ""},  # as with most users: what is printed waits in a buffer
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (code, said))
        self.assertEqual(marked(self.folder), [])

    def test_a_closed_stdout_is_no_reason_not_to_tell_the_story(self) -> None:
        self.run_with(">&-", 0, "")
        self.assertEqual(self.running("web-01"), "v1")

    def test_a_full_stdout_is_one_line_and_no_files(self) -> None:
        self.run_with(">/dev/full", EXIT_INTERNAL, "nixfleet-agent: No space left on device\n")
        self.assertFalse(self.folder.exists())


class KeptRunning(DemoCase):
    def test_every_line_that_it_prints_works_when_it_is_pasted(self) -> None:
        process = self.start("--agents", "2", "--keep")
        output = self.until(process, "The status page:")
        pasted = [line for line in output.partition("another terminal:")[2].splitlines() if line and line[0] != "#"]
        *commands, page = pasted
        answers = {}
        for command in commands:
            done = subprocess.run(
                ["sh", "-c", command],
                cwd="/",
                env={"PATH": os.defpath},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            self.assertEqual((done.returncode, done.stderr), (0, ""), command)
            answers[command.split("/")[-1]] = done.stdout
        for said in (
            ("nixfleet-agent status", "running, version"),
            ("nixfleet-agent why", "and was rolled back"),
            ("nixfleet-agent history", "RollbackComplete"),
            ("nixfleet-agent quarantine list", "-nixos-system-demo-v3"),
            ("status.json", '"hostname": "web-02"'),
            ("fleet.resolved", '"closureHash"'),
        ):
            self.assertIn(said[1], answers[said[0]], said[0])
        # The probes find the host's own system and the demo's cache, as they do for the agent.
        self.assertRegex(answers["nixfleet-agent probe"], r"(?m)^app +exec +enforce +pass")
        self.assertRegex(answers["nixfleet-agent probe"], r"(?m)^cache-reachable +http +observe +pass")
        with urllib.request.urlopen(page.partition(": ")[2], timeout=30) as answer:
            self.assertIn(b"2 Reverted", answer.read())

        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(PATIENCE), 0)
        self.assertEqual(marked(self.folder), [])
        self.assertFalse(self.folder.exists())


class StatusPage(DemoCase):
    def test_it_says_what_an_agent_waits_for_in_the_agents_own_words(self) -> None:
        """No wire has them: the control plane of the demo asks the agents that it has beside it."""
        scenario = self.outer / "waits.toml"
        steps = ('do = "hooks"', 'do = "clients"\nconnected = true', 'do = "release"\nversion = "v1"')
        steps += ('do = "waits"\nreason = "clients are still connected"', 'do = "watch"\nseconds = 600')
        end = '[[end]]\nhosts = "all"\nruns = "v1"\nrollouts = { v1 = "Converged" }\n'
        told = "".join(f"[[steps]]\n{step}\n" for step in steps)
        scenario.write_text(f'title = "a hook that vetoes"\nagents = 1\n{told}{end}')
        process = self.start("--scenario", str(scenario))
        output = self.until(process, "waits: the hook")
        page = output.partition("for a browser: ")[2].split()[0]
        deadline = time.monotonic() + PATIENCE
        for path in ("", "host?name=web-01"):
            while b"the hook 10-drain refuses it: clients are still connected" not in self.read(page + path):
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
        self.assertEqual(marked(self.folder), [])

    def read(self, url: str) -> bytes:
        with urllib.request.urlopen(url, timeout=30) as answer:
            body: bytes = answer.read()
        return body


class TwoAtOnce(DemoCase):
    def test_each_has_its_own_ports_files_and_processes(self) -> None:
        environment = {**os.environ, "TMPDIR": str(self.outer)}
        both = [
            subprocess.Popen([*COMMAND, *ONE], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for _ in range(2)
        ]
        folders = set()
        for process in both:
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
        for process in both:
            output, _ = process.communicate(timeout=PATIENCE)
            self.assertEqual(process.returncode, 0, output.decode())
            folders |= {line for line in output.decode().splitlines() if line.startswith("Files: ")}
        self.assertEqual(len(folders), 2)

    def test_one_folder_is_for_one_demo(self) -> None:
        first = self.start(*ONE)
        self.until(first, "making keys")
        second = subprocess.run(
            [*COMMAND, *ONE, "--dir", str(self.folder)], capture_output=True, text=True, timeout=60, check=False
        )
        self.assertEqual((second.returncode, second.stderr.count("\n")), (EXIT_CHECK_FAILED, 1), second.stderr)
        self.assertRegex(second.stderr, "is not empty|is in use by another demo")
        output, _ = first.communicate(timeout=PATIENCE)
        self.assertEqual(first.returncode, 0, output)


class Elsewhere(DemoCase):
    def contained(self, *wrapper: str, script: str) -> subprocess.CompletedProcess[str]:
        """Run a demo's shell line inside ``unshare``; skips where the kernel does not let us."""
        if (
            shutil.which("unshare") is None
            or subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode
        ):
            self.skipTest(f"this machine does not allow {' '.join(wrapper)}")
        return subprocess.run(
            [*wrapper, "sh", "-c", script],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, "TMPDIR": str(self.outer)},
        )

    def test_a_normal_user_can_run_it(self) -> None:
        """Nix and the switch see no root; only the files are still ours."""
        command = f"{sys.executable} -m nixfleet_agent demo {' '.join(ONE)}"
        if os.geteuid() == 0:
            wrapper = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
            done = self.contained(*wrapper, script=f'test "$(id -u)" = 1000 && {command}')
        else:
            done = self.contained("env", script=command)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("every host ended where it should", done.stdout)

    def test_a_full_disk_is_one_line_before_anything_is_made(self) -> None:
        place = self.outer / "small"
        place.mkdir()
        script = (
            f"mount -t tmpfs -o size=1m none {place} || exit 99; "
            f"{sys.executable} -m nixfleet_agent demo --dir {place}/demo; code=$?; ls -A {place}; exit $code"
        )
        done = self.contained("unshare", "--user", "--map-root-user", "--mount", script=script)
        if done.returncode == 99:
            self.skipTest(f"no folder can be mounted here: {done.stderr.strip()}")
        self.assertEqual((done.returncode, done.stdout), (EXIT_CHECK_FAILED, ""), done.stderr)
        self.assertRegex(done.stderr, r"^nixfleet-agent: \S+ has 1 MiB free, \d+ are needed: choose another --dir\n$")

    def test_a_disk_that_becomes_full_on_the_way_ends_it_with_one_line_and_no_files(self) -> None:
        """The demo is stopped while the disk is filled, so that it always meets the full disk at the same step."""
        place = self.outer / "filling"
        place.mkdir()
        os.mkfifo(self.outer / "said")
        script = (
            f"mount -t tmpfs -o size=70m none {place} || exit 99; mkdir {place}/demo; "
            f"{sys.executable} -m nixfleet_agent demo --agents 1 --dir {place}/demo >{self.outer}/said & demo=$!; "
            f"exec 3<{self.outer}/said; "
            'while read -r line <&3; do case $line in *"making keys"*) break ;; esac; done; '
            f"kill -STOP $demo; head -c 70m /dev/zero >{place}/rest 2>/dev/null; kill -CONT $demo; "
            f"cat <&3 >/dev/null; wait $demo; code=$?; ls -A {place}/demo; exit $code"
        )
        done = self.contained("unshare", "--user", "--map-root-user", "--mount", script=script)
        if done.returncode == 99:
            self.skipTest(f"no folder can be mounted here: {done.stderr.strip()}")
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(done.stdout, "")
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        self.assertEqual(marked(place / "demo"), [])


if __name__ == "__main__":
    unittest.main()
