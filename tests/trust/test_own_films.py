"""A model's own films are found by what a bundle keeps of them; other films are not taken for them."""

from __future__ import annotations

import numpy as np
import pytest

from vgg16_xray.films.decode import pixels_sha256, to_square
from vgg16_xray.films.phantom import CLASSES, draw
from vgg16_xray.films.republished import republish
from vgg16_xray.trust import own_films

FILMS = 40
#: Drawn films of different patients are more alike than real ones.
SAME = 0.9


@pytest.fixture(scope="module")
def films() -> list[np.ndarray]:
    return [draw(CLASSES[n % 4], seed=77, patient=n, size=256).pixels for n in range(FILMS)]


@pytest.fixture(scope="module")
def known(films: list[np.ndarray]) -> np.ndarray:
    squares = (to_square(film) for film in films)
    return own_films.remember(squares, [pixels_sha256(film) for film in films], ["train", "test"] * (FILMS // 2))


def found(known: np.ndarray, films: list[np.ndarray]) -> list[own_films.Own]:
    return own_films.find(
        known, [to_square(film) for film in films], [pixels_sha256(film) for film in films], same=SAME
    )


def test_equal_pixels_are_found_by_their_hash_alone(known: np.ndarray, films: list[np.ndarray]) -> None:
    blind = known.copy()
    blind["numbers"] = 0
    assert found(blind, films[3:5]) == [own_films.Own(0, 3, exact=True), own_films.Own(1, 4, exact=True)]
    assert own_films.name_of(known, 3) == f"film {pixels_sha256(films[3])[:16]}"
    assert known["side"][:2].tolist() == [0, 2]


@pytest.mark.parametrize("kind", ["resized", "JPEG 30 to 60", "mirrored", "inverted", "windowed", "gamma"])
def test_a_film_that_was_published_again_is_found(known: np.ndarray, films: list[np.ndarray], kind: str) -> None:
    rng = np.random.default_rng(5)
    again = [republish(film, kind, rng) for film in films[:6]]
    own = found(known, again)
    assert [(one.film, one.row) for one in own] == [(n, n) for n in range(6)]
    assert kind == "windowed" or not any(one.exact for one in own)


def test_films_of_other_patients_are_not_taken_for_own_ones(known: np.ndarray) -> None:
    others = [draw(CLASSES[n % 4], seed=78, patient=n, size=256).pixels for n in range(20)]
    assert found(known, others) == []


def test_nothing_is_kept_that_could_be_read_as_a_name(known: np.ndarray) -> None:
    assert known.dtype.names == ("hash", "side", "numbers")
    assert known.dtype.itemsize < 1024
