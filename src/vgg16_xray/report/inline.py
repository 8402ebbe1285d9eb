"""Pictures inside a page, which needs no file beside it."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_jpeg(film: NDArray[np.uint8], *, quality: int, side: int | None = None) -> bytes:
    """A grey film (S, S) or a picture in colours (H, W, 3) as JPEG, resized to a square of `side` pixels if asked."""
    from PIL import Image

    picture = Image.fromarray(film)
    if side is not None:
        picture = picture.resize((side, side), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def uri_of(picture: bytes) -> str:
    """A ``data:`` address of a picture, of the kind that its bytes are."""
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as opened:
        return f"data:{opened.get_format_mimetype()};base64,{base64.b64encode(picture).decode()}"


def inlined(picture: bytes) -> dict[str, Any]:
    """``uri``, and ``width`` and ``height`` in pixels, so that no page jumps while it loads."""
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as opened:
        width, height = opened.size
    return {"uri": uri_of(picture), "width": width, "height": height}
