"""Tests of another module that run in a container whose PID 1 is systemd, with the agent installed as packaged."""

from __future__ import annotations

import sys
import unittest
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from tests.support import inside
from tests.support.real_systemd import TOP, RealSystemd, Unavailable

UNIT = "nixfleet-agent.service"
#: The unit is as packaged, but for what a container without a journal needs, and for a quicker restart.
DROP_IN = """[Service]
StandardOutput=append:/var/log/nixfleet-agent.log
StandardError=inherit
EnvironmentFile=-/etc/nixfleet/environment
RestartSec=300ms
"""
PROGRAM = f"""#!/bin/sh
PYTHONPATH={TOP} PYTHONDONTWRITEBYTECODE=1 exec {sys.executable} -m nixfleet_agent "$@"
"""
LIMIT_SECS = 400


def machine_with(files: dict[str, str], kind: type[RealSystemd] = RealSystemd) -> RealSystemd:
    """A container; where it can't be had the test is skipped, with the reason."""
    try:
        return kind(files)
    except Unavailable as why:
        raise unittest.SkipTest(str(why)) from why


class InsideCase(unittest.TestCase):
    """Each of ``module``'s tests is a test here; they all run in one container, when the first is asked for.

    ``prelude`` is the command that runs the process of the tests.
    """

    module: ClassVar[str]
    kind: ClassVar[type[RealSystemd]]
    prelude: ClassVar[Sequence[str]]
    told: ClassVar[dict[str, dict[str, Any]]]
    words: ClassVar[str]

    @classmethod
    def setUpClass(cls) -> None:
        files = {
            f"etc/systemd/system/{UNIT}": (TOP / "packaging" / UNIT).read_text(),
            f"etc/systemd/system/{UNIT}.d/50-container.conf": DROP_IN,
            "usr/bin/nixfleet-agent": PROGRAM,
        }
        with machine_with(files, cls.kind) as machine:
            runner = f'"{sys.executable}" -B -m tests.support.inside {cls.module}'
            command = f'cd "{TOP}" && exec timeout {LIMIT_SECS} {runner}'
            done = machine.run(*cls.prelude, "/bin/sh", "-c", command, timeout=LIMIT_SECS + 20)
        cls.told = inside.answers(done.stdout)
        cls.words = f"inside: exit code {done.returncode}\n{done.stderr[-4000:]}"

    def judge(self, name: str) -> None:
        told = self.told.get(name)
        self.assertIsNotNone(told, f"{name} did not come to its end; {self.words}")
        assert told is not None
        if told["skipped"]:
            self.skipTest(told["skipped"])
        if told["bad"]:
            self.fail(f"inside the container:\n{told['bad']}")


def mirror(
    module: str, of: str, kind: type[RealSystemd] = RealSystemd, prelude: Sequence[str] = ()
) -> type[InsideCase]:
    """A test case with a test for each of the module's; ``of`` is the module that asks."""

    def test_of(name: str) -> Callable[[InsideCase], None]:
        return lambda case: case.judge(name)

    tests = {name.rpartition(".")[2]: test_of(name) for name in inside.names(inside.load(module))}
    return type(
        "InsideTest", (InsideCase,), {"module": module, "kind": kind, "prelude": prelude, "__module__": of, **tests}
    )
