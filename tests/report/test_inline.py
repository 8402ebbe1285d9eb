"""Pictures inside a page: :mod:`vgg16_xray.report.inline`."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from vgg16_xray.report.inline import as_jpeg, inlined, uri_of


def test_an_address_says_the_kind_and_holds_the_bytes() -> None:
    film = np.arange(40 * 40, dtype=np.uint32).reshape(40, 40).astype(np.uint8)
    png = io.BytesIO()
    Image.fromarray(film).save(png, "PNG")
    for picture, kind in ((png.getvalue(), "image/png"), (as_jpeg(film, quality=80), "image/jpeg")):
        head, held = uri_of(picture).split(",")
        assert head == f"data:{kind};base64"
        assert base64.b64decode(held) == picture


def test_a_page_knows_the_size_of_a_picture_before_it_is_loaded() -> None:
    wide = np.zeros((30, 50, 3), dtype=np.uint8)
    assert {name: inlined(as_jpeg(wide, quality=80))[name] for name in ("width", "height")} == {
        "width": 50,
        "height": 30,
    }
    assert inlined(as_jpeg(wide, quality=80, side=20))["width"] == 20
