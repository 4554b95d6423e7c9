"""This agent with one thing wrong, to see that whoever watches its requests notices.

``python -m tests.support.crippled HOW run --config FILE`` is the agent in that way; ``HOW`` is a name of ``WAYS``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

from nixfleet_agent.proto.heartbeat import Heartbeat


def coarse() -> None:
    """Heartbeats have their time in whole seconds, which a control plane that reads any form takes."""
    honest = Heartbeat.to_json

    def to_json(beat: Heartbeat) -> dict[str, Any]:
        body = honest(beat)
        return body | {"at": body["at"].partition(".")[0] + "Z"}

    mock.patch.object(Heartbeat, "to_json", to_json).start()


WAYS: Mapping[str, Callable[[], None]] = {
    "coarse": coarse,
}


def main(arguments: list[str]) -> int:
    from nixfleet_agent import cli

    WAYS[arguments[0]]()
    return cli.main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
