"""Step 3: VGG16 with the weights of ImageNet and a new head, and what of it will be trained.

Reads ``run.toml``. Leaves the recipe, the weights' origin and the engine there, and the layer table in ``layers.json``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg16_xray.config import SEED, Recipe, recipe_from
from vgg16_xray.errors import UserError
from vgg16_xray.files import write_json
from vgg16_xray.films.decode import SIZE
from vgg16_xray.learn.engines import Engine, choose, machine_in_words, processor_features
from vgg16_xray.rundir import RunDir, key_of, read_config, update_config

if TYPE_CHECKING:
    from vgg16_xray.learn.vgg16 import VGG16, Layer

STEP = "initialise"
#: Raised when the same recipe on the same films would give another model than before.
TRAINING_VERSION = 2


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


def initialise(
    run: RunDir, recipe: Recipe, *, weights: Path | None = None, engine: str = "auto", seed: int = SEED
) -> Initialised:
    """Put the network together and write down what it is.

    Args:
        run: A run with step 2 finished.
        recipe: What to build and how to train it.
        weights: Weights of the base; None takes the packaged ones.
        engine: A name of :data:`vgg16_xray.learn.engines.ENGINES`. With ``auto``, a run that has an engine keeps it.
        seed: Seed of the head's first weights and of the training.

    Raises:
        UserError: Step 2 has not finished, the weights do not fit, or there is no such engine.
    """
    from vgg16_xray.learn.vgg16 import layer_table
    from vgg16_xray.learn.weights import load_base

    started = time.monotonic()
    run.require_step("preprocess", made_by="preprocess DATA --out")
    config = read_config(run)
    labels = config["data"]["labels"]
    chosen = choose_engine(engine, recorded=config.get("engine"))
    base = load_base(weights)
    model = assemble(recipe, classes=len(labels), weights=weights, seed=seed)
    layers = tuple(layer_table(model, recipe.train_from))
    notes = []
    if recipe.preprocessing != base.preprocessing:
        notes.append(
            f"recipe '{recipe.name}' gives the base pixels prepared as '{recipe.preprocessing}', and its weights were "
            f"trained on '{base.preprocessing}'"
        )
    update_config(
        run,
        recipe=recipe.as_dict(),
        training={"seed": seed},
        weights={
            "origin": base.origin,
            "sha256": base.sha256,
            "preprocessing": base.preprocessing,
            "file": str(weights.resolve()) if weights else "",
        },
        engine={"name": chosen.name, "reason": chosen.reason},
        machine={"words": machine_in_words()},
    )
    write_json(
        run.layers,
        {
            "head": recipe.head,
            "train_from": recipe.train_from,
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
    run.stamp(STEP, key_of(recipe.as_dict(), base.sha256, chosen.name, seed), seconds=time.monotonic() - started)
    return Initialised(
        recipe=recipe,
        layers=layers,
        weights=f"{base.origin}; trained on pixels prepared as '{base.preprocessing}'",
        notes=tuple(notes),
        engine=chosen,
    )


def assemble(recipe: Recipe, *, classes: int, weights: Path | None, seed: int) -> VGG16:
    """Build the network with the base's weights and a head drawn from the seed.

    Raises:
        UserError: The weights do not fit.
    """
    import torch

    from vgg16_xray.learn.vgg16 import build
    from vgg16_xray.learn.weights import load_base

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(classes=classes, head=recipe.head, dropout=recipe.dropout)
    load_base(weights).put_into(model)
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
    fingerprint: str

    @property
    def key(self) -> str:
        """Tells everything that a trained model depends on."""
        return key_of(
            TRAINING_VERSION,
            self.labels,
            self.recipe.as_dict(),
            self.seed,
            self.size,
            self.weights_sha256,
            self.engine.name,
            self.fingerprint,
        )


def read_plan(run: RunDir) -> Plan:
    """Read what steps 2 and 3 decided.

    Raises:
        UserError: A step has not finished, or ``run.toml`` was damaged.
    """
    run.require_step(STEP, made_by="init")
    config: dict[str, Any] = read_config(run)
    try:
        return Plan(
            labels=tuple(config["data"]["labels"]),
            recipe=recipe_from(config["recipe"], where=f"{run.config}: recipe"),
            seed=config["training"]["seed"],
            size=config["run"].get("size", SIZE),
            weights=Path(config["weights"]["file"]) if config["weights"]["file"] else None,
            weights_sha256=config["weights"]["sha256"],
            engine=choose_engine("auto", recorded=config["engine"]),
            fingerprint=config["data"]["fingerprint"],
        )
    except KeyError as error:
        raise UserError(f"{run.config}: must have the value {error}, found none") from error


def choose_engine(name: str, *, recorded: dict[str, Any] | None) -> Engine:
    """Choose the engine; a run goes on with the one it began with, so that its features stay comparable.

    Raises:
        UserError: There is no such engine.
    """
    if name != "auto" or recorded is None:
        return choose(name)
    engine = Engine(choose(recorded["name"]).name, f"recorded in the run: {recorded['reason']}")
    if engine.name == "torch-bfloat16" and not processor_features() & {"avx512_bf16", "amx_bf16"}:
        return Engine(engine.name, f"{engine.reason}; this processor has none, where it is several times slower")
    return engine
