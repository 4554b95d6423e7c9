"""Brings the release that CI signed for this host into the store before its turn."""
