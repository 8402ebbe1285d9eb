"""The loop that fits the trainable part: setup, epochs, validation, checkpoints.

Everything random in a step follows from (seed, epoch, step), and the state is saved whole, so that a training which is
killed at any moment and resumed ends with the same bytes as one that was not (same machine, same engine).

Several ranks take a part of each step's films. What is random in a step is drawn for all of its films by each of them,
the loss is weighted over all, and gradients are added up: the step is the one that a single process would have made.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray import ranks
from vgg16_xray.config import Recipe
from vgg16_xray.errors import UserError
from vgg16_xray.files import write_text
from vgg16_xray.learn import resist
from vgg16_xray.learn.checkpoint import ModelConfig, load_exactly, load_tensors, save_model, save_tensors
from vgg16_xray.learn.devices import compiled, put
from vgg16_xray.progress import progress

if TYPE_CHECKING:
    import torch

    from vgg16_xray.learn.engines import Engine
    from vgg16_xray.learn.features import FeatureSource
    from vgg16_xray.learn.probe import Probe
    from vgg16_xray.learn.vgg16 import VGG16

#: Seconds between two saved states inside an epoch: what a kill can cost.
SAVE_EVERY_S = 60.0
#: Seconds between two looks at the running sums: each makes the host wait for the device.
LOOK_EVERY_S = 10.0
#: Training films that the head's standardisation is taken from: their mean is known to a fortieth of a deviation.
STANDARD_FILMS = 2048
#: Films that are validated together.
VALIDATION_BATCH = 64
HISTORY = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "validation_macro_f1",
    "learning_rate",
    "seconds",
)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Films to learn from and to choose by."""

    #: (N,) int64, class of every film in the store.
    targets: np.ndarray
    #: (n,) rows of the films to learn from.
    train: np.ndarray
    #: (m,) rows of the films that choose the epoch.
    validation: np.ndarray
    #: Gives the features of training films in an epoch, counted from 0.
    train_features: Callable[[int], FeatureSource]
    validation_features: FeatureSource
    #: (N,) int64, source of every film, for :class:`vgg16_xray.config.Resist`; None: not known.
    sources: np.ndarray | None = None


def fit(
    model: VGG16,
    data: TrainingData,
    recipe: Recipe,
    *,
    labels: Sequence[str],
    size: int,
    seed: int,
    key: str,
    engine: Engine,
    last: Path,
    best: Path,
    history: Path,
    cycles: Sequence[int] = (),
    continues: Collection[str] = (),
    probe: Probe | None = None,
) -> list[dict[str, float]]:
    """Fit the trainable part of a model; go on from `last` where an earlier call stopped.

    Args:
        model: The network; its trainable part is changed in place.
        data: What to learn from.
        recipe: How.
        labels: (K,) names of the classes, in the order of the targets.
        size: Side of a film, pixels; stored with the model.
        seed: Seed of the order, the augmentation and the dropout.
        key: Tells everything that the result depends on; a saved state with another key is refused.
        engine: Number format.
        last: Where the state is saved, every epoch and every minute.
        best: Where the model of the best epoch is saved.
        history: Where a row an epoch is written, CSV.
        cycles: Epochs at which each cycle of the schedule ends, ascending, the last being `recipe.epochs`: a training
            that was given more epochs after it had ended begins another cycle, as SGDR does (Loshchilov & Hutter 2017).
            Empty: a single cycle.
        continues: Keys of trainings that this one goes on from: the same with fewer cycles.
        probe: Kept with the model, see :mod:`vgg16_xray.learn.probe`.

    Returns:
        The rows of the history.

    Raises:
        UserError: The state does not belong to this training, the loss is not finite, the disk is full, or the recipe
            asks for what the data do not tell.
    """
    import torch

    from vgg16_xray.learn.engines import settle_vector_math
    from vgg16_xray.learn.vgg16 import split_at

    settle_vector_math()
    _, trainable = split_at(model, recipe.train_from)
    loop = _Loop(
        trainable,
        data,
        recipe,
        classes=len(labels),
        seed=seed,
        key=key,
        engine=engine,
        last=last,
        cycles=tuple(cycles) or (recipe.epochs,),
    )
    if ranks.agree(last.exists()):
        loop.resume({key, *continues})
        if ranks.first() and loop.history and not history.exists():
            _write_history(history, loop.history)
    else:
        _measure_standard(trainable, data, seed=seed, engine=engine)
    with torch.random.fork_rng(devices=[loop.device] if loop.device.type == "cuda" else []):
        while not loop.is_over():
            row = loop.run_epoch()
            if ranks.first() and loop.is_best(row):
                config = ModelConfig(
                    labels=tuple(labels),
                    head=recipe.head,
                    train_from=recipe.train_from,
                    preprocessing=recipe.preprocessing,
                    dropout=recipe.dropout,
                    blocks=recipe.blocks,
                    size=size,
                    engine=engine.name,
                    epoch=loop.epoch + 1,
                    recipe=recipe.name,
                )
                with loop.averaged_weights():
                    save_model(best, model, config, probe)
            # History and best model first: if the state is not saved, the epoch is run again and they are the same.
            if ranks.first():
                _write_history(history, [*loop.history, row])
            loop.finish_epoch(row)
    return loop.history


def class_weights(targets: np.ndarray, *, classes: int, kind: str) -> np.ndarray:
    """Weight of each class in the loss, scaled so that the mean over the films is 1.

    Args:
        targets: (n,) int, classes of the training films.
        classes: K.
        kind: ``none``, ``sqrt`` or ``balanced``, see :class:`vgg16_xray.config.Recipe`.

    Returns:
        (K,) float64.
    """
    counts = np.bincount(targets, minlength=classes).clip(min=1)
    weights = counts ** -{"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[kind]
    scaled: np.ndarray = weights * counts.sum() / (weights * counts).sum()
    return scaled


def rate_factor(recipe: Recipe, step: int, steps: int) -> float:
    """Factor on the learning rates at a step of a cycle of so many steps, 0 to 1, after the recipe's schedule."""
    if recipe.schedule == "constant":
        return 1.0
    warm = max(1, round(recipe.warmup * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def parameter_groups(trainable: torch.nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters that learn alike: a group a block of the base, first to last, and the head's.

    Args:
        trainable: What stands on the frozen part; the base's parameters begin with ``features.`` and their number.
        recipe: ``head_rate``, ``base_rate``, ``rate_decay``, ``head_epochs`` and ``unfreeze``.

    Returns:
        Groups for an optimizer, each with ``rate``, the highest learning rate, and ``first_epoch``, counted from 0.
    """
    from vgg16_xray.learn.vgg16 import block_of

    named: dict[int, list[torch.nn.Parameter]] = {}
    for name, parameter in trainable.named_parameters():
        named.setdefault(block_of(name), []).append(parameter)
    blocks = sorted(named)
    head, last = blocks[-1], recipe.blocks
    return [
        {
            "params": named[block],
            "rate": recipe.head_rate if block == head else recipe.base_rate * recipe.rate_decay ** (last - block),
            "first_epoch": 0 if block == head else recipe.head_epochs + recipe.unfreeze * (last - block),
        }
        for block in blocks
    ]


def probabilities(
    trainable: torch.nn.Module,
    source: FeatureSource,
    rows: np.ndarray,
    *,
    engine: Engine,
    description: str | None = None,
) -> np.ndarray:
    """Softmax of the logits of films. A film's row in the answer is its place in `rows`: order changes nothing else.

    Ranks share the films and each gets all the answers.

    Args:
        trainable: What stands on the frozen part, in evaluation mode.
        source: Gives the features.
        rows: (n,) int, films.
        engine: Number format.
        description: Shown as a progress bar; None shows none.

    Returns:
        (n, K) float64, rows summing to 1.
    """
    import contextlib

    import torch

    bar = progress(description, total=len(rows)) if description else contextlib.nullcontext()
    with bar as counter, torch.no_grad():

        def answer(chunk: np.ndarray) -> torch.Tensor:
            logits = forward(trainable, source.take(chunk), engine)
            if counter is not None:
                counter.advance(min(len(chunk) * ranks.size(), len(rows) - counter.done))
            return logits

        chunks = [rows[start : start + VALIDATION_BATCH] for start in range(0, len(rows), VALIDATION_BATCH)]
        # Brought to the host when all are under way: a GPU does not wait between two chunks.
        mine = [answer(chunk) for chunk in ranks.mine_of(chunks)]
        answers = ranks.all_of([torch.softmax(logits.cpu().double(), dim=1).numpy() for logits in mine])
        return np.concatenate(answers)


def forward(trainable: torch.nn.Module, features: torch.Tensor, engine: Engine) -> torch.Tensor:
    """Features (B, C, h, w) -> logits (B, K) float32, convolutions in the engine's number format."""
    import torch

    if engine.dtype == torch.float32:
        logits: torch.Tensor = trainable(features.float())
        return logits
    with torch.autocast(features.device.type, engine.dtype):
        logits = trainable(features)
    return logits.float()


def _measure_standard(trainable: torch.nn.Module, data: TrainingData, *, seed: int, engine: Engine) -> None:
    """Give the head's standardisation, where it has one, the scale of the training films' features."""
    import torch

    from vgg16_xray.learn.heads import Standardise

    layer = next((module for module in trainable.modules() if isinstance(module, Standardise)), None)
    if layer is None:
        return
    drawn = np.random.default_rng([seed, len(data.train)]).permutation(data.train)[:STANDARD_FILMS]
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    try:
        probabilities(trainable.eval(), data.train_features(0), drawn, engine=engine, description="standardise")
    finally:
        handle.remove()
    layer.measure(torch.cat(ranks.all_of([features.cpu() for features in seen])))


class _Loop:
    """The state of a training and one epoch of it."""

    def __init__(
        self,
        trainable: torch.nn.Module,
        data: TrainingData,
        recipe: Recipe,
        *,
        classes: int,
        seed: int,
        key: str,
        engine: Engine,
        last: Path,
        cycles: tuple[int, ...],
    ) -> None:
        import torch

        from vgg16_xray.learn.heads import Dropout

        self.trainable, self.data, self.recipe = trainable, data, recipe
        self.seed, self.key, self.engine, self.last = seed, key, engine, last
        self.epoch = self.step = 0
        self._in_step, self._learning = trainable, list[bool]()
        #: Whether a step has shown that what should learn has a gradient.
        self._proved = False
        self.history: list[dict[str, float]] = []
        self.device = next(trainable.parameters()).device
        self._sums = {"loss": 0.0, "correct": 0.0, "films": 0.0, "seconds": 0.0}
        #: Loss and right answers of the epoch so far, on the device; looked at now and then.
        double = torch.float32 if self.device.type == "mps" else torch.float64
        self._running = torch.zeros(2, dtype=double, device=self.device)
        self._dropouts = [module for module in trainable.modules() if isinstance(module, Dropout)]
        self._steps = math.ceil(len(data.train) / recipe.batch)
        self._cycles = cycles
        #: Epochs, counted from 0, at which the cycles began. A cycle that was stopped early lets the next begin early.
        self._began = [0]
        groups = parameter_groups(trainable, recipe)
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        on_gpu = self.device.type == "cuda"
        # Keras' Adam has epsilon 1e-7 and torch's 1e-8: without effect at these rates.
        self.optimizer = kinds[recipe.optimizer](
            groups, lr=recipe.head_rate, weight_decay=recipe.weight_decay, fused=on_gpu or None
        )
        targets = data.targets[data.train]
        self._weights = class_weights(targets, classes=classes, kind=recipe.class_weights)
        self._loss_weights = torch.from_numpy(self._weights).float().to(self.device)
        drawn = class_weights(targets, classes=classes, kind=recipe.sampling)[targets]
        self._sources = np.zeros(len(data.targets), dtype=np.int64) if data.sources is None else data.sources
        resist.check(recipe.resist, targets=targets, sources=self._sources[data.train])
        if recipe.resist.sampling != "none":
            drawn = resist.draw_weights(targets, self._sources[data.train], kind=recipe.resist.sampling)
        changed = recipe.sampling != "none" or recipe.resist.sampling != "none"
        self._drawn = drawn / drawn.sum() if changed else None
        self._robust = self._adversary = None
        if recipe.resist.group_dro:
            groups_of = resist.groups(targets, self._sources[data.train])
            self._robust = resist.GroupDRO(groups_of, step=recipe.resist.group_dro, device=self.device)
        if recipe.resist.adversary:
            self._adversary = resist.Adversary(trainable, targets, self._sources[data.train], seed=seed)
            self._adversary.to(self.device)
            self.optimizer.add_param_group(
                {"params": list(self._adversary.parameters()), "rate": recipe.head_rate, "first_epoch": 0}
            )
        self._average = {name: p.detach().clone() for name, p in trainable.named_parameters()} if recipe.ema else {}

    def learn(self) -> None:
        """Take the steps of this epoch that are left."""
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.data.train)
        if self._drawn is not None:
            order = rng.choice(self.data.train, size=len(self.data.train), p=self._drawn)
        self._unfreeze()
        source = self.data.train_features(self.epoch)
        learning = [parameter.requires_grad for parameter in self.trainable.parameters()]
        if learning != self._learning:  # gradients are added up of what learns when this is put together
            steps = (self.recipe.epochs - self.epoch) * self._steps
            self._in_step = ranks.in_step(self.trainable)
            if self._adversary is None:  # which looks into it
                self._in_step = compiled(self._in_step, self.device, steps=steps)
            self._learning, self._proved = learning, False
        saved = started = looked = time.monotonic()
        note = ""
        self.trainable.train()
        title = f"epoch {self.epoch + 1} of {self.recipe.epochs}"
        with progress(title, total=len(order)) as bar:
            bar.start_at(min(self.step * self.recipe.batch, len(order)))
            while self.step < self._steps:
                rows = order[self.step * self.recipe.batch : (self.step + 1) * self.recipe.batch]
                self._train_step(source, rows)
                self.step += 1
                if time.monotonic() - looked > LOOK_EVERY_S:
                    self._look()
                    looked, films = time.monotonic(), self._sums["films"]
                    note = f"loss {self._sums['loss'] / films:.4f}, accuracy {self._sums['correct'] / films:.4f}"
                bar.advance(len(rows), note=note)
                if ranks.agree(time.monotonic() - saved > SAVE_EVERY_S):
                    self._sums["seconds"] += time.monotonic() - started
                    saved = started = time.monotonic()
                    self.save()
        self._look()
        self._sums["seconds"] += time.monotonic() - started

    def run_epoch(self) -> dict[str, float]:
        self.learn()
        started = time.monotonic()
        measured = self._validate()
        films = self._sums["films"]
        row = {
            "epoch": self.epoch + 1,
            "train_loss": self._sums["loss"] / films,
            "train_accuracy": self._sums["correct"] / films,
            **measured,
            # Of the last step. The optimizer is not asked: one that resumes behind that step has set no rate yet.
            "learning_rate": self.recipe.head_rate * self._rate_factor(self._steps - 1),  # of the head
            "seconds": self._sums["seconds"] + time.monotonic() - started,
        }
        print(
            f"epoch {row['epoch']:>2} of {self.recipe.epochs}   train loss {row['train_loss']:.4f} accuracy "
            f"{row['train_accuracy']:.4f}   validation loss {row['validation_loss']:.4f} accuracy "
            f"{row['validation_accuracy']:.4f} macro-F1 {row['validation_macro_f1']:.4f}   {row['seconds']:.0f} s",
            flush=True,
        )
        return row

    def _train_step(self, source: FeatureSource, rows: np.ndarray) -> None:
        import torch
        from torch.nn.functional import cross_entropy

        total = self.epoch * self._steps + self.step
        torch.manual_seed(_step_seed(self.seed, total))
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * self._rate_factor(self.step, since=group["first_epoch"])
        how, sources = self.recipe.resist, self._sources[rows]
        share, partner = draw_mixup(self.recipe.mixup, len(rows), apart=sources if how.mixup_across else None)
        styles = resist.draw_mixstyle(how.mixstyle, len(rows))
        mine = ranks.part_of(len(rows))
        # A rank for which no film is left steps with the others, on a film without weight.
        counts = mine.start < mine.stop
        held = mine if counts else slice(1)
        for module in self._dropouts:
            module.draw_for(len(rows), held)
        features = _mixed(source, rows, held, (share, partner), styles)
        logits = forward(self._in_step, features.contiguous(memory_format=torch.channels_last), self.engine)
        answers = logits.detach().argmax(1)
        loss = correct = each = torch.zeros((), device=self.device)
        for part, classes in ((share, self.data.targets[rows]), (1 - share, self.data.targets[rows[partner]])):
            if part:
                weights = self._weights[classes]
                # Of the mean over the step's films, weighted: what this rank's films contribute, times the ranks, of
                # whose gradients the mean is taken. Alone: 1.
                of_all = ranks.size() * weights[mine].sum() / weights.sum()
                targets = put(classes[held], self.device)
                if self._robust is None:
                    loss = loss + part * of_all * cross_entropy(
                        logits, targets, weight=self._loss_weights, label_smoothing=self.recipe.label_smoothing
                    )
                else:
                    each = each + part * cross_entropy(
                        logits, targets, reduction="none", label_smoothing=self.recipe.label_smoothing
                    )
                correct = correct + part * counts * (answers == targets).sum()
        if self._robust is not None:
            loss = self._robust(each, self.data.targets[rows], sources)
        if self._adversary is not None:
            loss = loss + self._adversary(self.data.targets[rows], sources, weight=how.adversary)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if not self._proved:
            self._prove()
        self.optimizer.step()
        if self._average:
            # A young average would remember the random start; it grows into its decay.
            decay = min(self.recipe.ema, (1 + total) / (10 + total))
            with torch.no_grad():
                torch._foreach_lerp_(list(self._average.values()), list(self.trainable.parameters()), 1 - decay)
        step = torch.stack((loss.detach(), correct)).to(self._running)
        step[0] *= len(rows) / ranks.size()
        self._running += ranks.add_up(step)
        self._sums["films"] += len(rows)

    def _prove(self) -> None:
        """Refuse to train what gets no gradient, which a compiler that remembers a frozen layer gave once.

        Raises:
            RuntimeError: There is such a layer.
        """
        still = [name for name, p in self.trainable.named_parameters() if p.requires_grad and p.grad is None]
        if still:
            raise RuntimeError(f"must learn and have no gradient: {', '.join(still)}; this is a fault of the program")
        self._proved = True

    def _unfreeze(self) -> None:
        """Let learn what this epoch trains; what rests costs no backward pass, and AdamW does not let it decay."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.requires_grad_(self.epoch >= group["first_epoch"])

    def _rate_factor(self, step: int, since: int = 0) -> float:
        """Factor on a rate in a step of this epoch; parameters that learn since an epoch warm up from there."""
        began, ends = self._began[-1], self._cycles[len(self._began) - 1]
        steps = (ends - began) * self._steps
        factor = rate_factor(self.recipe, (self.epoch - began) * self._steps + step, steps)
        if self.recipe.schedule == "constant" or since <= began:
            return factor
        warm = max(1, round(self.recipe.warmup * steps))
        return factor * min(1.0, ((self.epoch - since) * self._steps + step + 1) / warm)

    def _look(self) -> None:
        """Bring the running sums to the host, which waits for the device.

        Raises:
            UserError: The loss is not finite. No state of such weights is ever saved.
        """
        self._sums["loss"], self._sums["correct"] = self._running.tolist()
        if not math.isfinite(self._sums["loss"]):
            raise self._not_finite("loss")

    def _validate(self) -> dict[str, float]:
        from sklearn.metrics import f1_score, log_loss

        self.trainable.eval()
        rows = self.data.validation
        with self.averaged_weights():
            p = probabilities(self.trainable, self.data.validation_features, rows, engine=self.engine)
        if not np.isfinite(p).all():
            raise self._not_finite("probabilities of the validation films")
        truth, answers = self.data.targets[rows], p.argmax(1)
        return {
            "validation_loss": float(log_loss(truth, p, labels=range(p.shape[1]))),
            "validation_accuracy": float((answers == truth).mean()),
            "validation_macro_f1": float(f1_score(truth, answers, average="macro", zero_division=0)),
        }

    def _not_finite(self, what: str) -> UserError:
        return UserError(
            f"training: must stay finite, found the {what} infinite or not a number in epoch {self.epoch + 1}, step "
            f"{min(self.step + 1, self._steps)}",
            hint="lower head_rate and base_rate in the recipe; the epochs before are kept",
        )

    def averaged_weights(self) -> _Swap:
        """Context in which the trainable part has its averaged weights, where the recipe keeps an average."""
        return _Swap(self.trainable, self._average)

    def is_best(self, row: dict[str, float]) -> bool:
        value = f"validation_{self.recipe.select}"
        # Equal is not better: the earlier epoch has seen less of the data.
        return all(row[value] > earlier[value] for earlier in self.history)

    def finish_epoch(self, row: dict[str, float]) -> None:
        self.history.append(row)
        self.epoch, self.step = self.epoch + 1, 0
        self._sums = dict.fromkeys(self._sums, 0.0)
        self._running.zero_()
        self.save()
        if self._cycle_is_over() and self.epoch < self._cycles[len(self._began) - 1]:
            print(f"stopped: validation {self.recipe.select} has not risen for {self.recipe.patience} epochs")

    def is_over(self) -> bool:
        """Whether the last cycle is; a cycle that is over lets the next begin."""
        while self._cycle_is_over():
            if len(self._began) == len(self._cycles):
                return True
            self._began.append(self.epoch)
        return False

    def _cycle_is_over(self) -> bool:
        if self.epoch >= self._cycles[len(self._began) - 1]:
            return True
        values = [row[f"validation_{self.recipe.select}"] for row in self.history]
        # Patience begins anew with each cycle, and not before every block of the base learns.
        first = max(self._began[-1], *(int(group["first_epoch"]) for group in self.optimizer.param_groups))
        waited = len(values) - max(first, 1 + int(np.argmax(values))) if values else 0
        return 0 < self.recipe.patience <= waited

    def save(self) -> None:
        """Save the state; other ranks wait, outside of a step, in which they would take a slow disk for a lost rank."""
        self._look()
        ranks.by_first(self._write, lambda: None)

    def _write(self) -> None:
        tensors: dict[str, torch.Tensor] = {
            f"model.{name}": tensor for name, tensor in self.trainable.state_dict().items()
        }
        tensors |= {f"average.{name}": tensor for name, tensor in self._average.items()}
        for part, module in self._beside().items():
            tensors |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
        header: dict[str, Any] = {
            "key": self.key,
            "epoch": self.epoch,
            "step": self.step,
            "sums": self._sums,
            "began": self._began,
            "history": self.history,
        }
        save_tensors(self.last, tensors, header)

    def _beside(self) -> dict[str, torch.nn.Module]:
        """What learns beside the model and stays behind when it is saved."""
        beside = {"robust": self._robust, "adversary": self._adversary}
        return {name: module for name, module in beside.items() if module is not None}

    def resume(self, keys: Collection[str]) -> None:
        import torch

        tensors, header = load_tensors(self.last)
        if header.get("key") not in keys:
            raise UserError(f"{self.last}: must belong to this training, found the state of another")
        parts: dict[str, dict[str, torch.Tensor]] = {
            "model": {},
            "average": {},
            "optimizer": {},
            **{part: {} for part in self._beside()},
        }
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        load_exactly(self.trainable, parts["model"], where=str(self.last))
        for part, module in self._beside().items():
            load_exactly(module, parts[part], where=str(self.last))
        for name, tensor in parts["average"].items():
            self._average[name].copy_(tensor)
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            number, _, rest = name.partition(".")
            state.setdefault(int(number), {})[rest] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        for parameter, moments in self.optimizer.state.items():
            for name, tensor in moments.items():
                if tensor.shape == parameter.shape:  # in the parameter's layout, which a fused optimizer relies on
                    moments[name] = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
        self.epoch, self.step = header["epoch"], header["step"]
        self._sums, self.history, self._began = header["sums"], header["history"], header["began"]
        self._running.copy_(torch.tensor([self._sums["loss"], self._sums["correct"]], dtype=torch.float64))
        print("trained already" if self.is_over() else f"resumed at epoch {self.epoch + 1}, step {self.step}")


def draw_mixup(alpha: float, films: int, *, apart: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """Draw mixup of a step's films from torch's generator: the films' share, and (films,) whom each is mixed with.

    Args:
        alpha: Of Beta(alpha, alpha); 0: nobody is mixed.
        films: How many films the step has.
        apart: (films,) int: whom each is mixed with has another number where the step has one; None: anybody.
    """
    import torch

    if not alpha:
        return 1.0, np.arange(films)
    share, partner = float(torch.distributions.Beta(alpha, alpha).sample()), torch.randperm(films)
    if apart is not None:
        others = torch.from_numpy(apart[:, None] != apart[None, :]).float()
        some = others.any(dim=1)
        if some.any():
            partner[some] = torch.multinomial(others[some], 1)[:, 0]
    return share, partner.numpy()


def _mixed(
    source: FeatureSource,
    rows: np.ndarray,
    held: slice,
    mixup: tuple[float, np.ndarray],
    styles: tuple[np.ndarray, np.ndarray] | None,
) -> torch.Tensor:
    """Features of the films that this rank holds of a step's `rows`, mixed with partners that others may hold.

    `mixup` is what :func:`draw_mixup` drew, `styles` what :func:`vgg16_xray.learn.resist.draw_mixstyle` did.
    """
    own, (share, partner) = np.arange(len(rows))[held], mixup
    if share == 1 and styles is None:
        return source.take(rows[own])
    needed = np.union1d(own, partner[own])
    if styles is not None:
        needed = np.union1d(needed, styles[1][own])
    features = source.take(rows[needed])

    def of(places: np.ndarray) -> torch.Tensor:
        return features[put(np.searchsorted(needed, places), features.device)]

    mixed = of(own) if share == 1 else share * of(own) + (1 - share) * of(partner[own])
    return mixed if styles is None else resist.with_style_of(mixed, of(styles[1][own]), styles[0][own])


class _Swap:
    """Puts other weights into a module and the module's own back."""

    def __init__(self, module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
        self._module, self._weights = module, weights

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *_: object) -> None:
        self._exchange()

    def _exchange(self) -> None:
        for name, parameter in self._module.named_parameters():
            if name in self._weights:
                parameter.data, self._weights[name] = self._weights[name], parameter.data


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] % (2**63))


def _write_history(path: Path, rows: list[dict[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
    write_text(path, text.getvalue())
