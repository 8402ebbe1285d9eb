"""What a training is made of: frozen, checked on construction, the meaning of a field beside the field.

A recipe is one documented TOML file in ``learn/recipes``, or a file of the user's.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from vgg16_xray.errors import UserError

#: Seed of the notebook that this project grew from.
SEED = 1234
HEADS = ("linear", "gap", "vgg")
TRAIN_FROM = ("head", "block5", "block4", "block3", "block2", "all")
PREPROCESSING = ("unit", "caffe", "caffe-half", "torch")

_T = TypeVar("_T")


def _check(owner: str, name: str, value: Any, rule: str, holds: bool) -> None:
    if not holds:
        raise UserError(f"{owner}{name}: must be {rule}, found {value!r}")


def _check_one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    _check("recipe.", name, value, f"one of {', '.join(choices)}", value in choices)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes to a film in training. All of them off by default."""

    #: Largest shear, degrees. Keras' ``shear_range`` counts degrees, so the seed's 0.2 is next to nothing.
    shear: float = 0.0
    #: Each axis is scaled by a factor of its own between 1 - zoom and 1 + zoom, as Keras' ``zoom_range``.
    zoom: float = 0.0
    #: Largest turn, degrees.
    rotation: float = 0.0
    #: Largest shift along each axis, as a share of the side.
    shift: float = 0.0
    #: Gamma is drawn between 1 / (1 + exposure) and 1 + exposure, evenly in its logarithm.
    exposure: float = 0.0
    #: Mirror half of the films. It puts the heart on the right.
    flip: bool = False
    #: How far the style of a film, by which a hospital is known, is drawn at random, 0 to 1: contrast, sharpness,
    #: resampling, JPEG, noise, borders, markers (:mod:`vgg16_xray.learn.style`).
    style: float = 0.0
    #: 0: drawn anew in every epoch, and the frozen part computed anew. V: V views a film are drawn once and what the
    #: frozen part makes of them is stored; an epoch takes one of them, or the film as it is, at random.
    views: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, low, high in (
            ("shear", 0, 45),
            ("zoom", 0, 0.9),
            ("rotation", 0, 180),
            ("shift", 0, 0.9),
            ("exposure", 0, 10),
            ("style", 0, 1),
            ("views", 0, 100),
        ):
            value = getattr(self, name)
            _check("recipe.augmentation.", name, value, f"between {low} and {high}", low <= value <= high)
        _check(
            "recipe.augmentation.", "views", self.views, "0 where nothing is changed", self.changes or not self.views
        )

    @property
    def changes(self) -> bool:
        """Whether it changes anything."""
        return self.moves or bool(self.style)

    @property
    def moves(self) -> bool:
        """Whether it changes what :func:`vgg16_xray.learn.augment.apply` does, all but the style."""
        return bool(self.shear or self.zoom or self.rotation or self.shift or self.exposure or self.flip)


@dataclass(frozen=True, kw_only=True)
class Resist:
    """What keeps the model from learning a film's source in place of the disease. All of it off by default.

    A source is a value of the column ``source``; the groups below are the sources within a class. What each of them
    does to films of sources that were left out is in docs/resist.md.
    """

    #: How often a film of a source is drawn among those of its class: ``none``: as it comes; ``balanced``: each source
    #: of a class equally often; ``sqrt``: between the two.
    sampling: str = "none"
    #: Whether mixup takes its partner from another source where the batch has one.
    mixup_across: bool = False
    #: Alpha of MixStyle's Beta(alpha, alpha) at the entry of the trainable part: half of the steps give films mean and
    #: deviation of each channel that lie between their own and another film's (Zhou 2021); 0: off.
    mixstyle: float = 0.0
    #: Step of group DRO: the groups on which the loss is largest count most (Sagawa 2020); 0: off.
    group_dro: float = 0.0
    #: Weight of an adversary that tells the source within a class from the pooled features, and whose gradient reaches
    #: the base reversed (Ganin 2016); 0: off. For head ``gap`` above layers that learn.
    adversary: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        words = ("none", "sqrt", "balanced")
        _check("recipe.resist.", "sampling", self.sampling, f"one of {', '.join(words)}", self.sampling in words)
        for name, high in (("mixstyle", 10), ("group_dro", 10), ("adversary", 100)):
            value = getattr(self, name)
            _check("recipe.resist.", name, value, f"between 0 and {high}", 0 <= value <= high)

    @property
    def needs_sources(self) -> bool:
        """Whether it asks where films come from."""
        return self.sampling != "none" or self.mixup_across or bool(self.group_dro or self.adversary)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the network is put together and fitted."""

    name: str
    #: What it is for, one sentence.
    description: str
    #: ``linear``: Flatten + Dense; ``gap``: average and max pooled features, dropout, Dense; ``vgg``: 4096, 4096, K.
    head: str
    #: Where the trainable part begins; everything before it is frozen.
    train_from: str
    #: What happens to pixel values 0..255: ``unit`` x/255; ``caffe`` BGR minus the ImageNet mean, which the packaged
    #: weights were trained on; ``caffe-half`` the same of means of 2 x 2 pixels: a film of half the side, at a quarter
    #: of the work; ``torch`` x/255, then standardised, which torchvision's weights were trained on.
    preprocessing: str
    epochs: int
    #: Films a step.
    batch: int
    #: ``adam`` or ``adamw``.
    optimizer: str
    #: Learning rate of the head; the largest where a schedule changes it.
    head_rate: float
    #: Learning rate of the trainable layers of the base; of its last block where `rate_decay` is not 1.
    base_rate: float = 0.0
    #: Each block of the base learns this factor slower than the one behind it: edges change less than lesions.
    rate_decay: float = 1.0
    #: First epochs in which the head alone learns, so that a random head does not shake the base.
    head_epochs: int = 0
    #: Epochs from the unfreezing of one block to that of the block before it (Howard & Ruder 2018); 0: all at once.
    unfreeze: int = 0
    #: AdamW's decoupled weight decay; 0 with ``adam``.
    weight_decay: float = 0.0
    #: ``constant``, or ``one-cycle``: linear warm-up, then a half cosine down to zero (Smith 2018).
    schedule: str = "constant"
    #: Share of the steps that warm up.
    warmup: float = 0.1
    #: Weight of a class in the loss: ``none``; ``balanced``: 1 / films; ``sqrt``: 1 / sqrt(films), between the two.
    class_weights: str = "none"
    #: How often a film of a class is drawn in an epoch, by the same words; ``none``: every film once.
    sampling: str = "none"
    label_smoothing: float = 0.0
    #: Alpha of mixup's Beta(alpha, alpha) at the entry of the trainable part (Zhang 2018); 0: off.
    mixup: float = 0.0
    #: Decay a step of the exponential moving average of the weights, which is what is validated and kept; 0: off.
    ema: float = 0.0
    #: Dropout before the last layer of ``gap``, and in ``vgg``.
    dropout: float = 0.0
    #: Blocks of the base that there are: 5, or 4 for a head on what block 4 yields (pool4).
    blocks: int = 5
    #: The best epoch is the one with the highest ``accuracy`` or ``macro_f1`` on the validation films.
    select: str = "macro_f1"
    #: Stop after so many epochs without a better one; 0: never.
    patience: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    resist: Resist = field(default_factory=Resist)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _check_one_of("head", self.head, HEADS)
        _check_one_of("train_from", self.train_from, TRAIN_FROM)
        _check_one_of("preprocessing", self.preprocessing, PREPROCESSING)
        _check_one_of("optimizer", self.optimizer, ("adam", "adamw"))
        _check_one_of("schedule", self.schedule, ("constant", "one-cycle"))
        _check_one_of("class_weights", self.class_weights, ("none", "sqrt", "balanced"))
        _check_one_of("sampling", self.sampling, ("none", "sqrt", "balanced"))
        _check_one_of("select", self.select, ("accuracy", "macro_f1"))
        for name, rule, holds in (
            ("epochs", "between 1 and 10,000", 1 <= self.epochs <= 10_000),
            ("batch", "between 1 and 4,096", 1 <= self.batch <= 4096),
            ("head_rate", "above 0 and at most 1", 0 < self.head_rate <= 1),
            ("base_rate", "between 0 and 1", 0 <= self.base_rate <= 1),
            ("base_rate", "above 0 where layers of the base are trained", self.base_rate or self.train_from == "head"),
            ("rate_decay", "above 0 and at most 1", 0 < self.rate_decay <= 1),
            ("head_epochs", "at least 0, and below epochs", 0 <= self.head_epochs < self.epochs),
            ("unfreeze", "between 0 and 10,000", 0 <= self.unfreeze <= 10_000),
            ("patience", "between 0 and 10,000", 0 <= self.patience <= 10_000),
            ("weight_decay", "between 0 and 1, and 0 with adam", 0 <= self.weight_decay <= (self.optimizer == "adamw")),
            ("warmup", "between 0 and 1", 0 <= self.warmup <= 1),
            ("label_smoothing", "at least 0 and below 1", 0 <= self.label_smoothing < 1),
            ("mixup", "between 0 and 10", 0 <= self.mixup <= 10),
            ("ema", "at least 0 and below 1", 0 <= self.ema < 1),
            ("dropout", "at least 0 and below 1", 0 <= self.dropout < 1),
            ("blocks", "4 or 5", self.blocks in {4, 5}),
            (
                "train_from",
                "head, or one of the 4 blocks that there are",
                self.blocks == 5 or self.train_from != "block5",
            ),
            # The others have a weight for each place of a map of 7 x 7, as 5 blocks make it of 224 x 224 pixels.
            (
                "head",
                "'gap' where preprocessing is 'caffe-half' or blocks is 4",
                self.head == "gap" or (self.preprocessing != "caffe-half" and self.blocks == 5),
            ),
        ):
            _check("recipe.", name, getattr(self, name), rule, bool(holds))
        resist = self.resist
        for name, rule, holds in (
            ("sampling", "none where recipe.sampling draws films too", "none" in (resist.sampling, self.sampling)),
            ("mixup_across", "false where mixup is 0", self.mixup or not resist.mixup_across),
            ("mixstyle", "0 where the head alone is trained", self.train_from != "head" or not resist.mixstyle),
            (
                "adversary",
                "0 where the head alone is trained, or is not 'gap'",
                (self.train_from != "head" and self.head == "gap") or not resist.adversary,
            ),
        ):
            _check("recipe.resist.", name, getattr(resist, name), rule, bool(holds))

    def as_dict(self) -> dict[str, Any]:
        """Every field, as TOML and JSON can hold it."""
        return dataclasses.asdict(self)


def recipe_names() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("vgg16_xray.learn") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str, **changes: Any) -> Recipe:
    """Read a recipe.

    Args:
        name: One of :func:`recipe_names`, or the path of a TOML file with the fields of :class:`Recipe`.
        **changes: Fields to replace; None leaves a field as it is. A `train_from` that trains layers of the base takes
            a tenth of `head_rate` as `base_rate` where the recipe, made for the head alone, has none.

    Raises:
        UserError: There is no such recipe, it is not TOML, or a field is unknown, missing or out of bounds.
    """
    if name in recipe_names():
        text, where = (resources.files("vgg16_xray.learn") / "recipes" / f"{name}.toml").read_text("utf-8"), name
    elif name.endswith(".toml"):
        try:
            # utf-8-sig: editors on Windows put a byte order mark before the first letter.
            text, where = Path(name).read_text("utf-8-sig"), name
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--recipe: {name} cannot be read ({error})") from error
    else:
        raise UserError(f"--recipe: must be one of {', '.join(recipe_names())}, or a .toml file, found '{name}'")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: must be TOML, found {error}") from error
    values |= {key: value for key, value in changes.items() if value is not None}
    if changes.get("train_from") not in (None, "head") and not values.get("base_rate"):
        rate = values.get("head_rate")
        values |= {"base_rate": rate / 10} if isinstance(rate, float) else {}
    return recipe_from(values, where=where)


def recipe_from(values: Mapping[str, Any], *, where: str) -> Recipe:
    """Build a recipe from plain values, as :meth:`Recipe.as_dict` gives them.

    Raises:
        UserError: A field is unknown, missing, of the wrong type, or out of bounds.
    """
    parts = dict(values)
    for name, kind in (("augmentation", Augmentation), ("resist", Resist)):
        table = values.get(name, {})
        _check(f"{where}: ", name, table, "a table", isinstance(table, Mapping))
        parts[name] = _build(kind, table, where=f"{where}: {name}.")
    return _build(Recipe, parts, where=f"{where}: ")


def _build(kind: type[_T], values: Mapping[str, Any], *, where: str) -> _T:
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{where}{name}: must be one of {', '.join(fields)}, found an unknown field")
        wanted = str(fields[name].type)
        right = {
            "str": isinstance(value, str),
            "bool": isinstance(value, bool),
            "int": isinstance(value, int) and not isinstance(value, bool),
            "float": isinstance(value, int | float) and not isinstance(value, bool),
        }.get(wanted, True)
        _check(where, name, value, f"of type {wanted}", right)
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}{name}: must be given, found nothing")
    return kind(**values)
