"""What a benchmark hands over: rows of one table, and remarks beneath it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

#: Names the file in which `bench.py` waits for a script's rows.
ROWS = "VGG16_XRAY_BENCHMARK_ROWS"
HEADER = "| what | ours | against | ratio | aim |\n| --- | --- | --- | --- | --- |"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure of ours, what it is compared with, and their ratio."""

    what: str
    ours: str
    against: str = ""
    ratio: str = ""
    aim: str = ""

    def __str__(self) -> str:
        """A row of a Markdown table."""
        return f"| {self.what} | {self.ours} | {self.against} | {self.ratio} | {self.aim} |"


def hand_over(rows: Sequence[Row], remarks: Sequence[str] = (), figure: str | None = None) -> None:
    """Print the table, and give it to `bench.py` where that asked for it.

    Args:
        rows: The table.
        remarks: A paragraph of Markdown each.
        figure: An SVG drawing.
    """
    print("\n".join([HEADER, *map(str, rows), *(f"\n{remark}" for remark in remarks)]), flush=True)
    if file := os.environ.get(ROWS):
        whole = {"rows": [asdict(row) for row in rows], "remarks": list(remarks), "figure": figure}
        Path(file).write_text(json.dumps(whole), "utf-8")


def words(seconds: float) -> str:
    """Seconds with three digits that mean something."""
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
