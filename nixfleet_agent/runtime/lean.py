"""Keeps out of the agent's memory what its libraries import and it never uses."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: Guesses the encoding of a body whose server does not name it, for ``Response.text``; bodies here are read as bytes.
#: ``requests`` imports whichever it finds: 3.2 MB of an idle agent's memory.
ENCODING_GUESSERS = ("chardet", "charset_normalizer")
#: The interpreter's own OpenSSL, beside the one that `cryptography` brings and every call to the control plane uses:
#: 4.3 MB. An https probe loads it when it first runs.
SECOND_OPENSSL = ("ssl", "_ssl", "_hashlib")


@contextmanager
def without(*modules: str) -> Iterator[None]:
    """Within the block an import of ``modules`` fails as if they were not installed, and afterwards works again.

    Libraries that can do without them, do; a module that is loaded already stays.
    """
    absent = [name for name in modules if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            # What `requests` says where it can't guess encodings.
            warnings.filterwarnings("ignore", "Unable to find acceptable character detection")
            yield
    finally:
        for name in absent:
            del sys.modules[name]
