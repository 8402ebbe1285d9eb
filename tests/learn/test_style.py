"""The style of a film changes as it was drawn, by film, and by as much as each change says."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vgg16_xray.config import Augmentation
from vgg16_xray.films.phantom import draw
from vgg16_xray.learn.augment import Augment
from vgg16_xray.learn.style import Style, apply_style, draw_style

FILMS = torch.from_numpy(np.stack([draw("Normal", seed=seed, size=224).pixels for seed in range(3)])).float()


def styled(**style: object) -> torch.Tensor:
    return apply_style(FILMS[:1], [Style(**style)])[0]  # type: ignore[arg-type]


def test_no_style_leaves_a_film_as_it_is() -> None:
    assert torch.allclose(apply_style(FILMS, [Style()] * 3), FILMS, atol=1e-3)
    nothing = [draw_style(0.0, seed=1, draw=0, row=row) for row in range(3)]
    assert torch.allclose(apply_style(FILMS, nothing), FILMS, atol=1e-3)


def test_what_happens_to_a_film_depends_on_it_alone() -> None:
    augment = Augment(Augmentation(style=1.0), seed=7, draw=3)
    together = augment(np.array([5, 8, 2]), FILMS)
    alone = torch.cat([augment(np.array([row]), FILMS[i : i + 1]) for i, row in enumerate((5, 8, 2))])
    assert torch.allclose(together, alone, atol=1e-2)
    assert not torch.allclose(together, Augment(Augmentation(style=1.0), seed=7, draw=4)(np.array([5, 8, 2]), FILMS))
    assert together.min() >= 0
    assert together.max() <= 255


def test_every_change_occurs_and_grows_with_the_strength() -> None:
    for name in ("gamma", "contrast", "brightness", "local", "sharpness", "side", "noise"):
        neutral = getattr(Style(), name)
        far = [
            np.mean([abs(getattr(draw_style(s, seed=1, draw=0, row=row), name) - neutral) for row in range(200)])
            for s in (0.3, 1.0)
        ]
        assert 0 < far[0] < far[1], name
    drawn = [draw_style(1.0, seed=1, draw=0, row=row) for row in range(200)]
    assert 60 < sum(style.marker is not None for style in drawn) < 140
    assert 60 < sum(style.quality > 0 for style in drawn) < 140
    assert min(style.quality for style in drawn if style.quality) < 50
    assert any(any(style.border) for style in drawn)


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_jpeg_is_what_an_encoder_does(quality: int) -> None:
    file = io.BytesIO()
    Image.fromarray(FILMS[0].byte().numpy()).save(file, "JPEG", quality=quality)
    encoded = torch.from_numpy(np.array(Image.open(file)).astype(np.float32))
    ours = styled(quality=quality)
    lost = (encoded - FILMS[0]).std()
    assert (ours - encoded).std() < 0.2 * lost + 0.5


def test_sharpness_blurs_below_zero_and_sharpens_above() -> None:
    def edges(film: torch.Tensor) -> float:
        return float(film.diff(dim=1).abs().mean())

    assert edges(styled(sharpness=-1.0)) < edges(FILMS[0]) < edges(styled(sharpness=1.0))
    assert edges(styled(side=0.5)) < edges(FILMS[0])


def test_a_border_and_a_marker_stand_where_they_are_said_to() -> None:
    film = styled(border=(0.05, 0.0, 0.1, 0.0), border_grey=255.0)
    assert (film[:, :11] == 255).all()
    assert (film[:, -22:] == 255).all()
    assert torch.allclose(film[:, 11:-22], FILMS[0][:, 11:-22], atol=1e-3)
    marked = styled(marker=np.ones((4, 6), dtype=bool), marker_at=(0.0, 0.0))
    assert (marked[:16, :24] == 235).all()
    assert torch.allclose(marked[16:, 24:], FILMS[0][16:, 24:], atol=1e-3)


def test_noise_has_the_deviation_that_it_says() -> None:
    middle = torch.full((1, 224, 224), 128.0)
    noisy = apply_style(middle, [Style(noise=5.0, field=(1, 3, 4))])
    assert float(noisy.std()) == pytest.approx(5, rel=0.05)
