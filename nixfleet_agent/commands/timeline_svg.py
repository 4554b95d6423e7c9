"""One rollout as a picture: its states, its probes, the moment of failure and the way back. Pure: a log in, SVG out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from nixfleet_agent.commands.journal_view import Replay, Step
from nixfleet_agent.commands.times import length, utc_time
from nixfleet_agent.state_machine import State
from nixfleet_agent.text import printable

#: All in pixels. The picture fits a README; names of probes are cut to the room left of the lanes.
WIDTH, LEFT, RIGHT, TOP = 860, 150, 20, 58
BAND, LANE = 34, 22
NAME_CHARS = 20

_COLOURS = {
    State.PENDING: "#9aa0a6",
    State.ACTIVATING: "#e0a100",
    State.DEFERRED: "#b06fd1",
    State.SOAKING: "#2f8fd1",
    State.CONVERGED: "#2f9e56",
    State.FAILED: "#d0342c",
    State.REVERTED: "#a4489a",
}
_PASS, _FAIL = "#2f9e56", "#d0342c"
#: Moments that a line through all lanes marks, with their words.
_MARKS = {
    "Failed": "failed",
    "ActivationFailed": "activation failed",
    "RollbackComplete": "back",
    "Converged": "converged",
}
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.t{font-weight:600;font-size:14px}.s{fill:#57606a}"
    ".w{fill:#fff;font-weight:600}.a{stroke:#d0d7de}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9198a1}.a{stroke:#3d444d}.b{fill:#0d1117}}.b{fill:#fff}"
)


@dataclass(frozen=True, slots=True)
class _Scale:
    """Seconds of the rollout to pixels; a rollout of no length still has a width."""

    begin: datetime
    seconds: float

    def x(self, at: datetime) -> float:
        share = (at - self.begin).total_seconds() / self.seconds
        return round(LEFT + min(1.0, max(0.0, share)) * (WIDTH - LEFT - RIGHT), 1)


def draw(replay: Replay, now: datetime) -> str:
    """The picture of a rollout's log; one that is not over is drawn up to ``now``."""
    steps = [step for step in replay.steps if step.refused is None]
    begin = replay.accepted.accepted_at
    last = max(step.at for step in steps)
    end = last if replay.record.terminal else max(last, now)
    scale = _Scale(begin, max(1.0, (end - begin).total_seconds()))
    probes = _probes(steps)
    height = TOP + BAND + LANE * len(probes) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(_title(replay))}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="b" width="{WIDTH}" height="{height}"/>',
        _text(12, 22, _title(replay), "t"),
        _text(12, 42, f"{replay.record.target_closure}; accepted {utc_time(begin)}, took {length(end - begin)}", "s"),
        *_band(steps, end, scale),
        *_lanes(probes, scale),
        *_marks(steps, scale, height),
        *_axis(scale, height),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _title(replay: Replay) -> str:
    return f"{replay.record.rollout_id} on {replay.record.hostname}: {replay.record.state}"


def _text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{style}" text-anchor="{anchor}">{escape(printable(words, 200))}</text>'


def _band(steps: Sequence[Step], end: datetime, scale: _Scale) -> Iterator[str]:
    """The states, each as wide as it lasted; its name where there is room."""
    yield _text(12, TOP + 22, "state", "s")
    changes = [(steps[0].at, steps[0].before), *((step.at, step.after) for step in steps if step.before != step.after)]
    for (at, state), (until, _) in zip(changes, [*changes[1:], (end, State.PENDING)], strict=True):
        left, right = scale.x(at), max(scale.x(until), scale.x(at) + 3)
        words = f"{state} for {length(until - at)}"
        yield (
            f'<rect x="{left}" y="{TOP}" width="{round(right - left, 1)}" height="{BAND - 8}" rx="3" '
            f'fill="{_COLOURS[state]}"><title>{escape(words)}</title></rect>'
        )
        if right - left > 8 * len(str(state)):
            yield _text((left + right) / 2, TOP + 17, str(state), "w", "middle")


def _probes(steps: Sequence[Step]) -> dict[str, list[tuple[datetime, str, str]]]:
    """(when, status, reason) of each probe's results, by name."""
    found: dict[str, list[tuple[datetime, str, str]]] = {}
    for step in steps:
        if step.entry.kind == "ProbeResult":
            event = step.entry.event
            row = (step.at, str(event.get("status")), str(event.get("failureReason") or ""))
            found.setdefault(str(event.get("probeName")), []).append(row)
    return dict(sorted(found.items()))


def _lanes(probes: dict[str, list[tuple[datetime, str, str]]], scale: _Scale) -> Iterator[str]:
    for number, (name, results) in enumerate(probes.items()):
        middle = TOP + BAND + LANE * number + LANE / 2
        shown = name if len(name) <= NAME_CHARS else f"{name[: NAME_CHARS - 1]}…"
        yield _text(12, middle + 4, shown, "s")
        yield f'<line class="a" x1="{LEFT}" y1="{middle}" x2="{WIDTH - RIGHT}" y2="{middle}"/>'
        for at, status, reason in results:
            words = printable(f"{name}: {status}" + (f" ({reason})" if reason else ""), 300)
            colour = _PASS if status == "pass" else _FAIL
            title = f"<title>{escape(words)}</title>"
            yield f'<circle cx="{scale.x(at)}" cy="{middle}" r="5" fill="{colour}">{title}</circle>'


def _marks(steps: Sequence[Step], scale: _Scale, height: int) -> Iterator[str]:
    for step in steps:
        if (words := _MARKS.get(step.entry.kind)) is None:
            continue
        x = scale.x(step.at)
        anchor = "end" if x > WIDTH / 2 else "start"
        yield (
            f'<line x1="{x}" y1="{TOP - 4}" x2="{x}" y2="{height - 30}" stroke="{_COLOURS[step.after]}" '
            'stroke-width="1.5" stroke-dasharray="4 3"/>'
        )
        yield _text(x + (-6 if anchor == "end" else 6), height - 34, f"{words} (seq {step.entry.seq})", "s", anchor)


def _axis(scale: _Scale, height: int) -> Iterator[str]:
    y = height - 24
    yield f'<line class="a" x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}"/>'
    for part in range(5):
        x = LEFT + part * (WIDTH - LEFT - RIGHT) / 4
        seconds = scale.seconds * part / 4
        words = f"+{seconds:.1f} s" if scale.seconds < 60 else f"+{length(seconds)}"
        yield _text(x, y + 16, words, "s", "end" if part == 4 else "start" if part == 0 else "middle")
