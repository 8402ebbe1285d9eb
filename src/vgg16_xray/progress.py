"""How long work tells where it is: rate and time left, on a terminal as a bar, elsewhere as a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds between two lines where standard error is a file or a pipe, and until the first.
LINE_EVERY_S, FIRST_LINE_S = 15.0, 3.0
#: Show no progress at all, what ``--quiet`` asks for.
silent = False


class Progress:
    """Counts finished units of one piece of work. Made by :func:`progress`."""

    def __init__(self, description: str, *, total: int | None, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = self._already_done = 0
        self._started = time.monotonic()

    def advance(self, count: int = 1, *, note: str = "") -> None:
        """Count `count` more units as done; `note` (a loss, say) is shown beside the bar."""
        self.done += count
        self._show(note)

    def start_at(self, count: int) -> None:
        """Count units that an earlier, interrupted run finished: they do not enter the rate."""
        self.done = self._already_done = count

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return (self.done - self._already_done) / max(time.monotonic() - self._started, 1e-9)

    def line(self, note: str = "") -> str:
        """Description, count, rate and time left as one line of text."""
        parts = [f"{self.done:,}" + (f" of {self.total:,}" if self.total is not None else "") + f" {self.unit}"]
        if self.rate > 0:
            parts.append(f"{self.rate:,.1f} {self.unit}/s")
            if self.total is not None and self.done < self.total:
                parts.append(f"{clock((self.total - self.done) / self.rate)} left")
        return f"{self.description}: " + ", ".join([*parts, note] if note else parts)

    def _show(self, note: str) -> None:
        """Nothing; those that show something say how."""


class _Lines(Progress):
    def __init__(self, description: str, *, total: int | None, unit: str) -> None:
        super().__init__(description, total=total, unit=unit)
        self._next = time.monotonic() + FIRST_LINE_S

    def _show(self, note: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_EVERY_S
            print(self.line(note), file=sys.stderr, flush=True)


class _Bar(Progress):
    def __init__(self, description: str, *, total: int | None, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        super().__init__(description, total=total, unit=unit)
        self.bar = RichProgress(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True))
        self._task = self.bar.add_task(description, total=total)

    def _show(self, note: str) -> None:
        self.bar.update(self._task, completed=self.done, description=self.line(note))


@contextmanager
def progress(
    description: str, *, total: int | None = None, unit: str = "films", quiet: bool = False
) -> Iterator[Progress]:
    """Show the progress of a piece of work on standard error.

    Args:
        description: What is being done, e.g. ``"decode"``.
        total: Number of units; None when it is not known, then no time left is shown.
        unit: What is counted, e.g. ``"films"`` or ``"bytes"``.
        quiet: Count, and show nothing.

    Yields:
        The counter to :meth:`Progress.advance`.
    """
    if quiet or silent:
        yield Progress(description, total=total, unit=unit)
    elif sys.stderr.isatty():
        counter = _Bar(description, total=total, unit=unit)
        with counter.bar:
            yield counter
    else:
        yield _Lines(description, total=total, unit=unit)


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
