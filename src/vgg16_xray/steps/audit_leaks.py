"""Which films of one or several collections are the same: ``leaks.json`` and ``pairs.csv``, without a split."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vgg16_xray.errors import UserError
from vgg16_xray.files import read_json
from vgg16_xray.films.dataset import scan
from vgg16_xray.films.decode import SIZE
from vgg16_xray.rundir import RunDir, key_of
from vgg16_xray.steps.preprocess import (
    COPIES_VERSION,
    VERSION,
    decode_all,
    decoded_key,
    find_copies_once,
    listing_of,
    table_of,
    write_leaks,
)

STEP = "audit leaks"


def audit_leaks(
    data: Sequence[Path], out: RunDir, *, mapping: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], Path]:
    """Decode the films, and find those that are one.

    Args:
        data: Folders or tables, see :mod:`vgg16_xray.films.dataset`.
        out: Where to leave what is found, and what is decoded while at it.
        mapping: ``{folder: label}``.

    Returns:
        What ``leaks.json`` holds, see :func:`vgg16_xray.trust.leaks.summarise`, and the file of the decoded films.

    Raises:
        UserError: The data cannot be used; or `out` holds a model, or other films' audit.
    """
    started = time.monotonic()
    dataset = scan(data, mapping=mapping, without_splits=True)
    out.require_audit_of(dataset.collections.values())
    listing = listing_of(dataset)
    key = key_of(VERSION, COPIES_VERSION, listing, [[film.label, film.patient_id] for film in dataset.films])
    decoded = decoded_key(listing, SIZE)
    pixels = out.path / ".preprocess" / f"{decoded}.npy"
    if out.is_done(STEP, key, [out.leaks, out.pairs, pixels]):
        return dict(read_json(out.leaks)), pixels
    out.unstamp(STEP)
    pixels, films, broken, _ = decode_all(dataset, out, key=decoded, size=SIZE)
    if not films:
        first = f", first {broken[0][0].path}: {broken[0][1]}" if broken else ""
        raise UserError(f"{' '.join(map(str, data))}: must hold readable films, found none{first}")
    pairs = find_copies_once(pixels, films)
    found = write_leaks(out, table_of(films, pairs), pairs, broken=len(broken))
    out.stamp(STEP, key, seconds=time.monotonic() - started)
    return found, pixels
