"""A real server, and a real browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import window
from serving import Running, running

from vgg16_xray.bundle.classify import Classifier
from vgg16_xray.films.phantom import draw

CHROMIUM = next((path for path in map(Path, ("/usr/bin/chromium", "/usr/bin/chromium-browser")) if path.exists()), None)


@pytest.fixture(scope="session")
def server(bundle: Path) -> Iterator[Running]:
    with running(bundle) as server:
        yield server


@pytest.fixture(scope="session")
def film(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn film that the bundle answers, as a PNG file whose name no log may hold."""
    from PIL import Image

    classifier = Classifier.load(bundle)
    path = tmp_path_factory.mktemp("film") / "Smith_John_1961.png"
    for seed in range(100):
        Image.fromarray(draw("Normal" if seed % 2 else "COVID", seed=seed, patient=4, size=320).pixels).save(path)
        if classifier.predict([path])[0].answer == "answered":
            return path
    pytest.fail("the bundle answers none of a hundred drawn films")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium at /usr/bin/chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    arguments += ["--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open the page at an address and wait for its model; fails if it asks another host or reports an error."""
    pages = []
    wrong: list[str] = []

    def open_at(address: str, *, wait: bool = True, **options: Any) -> Any:
        pages.append(page := window(browser, **options))
        page.on(
            "request", lambda request: request.url.startswith((address, "blob:", "data:")) or wrong.append(request.url)
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.goto(address)
        if wait:
            page.wait_for_selector("body[data-model=ready]")
        return page

    yield open_at
    for page in pages:
        page.context.close()
    assert not wrong
