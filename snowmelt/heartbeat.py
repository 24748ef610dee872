"""A file by which schedulers and people see that a run is alive, where it is, and how it ended."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from snowmelt.errors import EXIT_STOPPED, one_line

HEARTBEAT_FILE = "heartbeat.json"
EVERY = 10.0
"""Seconds between two beats, at least; evaluating or saving a model may take longer."""
STOPPED_BY = ("SIGTERM", "SIGUSR1")
"""Reasons to stop that come from a scheduler, which should start the run again."""


class Heartbeat:
    """While entered, `heartbeat.json` says `training`; then `finished`, `stopped` or `failed`, with the reason.

    Args:
        folder: of the run.
        writes: whether this process is the one that writes.
    """

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.path = folder / HEARTBEAT_FILE
        self.writes = writes
        self.step = 0
        self.stop: str | None = None
        self._last = -EVERY

    def beat(self, step: int) -> None:
        """Say that `step` optimizer steps are taken, unless that was said moments ago."""
        self.step = step
        if time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            self._write("training", None)

    @property
    def exit_status(self) -> int:
        """Of the process: 0, or `EXIT_STOPPED` if the run ended before its time and can be resumed."""
        return EXIT_STOPPED if self.stop in STOPPED_BY else 0

    def __enter__(self) -> "Heartbeat":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._write("failed", one_line(error) or type(error).__name__)
        else:
            self._write("stopped" if self.stop in (*STOPPED_BY, "SIGINT") else "finished", self.stop)

    def _write(self, status: str, reason: str | None) -> None:
        if self.writes:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            partial = self.path.with_name(f".partial-{HEARTBEAT_FILE}")
            partial.write_text(json.dumps({"status": status, "step": self.step, "time": now, "reason": reason}) + "\n")
            partial.replace(self.path)
