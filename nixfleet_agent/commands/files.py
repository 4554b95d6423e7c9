"""Files that an operator names on the command line, read with a limit."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from nixfleet_agent.errors import EXIT_USAGE, AgentError


class InputFileError(AgentError):
    """A file named on the command line can't be read."""

    exit_code = EXIT_USAGE


def read_input(path: Path, limit: int, kind: type[AgentError] = InputFileError) -> bytes:
    """The file's bytes, at most one more than ``limit``, so that the judge of the size sees that there are too many.

    Raises:
        AgentError: of the given ``kind``: missing, unreadable, a folder, or a pipe, which could block for ever.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise kind(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise kind(f"can't read {path}: it is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        return file.read(limit + 1)
