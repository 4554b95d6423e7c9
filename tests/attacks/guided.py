"""`python -m tests.attacks --guided MINUTES`: strange inputs as libFuzzer finds them, led by the branches they reach.

``test_fuzz`` makes documents strange by their structure, this makes bytes strange by what the readers do with them; it
begins with a sound document. It needs `atheris`, which nothing else does: `.venv/bin/pip install atheris`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent.parent
#: One reading may take this long, in seconds, and the process this much memory, in MiB.
TIMEOUT, MEMORY = 10, 1024
#: Longest input, in bytes: the documents have up to 1.5 KiB.
LENGTH = 8192


def run_for(minutes: float, names: list[str]) -> int:
    """Every reader in turn, in a process of its own, for its share of the time; the exit code."""
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: .venv/bin/pip install atheris", file=sys.stderr)
        return 2
    targets = [name for name in _names() if not names or any(part in name for part in names)]
    share = max(1, int(60 * minutes / max(1, len(targets))))
    failed = 0
    for target in targets:
        command = [sys.executable, "-m", "tests.attacks.guided", target, str(share)]
        done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, errors="replace", check=False)
        said = done.stderr.splitlines()
        last = next((line for line in reversed(said) if line.startswith("stat::number_of_executed_units")), "")
        print(f"{target:32} {share:4} s  {last.rpartition(' ')[2] or '?':>9} inputs  ", end="")
        print("FAILED" if done.returncode else "nothing found", flush=True)
        if done.returncode:
            where = [line for line in said if line.startswith(("SUMMARY", "artifact_prefix"))]
            print("\n".join(f"    {line}" for line in [*done.stdout.splitlines()[-30:], *where]))
            failed += 1
    return 1 if failed else 0


def _names() -> list[str]:
    from tests.attacks.test_fuzz import World

    with tempfile.TemporaryDirectory() as name:
        return [target.name for target in World(Path(name)).targets()]


def _words(value: object) -> set[str]:
    """What a document is made of, as JSON writes it."""
    if isinstance(value, dict):
        return {json.dumps(key) for key in value}.union(*map(_words, value.values()))
    if isinstance(value, list):
        return set[str]().union(*map(_words, value))
    return {json.dumps(value)} if isinstance(value, str) and len(value) < 64 else set()


def _literal(word: str) -> str:
    """A line of libFuzzer's dictionary."""
    escaped = "".join(f"\\x{byte:02x}" if byte in b'"\\' or byte > 126 else chr(byte) for byte in word.encode())
    return f'"{escaped}"'


def main(name: str, seconds: str) -> None:
    """One reader until its time is over. Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["nixfleet_agent"], enable_loader_override=False):
        from tests.attacks.test_fuzz import World, judge
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        (target,) = (each for each in World(Path(folder)).targets() if each.name == name)
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        (corpus / "sound").write_bytes(target.sound)
        words = Path(folder) / "words"
        words.write_text("".join(f"{_literal(word)}\n" for word in sorted(_words(target.good))))
        limits = [f"-max_total_time={seconds}", f"-max_len={LENGTH}", f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}"]
        found = f"-artifact_prefix={tempfile.gettempdir()}/found-"
        atheris.Setup(
            [sys.argv[0], str(corpus), f"-dict={words}", *limits, found, "-print_final_stats=1"],
            lambda raw: judge(target, raw) and None,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
