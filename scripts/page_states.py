"""A picture of the web page in each of its states, light, dark and on a phone, to be looked at after a change.

    python scripts/page_states.py FILMS --to FOLDER [--model BUNDLE]

FILMS is a folder of radiographs: of them the first that the model answers and the first that it does not commit itself
to are shown. Needs Chromium and the extra `dev`. Films are patients': the pictures are for looking at, not for keeping.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from vgg16_xray.bundle.classify import Classifier
from vgg16_xray.predict import films_in

CHROMIUM = Path("/usr/bin/chromium")
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
WINDOWS: dict[str, dict[str, Any]] = {
    "light": {"viewport": DESK, "color_scheme": "light"},
    "dark": {"viewport": DESK, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light", "has_touch": True, "is_mobile": True},
    "phone-dark": {"viewport": PHONE, "color_scheme": "dark", "has_touch": True, "is_mobile": True},
}
#: Films that are asked about before an answer of some kind is given up.
MOST = 200
#: Milliseconds after which nothing moves any more.
SETTLED = 500


@contextmanager
def served(model: Path | None) -> Iterator[str]:
    """The address of a server that runs."""
    command = [sys.executable, "-m", "vgg16_xray", "serve", "--port", "0"]
    command += ["--model", str(model)] if model else []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            yield next(json.loads(line)["address"] for line in server.stderr if '"serving"' in line)
        finally:
            server.terminate()


def one_of_each(model: Path | None, films: Path) -> dict[str, Path]:
    """Answer -> a film that gets it."""
    files = [film for film in films_in([films])[:MOST] if isinstance(film, Path)]
    found: dict[str, Path] = {}
    for answer, file in zip(Classifier.load(model).predict(files), files, strict=True):
        found.setdefault(answer.answer, file)
    if missing := {"answered", "abstained"} - set(found):
        raise SystemExit(f"{films}: of the first {MOST} films none is {' or '.join(sorted(missing))}")
    return found


def take(page: Any, address: str, films: dict[str, Path], broken: Path, to: Path) -> None:
    """Go through the states of one window."""

    def shot(state: str, **options: Any) -> None:
        page.screenshot(path=str(to / f"{state}.png"), **options)

    def ask(file: Path, state: str) -> None:
        page.set_input_files("#file", str(file))
        page.wait_for_selector(f"body[data-state={state}]")
        page.wait_for_timeout(SETTLED)

    page.route("**/*.onnx", lambda route: None)
    page.goto(address)
    page.wait_for_selector("progress")
    page.wait_for_timeout(SETTLED)
    shot("loading")
    page.set_input_files("#file", str(films["answered"]))
    page.wait_for_timeout(2 * SETTLED)
    shot("waiting-for-the-model")
    page.unroute("**/*.onnx")
    page.goto(address)
    page.wait_for_selector("body[data-model=ready]")
    shot("empty", full_page=True)
    page.evaluate("document.body.classList.add('dragged')")
    page.wait_for_timeout(SETTLED)
    shot("dragged")
    page.evaluate("document.body.classList.remove('dragged')")
    ask(films["answered"], "answered")
    shot("answered", full_page=True)
    ask(films["abstained"], "abstained")
    shot("abstained")
    page.click("#examples li:last-child button")
    page.wait_for_selector("body[data-state=refused]")
    page.wait_for_timeout(SETTLED)
    shot("refused")
    ask(broken, "error")
    shot("error")
    page.route("**/*.onnx", lambda route: route.fulfill(status=503, body=""))
    page.goto(address)
    page.wait_for_selector("body[data-state=failed]")
    shot("no-model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", type=Path, metavar="FILMS", help="a folder of radiographs")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a bundle; the one in the package by default")
    given = parser.parse_args()
    films = one_of_each(given.model, given.films)
    with tempfile.TemporaryDirectory() as name, served(given.model) as address, sync_playwright() as playwright:
        broken = Path(name) / "film.png"
        broken.write_bytes(films["answered"].read_bytes()[:5000])
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        for window, options in WINDOWS.items():
            to = given.to / window
            to.mkdir(parents=True, exist_ok=True)
            take(browser.new_context(**options).new_page(), address, films, broken, to)
            print(f"{to}: {len(list(to.glob('*.png')))} pictures", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
