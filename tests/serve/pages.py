"""What tests do with an open page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving import PATIENCE

#: A film that has been looked at is in one of these states.
DONE = "body[data-state=answered], body[data-state=abstained], body[data-state=refused], body[data-state=error]"


def window(browser: Any, **options: Any) -> Any:
    """An empty window, of a profile of its own, that is waited for as long as a busy machine takes."""
    context = browser.new_context(**options)
    context.set_default_timeout(1000 * PATIENCE)
    return context.new_page()


def choose(page: Any, *files: Path) -> None:
    page.evaluate("document.body.dataset.state = 'waiting'")
    page.set_input_files("#file", list(map(str, files)))
    page.wait_for_selector(DONE)


def probabilities(page: Any) -> dict[str, float]:
    rows = page.query_selector_all(".class")
    return {row.get_attribute("data-label"): float(row.get_attribute("data-p")) for row in rows}
