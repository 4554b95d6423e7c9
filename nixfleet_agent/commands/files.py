"""Files that an operator names on the command line, read with a limit."""

from __future__ import annotations

from pathlib import Path

from nixfleet_agent.errors import EXIT_USAGE, AgentError
from nixfleet_agent.reading import read_regular


class InputFileError(AgentError):
    """A file named on the command line can't be read."""

    exit_code = EXIT_USAGE


def read_input(path: Path, limit: int, kind: type[AgentError] = InputFileError) -> bytes:
    """The file's bytes, at most one more than ``limit``, so that the judge of the size sees that there are too many.

    Raises:
        AgentError: of the given ``kind``: missing, unreadable, a folder, or a pipe, which could block for ever.
    """
    try:
        return read_regular(path, limit)
    except OSError as error:
        raise kind(f"can't read {path}: {error.strerror}") from error
