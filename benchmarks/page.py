"""The page in Chromium: what it loads, how long until the model is ready, and how long a film takes, heat map included.

    python benchmarks/page.py [--model BUNDLE] [--films 12] [--out FILE]

A real `vgg16-xray serve`, a real window. A film's time begins when it is chosen and ends with the frame in which answer
and heat map are on the screen. The longest gap between two frames meanwhile says whether the window froze.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, Request, sync_playwright

from serve import Server
from vgg16_xray.films.phantom import CLASSES, draw

CHROMIUM = Path("/usr/bin/chromium")
#: Sides of films, pixels: of the COVID-19 Radiography Database, and of a detector.
SIDES = (299, 2000)
DONE = ("answered", "abstained", "refused", "error")
#: Notes when a film is chosen, when its answer is drawn, and the longest gap between two frames in between.
WATCH = f"""() => {{
  addEventListener("change", ({{ target }}) => {{
    if (target.type === "file") Object.assign(window, {{ chosen: performance.now(), drawn: 0, gap: 0, last: 0 }});
  }}, true);
  new MutationObserver(() => {{
    if ({json.dumps(DONE)}.includes(document.body.dataset.state))
      requestAnimationFrame(() => requestAnimationFrame(() => {{
        window.drawn = performance.now();
        document.body.dataset.drawn = "";
      }}));
  }}).observe(document.body, {{ attributeFilter: ["data-state"] }});
  (function frame(now) {{
    if (!window.drawn && window.last) window.gap = Math.max(window.gap, now - window.last);
    window.last = now;
    requestAnimationFrame(frame);
  }})(performance.now());
}}"""


def loaded(page: Page, address: str) -> dict[str, Any]:
    """Open the page and wait for its model."""
    asked: list[Request] = []
    page.on("requestfinished", lambda request: asked.append(request))  # noqa: PLW0108 (playwright marks what it is given)
    started = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("body[data-model=ready]")
    took = time.perf_counter() - started
    over_the_line = sum(one.sizes()["responseBodySize"] for one in asked)
    bodies = [one.response() for one in asked if one.url.startswith("http")]
    unpacked = sum(len(one.body()) for one in bodies if one)
    return {
        "ready_s": took,
        "threads": page.evaluate("crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1"),
        "over_the_line_mb": over_the_line / 1e6,
        "unpacked_mb": unpacked / 1e6,
    }


def answered(page: Page, films: list[Path]) -> dict[str, float]:
    """Films one after the other, the first not counted."""
    times, models, gaps = [], [], []
    for film in films:
        page.evaluate("delete document.body.dataset.drawn")
        page.set_input_files("#file", film)
        page.wait_for_selector("body[data-drawn]")
        assert page.is_visible("#heat") or page.get_attribute("body", "data-state") == "refused"
        times.append(page.evaluate("window.drawn - window.chosen") / 1000)
        gaps.append(page.evaluate("window.gap"))
        models.append(float(page.inner_text(".took").split("Took ")[1].split()[0]))
    return {
        "films": len(films) - 1,
        "median_s": statistics.median(times[1:]),
        "slowest_s": max(times[1:]),
        "of_which_network_median_s": statistics.median(models[1:]),
        "longest_gap_between_frames_ms": max(gaps[1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a bundle; the one in the package by default")
    parser.add_argument("--films", type=int, default=12, help="of each size")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "load": os.getloadavg()[0]}
    server = Server(given.model)
    try:
        with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
            found["browser"] = browser.version
            page = browser.new_page()
            page.set_default_timeout(300_000)
            found["loaded"] = loaded(page, f"http://127.0.0.1:{server.port}")
            page.evaluate(WATCH)
            for side in SIDES:
                films = [Path(folder, f"{side}-{i}.png") for i in range(given.films + 1)]
                for i, film in enumerate(films):
                    Image.fromarray(draw(CLASSES[i % 4], seed=1, patient=i, size=side).pixels).save(film)
                found[f"{side} x {side}"] = answered(page, films)
            browser.close()
    finally:
        server.stop()
    text = json.dumps(found, indent=1)
    if given.out:
        given.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
