"""The number format is chosen by what the processor can do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vgg16_xray.errors import UserError
from vgg16_xray.films.phantom import CLASSES, draw
from vgg16_xray.learn import engines
from vgg16_xray.learn.engines import ENGINES, FrozenPart, choose, machine_in_words, processor_features
from vgg16_xray.learn.vgg16 import build, split_at
from vgg16_xray.learn.weights import load_base


@pytest.mark.parametrize(
    ("features", "name"),
    [
        (set(), "torch-float32"),
        ({"avx2"}, "torch-float32"),
        ({"avx2", "avx512f", "avx512_vnni"}, "torch-float32"),
        ({"avx2", "amx_tile", "amx_int8"}, "torch-float32"),
        ({"avx512f", "avx512_bf16"}, "torch-bfloat16"),
        ({"amx_tile", "amx_bf16"}, "torch-bfloat16"),
    ],
    ids=str,
)
def test_bf16_is_chosen_only_where_the_processor_has_it(
    features: set[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "processor_features", lambda: frozenset(features))
    engine = choose()
    assert engine.name == name
    assert engine.dtype == (torch.bfloat16 if name == "torch-bfloat16" else torch.float32)
    assert "bf16" in engine.reason


def test_an_engine_can_be_asked_for_by_name() -> None:
    for name in ENGINES[1:]:
        assert (choose(name).name, choose(name).reason) == (name, "asked for")


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UserError, match=r"--engine: must be one of auto, torch-float32, .* found 'cuda'"):
        choose("cuda")


def test_the_machine_is_told_in_words() -> None:
    assert " cores, " in machine_in_words()
    assert all(feature in machine_in_words() for feature in processor_features())


@pytest.fixture(scope="module")
def films() -> torch.Tensor:
    return torch.from_numpy(np.stack([draw(label, seed=i, size=224).pixels for i, label in enumerate(CLASSES)]))


def frozen(train_from: str, engine: str) -> FrozenPart:
    model = build(classes=2, head="gap", dropout=0.0)
    load_base().put_into(model)
    return FrozenPart(split_at(model, train_from)[0], preprocessing="caffe", engine=choose(engine))


@pytest.mark.skipif(
    not processor_features() & {"avx512_bf16", "amx_bf16"}, reason="this processor has no bf16 instructions"
)
@pytest.mark.parametrize("train_from", ["head", "block5"])
def test_bf16_features_are_close_to_float32(films: torch.Tensor, train_from: str) -> None:
    exact, fast = (frozen(train_from, name)(films).float() for name in ("torch-float32", "torch-bfloat16"))
    assert ((fast - exact).norm() / exact.norm()).item() < 0.02
    assert (fast != exact).any()


def test_the_frozen_part_leaves_the_model_in_float32(films: torch.Tensor) -> None:
    model = build(classes=2, head="gap", dropout=0.0)
    prefix, _ = split_at(model, "block2")
    part = FrozenPart(prefix, preprocessing="unit", engine=choose("torch-bfloat16"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    out = part(films[:1])
    assert out.dtype == torch.bfloat16
    assert out.shape == (1, 64, 112, 112)
    assert not out.requires_grad
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_uint8_and_float_films_give_the_same(films: torch.Tensor) -> None:
    part = frozen("block2", "torch-float32")
    assert torch.equal(part(films[:1]), part(films[:1].float()))
