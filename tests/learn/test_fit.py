"""The loop, on features that cost nothing: what it learns, chooses, saves and goes on from."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vgg16_xray.config import Recipe, Resist, load_recipe
from vgg16_xray.errors import UserError
from vgg16_xray.learn import fit as fitting
from vgg16_xray.learn.checkpoint import load_model, load_tensors
from vgg16_xray.learn.engines import choose
from vgg16_xray.learn.fit import TrainingData, class_weights, fit, parameter_groups, probabilities, rate_factor
from vgg16_xray.learn.heads import build_head
from vgg16_xray.learn.vgg16 import build, split_at

FILMS, CLASSES = 90, 3
LABELS = ("a", "b", "c")
ENGINE = choose("torch-float32")
#: A tenth of the films is kept from the loop: nobody may ask for them.
TRAIN, VALIDATION, TEST = np.arange(0, 60), np.arange(60, 80), np.arange(80, 90)
TARGETS = np.random.default_rng(1).integers(0, CLASSES, FILMS)


class Source:
    """Features (1024, 1, 1) that tell the class faintly, as the frozen part of another network would give them."""

    def __init__(self, stop_after: int | None = None) -> None:
        rng = np.random.default_rng(2)
        means = rng.normal(size=(CLASSES, 512))
        drawn = (means[TARGETS] * 0.25 + rng.normal(size=(FILMS, 512))).astype(np.float32)
        # Average and maximum of maps of one pixel.
        self.features = np.concatenate((drawn, drawn), axis=1)[:, :, None, None]
        self.stop_after = stop_after
        self.asked: Counter[int] = Counter()
        self.calls = 0

    def take(self, rows: np.ndarray) -> torch.Tensor:
        if self.stop_after is not None and self.calls >= self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        self.asked.update(rows.tolist())
        return torch.from_numpy(self.features[rows])


RECIPE = dataclasses.replace(load_recipe("fast", epochs=4, batch=16), blocks=5)
ALL_AT_ONCE = dataclasses.replace(RECIPE, name="all", mixup=0.4, ema=0.9, dropout=0.5, label_smoothing=0.1)
PLAIN = dataclasses.replace(
    RECIPE, name="plain", optimizer="adam", weight_decay=0.0, schedule="constant", ema=0.0, class_weights="none"
)


#: Block 5 learns from epoch 2 on, block 4 from epoch 3 on.
STAGED = dataclasses.replace(
    ALL_AT_ONCE,
    name="staged",
    train_from="block4",
    base_rate=1e-4,
    rate_decay=0.5,
    head_epochs=1,
    unfreeze=1,
    sampling="sqrt",
    batch=30,
)


#: Films of a class come from two places, in turn.
SOURCES = np.arange(FILMS) % 2
RESISTING = dataclasses.replace(
    STAGED,
    name="resisting",
    unfreeze=0,
    sampling="none",
    resist=Resist(sampling="balanced", mixup_across=True, mixstyle=0.3, group_dro=0.1, adversary=0.3),
)


class Maps(Source):
    """Features (256, 4, 4) for a network whose blocks 4 and 5 are trained: 30 films a step cost little."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__(stop_after)
        self.features = np.random.default_rng(4).random((FILMS, 256, 4, 4), dtype=np.float32)


@pytest.fixture(scope="module")
def network() -> Callable[[], Any]:
    base = build(classes=CLASSES, head="gap", dropout=0.5)

    def fresh() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            base.classifier = build_head("gap", classes=CLASSES, dropout=0.5)
        return base

    return fresh


def run(network: Callable[[], Any], folder: Path, recipe: Recipe, **changes: Any) -> list[dict[str, float]]:
    source = changes.pop("source", None) or Source()
    data = TrainingData(
        targets=changes.pop("targets", TARGETS),
        train=TRAIN,
        validation=VALIDATION,
        train_features=lambda epoch: source,
        validation_features=source,
        sources=SOURCES,
    )
    options: dict[str, Any] = {"key": "k", "seed": 7} | changes
    return fit(
        network(),
        data,
        recipe,
        labels=LABELS,
        size=224,
        engine=ENGINE,
        last=folder / "last.safetensors",
        best=folder / "best.safetensors",
        history=folder / "history.csv",
        **options,
    )


def result(folder: Path) -> tuple[Any, ...]:
    """Everything that a training leaves, the seconds left out."""
    rows = list(csv.DictReader((folder / "history.csv").open()))
    tensors, header = load_tensors(folder / "last.safetensors")
    last = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    header["history"] = [{k: v for k, v in row.items() if k != "seconds"} for row in header["history"]]
    header["sums"].pop("seconds")
    for row in rows:
        del row["seconds"]
    return (folder / "best.safetensors").read_bytes(), last, header, rows


def test_it_learns_and_keeps_the_best_epoch(network: Callable[[], Any], tmp_path: Path) -> None:
    history = run(network, tmp_path, dataclasses.replace(RECIPE, epochs=8))
    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["train_accuracy"] > 0.8
    scores = [row["validation_macro_f1"] for row in history]
    assert max(scores) > 0.5
    # Equal is not better: the first of the best epochs is kept.
    _, config = load_model(tmp_path / "best.safetensors")
    assert config.epoch == 1 + scores.index(max(scores))
    written = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [float(row["validation_loss"]) for row in written] == pytest.approx(
        [row["validation_loss"] for row in history], rel=1e-5
    )


def test_the_best_model_gives_the_validation_figures_of_its_epoch(network: Callable[[], Any], tmp_path: Path) -> None:
    history = run(network, tmp_path, ALL_AT_ONCE)
    model, config = load_model(tmp_path / "best.safetensors")
    p = probabilities(split_at(model, "head")[1].eval(), Source(), VALIDATION, engine=ENGINE)
    row = history[config.epoch - 1]
    assert (p.argmax(1) == TARGETS[VALIDATION]).mean() == row["validation_accuracy"]
    loss = -np.log(p[np.arange(len(p)), TARGETS[VALIDATION]]).mean()
    assert loss == pytest.approx(row["validation_loss"], rel=1e-6)


def test_every_training_film_is_seen_once_an_epoch_and_no_test_film_ever(
    network: Callable[[], Any], tmp_path: Path
) -> None:
    source = Source()
    run(network, tmp_path, PLAIN, source=source)
    assert {source.asked[row] for row in TRAIN} == {PLAIN.epochs + 1}, "once for the standardisation, once an epoch"
    assert {source.asked[row] for row in VALIDATION} == {PLAIN.epochs}
    assert not any(source.asked[row] for row in TEST)


def test_labels_of_films_that_are_not_for_training_change_no_weight(network: Callable[[], Any], tmp_path: Path) -> None:
    others = TARGETS.copy()
    others[VALIDATION] = (others[VALIDATION] + 1) % CLASSES
    others[TEST] = 0
    for name, targets in (("a", TARGETS), ("b", others)):
        run(network, tmp_path / name, RECIPE, targets=targets)
    one, other = (result(tmp_path / name)[1] for name in "ab")
    assert one == other


@pytest.mark.parametrize("recipe", [PLAIN, ALL_AT_ONCE], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("stop_after", [0, 1, 3, 5, 6, 13], ids=lambda calls: f"after {calls}")
def test_a_training_stopped_anywhere_goes_on_to_the_same_bytes(
    network: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe, stop_after: int
) -> None:
    run(network, tmp_path / "whole", recipe)
    monkeypatch.setattr(fitting, "SAVE_EVERY_S", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(network, tmp_path / "cut", recipe, source=Source(stop_after=stop_after))
    torch.manual_seed(99)
    source = Source()
    run(network, tmp_path / "cut", recipe, source=source)
    assert result(tmp_path / "cut") == result(tmp_path / "whole")
    if stop_after > 1:
        assert source.calls < 1 + recipe.epochs * 5, "what was saved was not done again"


def test_a_finished_training_is_not_done_again(network: Callable[[], Any], tmp_path: Path) -> None:
    first = run(network, tmp_path, PLAIN)
    before = result(tmp_path)
    source = Source()
    assert run(network, tmp_path, PLAIN, source=source) == first
    assert source.calls == 0
    assert result(tmp_path) == before


def test_seed_decides(network: Callable[[], Any], tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        run(network, tmp_path / name, ALL_AT_ONCE, seed=seed)
    a, b, c = (result(tmp_path / name) for name in "abc")
    assert a == b
    assert a[1] != c[1]


def test_training_leaves_the_callers_random_numbers_alone(network: Callable[[], Any], tmp_path: Path) -> None:
    net = network()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    run(lambda: net, tmp_path, ALL_AT_ONCE)
    assert torch.equal(torch.rand(1), expected)


def test_the_state_of_another_training_is_refused(network: Callable[[], Any], tmp_path: Path) -> None:
    run(network, tmp_path, PLAIN)
    with pytest.raises(UserError, match="must belong to this training, found the state of another"):
        run(network, tmp_path, PLAIN, key="other")


def test_a_loss_that_is_not_finite_is_one_line_and_keeps_what_was_saved(
    network: Callable[[], Any], tmp_path: Path
) -> None:
    run(network, tmp_path, dataclasses.replace(PLAIN, epochs=1))
    saved = (tmp_path / "last.safetensors").read_bytes()
    source = Source()
    source.features[TRAIN[5]] = np.nan
    with pytest.raises(UserError) as caught:
        run(network, tmp_path, PLAIN, source=source)
    assert "must stay finite, found the loss" in str(caught.value)
    assert "in epoch 2, step " in str(caught.value)
    assert "lower head_rate" in str(caught.value)
    assert (tmp_path / "last.safetensors").read_bytes() == saved


def test_the_average_is_what_is_validated_and_the_training_goes_on_without_it(
    network: Callable[[], Any], tmp_path: Path
) -> None:
    run(network, tmp_path, dataclasses.replace(RECIPE, epochs=1, ema=0.9))
    run(network, tmp_path / "without", dataclasses.replace(RECIPE, epochs=1, ema=0.0))
    tensors, _ = load_tensors(tmp_path / "last.safetensors")
    without, _ = load_tensors(tmp_path / "without" / "last.safetensors")
    weight = "classifier.3.weight"
    assert torch.equal(tensors[f"model.{weight}"], without[f"model.{weight}"])
    best, _ = load_model(tmp_path / "best.safetensors")
    assert torch.equal(best.state_dict()[weight], tensors[f"average.{weight}"])
    assert not torch.equal(tensors[f"average.{weight}"], tensors[f"model.{weight}"])


def test_shuffled_films_have_their_own_probabilities() -> None:
    _, trainable = split_at(build(classes=CLASSES, head="gap", dropout=0.5), "head")
    trainable.eval()
    rows = np.random.default_rng(0).permutation(FILMS)
    shuffled = probabilities(trainable, Source(), rows, engine=ENGINE)
    ordered = probabilities(trainable, Source(), np.arange(FILMS), engine=ENGINE)
    np.testing.assert_allclose(shuffled, ordered[rows], atol=1e-6)
    np.testing.assert_allclose(ordered.sum(1), 1, atol=1e-12)


def test_class_weights_have_their_closed_forms() -> None:
    targets = np.repeat([0, 1, 2], [100, 25, 4])
    np.testing.assert_allclose(class_weights(targets, classes=3, kind="none"), [1, 1, 1])
    # balanced: films / (classes * films of the class), as scikit-learn has it.
    np.testing.assert_allclose(
        class_weights(targets, classes=3, kind="balanced"), [129 / 300, 129 / 75, 129 / 12], rtol=1e-12
    )
    # sqrt: proportional to 1/10, 1/5, 1/2, and sum over the films (10 + 5 + 2) scaled to their number.
    np.testing.assert_allclose(
        class_weights(targets, classes=3, kind="sqrt"), np.array([0.1, 0.2, 0.5]) * 129 / 17, rtol=1e-12
    )
    for kind in ("none", "sqrt", "balanced"):
        assert class_weights(targets, classes=3, kind=kind)[targets].mean() == pytest.approx(1)
        assert np.isfinite(class_weights(targets, classes=4, kind=kind)).all()


def test_the_rate_warms_up_and_ends_near_zero() -> None:
    recipe = dataclasses.replace(RECIPE, schedule="one-cycle", warmup=0.1)
    factors = [rate_factor(recipe, step, 1000) for step in range(1000)]
    np.testing.assert_allclose(factors[:100], (np.arange(100) + 1) / 100)
    assert max(factors) == factors[100] == 1
    assert factors[100:] == sorted(factors[100:], reverse=True)
    assert factors[550] == pytest.approx(0.5)
    assert 0 <= factors[-1] < 1e-5
    assert {rate_factor(PLAIN, step, 1000) for step in range(1000)} == {1.0}
    for warmup in (0.0, 1.0):
        edge = dataclasses.replace(recipe, warmup=warmup)
        assert all(0 < rate_factor(edge, step, steps) <= 1 for steps in (1, 2, 7) for step in range(steps))


def test_the_rates_are_those_of_the_recipe(network: Callable[[], Any], tmp_path: Path) -> None:
    history = run(network, tmp_path, RECIPE)
    steps = RECIPE.epochs * math.ceil(len(TRAIN) / RECIPE.batch)
    last_step = 2 * math.ceil(len(TRAIN) / RECIPE.batch) - 1
    assert history[1]["learning_rate"] == pytest.approx(RECIPE.head_rate * rate_factor(RECIPE, last_step, steps))


# -- stages


def test_each_block_has_its_own_rate_and_its_first_epoch() -> None:
    _, trainable = split_at(build(classes=CLASSES, head="gap", dropout=0.0), "block3")
    recipe = dataclasses.replace(
        RECIPE,
        train_from="block3",
        epochs=20,
        head_rate=1e-2,
        base_rate=1e-3,
        rate_decay=0.5,
        head_epochs=2,
        unfreeze=3,
    )
    groups = parameter_groups(trainable, recipe)
    assert [group["rate"] for group in groups] == [2.5e-4, 5e-4, 1e-3, 1e-2]
    assert [group["first_epoch"] for group in groups] == [8, 5, 2, 0]
    # Configuration D: three convolutions in each of the blocks 3 to 5, one dense layer in the head.
    assert [len(group["params"]) for group in groups] == [6, 6, 6, 2]
    assert sum(len(group["params"]) for group in groups) == len(list(trainable.parameters()))
    # Of four blocks the last is the fourth.
    _, trainable = split_at(build(classes=CLASSES, head="gap", dropout=0.0, blocks=4), "block3")
    groups = parameter_groups(trainable, dataclasses.replace(recipe, blocks=4))
    assert [group["rate"] for group in groups] == [5e-4, 1e-3, 1e-2]
    assert [group["first_epoch"] for group in groups] == [5, 2, 0]


@pytest.mark.slow
def test_blocks_hold_still_until_it_is_their_turn(network: Callable[[], Any], tmp_path: Path) -> None:
    saved = []
    for epochs in (1, 2, 3):
        folder = tmp_path / str(epochs)
        net = network()
        start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        recipe = dataclasses.replace(STAGED, head_epochs=1, epochs=4)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fitting._Loop, "is_over", lambda self, last=epochs: self.epoch >= last)
            run(lambda net=net: net, folder, recipe, source=Maps())
        tensors, _ = load_tensors(folder / "last.safetensors")
        changed = {
            name
            for name in start
            if f"model.{name}" in tensors and not torch.equal(tensors[f"model.{name}"], start[name])
        }
        saved.append({name.rpartition(".")[0] for name in changed if name.endswith("weight")})
        net.load_state_dict(start)
    block4, block5 = ({f"features.{number}" for number in numbers} for numbers in ((17, 19, 21), (24, 26, 28)))
    assert saved == [{"classifier.3"}, {"classifier.3"} | block5, {"classifier.3"} | block5 | block4]


def test_a_block_that_is_unfrozen_late_warms_up_from_there(network: Callable[[], Any], tmp_path: Path) -> None:
    recipe = dataclasses.replace(STAGED, epochs=10, warmup=0.2, head_epochs=4, train_from="block5", unfreeze=0)
    _, trainable = split_at(network(), "block5")
    data = TrainingData(
        targets=TARGETS,
        train=TRAIN,
        validation=VALIDATION,
        train_features=lambda epoch: Maps(),
        validation_features=Maps(),
    )
    loop = fitting._Loop(
        trainable, data, recipe, classes=CLASSES, seed=7, key="k", engine=ENGINE, last=tmp_path / "last", cycles=(10,)
    )
    # 2 steps an epoch, 20 in all, 4 of them warm up.
    factors = []
    for loop.epoch in range(10):
        factors += [loop._rate_factor(step, since=4) for step in range(2)]
    expected = [rate_factor(recipe, step, 20) * min(1.0, (step - 8 + 1) / 4) for step in range(20)]
    assert factors[8:] == pytest.approx(expected[8:])
    assert factors[8] == pytest.approx(rate_factor(recipe, 8, 20) / 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "stop_after"), [(STAGED, 5), (STAGED, 10), (RESISTING, 7)], ids=["staged 5", "staged 10", "resisting 7"]
)
def test_a_staged_training_stopped_anywhere_goes_on_to_the_same_bytes(
    network: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe, stop_after: int
) -> None:
    weights = {name: tensor.clone() for name, tensor in network().state_dict().items()}

    def fresh() -> Any:
        net = network()
        net.load_state_dict(weights)
        return net

    run(fresh, tmp_path / "whole", recipe, source=Maps())
    monkeypatch.setattr(fitting, "SAVE_EVERY_S", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(fresh, tmp_path / "cut", recipe, source=Maps(stop_after=stop_after))
    run(fresh, tmp_path / "cut", recipe, source=Maps())
    assert result(tmp_path / "cut") == result(tmp_path / "whole")


def test_balanced_sampling_draws_every_class_alike(network: Callable[[], Any], tmp_path: Path) -> None:
    targets = np.zeros(FILMS, dtype=np.int64)
    targets[TRAIN[50:]], targets[VALIDATION[:3]] = 1, 1
    targets[TRAIN[:5]], targets[VALIDATION[3:6]] = 2, 2
    source = Source()
    run(network, tmp_path, dataclasses.replace(PLAIN, epochs=50, sampling="balanced"), source=source, targets=targets)
    # 50 epochs of 60 draws; each film is asked for once more, for the standardisation.
    drawn = [sum(source.asked[row] - 1 for row in TRAIN if targets[row] == label) for label in range(CLASSES)]
    assert sum(drawn) == 3000
    # Binomial(3000, 1/3) has a standard deviation of 26.
    assert all(abs(count - 1000) < 4 * 26 for count in drawn)


# -- when it ends, and when it goes on


def test_it_stops_when_validation_has_not_risen_for_so_many_epochs(
    network: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = [0.2, 0.5, 0.4, 0.5, 0.3, 0.9, 0.9]

    def validated(loop: Any) -> dict[str, float]:
        return {"validation_loss": 1.0, "validation_accuracy": 0.5, "validation_macro_f1": scores[loop.epoch]}

    monkeypatch.setattr(fitting._Loop, "_validate", validated)
    history = run(network, tmp_path, dataclasses.replace(RECIPE, epochs=7, patience=3))
    assert len(history) == 5, "equal is not better"
    assert "stopped: validation macro_f1 has not risen for 3 epochs" in capsys.readouterr().out
    assert load_model(tmp_path / "best.safetensors")[1].epoch == 2
    assert run(network, tmp_path, dataclasses.replace(RECIPE, epochs=7, patience=3)) == history
    # Patience begins where the last block is unfrozen.
    late = dataclasses.replace(STAGED, epochs=7, train_from="block5", head_epochs=3, unfreeze=0, patience=2)
    maps = Maps()
    maps.features = np.repeat(maps.features, 2, axis=1)[:, :, :2, :2]
    assert len(run(network, tmp_path / "late", late, source=maps)) == 5


def test_a_training_given_more_epochs_goes_on_with_a_new_cycle(network: Callable[[], Any], tmp_path: Path) -> None:
    short, long = dataclasses.replace(ALL_AT_ONCE, epochs=3), dataclasses.replace(ALL_AT_ONCE, epochs=7)
    first = run(network, tmp_path / "two", short, key="short")
    both = run(network, tmp_path / "two", long, key="long", cycles=(3, 7), continues=("short",))
    assert both[:3] == first
    assert [row["epoch"] for row in both] == list(range(1, 8))
    rates = [row["learning_rate"] for row in both]
    assert rates[2] < 1e-4 < rates[3], "the rate had come down to nothing, and warms up again"
    assert rates[3:] == sorted(rates[3:], reverse=True)
    # Planned so from the beginning it is the same, byte for byte.
    run(network, tmp_path / "one", long, key="long", cycles=(3, 7))
    assert result(tmp_path / "one") == result(tmp_path / "two")
    with pytest.raises(UserError, match="found the state of another"):
        run(network, tmp_path / "two", short, key="short")


def test_more_epochs_for_a_training_that_stopped_early_begin_where_it_stopped(
    network: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fitting._Loop,
        "_validate",
        lambda loop: dict.fromkeys(("validation_loss", "validation_accuracy", "validation_macro_f1"), 0.5),
    )
    recipe = dataclasses.replace(RECIPE, epochs=6, patience=2)
    assert len(run(network, tmp_path, recipe, key="a")) == 3
    more = dataclasses.replace(recipe, epochs=8)
    history = run(network, tmp_path, more, key="b", cycles=(6, 8), continues=("a",))
    assert len(history) == 5, "a new cycle has its patience anew"
