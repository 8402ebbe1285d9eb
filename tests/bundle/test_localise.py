"""Heat on what is drawn: counted right on maps whose answer is known, and in the card."""

from __future__ import annotations

import numpy as np
import pytest

from vgg16_xray.bundle.localise import (
    COLUMNS,
    DRAWN,
    WITHIN,
    Found,
    _figures,
    bootstrapped,
    by_chance,
    mean_of_others,
    on_structures,
    sentence,
    spread_by_share,
)
from vgg16_xray.films.masks import LUNGS, OPACITIES


@pytest.fixture
def structures() -> dict[str, np.ndarray]:
    lungs = np.zeros((140, 140), bool)
    lungs[:, :70] = True
    opacities = np.zeros((140, 140), bool)
    opacities[:70, 35:105] = True
    return {OPACITIES: opacities, LUNGS: lungs}


def test_an_even_map_has_what_chance_gives(structures: dict[str, np.ndarray]) -> None:
    found, chance = on_structures(np.ones((14, 14)), structures), by_chance(structures)
    assert chance == {OPACITIES: 0.25, LUNGS: 0.5, WITHIN: 0.25}
    assert {name: one.share for name, one in found.items()} == pytest.approx(chance, abs=0.01)


def test_heat_in_one_place_is_found_there(structures: dict[str, np.ndarray]) -> None:
    heat = np.zeros((14, 14), np.float32)
    heat[3, 5] = 2.0  # in the lung and on the opacity
    assert on_structures(heat, structures) == {name: Found(1.0, pytest.approx(1.0)) for name in structures} | {
        WITHIN: Found(1.0, pytest.approx(1.0))
    }
    heat[12, 12] = 4.0  # twice as hot, on neither
    found = on_structures(heat, structures)
    assert found[OPACITIES].pointed == 0
    assert found[OPACITIES].share == pytest.approx(1 / 3, abs=0.02)
    assert found[WITHIN] == Found(1.0, pytest.approx(1.0))


def test_no_heat_is_nowhere(structures: dict[str, np.ndarray]) -> None:
    assert all(np.isnan(one.share) for one in on_structures(np.zeros((14, 14)), structures).values())


def test_the_mean_map_of_others_leaves_the_own_group_out() -> None:
    heat = np.zeros((3, 2, 2), np.float32)
    heat[0, 0, 0], heat[1, 0, 1], heat[2, 1, 1] = 5, 1, 1
    others = mean_of_others(heat, ["a", "a", "b"])
    assert others[0].tolist() == others[1].tolist() == [[0, 0], [0, 1]]
    assert others[2].tolist() == [[0.5, 0.5], [0, 0]]


def test_films_of_one_patient_make_intervals_wider() -> None:
    values = np.repeat([[0.0, 1.0, 0.0, 1.0, 1.0, 0.0]], 5, axis=1)
    alone = bootstrapped(values, [f"{i}" for i in range(30)])[0]
    together = bootstrapped(np.sort(values), [f"{i // 5}" for i in range(30)])[0]
    widths = [(one["high"] or 0) - (one["low"] or 0) for one in (alone, together)]
    assert alone["value"] == together["value"] == 0.5
    assert widths[1] > 1.5 * widths[0]


def figures(own: float, others: float) -> dict:
    rng = np.random.default_rng(0)
    films = [Found(float(i % 2), own + 0.05 * rng.random()) for i in range(20)]
    known = {name: [Found(0.1, others + 0.05 * rng.random()) for _ in films] for name in tuple(COLUMNS)[1:]}
    found = _figures(films, known, [f"{i}" for i in range(20)])
    assert found is not None
    return found


def test_the_sentence_claims_more_only_where_the_interval_does() -> None:
    better = sentence({"all": {OPACITIES: figures(0.6, 0.2), WITHIN: figures(0.2, 0.2)}})
    same = sentence({"all": {OPACITIES: figures(0.2, 0.2), WITHIN: None}})
    assert "more heat than an even heat, random weights and other films' mean map have there" in better
    assert better.endswith("that the maps find them is not shown.")
    assert "not shown to be more heat" in same
    assert "do not read these maps" in same
    assert sentence({"all": {OPACITIES: None}}).startswith("Too few films")


def test_pointing_has_the_exact_interval() -> None:
    assert figures(0.6, 0.2)["pointing"]["model"] == {
        "value": 0.5,
        "low": pytest.approx(0.2720, abs=1e-4),
        "high": pytest.approx(0.7280, abs=1e-4),
    }


def test_films_are_drawn_from_most_heat_on_the_opacities_to_least() -> None:
    each = [{"film": str(i), **({} if i == 3 else {OPACITIES: {"share": i / 20}})} for i in range(20)]
    chosen = spread_by_share(each)
    assert len(chosen) == DRAWN
    assert (chosen[0], chosen[-1]) == (19, 0)
    assert chosen == sorted(chosen, reverse=True)
    assert 3 not in chosen
    assert spread_by_share(each[:2]) == [1, 0]
    assert spread_by_share(each[3:4]) == []
