"""Films from elsewhere are found, films from here are left alone, at the stated rate."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vgg16_xray.trust import shift

DIMENSIONS = 40


def drawn(films: int, *, seed: int, moved: float = 0.0) -> np.ndarray:
    """Embeddings of two kinds of films, some dimensions far wider than others."""
    random = np.random.default_rng(seed)
    kind = random.integers(2, size=(films, 1))
    return (random.normal(size=(films, DIMENSIONS)) + 3 * kind + moved * (np.arange(DIMENSIONS) % 2)) * np.geomspace(
        0.01, 100, DIMENSIONS
    )


@pytest.fixture(scope="module")
def fitted() -> dict:
    return dict(json.loads(json.dumps(shift.fit(drawn(800, seed=0)), allow_nan=False)))


def test_films_from_here_are_flagged_at_most_at_the_stated_rate(fitted: dict) -> None:
    flagged = [shift.test(fitted, drawn(20, seed=1000 + i), permutations=99)["shifted"] for i in range(100)]
    assert np.mean(flagged) <= shift.RATE


def test_films_from_elsewhere_are_found_among_twenty(fitted: dict) -> None:
    found = [shift.test(fitted, drawn(20, seed=2000 + i, moved=2.0), permutations=99) for i in range(40)]
    assert np.mean([one["shifted"] for one in found]) >= 0.95
    assert "not like those" in found[0]["words"]


def test_p_values_of_films_from_here_are_even_over_many_references() -> None:
    p = [shift.test(shift.fit(drawn(100, seed=i)), drawn(15, seed=5000 + i), permutations=99)["p"] for i in range(150)]
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=0.1)


def test_too_few_films_have_no_verdict_and_too_small_a_reference_is_refused(fitted: dict) -> None:
    found = shift.test(fitted, drawn(shift.LEAST - 1, seed=3))
    assert found["p"] is None
    assert found["shifted"] is None
    assert "too few films" in found["words"]
    with pytest.raises(ValueError, match="must be of at least 16 films, found 3"):
        shift.fit(drawn(3, seed=3))


def test_the_same_films_have_the_same_p(fitted: dict) -> None:
    films = drawn(120, seed=4)
    assert shift.test(fitted, films) == shift.test(fitted, films)
    assert shift.test(fitted, films)["films"] == 120
