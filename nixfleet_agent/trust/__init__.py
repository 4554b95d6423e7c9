"""Verification of what CI signed: bytes in, a verified object or a typed refusal out; no I/O, no logging."""
