"""Cards and checklists say what the run says, and leave open what only a person knows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fabricate import fabricate

from vgg16_xray.errors import UserError
from vgg16_xray.files import write_json
from vgg16_xray.report.cards import CHECKLISTS, FILLED, OPEN, PART, facts_of, fill, write_cards
from vgg16_xray.rundir import CardsDir, RunDir

#: Items of each checklist, subitems counted, as published.
ITEMS = {"claim_2024": 44, "tripod_ai": 52, "stard_ai": 48}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return fabricate(tmp_path_factory.mktemp("cards") / "run")


@pytest.mark.parametrize("name", CHECKLISTS)
def test_every_item_is_there_once_in_its_order(name: str) -> None:
    numbers = [item.number for item in fill(name, {}).items]
    assert len(numbers) == len(set(numbers)) == ITEMS[name]
    assert numbers == sorted(numbers, key=lambda n: (int(re.sub(r"\D", "", n)), n))


@pytest.mark.parametrize("name", CHECKLISTS)
def test_every_fact_that_an_item_asks_for_is_one_that_a_run_can_know(name: str, run: RunDir) -> None:
    import tomllib

    import vgg16_xray.report

    file = Path(vgg16_xray.report.__file__).parent / "checklists" / f"{name}.toml"
    wanted = {key.removeprefix("+") for *_, key in tomllib.loads(file.read_text())["items"]} - {""}
    assert wanted <= {*facts_of(run), "verdict", "robustness", "explanation"}


def test_without_facts_all_is_open_and_with_them_the_states_add_up(run: RunDir) -> None:
    assert fill("claim_2024", {}).count(OPEN) == 44
    for checklist in write_cards(run):
        assert sum(checklist.count(state) for state in (FILLED, PART, OPEN)) == len(checklist.items)
        text = CardsDir(run.path).file(checklist.name).read_text("utf-8")
        assert text.count("**A person must add this.**") == checklist.count(PART) + checklist.count(OPEN)
        assert "Research use only" in text


def test_the_numbers_of_the_cards_are_those_of_the_test(run: RunDir) -> None:
    write_cards(run)
    test = json.loads(run.test.read_text())
    accuracy = test["overall"]["accuracy"]
    for name in ("model_card", "methods", "claim_2024"):
        text = CardsDir(run.path).file(name).read_text("utf-8")
        assert f"accuracy {accuracy['value']:.3f} ({accuracy['low']:.3f}–{accuracy['high']:.3f})" in text
        assert f"{test['images']:,} films" in text


def test_a_run_without_a_test_has_no_cards(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    run.unstamp("test")
    with pytest.raises(UserError, match="test"):
        write_cards(run)
    assert not CardsDir(run.path).folder.exists()


def test_the_methods_tell_split_copies_calibration_and_refusal_with_the_numbers_of_the_run(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    pair = {"same": True, "first_label": "COVID", "second_label": "Normal"}
    write_json(run.leaks, {"films": 240, "copies": 7, "exact": 2, "conflicts": [["a", "b"]], "pairs": [pair]})
    write_cards(run)
    text = CardsDir(run.path).file("methods").read_text("utf-8")
    calibration = json.loads(run.test.read_text())["calibration"]
    for words in (
        "80/10/10 by group, seed 1234",
        "7 of 240 films are an earlier one again, 2 of them with equal pixels. 2 films, in 1 pair, stand under two "
        "labels",
        f"temperature {calibration['temperature']:.3f}",
        f"{calibration['probability']['ece']['value']:.3f}",
        "In these figures every film is answered.",
        "The test films were measured once.",
    ):
        assert words in text
    # Whose licence the weights have is for a person to say.
    assert "license: other" in CardsDir(run.path).file("model_card").read_text("utf-8")
