"""Recipes: every bound is refused by one line that names the field; the package's recipes are whole."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from vgg16_xray.config import Augmentation, Recipe, load_recipe, recipe_from, recipe_names
from vgg16_xray.errors import UserError

GOOD: dict[str, Any] = {
    "name": "mine",
    "description": "a test",
    "head": "gap",
    "train_from": "block5",
    "preprocessing": "caffe",
    "epochs": 2,
    "batch": 8,
    "optimizer": "adamw",
    "head_rate": 1e-3,
    "base_rate": 1e-4,
}

BAD = [
    ("head", "dense"),
    ("train_from", "block1"),
    ("preprocessing", "keras"),
    ("optimizer", "sgd"),
    ("schedule", "cosine"),
    ("class_weights", "linear"),
    ("select", "loss"),
    ("epochs", 0),
    ("epochs", 10_001),
    ("batch", 0),
    ("batch", 4097),
    ("head_rate", 0.0),
    ("head_rate", 1.1),
    ("head_rate", math.nan),
    ("base_rate", -1e-4),
    ("base_rate", 2.0),
    ("base_rate", 0.0),
    ("weight_decay", -0.1),
    ("weight_decay", 1.5),
    ("weight_decay", math.inf),
    ("warmup", -0.1),
    ("warmup", 1.1),
    ("label_smoothing", -0.1),
    ("label_smoothing", 1.0),
    ("mixup", -1.0),
    ("mixup", 11.0),
    ("ema", -0.1),
    ("ema", 1.0),
    ("dropout", -0.1),
    ("dropout", 1.0),
    ("augmentation.shear", 46.0),
    ("augmentation.shear", -1.0),
    ("augmentation.zoom", 1.0),
    ("augmentation.rotation", 181.0),
    ("augmentation.shift", 0.95),
    ("augmentation.exposure", -0.5),
    ("augmentation.exposure", math.nan),
    ("augmentation.style", 1.5),
    ("augmentation.views", -1),
    ("resist.sampling", "often"),
    ("resist.mixstyle", -0.1),
    ("resist.group_dro", 11.0),
    ("resist.adversary", math.inf),
    ("resist.mixup_across", True),
    ("augmentation.views", 101),
    ("augmentation.views", 3),
]

WRONG_TYPE = [
    ("epochs", "7"),
    ("epochs", 7.5),
    ("epochs", True),
    ("head_rate", "1e-3"),
    ("head_rate", True),
    ("name", 3),
    ("augmentation.flip", 1),
    ("augmentation.zoom", "a little"),
    ("augmentation", "all"),
    ("resist", "strongly"),
    ("resist.mixup_across", 1),
]


def changed(name: str, value: object) -> dict[str, Any]:
    part, _, field = name.partition(".")
    return GOOD | ({part: {field: value}} if field else {name: value})


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        recipe_from(values, where="mine.toml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_recipe_comes_back_from_its_own_values() -> None:
    recipe = recipe_from(GOOD | {"augmentation": {"zoom": 0.1, "views": 2}}, where="mine.toml")
    assert recipe_from(recipe.as_dict(), where="run.toml") == recipe


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_value_out_of_bounds_is_refused_by_name(name: str, value: object) -> None:
    message = refusal(changed(name, value))
    assert f"{name}: must be" in message
    assert message.endswith(f"found {value!r}")


def test_bounds_themselves_are_allowed() -> None:
    recipe_from(GOOD | {"epochs": 1, "batch": 1, "head_rate": 1.0, "warmup": 1.0, "mixup": 10.0}, where="mine.toml")
    recipe_from(GOOD | {"augmentation": {"zoom": 0.9, "shift": 0.9, "rotation": 180.0, "views": 100}}, where="mine")


def test_weight_decay_belongs_to_adamw() -> None:
    assert "weight_decay: must be between 0 and 1, and 0 with adam" in refusal(
        GOOD | {"optimizer": "adam", "weight_decay": 0.01}
    )


@pytest.mark.parametrize(("name", "value"), WRONG_TYPE)
def test_a_value_of_another_type_is_refused_by_name(name: str, value: object) -> None:
    message = refusal(changed(name, value))
    assert f"{name}: must be" in message
    assert "mine.toml" in message


@pytest.mark.parametrize("name", ["learning_rate", "augmentation.brightness"])
def test_an_unknown_field_is_refused_by_name(name: str) -> None:
    message = refusal(changed(name, 0.1))
    assert message.startswith(f"mine.toml: {name}: must be one of ")
    assert message.endswith("found an unknown field")


@pytest.mark.parametrize("name", ["name", "head", "epochs", "head_rate"])
def test_a_missing_field_is_refused_by_name(name: str) -> None:
    assert f"mine.toml: {name}: must be given" in refusal({k: v for k, v in GOOD.items() if k != name})


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_recipe("fast").epochs = 1  # type: ignore[misc]


def test_the_recipes_of_the_package_load_under_their_names() -> None:
    assert {"best", "default", "fast", "light", "notebook"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description.endswith(".")


def test_the_notebook_recipe_is_the_seeds() -> None:
    recipe = load_recipe("notebook")
    assert (recipe.head, recipe.train_from, recipe.preprocessing) == ("linear", "head", "unit")
    assert (recipe.optimizer, recipe.head_rate, recipe.batch, recipe.epochs) == ("adam", 1e-3, 32, 7)
    assert (recipe.schedule, recipe.class_weights, recipe.mixup, recipe.ema) == ("constant", "none", 0, 0)
    assert recipe.augmentation == Augmentation(shear=0.2, zoom=0.2, flip=True, views=0)


def test_changes_replace_fields_and_none_leaves_them() -> None:
    plain, other = load_recipe("fast", head=None, epochs=None), load_recipe("fast", epochs=2)
    assert plain == load_recipe("fast")
    assert other == dataclasses.replace(plain, epochs=2)
    with pytest.raises(UserError, match=r"recipe\.epochs: must be between 1 and 10,000, found 20000"):
        load_recipe("fast", epochs=20_000)


def test_a_recipe_for_the_head_alone_can_be_told_to_train_blocks() -> None:
    recipe = load_recipe("fast", train_from="block4")
    assert (recipe.train_from, recipe.base_rate) == ("block4", recipe.head_rate / 10)
    assert load_recipe("default", train_from="block4").base_rate == load_recipe("default").base_rate
    assert load_recipe("fast", train_from="head").base_rate == 0


def _as_toml(recipe: Recipe) -> str:
    import tomli_w

    return tomli_w.dumps(recipe.as_dict())


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_a_users_file_is_a_recipe(tmp_path: Path, mark: str) -> None:
    file = tmp_path / "mine.toml"
    recipe = load_recipe("default")
    file.write_text(mark + _as_toml(recipe), "utf-8")
    assert load_recipe(str(file)) == recipe
    assert load_recipe(str(file), epochs=1).epochs == 1


def test_what_is_no_recipe_is_refused_in_one_line(tmp_path: Path) -> None:
    def line(name: str) -> str:
        with pytest.raises(UserError) as caught:
            load_recipe(name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert line("better").startswith("--recipe: must be one of best, default, fast, light, notebook")
    assert "missing.toml cannot be read" in line(str(tmp_path / "missing.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("epochs = = 3")
    assert line(str(broken)).startswith(f"{broken}: must be TOML")
    broken.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in line(str(broken))
    (tmp_path / "folder.toml").mkdir()
    assert "cannot be read" in line(str(tmp_path / "folder.toml"))
    broken.write_text('name = "x"')
    assert line(str(broken)).startswith(f"{broken}: description: must be given")


def test_every_field_of_a_recipe_file_is_a_field_of_the_recipe() -> None:
    from importlib import resources

    fields = {field.name for field in dataclasses.fields(Recipe)}
    for name in recipe_names():
        text = (resources.files("vgg16_xray.learn") / "recipes" / f"{name}.toml").read_text("utf-8")
        assert set(tomllib.loads(text)) <= fields
        assert text.startswith("#"), f"{name}.toml must say what it is"
