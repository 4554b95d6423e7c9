"""This agent with one thing wrong, to see that whoever watches its requests notices.

``python -m tests.support.crippled HOW run --config FILE`` is the agent in that way; ``HOW`` is a name of ``WAYS``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

from nixfleet_agent.journal.entries import Entry
from nixfleet_agent.net.answers import Answer
from nixfleet_agent.net.client import ControlPlane
from nixfleet_agent.proto.heartbeat import Heartbeat
from nixfleet_agent.runtime.workers import outbound
from nixfleet_agent.runtime.workers.outbound import Outbound

TAKEN = Answer(204, {}, b"")


def coarse() -> None:
    """Heartbeats have their time in whole seconds, which a control plane that reads any form takes."""
    honest = Heartbeat.to_json

    def to_json(beat: Heartbeat) -> dict[str, Any]:
        body = honest(beat)
        return body | {"at": body["at"].partition(".")[0] + "Z"}

    mock.patch.object(Heartbeat, "to_json", to_json).start()


def blind() -> None:
    """An acknowledgement does not say what ran."""
    _events(lambda event: {k: v for k, v in event.items() if k != "currentClosureAtDispatch"})


def hasty() -> None:
    """The seq of every event is one too high."""
    _events(lambda event: event | {"seq": event["seq"] + 1})


def mute() -> None:
    """Activations begin without a word: what should be said counts as delivered."""
    honest = Outbound._post

    def post(worker: Outbound, body: bytes) -> Answer:
        return TAKEN if json.loads(body)["event"]["kind"] == "ActivationStarted" else honest(worker, body)

    mock.patch.object(Outbound, "_post", post).start()


def fickle() -> None:
    """What is sent again has another time in it."""
    sent: set[bytes] = set()
    honest = Outbound._post

    def post(worker: Outbound, body: bytes) -> Answer:
        again = body in sent
        sent.add(body)
        return honest(worker, body.replace(b".", b".0", 1) if again else body)

    mock.patch.object(Outbound, "_post", post).start()


def nameless() -> None:
    """Requests do not say which protocol they speak."""
    honest = ControlPlane.__init__

    def init(client: ControlPlane, *arguments: Any, **options: Any) -> None:
        honest(client, *arguments, **options)
        del client._headers["X-Nixfleet-Protocol"]

    mock.patch.object(ControlPlane, "__init__", init).start()


def _events(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    honest = outbound.envelope

    def envelope(entry: Entry, sign: Callable[[dict[str, object]], str | None]) -> bytes:
        body = json.loads(honest(entry, lambda event: None))
        return json.dumps(body | {"event": change(body["event"])}).encode()

    mock.patch.object(outbound, "envelope", envelope).start()


WAYS: Mapping[str, Callable[[], None]] = {
    "coarse": coarse,
    "blind": blind,
    "hasty": hasty,
    "mute": mute,
    "fickle": fickle,
    "nameless": nameless,
}


def main(arguments: list[str]) -> int:
    from nixfleet_agent import cli

    WAYS[arguments[0]]()
    return cli.main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
