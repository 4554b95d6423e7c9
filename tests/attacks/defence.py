"""One check that stands between a lie and this host, as a text to take out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Defence:
    """``old`` stands exactly once in ``file`` (under the package) and becomes ``new``; one of ``tests`` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def gone(name: str, file: str, condition: str, *tests: str, to: str = "False") -> Defence:
    """The check ``if <condition>:`` never holds."""
    return Defence(name, file, f"if {condition}:", f"if {to}:", tests)
