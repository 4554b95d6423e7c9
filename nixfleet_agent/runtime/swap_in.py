"""Taking over from the Rust agent: its certificate and undelivered events become ours, and nothing of it is touched.

It keeps its queue where this agent does by default, and there nothing has to be moved: the files are read as they are.
Elsewhere they are copied, once, before the journal is opened. Its certificate is in a folder of its own beside that,
and is copied too: this agent keeps all of its state in one. Its rollouts need no import: those that are open come back
by the control plane's snapshots, and are adopted when the signed manifest names what runs here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import IdentityError, ProtoError
from nixfleet_agent.identity.certificate import AgentCertificate, load_certificate, name_is_ours
from nixfleet_agent.identity.host_key import load_host_key
from nixfleet_agent.identity.install import install
from nixfleet_agent.journal.entries import Entry, decode, read_raw
from nixfleet_agent.journal.folders import QUEUE, SENT
from nixfleet_agent.proto.strict_json import BODY_LIMIT, loads_strict
from nixfleet_agent.text import printable

#: Where the Rust agent keeps its state, and beside it the folder of its certificate.
SOURCE = Path("/var/lib/nixfleet-agent")
CERTIFICATE_FOLDER = "nixfleet"
CERTIFICATE = "agent-cert.pem"
LAST_DISPATCH = "last_dispatched"

log = logging.getLogger("nixfleet_agent.swap_in")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was found: what it is, what becomes of it, and (``do``) how; None where nothing has to be done."""

    what: str
    text: str
    do: Callable[[], None] | None = None


def steps(config: Config, source: Path = SOURCE) -> Iterator[Step]:
    """Everything of the Rust agent in ``source``, in the order in which it is taken over."""
    places = (source / CERTIFICATE, source.parent / CERTIFICATE_FOLDER / CERTIFICATE)
    yield from _certificate(config, next((place for place in places if place.exists()), places[0]))
    yield from _events(config, source / QUEUE)
    yield from _last_dispatch(source / LAST_DISPATCH)


def on_first_start(config: Config, source: Path = SOURCE) -> None:
    """Take over what lies elsewhere, unless this agent has been here before.

    Raises:
        StorageError: the disk refused.
    """
    if (config.state_dir / SENT).exists():
        return
    for step in steps(config, source):
        if step.do is not None:
            step.do()
            log.info("taken over from %s: %s: %s", source, step.what, step.text)


def _certificate(config: Config, path: Path) -> Iterator[Step]:
    if not path.exists():
        return
    if path == config.client_cert:
        yield Step("certificate", f"{path} is used where it is")
    elif config.client_cert.exists():
        yield Step("certificate", f"{path} is left: this agent has one at {config.client_cert}")
    else:
        try:
            found, key = load_certificate(path), load_host_key(config.client_key)
        except IdentityError as error:
            yield Step("certificate", f"it can't be used: {error}")
            return
        if found.belongs_to(key.public_raw) and name_is_ours(found.common_name, config.machine_id):
            yield Step("certificate", f"copied to {config.client_cert}", _copy_certificate(found, config.client_cert))
        else:
            yield Step("certificate", f"{path} is of another key or name than this host's: it has to enroll")


def _copy_certificate(found: AgentCertificate, place: Path) -> Callable[[], None]:
    return lambda: install(place, found, None)


def _events(config: Config, folder: Path) -> Iterator[Step]:
    own = config.state_dir / QUEUE
    for path in sorted(folder.glob("*.json")):
        try:
            entry = decode(read_raw(path))
        except (OSError, ProtoError) as error:
            yield Step("event", f"{printable(path.name)} can't be read, and is left: {error}")
            continue
        shown = f"{entry.rollout_id}/{entry.seq} {printable(entry.kind, 40)}"
        here = (own / entry.name, config.state_dir / SENT / entry.rollout_id / entry.name)
        if entry.hostname != config.machine_id:
            yield Step("event", f"{shown} is of {entry.hostname}, and is left")
        elif folder == own:
            yield Step("event", f"{shown} is delivered from where it is")
        elif any(place.exists() for place in here):
            yield Step("event", f"{shown} was taken over before")
        else:
            yield Step("event", f"{shown} is queued", _queue(entry, here[0]))


def _queue(entry: Entry, place: Path) -> Callable[[], None]:
    def do() -> None:
        durable.make_directory(place.parent)
        durable.write(place, entry.encode())

    return do


def _last_dispatch(path: Path) -> Iterator[Step]:
    try:
        value = loads_strict(read_raw(path), limit=BODY_LIMIT, what=str(path))
    except FileNotFoundError:
        return
    except (OSError, ProtoError) as error:
        yield Step("rollout", f"the last one can't be told: {error}")
        return
    named = value if isinstance(value, dict) else {}
    rollout, closure = (printable(named.get(key), 250) for key in ("rollout_id", "closure_hash"))
    yield Step(
        "rollout",
        f"{rollout} to {closure} was the last one: if it is still open, it is adopted from the control plane's "
        "snapshot once the signed manifest confirms it",
    )
