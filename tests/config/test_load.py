"""The effective configuration: its sources, their order, and the one line about each mistake."""

from __future__ import annotations

import dataclasses
import errno
import os
import tempfile
import tomllib
import unittest
from pathlib import Path
from unittest import mock

from nixfleet_agent.config import Config, retired
from nixfleet_agent.config.load import load, split_address
from nixfleet_agent.config.schema import Schema, flatten
from nixfleet_agent.config.sources import ConfigProblemsError
from tests.config.mistakes import GOOD, MISTAKES

CONF = Path(__file__).resolve().parents[2] / "conf"


class Case(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = Path(folder.name) / "agent.toml"
        self.write(GOOD)

    def write(self, content: str | bytes) -> None:
        self.file.write_bytes(content.encode() if isinstance(content, str) else content)

    def refused(self, **sources: dict[str, str]) -> ConfigProblemsError:
        with self.assertRaises(ConfigProblemsError) as caught:
            load(self.file, sources.get("environ", {}), sources.get("flags", {}))
        return caught.exception


class Mistakes(Case):
    def test_each_is_one_line_that_names_the_place_and_the_remedy(self) -> None:
        for mistake in MISTAKES:
            with self.subTest(mistake.name):
                self.write(GOOD + mistake.toml if mistake.whole is None else mistake.whole)
                error = self.refused(environ=mistake.environ, flags=mistake.flags)
                for part in mistake.says:
                    self.assertIn(part, error.problems[0])
                self.assertTrue(str(error).isprintable(), str(error))
                self.assertLess(len(str(error)), 600)
                self.assertEqual(error.exit_code, 78)

    def test_the_file_is_named(self) -> None:
        self.write(GOOD + "zzz = 1")
        self.assertIn(str(self.file), str(self.refused()))

    def test_all_problems_are_found_at_once(self) -> None:
        self.write(GOOD + 'zzz = 1\nquarantine_hours = "x"\n')
        error = self.refused(environ={"NIXFLEET_AGENT_TUNING_BACKOFF_MAX": "long"}, flags={"ca_cert": ""})
        self.assertEqual(len(error.problems), 4)
        self.assertIn("and 3 more", str(error))

    def test_a_file_that_is_not_there(self) -> None:
        self.file.unlink()
        self.assertIn(f"can't read the configuration {self.file}", str(self.refused()))
        self.assertIn("No such file or directory: give its path with --config, or write one", str(self.refused()))

    def test_a_file_that_only_root_may_read(self) -> None:
        refused = PermissionError(errno.EACCES, "Permission denied")
        with mock.patch("nixfleet_agent.reading.os.open", side_effect=refused):
            self.assertIn("agent.toml: Permission denied: run it as root", str(self.refused()))

    def test_a_folder_and_a_pipe_are_no_files(self) -> None:
        """A named pipe would block the agent for ever."""
        self.file.unlink()
        self.file.mkdir()
        self.assertIn("not a regular file", str(self.refused()))
        self.file.rmdir()
        os.mkfifo(self.file)
        self.assertIn("not a regular file", str(self.refused()))

    def test_a_file_named_in_the_environment_must_exist(self) -> None:
        with self.assertRaisesRegex(ConfigProblemsError, "can't read the configuration /nowhere/agent.toml"):
            load(None, {"NIXFLEET_AGENT_CONFIG": "/nowhere/agent.toml"}, {})


class Sources(Case):
    def test_a_byte_order_mark_and_line_ends_of_windows_change_nothing(self) -> None:
        self.write(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
        self.assertEqual(load(self.file, {}, {}).config.machine_id, "web-01")

    def test_a_later_source_wins_and_each_value_knows_its_origin(self) -> None:
        self.write(GOOD + 'trust_file = "/file"\nca_cert = "/file"\nstate_dir = "/file"\n[tuning]\nbackoff_max = 5\n')
        loaded = load(
            self.file,
            {
                "NIXFLEET_AGENT_CA_CERT": "/env",
                "NIXFLEET_AGENT_STATE_DIR": "/env",
                "NIXFLEET_AGENT_TUNING_BACKOFF_MAX": "7.5",
            },
            {"state_dir": "/flag"},
        )
        self.assertEqual(loaded.config.trust_file, Path("/file"))
        self.assertEqual(loaded.config.ca_cert, Path("/env"))
        self.assertEqual(loaded.config.state_dir, Path("/flag"))
        self.assertEqual(loaded.config.tuning.backoff_max, 7.5)
        self.assertEqual(loaded.config.tuning.backoff_initial, 1.0)
        origins = {name: origin for name, (_, origin) in loaded.provenance.items()}
        self.assertEqual(origins["trust_file"], str(self.file))
        self.assertEqual(origins["ca_cert"], "NIXFLEET_AGENT_CA_CERT (environment)")
        self.assertEqual(origins["state_dir"], "--state-dir")
        self.assertEqual(origins["tuning.backoff_initial"], "default")

    def test_the_variables_and_flags_of_the_rust_agent(self) -> None:
        self.write("")
        values = {
            "machine_id": "db-02", "trust_file": "/t", "ca_cert": "/ca", "client_cert": "/c", "client_key": "/k",
            "bootstrap_token_file": "/b", "state_dir": "/s", "ssh_host_key_file": "/h",
            "renewal_threshold_fraction": "0.8", "manifest_freshness_window_secs": "31536000",
        }  # fmt: skip
        environ = {f"NIXFLEET_AGENT_{key.upper()}": value for key, value in values.items()}
        by_environ = load(self.file, environ | {"NIXFLEET_AGENT_CP_URL": "https://cp.example/"}, {}).config
        by_flags = load(self.file, {}, values | {"control_plane_url": "https://cp.example"}).config
        self.assertEqual(by_environ, by_flags)
        self.assertEqual(by_flags.control_plane_url, "https://cp.example")
        self.assertEqual(by_flags.client_key, Path("/k"))
        self.assertEqual(by_flags.renewal_threshold_fraction, 0.8)

    def test_settings_of_the_rust_agent_that_mean_nothing_here_are_accepted_and_named_in_one_sentence(self) -> None:
        environ = dict.fromkeys(retired.VARIABLES, "whatever")
        loaded = load(None, environ, {"control_plane_url": "https://cp", "machine_id": "web-01"})
        origins = {origin for _, origin in loaded.provenance.values()}
        self.assertEqual(origins, {"default", "--control-plane-url", "--machine-id"})
        said = retired.warning(environ, retired.FLAGS)
        assert said is not None
        for name, replacement in retired.VARIABLES.items():
            self.assertIn(f"{name} ({replacement})", said)
        for flag in retired.FLAGS:
            self.assertIn(flag, said)
        self.assertIsNone(retired.warning({"NIXFLEET_TAGS": ""}, ()))

    def test_every_key_can_be_given_in_the_environment(self) -> None:
        odd = {
            "activation.guard_secs": "0",
            "tuning.backoff_max": "1.5",
            "machine_id": "other",
            "metrics.listen": "[::1]:1",
        }
        odd |= {"control_plane_url": "https://other", "activation.backend": "setsid", "activation.failed_units": "fail"}
        odd |= {"logging.level": "debug", "logging.format": "text", "proxy_url": "http://proxy:3128"}
        odd |= {"maintenance.windows": "Mon..Fri 22:00-05:00; Sat,Sun", "maintenance.time_zone": "UTC"}
        odd |= {"reboot.after_deferred": "now"}
        for key in Schema().keys.values():
            with self.subTest(key.name):
                value = odd.get(key.name) or {"path": "/some/path", "number": "0.5", "boolean": "false"}[key.kind]
                found, origin = load(self.file, {key.variable: value}, {}).provenance[key.name]
                shown = str(found).lower() if isinstance(found, bool) else str(found)
                self.assertEqual("; ".join(found) if isinstance(found, tuple) else shown, value)
                self.assertEqual(origin, f"{key.variable} (environment)")

    def test_an_empty_variable_counts_as_not_set(self) -> None:
        loaded = load(self.file, {"NIXFLEET_AGENT_BOOTSTRAP_TOKEN_FILE": "", "NIXFLEET_AGENT_STATE_DIR": ""}, {})
        self.assertIsNone(loaded.config.bootstrap_token_file)
        self.assertEqual(loaded.config.state_dir, Path("/var/lib/nixfleet-agent"))

    def test_a_relative_path_in_a_flag_is_taken_from_the_current_folder(self) -> None:
        self.assertEqual(load(self.file, {}, {"state_dir": "s"}).config.state_dir, Path.cwd() / "s")

    def test_a_credential_of_systemd_lies_where_systemd_says_or_where_it_puts_those_of_the_unit(self) -> None:
        self.write(GOOD + 'bootstrap_token_file = "$CREDENTIALS_DIRECTORY/token"\n')
        inside = load(self.file, {"CREDENTIALS_DIRECTORY": "/run/c"}, {"client_key": "${CREDENTIALS_DIRECTORY}/key"})
        self.assertEqual(
            (inside.config.bootstrap_token_file, inside.config.client_key), (Path("/run/c/token"), Path("/run/c/key"))
        )
        self.assertEqual(inside.provenance["client_key"], (Path("/run/c/key"), "--client-key"))
        beside = load(self.file, {}, {})
        self.assertEqual(beside.config.bootstrap_token_file, Path("/run/credentials/nixfleet-agent.service/token"))
        for text in ("$CREDENTIALS_DIRECTORYX/token", "$HOME/token"):
            with self.subTest(text):
                self.write(GOOD + f'bootstrap_token_file = "{text}"\n')
                self.assertIn("must be an absolute path", str(self.refused()))

    def test_no_guard_is_allowed(self) -> None:
        self.write(GOOD + "[activation]\nguard_secs = 0\npoll_budget_secs = 4000\n")
        self.assertEqual(load(self.file, {}, {}).config.activation.guard_secs, 0)


class Agreement(Case):
    """The schema, the model and the commented example say the same."""

    def test_the_model_has_exactly_the_keys_of_the_schema(self) -> None:
        flat = flatten(dataclasses.asdict(Config(control_plane_url="https://a", machine_id="b")))
        self.assertEqual(set(flat), set(Schema().keys))

    def test_the_example_loads_and_holds_the_defaults(self) -> None:
        self.write((CONF / "agent.toml").read_text())
        example = load(self.file, {}, {}).config
        self.assertEqual(example, Config(control_plane_url="https://cp.example:8443", machine_id="web-01"))

    def test_the_example_names_every_key(self) -> None:
        text = (CONF / "agent.toml").read_text()
        uncommented = "\n".join(
            line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in text.splitlines()
        )
        self.assertEqual(set(flatten(tomllib.loads(uncommented))), set(Schema().keys))


class Addresses(unittest.TestCase):
    def test_forms(self) -> None:
        self.assertEqual(split_address("127.0.0.1:9110"), ("127.0.0.1", 9110))
        self.assertEqual(split_address("[::1]:9110"), ("::1", 9110))
        for bad in ("", "9110", ":9110", "a:", "a:b", "a:-1", "a:٣", "::1:9110", "a:65536"):
            with self.subTest(bad):
                self.assertIsNone(split_address(bad))


if __name__ == "__main__":
    unittest.main()
