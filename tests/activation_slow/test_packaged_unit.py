"""The unit file as it is packaged, under a systemd that really runs."""

from __future__ import annotations

import unittest

from tests.activation_slow.in_container import mirror


class UnitTest(mirror("tests.activation_slow.systemd_unit", __name__)):  # type: ignore[misc]
    """Its life, and releases that it brings and takes back."""


if __name__ == "__main__":
    unittest.main()
