"""What the frozen part yields, computed once and kept in half precision, or computed anew where it changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vgg16_xray.files import read_json, saying_why_not_written, write_json
from vgg16_xray.films.store import ArrayStore, create_array, release
from vgg16_xray.progress import progress

if TYPE_CHECKING:
    import torch

    from vgg16_xray.learn.engines import FrozenPart

#: Films that go through the frozen part together. Fixed: rounding may differ with the size of a batch.
CHUNK = 32
#: Values of ``train_from`` whose features would take more room than the pixels: they are computed when they are wanted.
NEVER_STORED = frozenset({"all", "block2"})
#: Chunks between two notes of how far a store has come; what is lost at a kill is at most this.
NOTE_EVERY = 4
#: Largest value of half precision.
HALF_MAX = 65504.0


def in_half_precision(features: torch.Tensor) -> torch.Tensor:
    """Round to half precision, as the store does, so that a film that is not stored gives the same features.

    Args:
        features: (B, C, h, w), any float dtype.

    Returns:
        (B, C, h, w) float32, every value one that half precision holds.
    """
    import torch

    return features.float().clamp(-HALF_MAX, HALF_MAX).to(torch.float16).float()


class FeatureSource(Protocol):
    """Gives the frozen part's output for films."""

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """Features of films.

        Args:
            rows: (B,) int, rows in the pixel store.

        Returns:
            (B, C, h, w) float32 or bfloat16, channels last in memory.
        """


class ComputedFeatures:
    """Sends films through the frozen part each time they are asked for.

    Args:
        frozen: The frozen part.
        pixels: (N, H, W) uint8.
        change: What happens to the pixels first: (rows, (B, H, W) float32 0..255) -> (B, H, W) float32 0..255.
    """

    def __init__(
        self,
        frozen: FrozenPart,
        pixels: ArrayStore,
        *,
        change: Callable[[np.ndarray, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._frozen, self._pixels, self._change = frozen, pixels, change

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """See :class:`FeatureSource`."""
        import torch

        films = torch.from_numpy(self._pixels.take(rows)).float()
        return self._frozen(films if self._change is None else self._change(rows, films))


class StoredFeatures:
    """Reads features that :func:`store_features` kept.

    Args:
        path: (n, h, w, C) float16.
        rows: (n,) int, the film of each row of the file, ascending.
    """

    def __init__(self, path: Path, rows: np.ndarray) -> None:
        self._store, self._rows = ArrayStore(path), rows

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """See :class:`FeatureSource`.

        Raises:
            KeyError: A film is not in the store.
        """
        import torch

        at = np.searchsorted(self._rows, rows)
        if (at >= len(self._rows)).any() or (self._rows[at] != rows).any():
            raise KeyError(f"{self._store.path}: holds no features of some of the rows {rows}")
        return torch.from_numpy(self._store.take(at)).permute(0, 3, 1, 2).float()


def store_features(
    source: FeatureSource, rows: np.ndarray, *, shape: tuple[int, int, int], path: Path, description: str
) -> StoredFeatures:
    """Compute features of films once and keep them; go on where an interrupted call stopped.

    The file has its final name only when it is whole. Its name must tell everything that the features depend on.

    Args:
        source: Computes the features.
        rows: (n,) int, ascending, the films.
        shape: (C, h, w) of one film's features.
        path: Where to keep them, ``*.npy``.
        description: What the progress bar says.

    Raises:
        UserError: The disk has no room for them, or cannot be written.
    """
    if not path.exists():
        _fill(source, rows, shape=shape, path=path, description=description)
    return StoredFeatures(path, rows)


def _fill(
    source: FeatureSource, rows: np.ndarray, *, shape: tuple[int, int, int], path: Path, description: str
) -> None:
    partial, note = path.with_suffix(".partial"), path.with_suffix(".partial.json")
    channels, height, width = shape
    done = 0
    if partial.exists() and note.exists():
        done = min(int(read_json(note)["rows"]), len(rows))
        store = np.lib.format.open_memmap(partial, mode="r+")
    else:
        # A note that outlived its file would vouch for the zeros of the new one.
        note.unlink(missing_ok=True)
        store = create_array(partial, shape=(len(rows), height, width, channels), dtype=np.float16)
        write_json(note, {"rows": 0})
    with progress(f"{description} ({store.nbytes / 1e9:.2f} GB)", total=len(rows)) as bar:
        bar.start_at(done)
        for number, start in enumerate(range(done, len(rows), CHUNK), start=1):
            chunk = rows[start : start + CHUNK]
            store[start : start + len(chunk)] = in_half_precision(source.take(chunk)).permute(0, 2, 3, 1).numpy()
            bar.advance(len(chunk))
            if number % NOTE_EVERY == 0:
                _note(store, note, start + len(chunk))
    _note(store, note, len(rows))
    del store
    partial.replace(path)
    note.unlink()


def _note(store: np.memmap, note: Path, rows: int) -> None:
    # The rows are on the disk before the note says so.
    with saying_why_not_written(note):
        store.flush()
    write_json(note, {"rows": rows})
    release(store)
