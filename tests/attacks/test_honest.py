"""The control: with a control plane that does not lie the very same host, order and checks end in an activation."""

from __future__ import annotations

import unittest

from tests.attacks.case import AttackCase


class Honest(AttackCase):
    def test_an_honest_control_plane_is_believed(self) -> None:
        self.start()
        self.assert_honest_order_is_taken()


if __name__ == "__main__":
    unittest.main()
