"""What tests do with an open page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: A film that has been looked at is in one of these states.
DONE = "body[data-state=answered], body[data-state=abstained], body[data-state=refused], body[data-state=error]"


def choose(page: Any, *files: Path) -> None:
    page.evaluate("document.body.dataset.state = 'waiting'")
    page.set_input_files("#file", list(map(str, files)))
    page.wait_for_selector(DONE)


def probabilities(page: Any) -> dict[str, float]:
    rows = page.query_selector_all(".class")
    return {row.get_attribute("data-label"): float(row.get_attribute("data-p")) for row in rows}
