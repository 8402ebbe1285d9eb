"""Features are computed once, kept in half precision, and go on where a killed process stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vgg16_xray.errors import UserError
from vgg16_xray.films.store import ArrayStore
from vgg16_xray.learn import features
from vgg16_xray.learn.engines import FrozenPart, choose
from vgg16_xray.learn.features import CHUNK, ComputedFeatures, StoredFeatures, in_half_precision, store_features

FILMS, SIDE = 200, 8
SHAPE = (4, 4, 4)


@pytest.fixture
def pixels(tmp_path: Path) -> ArrayStore:
    values = np.random.default_rng(0).integers(0, 256, (FILMS, SIDE, SIDE), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", values)
    return ArrayStore(tmp_path / "pixels.npy")


def computed(pixels: ArrayStore, engine: str = "torch-float32") -> ComputedFeatures:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prefix = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
    return ComputedFeatures(FrozenPart(prefix, preprocessing="unit", engine=choose(engine)), pixels)


class Counting:
    """A real source that remembers what was asked of it, and stops after some films as Ctrl-C would stop it."""

    def __init__(self, source: ComputedFeatures, stop_after: int | None = None) -> None:
        self.source, self.stop_after = source, stop_after
        self.asked: list[int] = []

    def take(self, rows: np.ndarray) -> torch.Tensor:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += rows.tolist()
        return self.source.take(rows)


def keep(source: Counting, rows: np.ndarray, path: Path) -> StoredFeatures:
    return store_features(source, rows, shape=SHAPE, path=path, description="features")


ROWS = np.arange(0, FILMS, 1)


def test_stored_features_are_the_computed_ones_in_half_precision(pixels: ArrayStore, tmp_path: Path) -> None:
    rows = np.arange(3, FILMS, 2)
    stored = keep(Counting(computed(pixels)), rows, tmp_path / "f.npy")
    some = np.array([9, 3, 199, 9])
    found = stored.take(some)
    assert torch.equal(found, in_half_precision(computed(pixels).take(some)))
    assert found.dtype == torch.float32
    assert found.shape == (4, *SHAPE)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_film_without_features_is_an_error_and_not_another_film(pixels: ArrayStore, tmp_path: Path) -> None:
    stored = keep(Counting(computed(pixels)), np.arange(3, 100, 2), tmp_path / "f.npy")
    for missing in (4, 2, 199, 0):
        with pytest.raises(KeyError, match="holds no features"):
            stored.take(np.array([3, missing]))


def test_features_are_computed_once(pixels: ArrayStore, tmp_path: Path) -> None:
    first, second = Counting(computed(pixels)), Counting(computed(pixels))
    keep(first, ROWS, tmp_path / "f.npy")
    keep(second, ROWS, tmp_path / "f.npy")
    assert first.asked == list(ROWS)
    assert second.asked == []
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("f.")] == ["f.npy"]


def test_an_interrupted_store_goes_on_and_is_the_same(
    pixels: ArrayStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "NOTE_EVERY", 2)
    keep(Counting(computed(pixels)), ROWS, tmp_path / "whole.npy")
    path = tmp_path / "f.npy"
    with pytest.raises(KeyboardInterrupt):
        keep(Counting(computed(pixels), stop_after=3 * CHUNK), ROWS, path)
    assert not path.exists()
    again = Counting(computed(pixels))
    keep(again, ROWS, path)
    # Two chunks were noted, the third was lost.
    assert again.asked == list(range(2 * CHUNK, FILMS))
    assert path.read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_a_note_without_its_file_vouches_for_nothing(
    pixels: ArrayStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f.npy"
    path.with_suffix(".partial.json").write_text(json.dumps({"rows": FILMS}))
    # Killed right after the new file was made, before it had a note of its own.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(features, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        keep(Counting(computed(pixels)), ROWS, path)
    source = Counting(computed(pixels))
    stored = keep(source, ROWS, path)
    assert source.asked == list(ROWS)
    assert stored.take(ROWS).abs().sum() > 0


def test_a_full_disk_is_one_line(pixels: ArrayStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs .* GB of disk, found"):
        store_features(
            Counting(computed(pixels)),
            ROWS,
            shape=(4096, 2**14, 2**14),
            path=tmp_path / "f.npy",
            description="features",
        )


def test_half_precision_bounds_what_it_cannot_hold() -> None:
    values = torch.tensor([[[[1e9, -1e9, 1.0002, 0.0]]]])
    assert in_half_precision(values).flatten().tolist() == [65504.0, -65504.0, 1.0, 0.0]


def test_a_change_meets_the_films_with_their_rows(pixels: ArrayStore) -> None:
    seen: list[np.ndarray] = []

    def darken(rows: np.ndarray, films: torch.Tensor) -> torch.Tensor:
        seen.append(rows)
        assert torch.equal(films, torch.from_numpy(pixels.take(rows)).float())
        return films * 0

    plain = computed(pixels)
    source = ComputedFeatures(plain._frozen, pixels, change=darken)
    rows = np.array([7, 2])
    out = source.take(rows)
    assert seen[0].tolist() == [7, 2]
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out, plain.take(rows))
