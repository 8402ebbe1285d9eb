"""The page in real Chromium: every way in, every state, the same pixels and the same answers as everywhere else."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from pages import DONE, choose, probabilities, window
from PIL import Image
from pydicom.dataset import Dataset
from serving import Running

from dicoms import dicom
from vgg16_xray import RESEARCH_USE_ONLY
from vgg16_xray.bundle.classify import Classifier
from vgg16_xray.bundle.format import BundleDir
from vgg16_xray.errors import UnreadableFilm
from vgg16_xray.films.decode import decode
from vgg16_xray.films.phantom import CLASSES, draw
from vgg16_xray.serve.page import PAGE, write_page

PIXELS = """() => {
  const canvas = document.getElementById("film");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return [canvas.height, canvas.width, Array.from(data.filter((_, i) => i % 4 === 0))];
}"""
OPAQUE = """() => {
  const canvas = document.getElementById("heat");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.filter((_, i) => i % 4 === 3 && data[i] > 0).length;
}"""
GIVEN = """([content, name, kind, event]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const given = new DataTransfer();
  given.items.add(new File([bytes], name, { type: kind }));
  const made = event === "paste"
    ? new ClipboardEvent("paste", { clipboardData: given, bubbles: true })
    : new DragEvent(event, { dataTransfer: given, bubbles: true, cancelable: true });
  document.body.dispatchEvent(made);
}"""


@pytest.fixture(scope="module")
def page(open_page: Callable[..., Any], server: Running) -> Any:
    """One window for all tests that begin by giving it a film."""
    return open_page(server.address)


@pytest.fixture(scope="module")
def classifier(bundle: Path) -> Classifier:
    return Classifier.load(bundle)


def give(page: Any, content: bytes, event: str, name: str = "film.png", kind: str = "image/png") -> None:
    page.evaluate(GIVEN, [base64.b64encode(content).decode(), name, kind, event])


def shown(page: Any) -> np.ndarray:
    height, width, values = page.evaluate(PIXELS)
    return np.array(values, dtype=np.uint8).reshape(height, width)


def test_the_page_in_the_package_was_built_from_these_sources() -> None:
    web = Path(__file__).parents[2] / "web"
    files = [path for path in web.rglob("*") if path.is_file() and "node_modules" not in path.parts]
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(web).as_posix(), path) for path in files):
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    assert (PAGE / "built-from.txt").read_text().strip() == digest.hexdigest(), (
        "run make page, and commit what it builds"
    )


# -- ways in


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_dropped_or_pasted_film_is_answered(page: Any, film: Path, event: str) -> None:
    page.evaluate("document.body.dataset.state = 'waiting'")
    give(page, film.read_bytes(), event)
    page.wait_for_selector(DONE)
    assert (shown(page) == decode(film)).all()
    assert sum(probabilities(page).values()) == pytest.approx(1, abs=1e-4)


def test_while_a_film_is_dragged_over_it_the_page_shows_where_it_may_fall(page: Any, film: Path) -> None:
    give(page, film.read_bytes(), "dragover")
    assert page.evaluate("document.body.classList.contains('dragged')")
    give(page, film.read_bytes(), "drop")
    assert not page.evaluate("document.body.classList.contains('dragged')")


def test_everything_can_be_done_by_keyboard(open_page: Callable[..., Any], server: Running, film: Path) -> None:
    page = open_page(server.address)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
    # Whether the browser then opens its own window for files depends on how long ago it saw the key: not ours to test.
    page.evaluate(
        "() => { document.getElementById('file').onclick = (event) => "
        "{ event.preventDefault(); document.body.dataset.asked = 1; }; }"
    )
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-asked]")
    choose(page, film)
    for _ in range(30):
        if page.evaluate("document.activeElement.name") == "class":
            break
        page.keyboard.press("Tab")
    before = page.inner_text("#legend-text")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#legend-text") != before
    page.focus("#opacity")
    page.keyboard.press("Home")
    assert page.evaluate("document.getElementById('heat').style.opacity") == "0"


def test_each_example_can_be_clicked(page: Any) -> None:
    for number in range(5):
        page.evaluate("document.body.dataset.state = 'waiting'")
        page.click(f"#examples li:nth-child({number + 1}) button")
        page.wait_for_selector(DONE)
        assert page.get_attribute("body", "data-state") != "error"


def test_a_film_that_comes_before_the_model_waits_for_it(
    open_page: Callable[..., Any], server: Running, film: Path
) -> None:
    page = open_page(server.address, wait=False)
    page.set_input_files("#file", str(film))
    page.wait_for_selector(DONE)
    assert page.get_attribute("body", "data-state") != "error"


# -- what it says

ENDLESS = zlib.compress(bytes(2**21))


def with_chunk(kind: bytes = b"tEXt", data: bytes = b"note\0", *, height: int = 64) -> bytes:
    """A PNG of 64 pixels a line with a chunk before its pixels."""
    file = io.BytesIO()
    Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (height, 1))).save(file, "PNG")
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return file.getvalue()[:33] + chunk + file.getvalue()[33:]


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        (with_chunk(b"zTXt", b"note\0\0" + ENDLESS), True),
        (with_chunk(b"iCCP", b"note\0\0" + ENDLESS), True),
        (with_chunk(b"iTXt", b"note\0\1\0en\0note\0" + ENDLESS), True),
        (with_chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(2**20))), False),
        (with_chunk(b"zTXt", b"note\0\0no zlib"), False),
    ],
    ids=["zTXt", "iCCP", "iTXt", "small", "no zlib"],
)
def test_what_a_png_packs_beside_its_pixels_is_bounded_alike(page: Any, content: bytes, *, refused: bool) -> None:
    try:
        decode(content)
    except UnreadableFilm:
        assert refused
    else:
        assert not refused
    page.evaluate("document.body.dataset.state = 'waiting'")
    give(page, content, "drop")
    page.wait_for_selector(DONE)
    assert (page.get_attribute("body", "data-state") == "error") == refused


def test_research_use_only_is_always_in_view(open_page: Callable[..., Any], server: Running) -> None:
    page = open_page(server.address)
    for size in ({"width": 390, "height": 700}, {"width": 1280, "height": 800}):
        page.set_viewport_size(size)
        for down in (0, 10_000):
            page.mouse.wheel(0, down)
            ribbon = page.locator(".ribbon")
            assert ribbon.inner_text() == RESEARCH_USE_ONLY
            box = ribbon.bounding_box()
            assert 0 <= box["y"] < size["height"] - box["height"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"just text", "is text"),
        (b"%PDF-1.4", "a PDF"),
        (b"II*\0", "a TIFF"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "damaged"),
        (b"\0" * 128 + b"DICM" + b"\x02\x00\x10\x00UI", "damaged"),
        (with_chunk(b"zTXt", b"note\0\0" + ENDLESS), "a note in it unpacks without end"),
        (with_chunk(height=40_000), "at most 32 times as long as wide"),
    ],
    ids=["empty", "text", "pdf", "tiff", "png", "jpeg", "dicom", "zTXt", "ribbon"],
)
def test_what_is_no_film_gets_one_reason_and_the_page_lives(page: Any, film: Path, content: bytes, said: str) -> None:
    give(page, content, "drop")
    page.wait_for_selector("body[data-state=error]")
    assert said in page.inner_text("#answer")
    choose(page, film)
    assert page.get_attribute("body", "data-state") != "error"


def test_a_truncated_film_is_refused(page: Any, film: Path, tmp_path: Path) -> None:
    jpeg = tmp_path / "film.jpg"
    Image.open(film).save(jpeg, quality=90)
    for whole in (film, jpeg):
        cut = tmp_path / f"cut{whole.suffix}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        choose(page, cut)
        assert "ends too early" in page.inner_text("#answer")


def test_a_bomb_is_refused_by_its_header(page: Any, tmp_path: Path, film: Path) -> None:
    bomb = bytearray(film.read_bytes())
    bomb[16:24] = (50_000).to_bytes(4, "big") * 2
    (tmp_path / "bomb.png").write_bytes(bomb)
    choose(page, tmp_path / "bomb.png")
    assert "50000 × 50000" in page.inner_text("#answer")


def test_a_model_that_is_not_there_is_said(open_page: Callable[..., Any], browser: Any, server: Running) -> None:
    page = window(browser)
    page.route("**/model/*", lambda route: route.fulfill(status=500))
    page.goto(server.address)
    page.wait_for_selector("body[data-state=failed]")
    assert "did not load" in page.inner_text("#answer")
    page.context.close()


def test_the_window_goes_on_while_the_model_computes(page: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.fromarray(draw("Normal", size=2048).pixels).save(large)
    page.evaluate(
        "() => { window.longest = 0; let last = performance.now(); (function look(now) { window.longest = "
        "Math.max(window.longest, now - last); last = now; requestAnimationFrame(look); })(last); }"
    )
    began = time.monotonic()
    choose(page, large)
    # A busy machine may hold up a frame; a frozen window holds up all, for as long as it takes.
    assert page.evaluate("window.longest") / 1000 < 0.3 + (time.monotonic() - began) / 2


# -- for everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_no_violation_in_any_state(
    open_page: Callable[..., Any], server: Running, film: Path, scheme: str, width: int
) -> None:
    page = open_page(
        server.address, color_scheme=scheme, viewport={"width": width, "height": 900}, reduced_motion="reduce"
    )
    for state in ("empty", "done", "error"):
        if state == "done":
            choose(page, film)
        elif state == "error":
            give(page, b"text", "drop")
            page.wait_for_selector("body[data-state=error]")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than the window"


def test_axe_finds_no_violation_in_the_documentation(browser: Any, server: Running) -> None:
    page = window(browser)
    page.goto(f"{server.address}/docs")
    page.wait_for_selector(".door")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.context.close()


# -- the same pixels as on the command line


def gradient(height: int = 90, width: int = 70) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (y * 613 + x * 229 + y * x) % 4096


def png_variants() -> Iterator[tuple[str, Image.Image]]:
    wide = gradient()
    grey = (wide >> 4).astype(np.uint8)
    colour = np.stack([grey, grey[::-1], np.roll(grey, 17, 1)], axis=2)
    alpha = np.roll(grey, 31, 0)
    yield "grey", Image.fromarray(grey)
    yield "12 bit in 16", Image.fromarray(wide.astype(np.uint16))
    yield "16 bit", Image.fromarray((wide * 15).astype(np.uint16))
    yield "8 bit widened", Image.fromarray(grey.astype(np.uint16) * 257)
    yield "1 bit", Image.fromarray(grey).convert("1")
    yield "colour", Image.fromarray(colour)
    yield "palette", Image.fromarray(colour).quantize(200)
    yield "grey with alpha", Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    yield "colour with alpha", Image.fromarray(np.dstack([colour, alpha]))


@pytest.mark.parametrize(
    ("name", "image"), list(png_variants()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_png_gives_the_pixels_of_the_command_line(page: Any, tmp_path: Path, name: str, image: Image.Image) -> None:
    path = tmp_path / "film.png"
    image.save(path)
    choose(page, path)
    # What is transparent is rounded once here and twice there.
    assert np.abs(shown(page).astype(int) - decode(path)).max() <= (1 if "alpha" in name else 0)


def test_transparent_palettes_and_few_bits_too(page: Any, tmp_path: Path) -> None:
    grey = Image.fromarray((gradient() >> 4).astype(np.uint8))
    for bits in (2, 4):
        few = grey.quantize(2**bits)
        few.save(tmp_path / "few.png", bits=bits)
        few.save(tmp_path / "clear.png", bits=bits, transparency=1)
        for name in ("few.png", "clear.png"):
            choose(page, tmp_path / name)
            assert (shown(page) == decode(tmp_path / name)).all()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_jpeg_gives_the_pixels_of_the_command_line(page: Any, film: Path, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = Image.open(film).crop((0, 0, 300, 240))
    grey.save(tmp_path / "grey.jpg", quality=92, exif=exif)
    choose(page, tmp_path / "grey.jpg")
    assert (shown(page) == decode(tmp_path / "grey.jpg")).all()
    grey.convert("RGB").save(tmp_path / "colour.jpg", quality=92, exif=exif)
    choose(page, tmp_path / "colour.jpg")
    assert np.abs(shown(page).astype(int) - decode(tmp_path / "colour.jpg")).max() <= 2


def table(first: int, depth: int, levels: np.ndarray) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [len(levels), first, depth]
    item.add_new("LUTData", "OW", levels.astype("<u2").tobytes())
    return [item]


GREY = gradient().astype(np.uint16)
DICOMS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "plain": (GREY, {}),
    "8 bit": ((GREY >> 4).astype(np.uint8), {}),
    "implicit": (GREY, {"syntax": "1.2.840.10008.1.2"}),
    "big endian": (GREY, {"syntax": "1.2.840.10008.1.2.2"}),
    "inverted": (GREY, {"PhotometricInterpretation": "MONOCHROME1"}),
    "signed": ((GREY.astype(np.int16) - 2048), {"WindowCenter": 0, "WindowWidth": 1500}),
    "window": (GREY, {"WindowCenter": 1800.5, "WindowWidth": 900}),
    "two windows": (GREY, {"WindowCenter": [900, 2000], "WindowWidth": [700, 100]}),
    "rescaled window": (
        GREY,
        {"RescaleSlope": 2.5, "RescaleIntercept": -1000, "WindowCenter": 2000, "WindowWidth": 3000},
    ),
    "exact": (GREY, {"WindowCenter": 1800, "WindowWidth": 900, "VOILUTFunction": "LINEAR_EXACT"}),
    "sigmoid": (GREY, {"WindowCenter": 1800, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"}),
    "voi table": (GREY, {"VOILUTSequence": table(500, 12, np.arange(2000) ** 2 // 1000)}),
    "modality table": (GREY, {"ModalityLUTSequence": table(0, 16, np.sqrt(np.arange(4096)) * 1000)}),
    "colour": (np.stack([(GREY >> 4).astype(np.uint8)] * 2 + [(GREY[::-1] >> 4).astype(np.uint8)], axis=2), {}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DICOMS)
def test_dicom_gives_the_pixels_of_the_command_line(page: Any, tmp_path: Path, name: str) -> None:
    pixels, changes = DICOMS[name]
    path = dicom(pixels, tmp_path / "film", **changes)
    choose(page, path)
    assert (shown(page) == decode(path)).all()


@pytest.mark.filterwarnings("ignore")
def test_compressed_dicom_is_refused_by_its_compression(page: Any, tmp_path: Path) -> None:
    path = dicom(GREY, tmp_path / "film")
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"))
    choose(page, path)
    assert "compressed (RLE)" in page.inner_text("#answer")


# -- the same answers as everywhere else


def test_the_page_gives_the_answers_of_the_command_line(page: Any, classifier: Classifier, tmp_path: Path) -> None:
    for number, label in enumerate(CLASSES * 2):
        path = tmp_path / f"{number}.png"
        Image.fromarray(draw(label, seed=21, patient=number, size=(300, 640)[number % 2]).pixels).save(path)
        choose(page, path)
        (expected,) = classifier.predict([path])
        assert page.get_attribute("body", "data-state") == expected.answer
        assert probabilities(page) == pytest.approx(dict(expected.probabilities), abs=1e-3)


def test_a_folder_of_static_files_answers_without_a_server(
    open_page: Callable[..., Any], classifier: Classifier, film: Path, bundle: Path, tmp_path: Path
) -> None:
    assert write_page(tmp_path / "site", BundleDir(bundle)) == tmp_path / "site" / "index.html"
    write_page(tmp_path / "site", BundleDir(bundle))  # over an older one
    handler = partial(_Quiet, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        page = open_page(f"http://127.0.0.1:{site.server_port}/")
        assert not page.evaluate("crossOriginIsolated")
        choose(page, film)
        (expected,) = classifier.predict([film])
        assert probabilities(page) == pytest.approx(dict(expected.probabilities), abs=1e-3)
        site.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def test_a_page_that_was_opened_as_a_file_says_how_to_open_it(browser: Any, bundle: Path, tmp_path: Path) -> None:
    index = write_page(tmp_path / "site", BundleDir(bundle))
    page = window(browser)
    page.goto(index.as_uri())
    assert "python3 -m http.server" in page.inner_text("#answer")
    page.context.close()


def test_a_folder_with_other_files_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    from vgg16_xray.errors import UserError

    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="found other files"):
        write_page(tmp_path, BundleDir(bundle))


def test_heat_is_drawn_over_the_film_and_fades(page: Any, film: Path) -> None:
    choose(page, film)
    assert page.is_visible("#heat")
    opaque = page.evaluate(OPAQUE)
    assert opaque > 1000
    page.fill("#opacity", "20")
    assert page.evaluate("document.getElementById('heat').style.opacity") == "0.2"
    assert Image.open(io.BytesIO(page.locator("#stack").screenshot())).size[0] > 200
