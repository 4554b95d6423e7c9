"""Makes the pictures of the README and the guides anew: `python -m tests.docs.pictures`.

A real demo is run and looked at when its story has ended: its live terminal, its status page in a browser, and the
rollout and the rollback of one host as `history --svg` draws them. Nothing is retouched, so the pictures can't lie.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from rich.console import Console

from nixfleet_agent.commands import journal_view
from nixfleet_agent.commands.timeline_svg import draw
from nixfleet_agent.demo.fleet import DemoFleet
from nixfleet_agent.demo.live import Live
from nixfleet_agent.demo.main import DemoOptions, run
from nixfleet_agent.state_machine import State
from tests.support.browser import FLAGS, NAMES, PROGRAM

PICTURES = Path(__file__).resolve().parents[2] / "packaging" / "docs" / "pictures"
#: Columns and lines of the terminal, and pixels of the browser's window.
TERMINAL, WINDOW = (104, 26), (1100, 640)
#: The exported picture names a font on a server; the reader's own will do.
_FONT_FACE = re.compile(r"@font-face\s*\{[^}]*\}", re.DOTALL)


class Photographed(Live):
    """A live view that is photographed with its fleet before both are closed."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self._seen: DemoFleet | None = None

    def watch(self, fleet: DemoFleet | None) -> None:
        self._seen = fleet or self._seen
        super().watch(fleet)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._seen is not None:
            photograph(self, self._seen)
        super().__exit__(kind, error, trace)

    def picture(self) -> str:
        """The terminal as SVG."""
        width, height = TERMINAL
        self._console = Console(file=io.StringIO(), record=True, width=width, height=height, force_terminal=True)
        self._console.print(self._render())
        return _FONT_FACE.sub("", self._console.export_svg(title="packaging/dev demo"))


def photograph(view: Photographed, fleet: DemoFleet) -> None:
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / "demo.svg").write_text(view.picture())
    screenshot(fleet.plane.page_url, PICTURES / "status-page.png")
    state_dir = next(iter(fleet.hosts.values())).folder / "state"
    for replay in journal_view.rollouts(state_dir, next(iter(fleet.hosts))):
        name = {State.CONVERGED: "rollout.svg", State.REVERTED: "rollback.svg"}.get(replay.record.state)
        if name is not None:
            (PICTURES / name).write_text(draw(replay, datetime.now(timezone.utc)))


def screenshot(url: str, path: Path) -> None:
    if PROGRAM is None:
        sys.exit(f"needs a browser for {path.name}: install one of {', '.join(NAMES)}")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                PROGRAM,
                *FLAGS,
                "--virtual-time-budget=3000",
                f"--user-data-dir={profile}",
                f"--window-size={WINDOW[0]},{WINDOW[1]}",
                f"--screenshot={path}",
                url,
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="nixfleet-demo-") as outer:
        code = run(DemoOptions(folder=Path(outer) / "fleet"), Photographed())
    for made in sorted(PICTURES.iterdir()):
        print(f"{made.relative_to(PICTURES.parents[2])}: {made.stat().st_size >> 10} KiB")
    sys.exit(code)
