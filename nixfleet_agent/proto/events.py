"""Events as the wire and the journal write them: camelCase from the fields of the state machine's own classes.

One walk over the dataclass fields serves all twelve kinds, so a field can't be in one direction only.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from datetime import datetime
from enum import Enum
from functools import cache, partial
from types import MappingProxyType
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.heartbeat import MAX_SEQ
from nixfleet_agent.proto.heartbeat import seq as parse_seq
from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.state_machine.events import KINDS, Event

#: What JSON gives comes first: a restart asks by the ten thousand, and an abstract class takes longer to answer.
_OBJECT = (dict, Mapping)
_NOTHING: Mapping[str, Any] = MappingProxyType({})


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
    if not isinstance(value, _OBJECT):
        raise ProtoError("an event is not a JSON object")
    kind = KINDS.get(str(value.get("kind")))
    if kind is None:
        raise ProtoError(f"unknown kind of event: {str(value.get('kind'))[:64]!r}")
    ours = local if isinstance(local, _OBJECT) else _NOTHING
    event: Event = _parse(kind.shape, value, kind.shape.kind, kind.remote if remote else kind.local, ours)
    return event


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


@dataclass(frozen=True, slots=True)
class _Reading:
    """How one field is read; made once per shape, because a restart reads ten thousand events."""

    field: str
    name: str
    local: bool
    optional: bool
    what: str
    read: Callable[[object], object]


@cache
def _plan(shape: type) -> tuple[_Reading, ...]:
    plan = []
    for field, name, hint in _fields(shape):
        what = f"{shape.__name__}: {name}"
        optional = type(None) in typing.get_args(hint)
        read = partial(parse_seq, what=what) if field.name == "seq" else _reader(hint, what)
        plan.append(_Reading(field.name, name, bool(field.metadata.get("local")), optional, what, read))
    return tuple(plan)


def _parse(shape: type, value: object, what: str, build: type | None = None, ours: Mapping[str, Any] = _NOTHING) -> Any:
    if not isinstance(value, _OBJECT):
        raise ProtoError(f"{what} is not a JSON object")
    arguments: dict[str, object] = {}
    for reading in _plan(shape):
        item = ours.get(reading.name) if reading.local else value.get(reading.name)
        if item is not None:
            arguments[reading.field] = reading.read(item)
        elif reading.optional:
            arguments[reading.field] = None
        elif not reading.local:
            raise ProtoError(f"{reading.what} is missing")
    return (build or shape)(**arguments)


def _reader(hint: Any, what: str) -> Callable[[object], object]:
    """What turns a JSON value into ``hint``, or raises ProtoError naming ``what``."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return _reader(next(part for part in typing.get_args(hint) if part is not type(None)), what)
    if typing.get_origin(hint) is tuple:
        return partial(_items, _reader(typing.get_args(hint)[0], what), what)
    if hint is datetime:
        return partial(parse_time, what=what)
    if is_dataclass(hint):
        return lambda value: _parse(typing.cast(type, hint), value, what)
    if issubclass(hint, Enum):
        return partial(_member, {member.value: member for member in hint}, what)
    return partial(_number if hint in (int, float) else _plain_value, hint, what)


def _items(read: Callable[[object], object], what: str, value: object) -> object:
    if not isinstance(value, (list, tuple)):
        raise ProtoError(f"{what} is not a list")
    return tuple(map(read, value))


def _plain_value(hint: type, what: str, value: object) -> object:
    if not isinstance(value, hint):
        raise ProtoError(f"{what} is not of type {hint.__name__}: {str(value)[:64]!r}")
    return value


def _number(hint: type[int] | type[float], what: str, value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ProtoError(f"{what} is not of type {hint.__name__}: {str(value)[:64]!r}")
    if not abs(value) <= MAX_SEQ:
        raise ProtoError(f"{what} is out of range: {str(value)[:64]}")
    if hint is int and not float(value).is_integer():
        raise ProtoError(f"{what} is not a whole number: {value}")
    return hint(value)


def _member(members: Mapping[str, Enum], what: str, value: object) -> Enum:
    member = members.get(value) if isinstance(value, str) else None
    if member is None:
        raise ProtoError(f"{what} is not one of {', '.join(members)}: {str(value)[:64]!r}")
    return member
