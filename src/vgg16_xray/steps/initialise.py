"""Step 3: VGG16 with the weights of ImageNet and a new head, and what of it will be trained.

Reads ``run.toml``. Leaves the recipe, the weights' origin and the engine there, and the layer table in ``layers.json``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg16_xray.config import SEED, Recipe, recipe_from
from vgg16_xray.errors import UserError
from vgg16_xray.files import write_json
from vgg16_xray.films.decode import SIZE
from vgg16_xray.learn.devices import Device, choose_device, device_of
from vgg16_xray.learn.engines import Engine, choose, engine_from, machine_in_words, weakness
from vgg16_xray.rundir import FoldsDir, RunDir, key_of, read_config, update_config

if TYPE_CHECKING:
    from vgg16_xray.learn.vgg16 import VGG16, Layer

STEP = "initialise"
#: Raised when the same recipe on the same films would give another model than before.
TRAINING_VERSION = 4


@dataclass(frozen=True, kw_only=True)
class Initialised:
    """What step 3 found."""

    recipe: Recipe
    layers: tuple[Layer, ...]
    #: Where the base's weights come from, and the pixels that they want, in words.
    weights: str
    #: What the user should know: pixels other than the weights were trained on.
    notes: tuple[str, ...]
    engine: Engine
    device: Device


def initialise(
    run: RunDir,
    recipe: Recipe,
    *,
    weights: Path | None = None,
    engine: str = "auto",
    device: str = "auto",
    seed: int = SEED,
    resume: bool = False,
) -> Initialised:
    """Put the network together and write down what it is; where that is what stands there already, write nothing.

    Args:
        run: A run with step 2 finished.
        recipe: What to build and how to train it.
        weights: Weights of the base; None takes the packaged ones.
        engine: A name of :data:`vgg16_xray.learn.engines.ENGINES`. With ``auto``, a run that has an engine keeps it.
        device: A name of :data:`vgg16_xray.learn.devices.DEVICES`. A training may go on with another.
        seed: Seed of the head's first weights and of the training.
        resume: Refuse, before anything is written, what the run's training could not go on with.

    Raises:
        UserError: Step 2 has not finished, the weights do not fit, there is no such engine, or nothing to resume.
    """
    from vgg16_xray.learn.vgg16 import layer_table
    from vgg16_xray.learn.weights import PREPROCESSING, load_base, side_seen

    started = time.monotonic()
    run.require_step("preprocess", made_by="preprocess DATA --out")
    config = read_config(run)
    labels = config["data"]["labels"]
    recorded = config.get("engine")
    where = choose_device(device)
    chosen = choose_engine(engine, recorded=recorded, device=where, train_from=recipe.train_from, race=True)
    base = load_base(weights)
    model = assemble(recipe, classes=len(labels), weights=weights, seed=seed)
    side = side_seen(recipe.preprocessing, config["run"].get("size", SIZE))
    layers = tuple(layer_table(model, recipe.train_from, side))
    notes = []
    if not PREPROCESSING[recipe.preprocessing].prepares_for(PREPROCESSING[base.preprocessing]):
        notes.append(
            f"recipe '{recipe.name}' gives the base pixels prepared as '{recipe.preprocessing}', and its weights were "
            f"trained on '{base.preprocessing}'"
        )
    initialised = Initialised(
        recipe=recipe,
        layers=layers,
        weights=f"{base.origin}; trained on pixels prepared as '{base.preprocessing}'",
        notes=tuple(notes),
        engine=chosen,
        device=where,
    )
    decided: dict[str, dict[str, Any]] = {
        "recipe": recipe.as_dict(),
        "training": {"seed": seed, "cycles": [recipe.epochs]},
        "weights": {
            "origin": base.origin,
            "sha256": base.sha256,
            "preprocessing": base.preprocessing,
            "file": str(weights.resolve()) if weights else "",
        },
        # The reason is why it was chosen first; that it is kept because it is recorded need not be recorded.
        "engine": recorded if recorded and recorded["name"] == chosen.name else chosen.as_dict(),
        "device": {"name": where.name, "reason": where.reason},
    }
    decided["training"]["cycles"] = list(_cycles(run, config, _plan(run, config | decided)))
    if resume:
        refuse_to_resume(run, _plan(run, config | decided))
    key = key_of(recipe.as_dict(), base.sha256, chosen.name, seed, labels)
    if run.is_done(STEP, key, [run.layers]) and all(config.get(name) == decided[name] for name in decided):
        return initialised
    update_config(run, **decided, machine={"words": machine_in_words()})
    write_json(
        run.layers,
        {
            "head": recipe.head,
            "train_from": recipe.train_from,
            "blocks": recipe.blocks,
            "preprocessing": recipe.preprocessing,
            "weights": base.origin,
            "layers": [
                {
                    "name": layer.name,
                    "kind": layer.kind,
                    "output": list(layer.shape),
                    "parameters": layer.parameters,
                    "trainable": layer.trainable,
                }
                for layer in layers
            ],
        },
    )
    run.stamp(STEP, key, seconds=time.monotonic() - started)
    return initialised


def assemble(recipe: Recipe, *, classes: int, weights: Path | None, seed: int, sha256: str | None = None) -> VGG16:
    """Build the network with the base's weights and a head drawn from the seed.

    Args:
        recipe: What to build.
        classes: K.
        weights: Weights of the base; None takes the packaged ones.
        seed: Seed of the head.
        sha256: What the weights must be, where that was decided before.

    Raises:
        UserError: The weights do not fit, or are others than was decided.
    """
    import torch

    from vgg16_xray.learn.vgg16 import build
    from vgg16_xray.learn.weights import load_base

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(classes=classes, head=recipe.head, dropout=recipe.dropout, blocks=recipe.blocks)
    base = load_base(weights)
    if sha256 not in (None, base.sha256):
        raise UserError(
            f"{weights or 'the packaged weights'}: must be the weights that step 3 wrote down, found others",
            hint="run again: vgg16-xray init",
        )
    base.put_into(model)
    return model


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What ``run.toml`` says that the following steps need."""

    labels: tuple[str, ...]
    recipe: Recipe
    seed: int
    size: int
    weights: Path | None
    weights_sha256: str
    engine: Engine
    #: Where this machine computes. No model depends on it: a training goes on where there is another.
    device: Device
    fingerprint: str
    #: Epochs at which the cycles of the schedule end; more than one where a training was given more epochs later.
    cycles: tuple[int, ...]

    @property
    def key(self) -> str:
        """Tells everything that a trained model depends on."""
        return key_of(
            TRAINING_VERSION,
            self.labels,
            self.recipe.as_dict(),
            self.cycles,
            self.seed,
            self.size,
            self.weights_sha256,
            self.engine.name,
            self.fingerprint,
        )

    @property
    def continues(self) -> tuple[str, ...]:
        """Keys of the trainings that this one goes on from: the same with fewer cycles."""
        return tuple(
            replace(self, recipe=replace(self.recipe, epochs=end), cycles=self.cycles[:number]).key
            for number, end in enumerate(self.cycles[:-1], start=1)
        )


def read_plan(run: RunDir) -> Plan:
    """Read what steps 2 and 3 decided.

    Raises:
        UserError: A step has not finished, or ``run.toml`` was damaged.
    """
    run.require_step(STEP, made_by="init")
    return _plan(run, read_config(run))


def refuse_to_resume(run: RunDir, plan: Plan) -> None:
    """Refuse ``--resume`` where no training of this plan was begun.

    Raises:
        UserError: There is no saved training, or one of another plan.
    """
    from vgg16_xray.learn.checkpoint import load_header

    if not run.last.exists():
        raise UserError(f"{run.path}: --resume needs a training that was interrupted, found none")
    if load_header(run.last).get("key") not in {plan.key, *plan.continues}:
        raise UserError(
            f"{run.path}: --resume needs an interrupted training of the same data, recipe, weights, seed and engine, "
            "found one of others",
            hint="without --resume a new training begins and the old one is set aside",
        )


def _cycles(run: RunDir, config: Mapping[str, Any], wanted: Plan) -> tuple[int, ...]:
    """Cycles of a training: those of the one that was begun here, where it differs in nothing but fewer epochs."""
    from vgg16_xray.learn.checkpoint import load_header

    try:
        before = _plan(run, config)
    except UserError:
        return wanted.cycles
    if (
        replace(before, recipe=replace(before.recipe, epochs=wanted.recipe.epochs), cycles=wanted.cycles).key
        != wanted.key
    ):
        return wanted.cycles
    if before.cycles[-1] == wanted.cycles[-1]:
        return before.cycles
    begun = FoldsDir(run.path).begun()
    if run.last.exists():
        with contextlib.suppress(UserError):  # what is damaged is refused by the step that reads it
            begun |= load_header(run.last).get("key") in {before.key, *before.continues}
    return (*before.cycles, *wanted.cycles) if begun and before.cycles[-1] < wanted.cycles[-1] else wanted.cycles


def _plan(run: RunDir, config: Mapping[str, Any]) -> Plan:
    try:
        device = device_of(config.get("device"))
        recipe = recipe_from(config["recipe"], where=f"{run.config}: recipe")
        return Plan(
            labels=tuple(config["data"]["labels"]),
            recipe=recipe,
            seed=config["training"]["seed"],
            size=config["run"].get("size", SIZE),
            weights=Path(config["weights"]["file"]) if config["weights"]["file"] else None,
            weights_sha256=config["weights"]["sha256"],
            engine=choose_engine("auto", recorded=config["engine"], device=device, train_from=recipe.train_from),
            device=device,
            fingerprint=config["data"]["fingerprint"],
            cycles=tuple(config["training"]["cycles"]),
        )
    except KeyError as error:
        raise UserError(f"{run.config}: must have the value {error}, found none") from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{run.config}: must be as steps 2 and 3 wrote it, found {error}") from error


def choose_engine(
    name: str, *, recorded: dict[str, Any] | None, device: Device, train_from: str, race: bool = False
) -> Engine:
    """Choose the engine; a run goes on with the one it began with, so that its features stay comparable.

    Args:
        name: A name of :data:`vgg16_xray.learn.engines.ENGINES`.
        recorded: What ``run.toml`` says of the engine.
        train_from: What is trained.
        race: See :func:`vgg16_xray.learn.engines.choose`.

    Raises:
        UserError: There is no such engine, or what runs it is not installed.
    """
    if name != "auto" or recorded is None:
        return choose(name, device=device.name, race=race, train_from=train_from)
    engine = engine_from(recorded)
    choose(engine.name, device=device.name)  # Refuses what this machine cannot run.
    lacks = weakness(engine.name) if device.name == "cpu" else ""
    reason = f"recorded in the run: {engine.reason}" + (f"; this processor {lacks}" if lacks else "")
    return replace(engine, reason=reason)
