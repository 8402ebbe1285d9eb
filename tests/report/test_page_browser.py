"""The report in real Chromium: points have words, the table is searched, filtered and sorted, and nothing is barred."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from fabricate import fabricate, fabricate_heat

from vgg16_xray.report import figures
from vgg16_xray.report.contact import Section, Tile, write_sheet
from vgg16_xray.report.page import write_report

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = fabricate(tmp_path_factory.mktemp("report") / "run", skill=1.8)
    figures.after_preprocess(run)
    figures.worst_mistakes(run)
    fabricate_heat(run)
    return write_report(run)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip("no Chromium at /usr/bin/chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


def shown(page: Any) -> list[str]:
    """Name of each film in the table that is to be seen, in its order."""
    found: list[str] = page.locator("#films-table tbody tr:not([hidden]) th").all_inner_texts()
    return found


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    errors: list[Any] = []
    page.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108 (playwright marks what it is given)
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(report.as_uri())
    yield page
    context.close()
    assert not errors


def test_films_are_searched_filtered_and_sorted_by_keyboard_alone(page: Any) -> None:
    everything = shown(page)
    page.locator("#films-search").press_sequentially("rsna")
    assert 0 < len(shown(page)) < len(everything)
    assert page.locator("#films-count").inner_text() == f"{len(shown(page))} of {len(everything)} films"
    page.locator("#films-which").select_option("no")
    assert all("Normal/" in name for name in shown(page))
    page.locator("#films-all").press("Enter")
    assert sorted(shown(page)) == sorted(everything)
    score = page.locator("#films-table thead button", has_text="Score")
    for order, wanted in (("ascending", sorted), ("descending", lambda values: sorted(values, reverse=True))):
        score.press("Enter")
        assert page.locator("#films-table th[aria-sort]").get_attribute("aria-sort") == order
        values = [float(text) for text in page.locator("#films-table tbody td:nth-child(6)").all_inner_texts()]
        assert values == wanted(values)
    page.locator("#films-search").fill("no such film")
    assert shown(page) == []
    assert page.locator("#films-none").is_visible()


def test_a_cell_of_the_confusion_matrix_shows_its_films(page: Any) -> None:
    cell = page.locator(".matrix td:not(.right) button").first
    films = int(cell.evaluate("cell => cell.firstChild.textContent"))
    cell.press("Enter")
    assert len(shown(page)) == films
    assert page.locator("#films-true").input_value() == cell.get_attribute("data-true")


def test_a_point_says_its_values_to_pointer_and_keyboard(page: Any) -> None:
    chart = page.locator("svg.chart", has_text="Loss").first
    chart.focus()
    chart.press("ArrowRight")
    assert page.locator(".tip").inner_text().startswith("epoch 1, training: loss")
    chart.press("Escape")
    assert page.locator(".tip").is_hidden()
    page.locator("svg.chart .point").last.hover(force=True)
    assert page.locator(".tip").is_visible()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_no_violation_in_the_report(browser: Any, report: Path, scheme: str, width: int) -> None:
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 900}, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(report.as_uri())
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than the window"
    context.close()


def test_without_a_script_everything_can_be_read(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("#films-table tbody tr").count() == 48
    assert page.locator(".controls").is_hidden()
    assert page.locator("svg.chart .point title").count() > 20
    context.close()


#: Of A4 between the page's margins, 182 mm, in CSS pixels.
PAPER = 688


@pytest.fixture
def printed(browser: Any, report: Path) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": PAPER, "height": 1000})
    page = context.new_page()
    page.emulate_media(media="print")
    page.goto(report.as_uri())
    yield page
    context.close()


def test_on_paper_nothing_is_wider_than_the_page_and_no_word_is_broken(printed: Any) -> None:
    assert printed.evaluate("document.documentElement.scrollWidth") <= PAPER
    # "anywhere" would let a column be narrower than a word.
    wraps = "[...document.querySelectorAll('th:not(.mono), td:not(.mono)')].map(c => getComputedStyle(c).overflowWrap)"
    assert set(printed.evaluate(wraps)) == {"break-word"}
    # A column is as wide as its longest word: no line of a header holds a part of one.
    assert printed.evaluate(
        "[...document.querySelectorAll('thead th')].every(cell => cell.scrollWidth <= cell.clientWidth + 1)"
    )


def test_on_paper_a_value_is_larger_than_what_stands_beside_it(printed: Any) -> None:
    size = "element => parseFloat(getComputedStyle(element).fontSize)"
    for table in printed.locator("table:has(td .range)").all():
        value = table.locator("td").first.evaluate(size)
        for beside in ("td .range", "thead th", "caption"):
            if table.locator(beside).count():
                assert table.locator(beside).first.evaluate(size) < value, beside
    only = "row => parseFloat(getComputedStyle(row.querySelector('th'), '::after').fontSize)"
    row = printed.locator("tr.only").first
    assert row.evaluate(only) < row.locator("th").evaluate(size)


def test_on_paper_what_is_folded_is_open(printed: Any) -> None:
    folded = printed.locator("details:not([open])")
    assert folded.count() > 2
    for details in folded.all():
        content = details.locator("> :not(summary)").first
        assert content.evaluate("element => element.checkVisibility({contentVisibilityAuto: true})")
        assert content.bounding_box()["height"] > 10


def test_on_a_wide_screen_no_table_is_cut(browser: Any, report: Path) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
    cut = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth + 1)"
    assert page.evaluate(f"{cut}.map(box => box.getAttribute('aria-label'))") == []
    context.close()


def test_a_table_says_that_it_can_be_scrolled_sideways_only_where_it_can(browser: Any, report: Path) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 900})
    page = context.new_page()
    page.goto(report.as_uri())
    for box in page.locator("main > section > .scroll").all():
        wide = box.evaluate("box => box.scrollWidth > box.clientWidth")
        hint = box.evaluate("box => getComputedStyle(box, '::before').display")
        assert hint == ("block" if wide else "none"), box.get_attribute("aria-label")
    context.close()


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    films = list(np.random.default_rng(0).integers(0, 256, size=(2, 224, 224), dtype=np.uint8))
    tile = Tile(films=films, names=["COVID/images/" + "a-long-name-" * 8, "b"], caption="detail 0.9 · residual 0.1")
    section = Section(title="Pairs", text="Six.", tiles=[tile] * 6)
    return write_sheet(tmp_path_factory.mktemp("sheet") / "sheet.html", title="T", lead="L", sections=[section])


def test_on_paper_no_card_is_cut_by_the_end_of_a_page(browser: Any, sheet: Path) -> None:
    context = browser.new_context(viewport={"width": PAPER, "height": 900})
    page = context.new_page()
    page.emulate_media(media="print")
    page.goto(sheet.as_uri())
    assert page.locator(".sheet > li").first.evaluate("card => getComputedStyle(card).breakInside") == "avoid"
    assert page.evaluate("document.documentElement.scrollWidth") <= PAPER
    context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_films_of_a_pair_lie_side_by_side_in_their_card(browser: Any, sheet: Path, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.goto(sheet.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than the window"
    main = page.locator("main").bounding_box()
    assert main["width"] > 0.85 * width, "the page keeps to a part of the window"
    for card in page.locator(".sheet > li").all():
        box = card.bounding_box()
        first, second = (film.bounding_box() for film in card.locator("img").all())
        assert first["width"] > 100
        assert first["x"] >= box["x"]
        assert first["x"] + first["width"] <= second["x"], "one film lies over the other"
        assert second["x"] + second["width"] <= box["x"] + box["width"], "a film spills out of its card"
    context.close()
