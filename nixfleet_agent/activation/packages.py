"""What differs between two closures, package by package: pure, from the names and sizes of their store paths.

Names are split as ``nix store diff-closures`` does (``src/nix/diff-closures.cc`` and ``DrvName`` in Nix's
``names.cc``): an output's name goes from the end, and a version begins after the first dash that no letter follows.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nixfleet_agent.errors import ProtoError

#: A package whose versions stay is told of when its size changes by this much, as Nix does (bytes).
RESIZED_BYTES = 8 * 1024
#: Nix can't tell an output (`-bin`) from the last word of a version (`-unstable`), and nor can anybody.
_OUTPUT = re.compile(r"(.*)-([a-z]+|lib32|lib64)", re.DOTALL)
#: Letters as C's `isalpha` knows them; at the very end a dash begins nothing.
_VERSION = re.compile(r"-(?=[^A-Za-z])", re.DOTALL)
_HASH_LENGTH = 32


@dataclass(frozen=True, slots=True)
class PackageChange:
    """One package: the versions that go and those that come, and by how many bytes its part of the closure grows.

    A version is empty where a path's name has none. Both tuples are empty where only the size differs.
    """

    name: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    size_delta: int


@dataclass(frozen=True, slots=True)
class ClosureDiff:
    """From ``running`` to ``coming`` (basenames). Sizes are bytes in the store, ``paths_new`` those that come.

    ``added`` and ``removed`` are packages of which the other closure has no version at all, ``changed`` those with
    other versions, ``resized`` those with the same versions in another size. Each is sorted by name.
    """

    running: str
    coming: str
    size_before: int
    size_after: int
    paths_before: int
    paths_after: int
    paths_new: int
    added: tuple[PackageChange, ...]
    removed: tuple[PackageChange, ...]
    changed: tuple[PackageChange, ...]
    resized: tuple[PackageChange, ...]

    @property
    def size_delta(self) -> int:
        """Bytes by which the closure grows."""
        return self.size_after - self.size_before

    def to_json(self) -> dict[str, Any]:
        """As ``from_json`` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> ClosureDiff:
        """Raises ProtoError for what ``to_json`` has not made."""
        try:
            fields: dict[str, Any] = dict(value) if isinstance(value, dict) else {}
            for name in ("added", "removed", "changed", "resized"):
                fields[name] = tuple(map(_change, fields[name]))
            return cls(**{name: fields[name] for name in cls.__slots__})
        except (KeyError, TypeError, ValueError) as error:
            raise ProtoError(f"no difference of two closures: {error}") from error


def split_name(basename: str) -> tuple[str, str]:
    """(package, version) of a store path's basename; the version is empty where there is none."""
    name = basename[_HASH_LENGTH + 1 :]
    if (match := _OUTPUT.fullmatch(name)) is not None:
        name = match[1]
    begin = _VERSION.search(name)
    return (name, "") if begin is None else (name[: begin.start()], name[begin.end() :])


def compare(running: str, coming: str, before: Mapping[str, int], after: Mapping[str, int]) -> ClosureDiff:
    """What differs; ``before`` and ``after`` are the bytes of each path (basename) of the two closures."""
    old, new = _grouped(before), _grouped(after)
    added, removed, changed, resized = [], [], [], []
    for name in sorted(old.keys() | new.keys()):
        was, comes = old.get(name, {}), new.get(name, {})
        change = PackageChange(
            name,
            tuple(sorted(was.keys() - comes.keys())),
            tuple(sorted(comes.keys() - was.keys())),
            sum(comes.values()) - sum(was.values()),
        )
        if not was:
            added.append(change)
        elif not comes:
            removed.append(change)
        elif change.before or change.after:
            changed.append(change)
        elif abs(change.size_delta) >= RESIZED_BYTES:
            resized.append(change)
    sizes = sum(before.values()), sum(after.values())
    counts = len(before), len(after), len(after.keys() - before.keys())
    return ClosureDiff(running, coming, *sizes, *counts, *map(tuple, (added, removed, changed, resized)))


def _grouped(sizes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """By package and version, the bytes of all their paths."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for basename, size in sizes.items():
        name, version = split_name(basename)
        found[name][version] += size
    return found


def _change(value: object) -> PackageChange:
    fields: Mapping[str, Any] = value if isinstance(value, dict) else {}
    return PackageChange(
        str(fields["name"]), _versions(fields["before"]), _versions(fields["after"]), int(fields["size_delta"])
    )


def _versions(value: Iterable[object]) -> tuple[str, ...]:
    return tuple(map(str, value))
