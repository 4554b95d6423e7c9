"""Tests of reboots. What the product logs on purpose in them is no news for whoever runs them."""

import logging

logging.getLogger("nixfleet_agent").addHandler(logging.NullHandler())
