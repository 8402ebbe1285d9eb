"""What is no chest film is refused, what is not known well enough is abstained, at a rate that was stated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from vgg16_xray.films import nonfilms
from vgg16_xray.films.phantom import draw
from vgg16_xray.trust import refuse

LABELS = ("COVID", "Normal")


def embed(films: Sequence[np.ndarray]) -> np.ndarray:
    """Stands for a network: each film's greys and edges on a grid of 12 x 12."""
    small = [np.asarray(Image.fromarray(film).resize((24, 24), Image.Resampling.BOX), dtype=float) for film in films]
    edges = [np.abs(np.diff(film, axis=1, append=0)) for film in small]
    return np.stack([np.r_[a[::2, ::2].ravel(), b[::2, ::2].ravel()] for a, b in zip(small, edges, strict=True)])


@pytest.fixture(scope="module")
def films() -> list[np.ndarray]:
    return [draw(LABELS[i % 2], seed=i, size=128).pixels for i in range(150)]


@pytest.fixture(scope="module")
def fitted(films: list[np.ndarray]) -> dict[str, Any]:
    p, targets = probabilities(50, seed=1)
    found = refuse.fit(
        films=films[:80],
        embed=embed,
        validation=films[80:130],
        embeddings=embed(films[80:130]),
        probabilities=p,
        targets=targets,
        labels=LABELS,
        rate=0.1,
        each=12,
    )
    return dict(json.loads(json.dumps(found, allow_nan=False)))


def probabilities(films: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    targets = np.arange(films) % 2
    p = 1 / (1 + np.exp(-(random.normal(size=films) * 1.2 + np.where(targets == 0, 2.2, -2.2))))
    return np.stack([p, 1 - p], axis=1), targets


def judged(refusal: dict[str, Any], film: np.ndarray, p: Sequence[float] = (0.0, 1.0)) -> tuple[str, str]:
    return refuse.judge(refusal, looks=refuse.look(film), probabilities=np.array(p), embedding=embed([film])[0])


def test_other_films_are_answered_and_what_is_no_film_is_refused(
    fitted: dict[str, Any], films: list[np.ndarray]
) -> None:
    assert np.mean([judged(fitted, film)[0] == "answered" for film in films[130:]]) >= 0.9
    pictures, kinds, _ = nonfilms.make(films[130:], each=5, seed=99)
    found = [judged(fitted, picture)[0] == "refused" for picture in pictures]
    assert np.mean(found) > 0.9, [kind for kind, right in zip(kinds, found, strict=True) if not right]


def test_the_reason_says_what_the_picture_is_taken_for(fitted: dict[str, Any], films: list[np.ndarray]) -> None:
    random = np.random.default_rng(3)
    for change, verdict in nonfilms.FROM_FILMS.values():
        reasons = [judged(fitted, change(film, random))[1] for film in films[130:]]
        assert reasons.count(refuse.REASONS[verdict]) > len(reasons) / 2, verdict
    assert judged(fitted, nonfilms.text(random)) == ("refused", refuse.REASONS[nonfilms.OTHER])


@pytest.mark.slow
def test_a_kind_that_was_left_out_is_refused_too(films: list[np.ndarray]) -> None:
    pictures, kinds, names = nonfilms.make(films[:80], each=12, seed=5)
    looks, looks_of = np.stack([refuse.look(f) for f in films]), np.stack([refuse.look(p) for p in pictures])
    inside, outside = embed(films), embed(pictures)
    for kind in nonfilms.DRAWN:
        kept = [i for i, k in enumerate(kinds) if k != kind]
        film = refuse.fit_film(
            np.concatenate([looks[:80], looks_of[kept]]),
            np.concatenate([inside[:80], outside[kept]]),
            ["film"] * 80 + [names[i] for i in kept],
        )
        left = [i for i, k in enumerate(kinds) if k == kind]
        parts = (looks[80:], inside[80:]), (looks_of[left], outside[left])
        scores = np.concatenate([refuse.verdicts(film, *part)[:, 0] for part in parts])
        assert roc_auc_score([1] * 70 + [0] * len(left), scores) > 0.97, kind


def test_a_picture_looks_the_same_whatever_its_size(films: list[np.ndarray]) -> None:
    large = np.asarray(Image.fromarray(films[0]).resize((700, 500), Image.Resampling.BICUBIC))
    apart = np.abs(refuse.look(large) - refuse.look(films[0]))
    other = np.abs(refuse.look(films[1]) - refuse.look(films[0]))
    assert np.mean(apart) < 0.25 * np.mean(other)


def test_no_more_validation_films_are_given_up_than_was_stated(fitted: dict[str, Any]) -> None:
    found = fitted["validation"]
    assert 0 < found["refused"] + found["abstained"] <= 0.1 * found["films"]
    assert sum(of["abstained"] for of in found["by_class"].values()) == found["abstained"]


def test_a_positive_answer_needs_evidence_and_a_negative_one_none() -> None:
    p, targets = probabilities(2000, seed=2)
    cuts = refuse.fit_evidence(p, targets, LABELS, rate=0.05)
    assert cuts[1] == 0
    abstained = p.max(1) < np.array(cuts)[p.argmax(1)]
    assert 0.04 < abstained.mean() <= 0.05
    wrong = (p.argmax(1) != targets) & (p.argmax(1) == 0)
    right = (p.argmax(1) == targets) & (p.argmax(1) == 0)
    assert abstained[wrong].mean() > 3 * abstained[right].mean()
    assert refuse.fit_evidence(p, targets, LABELS, rate=0.0)[0] <= p.max(1)[p.argmax(1) == 0].min()
    assert max(refuse.fit_evidence(p, targets, LABELS, rate=0.9)) <= refuse.CEILING


def test_what_is_below_the_evidence_is_abstained_with_the_reason(
    fitted: dict[str, Any], films: list[np.ndarray]
) -> None:
    cut = fitted["evidence"]["thresholds"][0]
    film = next(film for film in films[130:] if judged(fitted, film)[0] == "answered")
    answer, reason = judged(fitted, film, (cut - 0.01, 1.01 - cut))
    assert answer == "abstained"
    assert reason.startswith(f"COVID is answered from a probability of {cut:.3f} on, found {cut - 0.01:.3f}")
    assert judged(fitted, film, (cut, 1 - cut)) == ("answered", "")


def test_the_negative_class_is_found_by_its_name_or_is_the_largest() -> None:
    targets = np.array([0, 0, 0, 1, 2])
    assert refuse.negative_class(["A", "No finding", "B"], targets) == 1
    assert refuse.negative_class(["A", "B", "C"], targets) == 0


def test_the_same_seed_makes_the_same_pictures(films: list[np.ndarray]) -> None:
    one, other = (nonfilms.make(films[:3], each=2, seed=4)[0] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert all(picture.dtype == np.uint8 and picture.ndim == 2 for picture in one)
