"""Predict anyone's films: files and folders in, a row a film out, in the order of the input.

A bundle answers with ONNX Runtime; a run that was not exported answers with torch, its folds as one model.
"""

from __future__ import annotations

import csv
import glob
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vgg16_xray import RESEARCH_USE_ONLY
from vgg16_xray.bundle.classify import Classifier, Prediction, decode_image, in_order, shown
from vgg16_xray.bundle.format import BundleDir
from vgg16_xray.errors import UserError
from vgg16_xray.extras import require
from vgg16_xray.files import whole_file
from vgg16_xray.films.dataset import IGNORED, MASK_FOLDERS, may_be_film
from vgg16_xray.films.decode import SUFFIXES, to_square
from vgg16_xray.report.terminal import predictions_as_text
from vgg16_xray.rundir import RunDir

if TYPE_CHECKING:
    import torch

    from vgg16_xray.bundle.classify import Image
    from vgg16_xray.learn.checkpoint import ModelConfig

#: Films that go through a run's network together.
BATCH = 32
FORMATS = ("table", "json", "jsonl", "csv")


class Answering(Protocol):
    """What answers for films: a bundle or a run."""

    #: What the user should know.
    notes: list[str]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in the order of the probabilities."""

    @property
    def explains(self) -> bool:
        """Whether there are heat maps."""

    def stream(self, images: Sequence[Image], *, explain: bool = False, quiet: bool = True) -> Iterator[Prediction]:
        """Answers in the order of the images, each as soon as it is there."""

    def shift_of(self, predictions: Sequence[Prediction]) -> dict[str, Any] | None:
        """Whether the films together are like those that the model was calibrated on; None where it does not know."""


def open_model(model: Path | None, *, engine: str = "auto", precision: str = "auto") -> Answering:
    """Open what answers.

    Args:
        model: A bundle, a run, or a run's ``model.safetensors``; the model in the package by default.
        engine: Of a run, a name of :data:`vgg16_xray.learn.engines.ENGINES`.
        precision: Of a bundle, a name of :data:`vgg16_xray.bundle.classify.PRECISIONS`.

    Raises:
        UserError: There is no model there, or it is damaged.
    """
    if model is None or BundleDir(model).config.exists():
        return Classifier.load(model, precision=precision)
    if not model.exists():
        raise UserError(f"--model: must be a bundle or a run with a trained model, found none in {model}")
    require("train", purpose="vgg16-xray predict")
    return Predictor(model, engine=engine)


class Predictor:
    """The best model of a run, ready for films; where the run has finished folds, the mean of their models.

    Args:
        model: A run directory, or its ``model.safetensors``.
        engine: A name of :data:`vgg16_xray.learn.engines.ENGINES`.

    Raises:
        UserError: There is no model there, or it is damaged.
    """

    def __init__(self, model: Path, *, engine: str = "auto") -> None:
        from vgg16_xray.learn.checkpoint import load_model, load_probe
        from vgg16_xray.learn.engines import FrozenPart, choose_for_model
        from vgg16_xray.learn.vgg16 import split_at
        from vgg16_xray.steps.folds import ensemble

        files = (ensemble(RunDir(model)) or [RunDir(model).best]) if model.is_dir() else [model]
        if not files[0].exists():
            raise UserError(f"--model: must be a run with a trained model, found none in {model}")
        if files[0] == RunDir(model).best:
            # The best epoch so far of a training that is not finished is not the run's model yet.
            RunDir(model).require_step("train", made_by="train")
        #: What the user should know: features that are not quite those of the training.
        self.notes: list[str] = []
        #: How many models answer together.
        self.models = len(files)
        # Models whose frozen parts are equal, tensor by tensor, share one: a film goes through it once.
        parts: list[tuple[dict[str, torch.Tensor], FrozenPart, list[torch.nn.Module]]] = []
        for file in files:
            network, config = load_model(file)
            if file == files[0]:
                self.config, self.engine = config, choose_for_model(engine, trained_with=config.engine)
            elif _asks_for(config) != _asks_for(self.config):
                raise UserError(f"{file}: must have the classes, layers and preprocessing of {files[0]}, found others")
            prefix, trainable = split_at(network, config.train_from)
            trainable.requires_grad_(False).eval()
            tensors = prefix.state_dict()
            shared = next((others for frozen, _, others in parts if _equal(frozen, tensors)), None)
            if shared is not None:
                shared.append(trainable)
            else:
                frozen_part = FrozenPart(prefix, preprocessing=config.preprocessing, engine=self.engine)
                probe = load_probe(file)
                if probe and (line := probe.check(frozen_part, where=file, trained_with=config.engine)):
                    self.notes.append(line)
                parts.append((tensors, frozen_part, [trainable]))
        if self.models > 1:
            self.notes.append(f"the mean of {self.models} models of the folds")
        self._parts = [(frozen_part, trainables) for _, frozen_part, trainables in parts]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in the order of the probabilities."""
        return self.config.labels

    @property
    def explains(self) -> bool:
        """A run has no heat maps; the bundle that is exported from it has."""
        return False

    def probabilities(self, films: Sequence[np.ndarray]) -> np.ndarray:
        """Class probabilities of decoded films, the same way as in training.

        Args:
            films: B films (H, W) uint8, as :func:`vgg16_xray.films.decode.decode` gives them.

        Returns:
            (B, K) float64, rows summing to 1.
        """
        import torch

        from vgg16_xray.learn.features import NEVER_STORED, in_half_precision
        from vgg16_xray.learn.fit import forward

        squares = np.stack([to_square(film, self.config.size) for film in films])
        answers = []
        with torch.no_grad():
            for frozen, trainables in self._parts:
                features = frozen(torch.from_numpy(squares))
                if self.config.train_from not in NEVER_STORED:
                    features = in_half_precision(features)
                for trainable in trainables:
                    answers.append(torch.softmax(forward(trainable, features, self.engine).double(), dim=1))
            return torch.stack(answers).mean(dim=0).numpy()

    def stream(self, images: Sequence[Image], *, explain: bool = False, quiet: bool = True) -> Iterator[Prediction]:
        """Answer for images, in their order; one that cannot be read is an answer too. There is no heat map."""

        def prepare(image: Image) -> np.ndarray:
            return to_square(decode_image(image), self.config.size)

        def answer(names: Sequence[str], films: Sequence[np.ndarray]) -> list[Prediction]:
            rows = self.probabilities(films)
            return [self._answer(name, row) for name, row in zip(names, rows, strict=True)]

        return in_order(images, prepare, answer, quiet=quiet, batch=BATCH)

    def shift_of(self, predictions: Sequence[Prediction]) -> dict[str, Any] | None:
        """None: a run keeps nothing to compare with; the bundle that is exported from it does."""
        return None

    def predict(self, images: Sequence[Image]) -> list[Prediction]:
        """All answers of :meth:`stream`."""
        return list(self.stream(images))

    def _answer(self, name: str, probabilities: np.ndarray) -> Prediction:
        best = int(probabilities.argmax())
        return Prediction(
            path=shown(name),
            prediction=self.labels[best],
            confidence=round(float(probabilities[best]), 6),
            probabilities={label: round(float(p), 6) for label, p in zip(self.labels, probabilities, strict=True)},
        )


def draw_answer(image: Image, answer: Prediction, to: Path) -> None:
    """Draw where on a film its answer comes from, as a PNG, whole or not at all.

    Args:
        image: The film.
        answer: Its answer, with its heat.
        to: File to write.
    """
    from vgg16_xray.bundle.explain import draw

    with whole_file(to) as temporary:
        draw(decode_image(image), answer).save(temporary, "PNG")


def _asks_for(config: ModelConfig) -> tuple[object, ...]:
    """What models that answer together must have in common."""
    return config.labels, config.head, config.train_from, config.preprocessing, config.size


def _equal(these: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    import torch

    return these.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in these.items())


def films_in(inputs: Sequence[Path]) -> list[Path]:
    """Files to predict: files as they are named, and the films below folders, masks and hidden files left out.

    A name that is no file and holds ``*``, ``?`` or ``[`` is a pattern, for shells that leave it to the program.

    Raises:
        UserError: A folder holds no film, or nothing matches a pattern.
    """
    files: list[Path] = []
    for given in inputs:
        if not given.exists() and glob.has_magic(str(given)):
            if not (matching := sorted(glob.glob(str(given), recursive=True))):  # noqa: PTH207 (Path.glob takes no absolute pattern)
                raise UserError(f"{given}: must match files, found none")
            files += films_in([Path(match) for match in matching])
            continue
        if not given.is_dir():
            files.append(given)
            continue
        found = [
            file
            for file in sorted(given.rglob("*"))
            if not _passed_over(file.relative_to(given)) and file.is_file() and may_be_film(file)
        ]
        if not found:
            raise UserError(f"{given}: must hold films ({', '.join(sorted(SUFFIXES))}), found none")
        files += found
    return files


def _passed_over(path: Path) -> bool:
    return any(part.startswith(".") or part.lower() in MASK_FOLDERS | IGNORED for part in path.parts)


def rendered(
    predictions: Sequence[Prediction],
    format_: str,
    *,
    labels: Sequence[str],
    model: Path | None,
    colours: bool,
    shift: Mapping[str, Any] | None = None,
) -> str:
    """Answers as text in one of :data:`FORMATS`.

    Args:
        predictions: The answers, in their order.
        format_: A name of :data:`FORMATS`.
        labels: (K,) the classes.
        model: What answered; the model in the package by default.
        colours: Whether colours are wanted where the terminal has them, in a table.
        shift: See :meth:`Answering.shift_of`: a line above the table, and in JSON; a row has no room for it.
    """
    if format_ == "table":
        said = f"{shift['words']}\n" if shift else ""
        return said + predictions_as_text(predictions, labels=labels, colours=colours)
    if format_ == "csv":
        return as_csv(predictions, labels=labels)
    if format_ == "jsonl":
        return as_jsonl(predictions)
    return as_json(predictions, labels=labels, model=str(model or "the model in the package"), shift=shift)


def as_json(
    predictions: Sequence[Prediction], *, labels: Sequence[str], model: str, shift: Mapping[str, Any] | None = None
) -> str:
    """One JSON object: what the model is, whether the films together are like those it knows, and a list of answers."""
    rows = [row.as_dict() for row in predictions]
    about = {"research_use_only": RESEARCH_USE_ONLY, "model": model, "labels": list(labels)}
    document = {**about, "shift": None if shift is None else dict(shift), "predictions": rows}
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_jsonl(predictions: Sequence[Prediction]) -> str:
    """A JSON object a line, one for each answer."""
    return "".join(json.dumps(row.as_dict(), ensure_ascii=False, allow_nan=False) + "\n" for row in predictions)


def as_csv(predictions: Sequence[Prediction], *, labels: Sequence[str]) -> str:
    """``path,prediction,confidence,p_<label>...,answer,reason``, a row a file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "prediction", "confidence", *(f"p_{label}" for label in labels), "answer", "reason"])
    for row in predictions:
        p = [f"{value:.6f}" for value in row.probabilities.values()] or [""] * len(labels)
        confidence = "" if row.confidence is None else f"{row.confidence:.6f}"
        writer.writerow([row.path, row.prediction or "", confidence, *p, row.answer, row.reason])
    return text.getvalue()
