"""Fetching: signatures, space, stalls, deadlines, interruption, roots; on a real cache that misbehaves."""

from __future__ import annotations

import dataclasses
import random
import shutil
import unittest
from datetime import timedelta

from nixfleet_agent.activation.failures import REFUSED_SIGNATURE, is_refused_signature
from nixfleet_agent.activation.host import process
from nixfleet_agent.activation.model import Completed, Failed, Interrupted
from nixfleet_agent.activation.realise_progress import Progress
from nixfleet_agent.threads.clock import SystemClock
from tests.activation.case import PipelineCase, processes_of, until
from tests.support.nix import remove_tree

NIX_STORE = shutil.which("nix-store")
AFTER_2_8 = "'s not signed by any of the keys in 'trusted-public-keys'"


class RealiseTest(PipelineCase):
    def big(self, name: str) -> str:
        """A closure of 300 kB, so that its transfer can be slowed down."""
        return self.nixery.system(name, files={"blob": random.Random(1).randbytes(150_000).hex()})

    def assert_untouched(self, outcome: object) -> Failed:
        assert isinstance(outcome, Failed), outcome
        self.assertFalse(outcome.switch_fired)
        self.assertEqual(
            (self.host.running(), self.host.profile_closure(), self.host.generations()), (self.v1, self.v1, 1)
        )
        self.assertEqual((self.host.switches(), set(self.methods)), ([], {"setsid"}), "told before it failed")
        return outcome

    def tearDown(self) -> None:
        self.nixery.server.drip = self.nixery.server.stall_after = self.nixery.server.cut_after = None
        self.nixery.server.status = lambda path: None

    def test_an_unsigned_closure_is_minus_two(self) -> None:
        target = self.nixery.system("unsigned")
        self.nixery.unsign(target)
        outcome = self.assert_untouched(self.forward(target))
        self.assertEqual((outcome.exit_code, outcome.phase), (-2, "realise"))
        self.assertTrue(is_refused_signature(outcome.stderr_tail), outcome.stderr_tail)
        self.assertFalse(self.host.has(target))

    def test_a_signature_of_another_key_is_minus_two(self) -> None:
        target = self.nixery.system("forged")
        forged = "Sig: test-cache-1:" + "A" * 86 + "=="
        self.nixery.edit_narinfo(target, lambda line: forged if line.startswith("Sig:") else line)
        self.assertEqual(self.assert_untouched(self.forward(target)).exit_code, -2)

    def test_an_unsigned_dependency_is_minus_two(self) -> None:
        library = self.nixery.path("library", {"file": "1"})
        target = self.nixery.system("leaning", references=[library])
        self.nixery.unsign(library)
        self.assertEqual(self.assert_untouched(self.forward(target)).exit_code, -2)

    def test_the_refusal_of_a_substituter_is_minus_two_however_much_nix_says_after_it(self) -> None:
        refusal = f"warning: ignoring substitute for '/nix/store/x' from 'https://c', as it{AFTER_2_8}"
        noise = "echo copying path >&2; " * 400
        error = "error: path is required, but there is no substituter that can build it"
        self.lie(f'echo "{refusal}" >&2; {noise} echo "{error}" >&2; exit 1')
        outcome = self.assert_untouched(self.forward(self.v2, policy="halt"))
        self.assertEqual((outcome.exit_code, outcome.phase), (-2, "realise"))
        self.assertTrue(outcome.stderr_tail.endswith(f"{error}\n{refusal}"), outcome.stderr_tail[-300:])

    def test_a_changed_archive_is_refused(self) -> None:
        target = self.nixery.system("tampered", files={"text": "honest"})
        for archive in (self.nixery.cache / "nar").iterdir():
            archive.write_bytes(archive.read_bytes().replace(b"honest", b"evil!!"))
        self.assertEqual(self.assert_untouched(self.forward(target)).exit_code, -1)
        self.assertFalse(self.host.has(target))

    def test_a_closure_that_no_cache_has_is_minus_one_with_the_reason_when_its_time_is_over(self) -> None:
        self.host.configure(realise_timeout_secs=1.5)
        target = self.nixery.system("withdrawn")
        self.nixery.withdraw(target)
        outcome = self.assert_untouched(self.forward(target))
        self.assertEqual((outcome.exit_code, outcome.phase), (-1, "realise"))
        self.assertIn(target, outcome.stderr_tail)

    def test_a_transfer_in_which_nothing_moves_is_ended(self) -> None:
        self.host.configure(realise_stall_secs=0.5, realise_timeout_secs=2.5)
        target = self.big("stalled")
        self.nixery.server.stall_after = 100_000
        outcome = self.assert_untouched(self.forward(target))
        self.assertIn("no new byte and no new path for 0.5 s", outcome.stderr_tail)

    def test_a_cache_that_dies_in_the_middle_of_a_download_leaves_nothing_and_can_be_asked_again(self) -> None:
        self.host.configure(realise_timeout_secs=2.0)
        target = self.big("cut")
        self.nixery.server.cut_after = 100_000
        outcome = self.assert_untouched(self.forward(target))
        self.assertEqual((outcome.exit_code, outcome.phase), (-1, "realise"))
        self.assertFalse(self.host.has(target))
        self.nixery.server.cut_after = None
        self.host.configure(realise_timeout_secs=30.0)
        self.assertEqual(self.forward(target), Completed(target, 0, ()))

    def test_a_slow_drip_is_no_stall_but_has_a_deadline(self) -> None:
        self.host.configure(realise_stall_secs=1.2, realise_timeout_secs=2.0)
        target = self.big("dripped")
        self.nixery.server.drip = (4096, 0.1)
        outcome = self.assert_untouched(self.forward(target))
        self.assertIn("did not end within 1.", outcome.stderr_tail)

    def interrupt_fetch(self, reason: str) -> None:
        target = self.big(f"interrupted-{reason}")
        self.nixery.server.stall_after = 100_000
        result = self.in_thread(lambda: self.forward(target))

        def fetching() -> bool:
            return any("--add-root" in line and target in line for line in processes_of(self.host.root).values())

        until(fetching, "nix to fetch")
        self.interrupt(reason)
        self.assertEqual(result(), Interrupted(reason))
        self.assertEqual(processes_of(self.host.root), {}, "ended and reaped")
        self.assertEqual((self.host.profile_closure(), self.host.switches()), (self.v1, []))

    def test_an_interruption_ends_nix_at_once(self) -> None:
        for reason in ("shutdown", "superseded"):
            with self.subTest(reason):
                self.setUp()
                self.interrupt_fetch(reason)

    def test_a_download_that_would_fill_the_disk_is_refused_before_it_begins(self) -> None:
        self.host.configure(realise_timeout_secs=1.5)
        target = self.nixery.system("huge")
        huge = 1 << 60

        def inflate(line: str) -> str:
            return f"NarSize: {huge}" if line.startswith("NarSize:") else line

        self.nixery.edit_narinfo(target, inflate)
        outcome = self.assert_untouched(self.forward(target))
        self.assertEqual(outcome.phase, "free-space")
        self.assertFalse(any(path.startswith("/nar/") and "huge" in path for path in self.nixery.server.requests))

    def test_a_cache_that_takes_its_time_to_tell_sizes_only_costs_that_time(self) -> None:
        self.host.configure(realise_timeout_secs=3600.0)
        asked = self.host.root / "asked"
        slow = f"*--dry-run*) echo $$ >{asked}.new; mv {asked}.new {asked}; exec sleep 600 ;;"
        self.program("nix-store", f'case $* in {slow} esac; exec {NIX_STORE} "$@"')

        class Later(SystemClock):
            """While Nix is asked, every look finds ten seconds gone."""

            gone = 0.0

            def monotonic(self) -> float:
                if asked.exists() and process(int(asked.read_text())) is not None:
                    self.gone += 10
                return super().monotonic() + self.gone

        self.clock = Later()
        self.assertEqual(self.forward(self.v2, policy="halt"), Completed(self.v2, 0, ()))

    def test_a_root_that_can_not_be_made_is_a_failure(self) -> None:
        roots = self.host.state_dir / "gcroots"
        roots.mkdir()
        (roots / "stable@abc1-target").write_text("in the way")
        outcome = self.assert_untouched(self.forward(self.v2))
        self.assertEqual((outcome.exit_code, outcome.phase), (-1, "realise"))

    def lie(self, act: str) -> None:
        """A nix-store that says yes to ``--add-root`` and does something else."""
        self.program(
            "nix-store",
            f'case $* in *--add-root*) ;; *) exec {NIX_STORE} "$@" ;; esac\n'
            f'while [ "$1" != --add-root ]; do shift; done; root=$2; {act}\nexit 0',
        )

    def test_a_nix_that_says_yes_but_holds_nothing_or_something_else_is_not_believed(self) -> None:
        elsewhere = f'ln -sfn /nix/store/{self.v1} "$root"'
        for here in (False, True):
            if here:
                self.host.nix("nix-store", "--realise", f"/nix/store/{self.v2}")
            for act, words in (("", "Nix made no root"), (elsewhere, f"leads to /nix/store/{self.v1}")):
                with self.subTest(words, here=here):
                    self.lie(act)
                    outcome = self.assert_untouched(self.forward(self.v2, policy="halt"))
                    self.assertEqual((outcome.exit_code, outcome.phase), (-1, "realise"))
                    self.assertIn(words, outcome.stderr_tail)
                    (self.host.state_dir / "gcroots" / "stable@abc1-target").unlink(missing_ok=True)

    def test_a_forward_with_everything_present_starts_nix_three_times(self) -> None:
        """Once for each root and once for the profile; what is there is not asked for before."""
        self.host.nix("nix-store", "--realise", f"/nix/store/{self.v2}")
        calls = self.host.root / "calls"
        for name in ("nix", "nix-store", "nix-env"):
            self.program(name, f'echo {name} "$1" "$2" >>{calls}\nexec {shutil.which(name)} "$@"')
        self.assertEqual(self.forward(self.v2), Completed(self.v2, 0, ()))
        self.assertEqual(
            calls.read_text().splitlines(),
            [
                f"nix-store --realise /nix/store/{self.v1}",
                f"nix-store --realise /nix/store/{self.v2}",
                f"nix-env --profile {self.host.profile}",
            ],
        )

    def test_a_closure_that_is_here_already_needs_no_cache(self) -> None:
        self.host.nix("nix-store", "--realise", f"/nix/store/{self.v2}")
        self.nixery.server.requests.clear()
        self.assertEqual(self.forward(self.v2), Completed(self.v2, 0, ()))
        self.assertEqual(self.nixery.server.requests, [])


class PassingTest(PipelineCase):
    """What can pass is waited for: nothing on the host has changed yet."""

    def tearDown(self) -> None:
        self.nixery.server.status = lambda path: None

    def later(self, seconds: float, code: int, part: str) -> None:
        """For so long the cache answers what contains ``part`` with an error."""
        end = self.clock.monotonic() + seconds
        self.nixery.server.status = lambda path: code if part in path and self.clock.monotonic() < end else None

    def assert_waited(self, target: str, kind: str) -> None:
        with self.assertLogs(self.log, "INFO") as logs:
            self.log.propagate = True
            self.assertEqual(self.forward(target), Completed(target, 0, ()))
        self.assertEqual({waiting.kind for waiting in self.waits if waiting}, {kind})
        self.assertIsNone(self.waits[-1], "and it is said that it is over")
        said = [line for line in logs.output if "not yet" in line]
        self.assertEqual(len(said), 1, f"said once, not at each try: {said}")

    def test_a_closure_that_is_uploaded_after_its_turn_is_waited_for(self) -> None:
        """With Nix's own defaults a 404 is remembered for an hour."""
        for part in (".narinfo", "/nar/"):
            with self.subTest(part):
                self.setUp()
                target = self.nixery.system(f"uploaded-{part.strip('/.')}")
                self.later(1.0, 404, part)
                self.assert_waited(target, "missing")

    def test_a_cache_that_refuses_credentials_hides_what_it_has(self) -> None:
        target = self.nixery.system("private")
        self.later(1.0, 401, "/nar/")
        self.assert_waited(target, "missing")
        self.assertIn("credentials", next(w for w in self.waits if w).reason)

    def test_a_release_that_becomes_too_old_while_it_waits_is_given_up(self) -> None:
        self.nixery.server.status = lambda path: 404
        target = self.nixery.system("stale")
        fresh_until = self.clock.now() + timedelta(seconds=5)
        intent = dataclasses.replace(self.intent(target), fresh_until=fresh_until)
        outcome = self.pipeline().forward(intent, self.methods.append)
        assert isinstance(outcome, Failed)
        self.assertIn("the signed release is too old by now", outcome.stderr_tail)
        self.assertEqual((self.host.running(), self.host.switches()), (self.v1, []))

    def test_something_more_important_ends_the_wait_at_once(self) -> None:
        self.nixery.server.status = lambda path: 404
        target = self.nixery.system("awaited")
        result = self.in_thread(lambda: self.forward(target))
        until(lambda: self.waits, "a try that failed")
        self.interrupt("superseded")
        self.assertEqual(result(), Interrupted("superseded"))

    def test_a_daemon_that_restarts_is_waited_for(self) -> None:
        says = "error: cannot connect to socket at '/nix.sock': Connection refused"
        for phase in (None, "way-back", "realise"):
            with self.subTest(after=phase):
                self.setUp()
                gone = self.host.root / "gone"
                for name in ("nix-store", "nix-env"):
                    refuse = f'[ ! -e {gone} ] || {{ echo "{says}" >&2; exit 1; }}'
                    self.program(name, f'{refuse}\nexec {shutil.which(name)} "$@"')
                if phase is None:
                    gone.touch()
                else:
                    self.after_phase[phase] = gone.touch
                result = self.in_thread(lambda: self.forward(self.v2))
                until(lambda: self.waits, "a try that failed")
                gone.unlink()
                self.assertEqual(result(), Completed(self.v2, 0, ()))
                self.assertEqual({w.kind for w in self.waits if w}, {"daemon"})

    def test_a_path_whose_files_are_gone_names_its_repair(self) -> None:
        self.host.nix("nix-store", "--realise", f"/nix/store/{self.v2}")
        remove_tree(self.host.store_root / "nix/store" / self.v2)
        outcome = self.forward(self.v2)
        assert isinstance(outcome, Failed)
        self.assertIn(f"nix-store --repair-path /nix/store/{self.v2}", outcome.stderr_tail)
        self.assertEqual((self.host.running(), self.host.switches()), (self.v1, []))


class ProgressTest(unittest.TestCase):
    def test_bytes_and_paths_are_counted_however_the_lines_are_cut(self) -> None:
        log = (
            b'@nix {"action":"start","fields":["/nix/store/a"],"id":1,"type":100}\n'
            b'@nix {"action":"start","fields":["http://x"],"id":2,"type":101}\n'
            b'@nix {"action":"result","fields":[10,100,0,0],"id":2,"type":105}\n'
            b'@nix {"action":"result","fields":[10,100,0,0],"id":2,"type":105}\n'
            b'@nix {"action":"result","fields":[30,100,0,0],"id":2,"type":105}\n'
            b'@nix {"action":"msg","level":0,"msg":"\\u001b[31;1merror:\\u001b[0m no"}\n'
        )
        for size in (1, 7, 1000):
            with self.subTest(size):
                progress = Progress()
                for begin in range(0, len(log), size):
                    progress.feed(log[begin : begin + size])
                self.assertEqual((progress.bytes, progress.paths, progress.moved), (30, {"/nix/store/a"}, 3))
                self.assertEqual(progress.text, "error: no")

    def test_the_lines_of_an_older_nix_are_understood(self) -> None:
        progress = Progress()
        progress.feed(b"copying path '/nix/store/a' from 'https://c'...\nerror: path '/nix/store/a' lacks a va")
        progress.feed(b"lid signature\n")
        self.assertEqual(progress.paths, {"/nix/store/a"})
        self.assertEqual(progress.refusal, "error: path '/nix/store/a' lacks a valid signature")
        self.assertTrue(is_refused_signature(progress.text))

    def test_a_line_of_an_older_nix_that_is_cut_short_names_no_path(self) -> None:
        progress = Progress()
        progress.feed(b"copying path\ncopying path '/nix/store/a\n")
        self.assertEqual(
            (progress.paths, progress.text), ({"/nix/store/a"}, "copying path\ncopying path '/nix/store/a")
        )

    def test_garbage_is_kept_as_words_and_harms_nothing(self) -> None:
        progress = Progress()
        progress.feed(b'@nix {"action":"start"\n@nix []\n@nix {"action":"result","id":"x"}\n\xff\xfe\n')
        self.assertEqual((progress.bytes, progress.moved), (0, 0))

    def test_memory_stays_bounded_without_a_newline(self) -> None:
        progress = Progress()
        for _ in range(64):
            progress.feed(b"x" * 65536)
        self.assertLess(len(progress.text), 65536)

    def test_every_wording_is_recognised_in_any_case(self) -> None:
        for wording in REFUSED_SIGNATURE:
            self.assertTrue(is_refused_signature(f"error: The Path {wording.upper()} whatever"))
        self.assertFalse(is_refused_signature("error: unable to download: HTTP error 500"))

    def test_what_each_nix_says_of_an_untrusted_path_is_a_refusal(self) -> None:
        said = (
            "warning: substituter 'https://c' does not have a valid signature for path '/nix/store/a'",  # 2.3 and 2.4
            "warning: the substitute for 'a' from 'c' is not signed by any of the keys in 'trusted-public-keys'",  # 2.8
            f"warning: ignoring substitute for '/nix/store/a' from 'https://c', as it{AFTER_2_8}",  # later
            "error: cannot add path '/nix/store/a' because it lacks a valid signature",  # 2.3 to 2.8
            "error: cannot add path '/nix/store/a' because it lacks a signature by a trusted key",  # current
        )
        for words in said:
            with self.subTest(words):
                progress = Progress()
                progress.feed(f"{words}\nerror: don't know how to build these paths:\n".encode())
                self.assertEqual(progress.refusal, words)


if __name__ == "__main__":
    unittest.main()
