"""Releases that bring another agent, good ones and bad ones, under a systemd that really runs."""

from __future__ import annotations

import unittest

from tests.activation_slow.in_container import mirror


class OwnAgentTest(mirror("tests.activation_slow.systemd_own_agent", __name__)):  # type: ignore[misc]
    """Tried in the soak, handed over to behind the guard, and taken back."""


if __name__ == "__main__":
    unittest.main()
