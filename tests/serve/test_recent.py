"""A server's last films are tested together, now and then, and nothing of a film is kept but its embedding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vgg16_xray.bundle.classify import Classifier, Prediction
from vgg16_xray.serve.metrics import Metrics
from vgg16_xray.serve.recent import EVERY, HOURS, SECONDS, Recent
from vgg16_xray.trust import shift

WIDTH = 30


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def drawn(films: int, *, seed: int, moved: float = 0.0) -> list[Prediction]:
    embeddings = np.random.default_rng(seed).normal(size=(films, WIDTH)) + moved
    return [Prediction(path="Smith_John.png", prediction="COVID", embedding=row) for row in embeddings]


@pytest.fixture(scope="module")
def classifier() -> Any:
    known = shift.fit(np.random.default_rng(0).normal(size=(300, WIDTH)))
    made = SimpleNamespace(config=SimpleNamespace(refusal={"shift": known}))
    made.shift_of = lambda films: Classifier.shift_of(made, films)
    return made


def shown(metrics: Metrics) -> dict[str, float]:
    lines = [line for line in metrics.as_text().decode().splitlines() if line.startswith("vgg16_xray_shift")]
    return {name: float(value) for name, value in (line.split() for line in lines)}


def test_films_of_another_hospital_show_in_the_metrics_and_films_from_here_do_not(classifier: Any) -> None:
    for moved, expected in ((0.0, 0.0), (2.0, 1.0)):
        metrics, clock = Metrics(), Clock()
        recent = Recent(classifier, metrics, clock=clock)
        assert shown(metrics) == {"vgg16_xray_shift_films": 0, "vgg16_xray_shift_p": 1, "vgg16_xray_shifted": 0}
        for film in drawn(24, seed=3, moved=moved):
            clock.now += 1
            if recent.add(film):
                recent.test()
        recent.test()
        found = shown(metrics)
        assert found["vgg16_xray_shift_films"] == 24
        assert found["vgg16_xray_shifted"] == expected
        assert (found["vgg16_xray_shift_p"] <= shift.ALPHA) == bool(expected)


def test_a_test_is_due_after_some_films_and_some_seconds_and_not_before(classifier: Any) -> None:
    clock = Clock()
    recent = Recent(classifier, Metrics(), clock=clock)
    films = drawn(3 * EVERY + 1, seed=4)
    assert [recent.add(film) for film in films[:EVERY]] == [False] * (EVERY - 1) + [True]
    clock.now += SECONDS / 2
    assert not any(recent.add(film) for film in films[EVERY : 2 * EVERY])
    clock.now += SECONDS
    assert recent.add(films[-1])


def test_what_is_refused_counts_not_and_old_films_are_forgotten(classifier: Any) -> None:
    metrics, clock = Metrics(), Clock()
    recent = Recent(classifier, metrics, clock=clock)
    for film in drawn(30, seed=5, moved=2.0):
        assert not recent.add(Prediction(path="x", answer="refused", embedding=film.embedding))
    for film in drawn(12, seed=6, moved=2.0):
        recent.add(film)
    recent.test()
    assert shown(metrics)["vgg16_xray_shifted"] == 1
    clock.now += HOURS + 1
    recent.test()
    assert shown(metrics) == {"vgg16_xray_shift_films": 0, "vgg16_xray_shift_p": 1, "vgg16_xray_shifted": 0}


def test_nothing_of_a_film_is_kept_but_its_embedding(classifier: Any) -> None:
    recent = Recent(classifier, Metrics())
    recent.add(drawn(1, seed=7)[0])
    assert "Smith" not in repr(vars(recent))
    assert "COVID" not in repr(vars(recent))


def test_a_model_without_anything_to_compare_with_keeps_no_films() -> None:
    made: Any = SimpleNamespace(config=SimpleNamespace(refusal=None))
    recent = Recent(made, Metrics())
    assert not any(recent.add(film) for film in drawn(20, seed=8))
    assert not recent._films
