"""Events as the wire and the journal write them: camelCase from the fields of the state machine's own classes.

One walk over the dataclass fields serves all twelve kinds, so a field can't be in one direction only.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import Field, fields, is_dataclass
from datetime import datetime
from enum import Enum
from functools import cache
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.heartbeat import MAX_SEQ
from nixfleet_agent.proto.heartbeat import seq as parse_seq
from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.state_machine.events import KINDS, Event


def to_wire(event: Event) -> dict[str, Any]:
    """The ``event`` object of a POST: ``kind``, ``seq`` and the kind's fields; absent where None."""
    return {"kind": event.kind, "seq": event.seq, **_object(event, local=False)}


def local_fields(event: Event) -> dict[str, Any]:
    """What only this host keeps of an event; empty for most kinds."""
    return _object(event, local=True)


def from_wire(value: object, *, remote: bool, local: object = None) -> Event:
    """The event that ``to_wire`` wrote, as its Remote (or Local) class; unknown fields are ignored.

    Args:
        local: what ``local_fields`` returned, from the host's own journal: the only source of local fields, whatever
            the other side of a wire may have written under their names.

    Raises:
        ProtoError: an unknown kind, or a field that is missing or not of its type.
    """
    if not isinstance(value, Mapping):
        raise ProtoError("an event is not a JSON object")
    kind = KINDS.get(str(value.get("kind")))
    if kind is None:
        raise ProtoError(f"unknown kind of event: {str(value.get('kind'))[:64]!r}")
    ours = local if isinstance(local, Mapping) else {}
    build = kind.remote if remote else kind.local
    return typing.cast(Event, _parse(kind.shape, value, kind.shape.kind, build, ours))


@cache
def _fields(shape: type) -> tuple[tuple[Field[Any], str, Any], ...]:
    """(field, name on the wire, type) of a dataclass; resolved once, because resolving hints is slow."""
    hints = typing.get_type_hints(shape)
    return tuple((f, _camel(f.name), hints[f.name]) for f in fields(shape))


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _object(value: object, *, local: bool | None) -> dict[str, Any]:
    """The fields that are local, that are not, or (None) all of them: whatever stands inside a local field is local."""
    shape = next(c for c in type(value).__mro__ if "__dataclass_fields__" in c.__dict__)
    written = {}
    for field, name, _ in _fields(shape):
        item = getattr(value, field.name)
        ours = local is None or bool(field.metadata.get("local")) == local
        nothing = item is None or (item == () and field.metadata.get("local"))
        if ours and not nothing and field.name != "seq":
            written[name] = _plain(item, None if local else local)
    return written


def _plain(value: object, local: bool | None) -> object:
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(item, local) for item in value]
    if is_dataclass(value):
        return _object(value, local=local)
    return value


def _parse(
    shape: type, value: object, where: str, build: type | None = None, ours: Mapping[str, Any] | None = None
) -> object:
    if not isinstance(value, Mapping):
        raise ProtoError(f"{where} is not a JSON object")
    arguments: dict[str, Any] = {}
    for field, name, hint in _fields(shape):
        local = bool(field.metadata.get("local"))
        item = (ours or {}).get(name) if local else value.get(name)
        if item is not None:
            arguments[field.name] = _read(hint, item, f"{where}: {name}")
            if field.name == "seq":
                parse_seq(arguments["seq"], f"{where}: seq")
        elif _optional(hint):
            arguments[field.name] = None
        elif not local:
            raise ProtoError(f"{where}: {name} is missing")
    return (build or shape)(**arguments)


def _optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _read(hint: Any, value: object, where: str) -> object:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ProtoError(f"{where} is not a list")
        return tuple(_read(typing.get_args(hint)[0], item, where) for item in value)
    if hint is datetime:
        return parse_time(value, where)
    if is_dataclass(hint):
        return _parse(typing.cast(type, hint), value, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _member(hint, value, where)
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_SEQ:
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ProtoError(f"{where} is not of type {hint.__name__}: {str(value)[:64]!r}")
    if hint is int and abs(typing.cast(int, value)) > MAX_SEQ:
        raise ProtoError(f"{where} is out of range: {value}")
    return value


def _member(hint: type[Enum], value: object, where: str) -> Enum:
    try:
        return hint(value)
    except ValueError as error:
        raise ProtoError(
            f"{where} is not one of {', '.join(str(m.value) for m in hint)}: {str(value)[:64]!r}"
        ) from error
