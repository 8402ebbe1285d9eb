"""A model knows the features that it was trained on, and whether it gets them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vgg16_xray.errors import UserError
from vgg16_xray.learn.checkpoint import ModelConfig, load_model, load_probe, save_model
from vgg16_xray.learn.engines import FrozenPart, choose
from vgg16_xray.learn.probe import Probe
from vgg16_xray.learn.vgg16 import build, split_at
from vgg16_xray.learn.weights import load_base

WHERE = Path("model.safetensors")


def frozen(*, preprocessing: str = "caffe", engine: str = "torch-float32", train_from: str = "block3") -> FrozenPart:
    model = build(classes=2, head="gap", dropout=0.0)
    load_base().put_into(model)
    return FrozenPart(split_at(model, train_from)[0], preprocessing=preprocessing, engine=choose(engine))


@pytest.fixture(scope="module")
def probe() -> Probe:
    return Probe.of(frozen(), size=224)


def test_the_same_frozen_part_passes_without_a_word(probe: Probe) -> None:
    assert probe.deviation(frozen()) == 0.0
    assert probe.check(frozen(), where=WHERE, trained_with="torch-float32") is None
    assert probe.check(frozen(engine="onnx-float32"), where=WHERE, trained_with="torch-float32") is None


def test_an_engine_that_rounds_coarsely_is_said() -> None:
    deep = Probe.of(frozen(train_from="head"), size=224)  # The error grows from layer to layer.
    line = deep.check(frozen(engine="onnx-int8", train_from="head"), where=WHERE, trained_with="torch-float32")
    assert line
    assert "model.safetensors: features deviate by 0.0" in line
    assert "trained with torch-float32, now onnx-int8" in line


@pytest.mark.parametrize("preprocessing", ["unit", "torch"])
def test_pixels_prepared_otherwise_are_refused(preprocessing: str, probe: Probe) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors: features of drawn films must be those of the training"):
        probe.check(frozen(preprocessing=preprocessing), where=WHERE, trained_with="torch-float32")


def test_features_of_another_shape_or_not_finite_are_refused(probe: Probe) -> None:
    with pytest.raises(UserError, match="found them inf away"):
        probe.check(frozen(train_from="head"), where=WHERE, trained_with="torch-float32")
    broken = frozen()
    broken._run = lambda pixels: torch.full((len(pixels), 128, 56, 56), torch.nan)
    with pytest.raises(UserError, match="found them nan away"):
        probe.check(broken, where=WHERE, trained_with="torch-float32")


def test_a_checkpoint_keeps_it_and_an_old_one_has_none(tmp_path: Path, probe: Probe) -> None:
    model = build(classes=2, head="gap", dropout=0.0)
    config = ModelConfig(
        labels=("a", "b"),
        head="gap",
        train_from="block3",
        preprocessing="caffe",
        dropout=0.0,
        size=224,
        engine="torch-float32",
        epoch=1,
        recipe="default",
    )
    save_model(tmp_path / "old.safetensors", model, config)
    save_model(tmp_path / "new.safetensors", model, config, probe)
    assert load_probe(tmp_path / "old.safetensors") is None
    kept = load_probe(tmp_path / "new.safetensors")
    assert kept
    assert torch.equal(kept.pixels, probe.pixels)
    assert torch.equal(kept.features, probe.features)
    for name in ("old", "new"):
        assert load_model(tmp_path / f"{name}.safetensors")[1] == config
