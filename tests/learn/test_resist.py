"""What keeps a training from the source: how films are drawn, mixed, weighted, and what an adversary sends back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from vgg16_xray.config import Resist
from vgg16_xray.errors import UserError
from vgg16_xray.learn import resist
from vgg16_xray.learn.fit import draw_mixup
from vgg16_xray.learn.vgg16 import build, split_at
from vgg16_xray.steps.train import sources_of

#: A class of two sources, six films to two, and a class of one.
TARGETS = np.array([0] * 8 + [1] * 4)
SOURCES = np.array([0] * 6 + [1] * 2 + [2] * 4)


def test_balanced_sampling_draws_each_source_of_a_class_equally_often() -> None:
    weights = resist.draw_weights(TARGETS, SOURCES, kind="balanced")
    assert weights[SOURCES == 0].sum() == pytest.approx(weights[SOURCES == 1].sum())
    assert weights[TARGETS == 0].sum() == pytest.approx(8), "a class is drawn as often as it has films"
    assert weights[SOURCES == 2] == pytest.approx(np.ones(4))
    roots = resist.draw_weights(TARGETS, SOURCES, kind="sqrt")
    assert roots[SOURCES == 0].sum() / roots[SOURCES == 1].sum() == pytest.approx(np.sqrt(3))


def test_data_that_cannot_tell_sources_apart_are_refused() -> None:
    resist.check(Resist(), targets=TARGETS, sources=np.zeros(12, dtype=int))
    for how in (Resist(sampling="sqrt"), Resist(mixup_across=True), Resist(group_dro=0.1), Resist(adversary=1.0)):
        resist.check(how, targets=TARGETS, sources=SOURCES)
        with pytest.raises(UserError, match="needs a class whose training films come from two sources, found 2"):
            resist.check(how, targets=TARGETS, sources=TARGETS)


def test_mixup_across_sources_takes_a_film_of_another_source_where_there_is_one() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        _, partner = draw_mixup(0.2, 12, apart=SOURCES)
        assert (SOURCES[partner] != SOURCES).all()
    _, partner = draw_mixup(0.2, 12, apart=np.zeros(12, dtype=int))
    assert sorted(partner) == list(range(12))


def test_mixstyle_changes_half_of_the_steps() -> None:
    torch.manual_seed(1)
    drawn = [resist.draw_mixstyle(0.3, 4) for _ in range(200)]
    assert 70 < sum(one is not None for one in drawn) < 130
    assert resist.draw_mixstyle(0.0, 4) is None


def test_a_film_with_the_style_of_another_has_its_statistics_and_keeps_its_shape() -> None:
    torch.manual_seed(2)
    films, donors = torch.rand(3, 5, 8, 8), 4 + 3 * torch.rand(3, 5, 8, 8)
    out = resist.with_style_of(films, donors, np.array([0.0, 1.0, 0.5], dtype=np.float32))
    assert torch.allclose(out[0].mean(dim=(1, 2)), donors[0].mean(dim=(1, 2)), atol=1e-3)
    assert torch.allclose(out[0].std(dim=(1, 2)), donors[0].std(dim=(1, 2)), atol=1e-3)
    assert torch.allclose(out[1], films[1], atol=1e-4)
    means = films[2].mean(dim=(1, 2)), donors[2].mean(dim=(1, 2))
    assert torch.allclose(out[2].mean(dim=(1, 2)), (means[0] + means[1]) / 2, atol=1e-3)
    pairs = torch.stack([out[0, 0].flatten(), films[0, 0].flatten()])
    assert float(torch.corrcoef(pairs)[0, 1]) == pytest.approx(1, abs=1e-4)


def test_group_dro_weighs_the_group_with_the_largest_loss_more_and_more() -> None:
    robust = resist.GroupDRO(resist.groups(TARGETS, SOURCES), step=0.5, device=torch.device("cpu"))
    losses = torch.where(torch.from_numpy(SOURCES == 1), 2.0, 0.5)
    first = robust(losses, TARGETS, SOURCES)
    # Sagawa et al. 2020, algorithm 1, in closed form.
    weights = np.exp(0.5 * np.array([0.5, 2.0, 0.5]))
    assert robust.weights.numpy() == pytest.approx(weights / weights.sum())
    assert float(first) == pytest.approx((weights * [0.5, 2.0, 0.5]).sum() / weights.sum())
    assert float(robust(losses, TARGETS, SOURCES)) > float(first)
    absent = SOURCES != 1
    before = robust.weights.clone()
    robust(losses[torch.from_numpy(absent)], TARGETS[absent], SOURCES[absent])
    assert float(robust.weights[1]) < float(before[1]), "it keeps its weight, but others have grown"


def test_the_adversary_learns_the_source_and_the_base_gets_its_gradient_reversed() -> None:
    torch.manual_seed(0)
    _, trainable = split_at(build(classes=2, head="gap", dropout=0.0), "block5")
    adversary = resist.Adversary(trainable, TARGETS, SOURCES, seed=1)
    maps = torch.rand(12, 512, 4, 4)

    def gradients(weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        trainable.zero_grad()
        adversary.zero_grad()
        trainable.train()(maps)
        adversary(TARGETS, SOURCES, weight=weight).backward()
        of_base = next(trainable.parameters()).grad
        of_adversary = adversary.source.weight.grad
        assert of_base is not None
        assert of_adversary is not None
        return of_base.clone(), of_adversary.clone()

    (one, its), (three, same) = gradients(1.0), gradients(3.0)
    assert torch.allclose(three, 3 * one, rtol=1e-3, atol=1e-7)
    assert torch.allclose(its, same)
    # A step of the base along its gradient raises the adversary's loss.
    with torch.no_grad():
        trainable(maps)
        before = adversary(TARGETS, SOURCES, weight=1.0)
        for parameter in trainable.features.parameters():
            assert parameter.grad is not None
            parameter.sub_(1e-2 / 3 * parameter.grad)
        trainable(maps)
        assert adversary(TARGETS, SOURCES, weight=1.0) > before


def test_a_class_of_one_source_tells_the_adversary_nothing() -> None:
    _, trainable = split_at(build(classes=2, head="gap", dropout=0.0), "block5")
    adversary = resist.Adversary(trainable, TARGETS, SOURCES, seed=1)
    trainable.train()(torch.rand(4, 512, 4, 4))
    assert adversary(TARGETS[-4:], SOURCES[-4:], weight=1.0).item() == 0


def test_sources_are_numbered_by_name() -> None:
    table = pd.DataFrame({"source": ["b", "", None, "a", "b"]})
    assert sources_of(table).tolist() == [2, 0, 0, 1, 2]
