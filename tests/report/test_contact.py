import numpy as np

from vgg16_xray import RESEARCH_USE_ONLY
from vgg16_xray.report.contact import Section, Tile, write_sheet


def test_a_sheet_shows_every_film_and_escapes_names(tmp_path):
    film = np.arange(64 * 64, dtype=np.uint32).reshape(64, 64).astype(np.uint8)
    tile = Tile(films=[film, film], names=["<b>one</b>", "two"], caption="R&D")
    sections = [Section(title="Pairs", text="one", tiles=[tile]), Section(title="None", text="None.", tiles=[])]
    page = write_sheet(tmp_path / "sheet.html", title="T", lead="L", sections=sections).read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert "&lt;b&gt;one" in page
    assert "<b>one" not in page
    assert "R&amp;D" in page
    assert "<script" not in page
    assert RESEARCH_USE_ONLY in page
