"""Predict anyone's films: files and folders in, a row a film out, in the order of the input.

A bundle answers with ONNX Runtime; a run that was not exported answers with torch, its folds as one model.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import numpy as np

from vgg16_xray import RESEARCH_USE_ONLY
from vgg16_xray.bundle.classify import Classifier, NoFilm, Prediction, decode_image, in_order, shown
from vgg16_xray.bundle.format import BundleDir
from vgg16_xray.errors import Interrupted, UserError, visible
from vgg16_xray.extras import require
from vgg16_xray.files import is_device, saying_why_not_written, whole_file, write_text
from vgg16_xray.films.dataset import IGNORED, MASK_FOLDERS, may_be_film
from vgg16_xray.films.decode import MAX_BYTES, SUFFIXES, to_square
from vgg16_xray.report.terminal import predictions_as_text
from vgg16_xray.rundir import RunDir

if TYPE_CHECKING:
    import torch

    from vgg16_xray.bundle.classify import Image
    from vgg16_xray.learn.checkpoint import ModelConfig

#: Films that go through a run's network together.
BATCH = 32
FORMATS = ("table", "json", "jsonl", "csv")
#: Those with a line for each answer, which needs no other answer.
ROWS = ("jsonl", "csv")
#: Bytes of standard input that are read at once.
CHUNK = 1024 * 1024


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
        engine: Of a run, a name of :data:`vgg16_xray.learn.engines.ENGINES`; of a bundle ``auto``.
        precision: Of a bundle, a name of :data:`vgg16_xray.bundle.classify.PRECISIONS`; of a run ``auto``.

    Raises:
        UserError: There is no model there, or it is damaged, or it is told what it cannot follow.
    """
    found = "a bundle" if model is None else _kind_of(model)
    if found == "a bundle":
        if engine != "auto":
            raise UserError(
                f"--engine: must be left out where a bundle answers, found '{engine}'",
                hint="--precision is for bundles",
            )
        return Classifier.load(model, precision=precision)
    if model is None or found != "a run":
        raise UserError(
            f"--model: must be a bundle (config.json), a run (run.toml) or a run's model.safetensors, "
            f"found {found}: {model}"
        )
    if precision != "auto":
        raise UserError(
            f"--precision: must be left out where a run answers, found '{precision}'", hint="--engine is for runs"
        )
    require("train", purpose="vgg16-xray predict")
    return Predictor(model, engine=engine)


def _kind_of(model: Path) -> str:
    try:
        if BundleDir(model).config.exists():
            return "a bundle"
        if RunDir(model).config.exists() or (model.is_file() and model.suffix == ".safetensors"):
            return "a run"
        if model.is_dir():
            return "a folder with neither"
        return "another file" if model.is_file() else "a device or pipe" if model.exists() else "none"
    except OSError as error:
        return f"what cannot be read ({error.strerror})"


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
    return config.labels, config.head, config.train_from, config.preprocessing, config.size, config.blocks


def _equal(these: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    import torch

    return these.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in these.items())


def images_in(inputs: Sequence[str]) -> list[Image]:
    """What to predict: the films of :func:`films_in`, and for ``-`` the bytes on standard input.

    Raises:
        UserError: An input is no text at all, which a shell makes of a variable that is not set.
    """
    if "" in inputs:
        raise UserError("IMAGES: must be films, folders, patterns or -, found ''")
    images: list[Image] = []
    for given in inputs:
        images += [_standard_input()] if given == "-" else films_in([Path(given)])
    return images


def _standard_input() -> bytes | NoFilm:
    if sys.stdin is None:
        return NoFilm("-", "cannot be read (standard input is closed)")
    parts: list[bytes] = []
    room = MAX_BYTES
    try:
        while part := sys.stdin.buffer.read(min(CHUNK, room + 1)):
            if len(part) > room:
                return NoFilm("-", f"must have at most {MAX_BYTES:,} bytes, found more")
            parts.append(part)
            room -= len(part)
    except OSError as error:
        return NoFilm("-", f"cannot be read ({error.strerror or error})")
    return b"".join(parts)


def films_in(inputs: Sequence[Path]) -> list[Path | NoFilm]:
    """Files to predict: files as they are named, and the films below folders, masks and hidden files left out.

    A name that is no file and holds ``*``, ``?`` or ``[`` is a pattern, for shells that leave it to the program. What
    is named twice is there twice. A pattern that matches nothing, a folder without films and one that cannot be read
    are named with the reason, in their place.
    """
    files: list[Path | NoFilm] = []
    for given in inputs:
        if _is_folder(given):
            files += _films_below(given)
        elif glob.has_magic(str(given)) and not os.path.lexists(given):
            matching = sorted(glob.glob(str(given), recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
            files += films_in([Path(match) for match in matching]) or [
                NoFilm(str(given), "must match files, found none")
            ]
        else:
            files.append(given)
    return files


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # A name too long, a folder closed to us: whoever reads the film says so.
        return False


def _films_below(folder: Path) -> list[Path | NoFilm]:
    found: list[tuple[Path, Path | NoFilm]] = []

    def closed(error: OSError) -> None:
        path = Path(error.filename)
        found.append((path, NoFilm(str(path), f"cannot be read ({error.strerror})")))

    for place, folders, names in os.walk(folder, onerror=closed):
        folders[:] = [name for name in folders if not _passed_over(name)]
        files = (Path(place, name) for name in names if not _passed_over(name))
        found += [(file, file) for file in files if may_be_film(file)]
    if not found:
        return [NoFilm(str(folder), f"must hold films ({', '.join(sorted(SUFFIXES))}), found none")]
    return [film for _, film in sorted(found, key=itemgetter(0))]


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in MASK_FOLDERS | IGNORED


def places_of(films: Sequence[Image]) -> set[tuple[int, int]]:
    """Device and inode of each film, of a file on standard input too: what nothing may be written over."""
    places = set()
    for film in films:
        with suppress(OSError):  # What is not there cannot be lost.
            if isinstance(film, (bytes, Path)):
                found = os.fstat(0) if isinstance(film, bytes) else film.stat()
                places.add((found.st_dev, found.st_ino))
    return places


def keep_films(file: Path, places: set[tuple[int, int]], *, option: str) -> None:
    """Refuse to write over a film that was named.

    Args:
        file: Where something is to be written.
        places: See :func:`places_of`.
        option: The option that says so.

    Raises:
        UserError: One of the films lies there, perhaps under another name.
    """
    with saying_why_not_written(file):
        if file.is_file() and ((found := file.stat()).st_dev, found.st_ino) in places:
            raise UserError(f"{option}: must be another file than the films, found {file}")


def checked_out(out: Path | None) -> Path | None:
    """Where answers go by ``--out``; None is standard output, also by the name ``-`` or ``/dev/stdout``.

    Raises:
        UserError: A folder stands there, or there is no folder to write it into.
    """
    if out is None or str(out) == "-":
        return None
    with saying_why_not_written(out):
        if out.is_dir():
            raise UserError(f"--out: must be a file, found the folder {out}")
        if not out.exists():
            with suppress(FileNotFoundError):
                out.stat()  # Links that lead in a circle lead nowhere, and are no name for a new file.
            if not (parent := Path(os.path.realpath(out)).parent).is_dir():
                raise UserError(f"--out: must be in a folder that exists, found none at {parent}")
            return out
        with suppress(OSError):  # Standard output may be closed.
            if os.path.samestat(out.stat(), os.fstat(1)):
                return None
    return out


@contextmanager
def opened(out: Path | None) -> Iterator[TextIO]:
    """Open what answers are written to.

    Args:
        out: None: standard output. A device or pipe gets what is written at once. A file gets it when the block ends
            without an error: whole or not at all.

    Raises:
        UserError: It cannot be written.
    """
    if out is None:
        if sys.stdout is None:
            raise UserError("standard output: must be open, found it closed", hint="--out FILE writes into a file")
        yield sys.stdout
    elif is_device(out):
        with saying_why_not_written(out):
            stream = out.open("w", encoding="utf-8", newline="\n")
        try:
            yield stream
        finally:
            with suppress(OSError):  # What could not be written was said, and cannot be now either.
                stream.close()
    else:
        text = io.StringIO()
        yield text
        write_text(out, text.getvalue())


def write_answers(
    answers: Iterable[Prediction],
    stream: TextIO,
    format_: str,
    *,
    films: int,
    labels: Sequence[str],
    model: Path | None,
    shift_of: Callable[[Sequence[Prediction]], dict[str, Any] | None],
) -> list[Prediction]:
    """Write answers: rows (csv, jsonl) each as soon as it is there, a table and JSON when all are.

    Args:
        answers: They are taken one by one.
        stream: Where they go; what a terminal would obey in a name is written visibly there, and as it is elsewhere.
        format_: A name of :data:`FORMATS`.
        films: How many answers will come.
        labels: (K,) the classes.
        model: What answers; the model in the package by default.
        shift_of: See :meth:`Answering.shift_of`.

    Returns:
        The answers.

    Raises:
        UserError: They cannot be written.
        Interrupted: Ctrl-C; the line says what was written until then.
    """
    name = "standard output" if stream is sys.stdout else getattr(stream, "name", "--out")

    def write(text: str) -> None:
        if format_ != "table" and stream.isatty():
            text = "\n".join(map(visible, text.split("\n")))
        try:
            stream.write(text)
            stream.flush()
        except BrokenPipeError:  # Who reads has enough.
            raise
        except OSError as error:
            raise UserError(f"{name}: cannot be written ({error.strerror or error})") from error

    done: list[Prediction] = []
    try:
        if format_ == "csv":
            write(as_csv([], labels=labels))
        for answer in answers:
            done.append(answer)
            if format_ in ROWS:
                write(row_of(answer, format_, labels=labels))
        if format_ not in ROWS:
            shift = shift_of(done)
            write(rendered(done, format_, labels=labels, model=model, colours=stream is sys.stdout, shift=shift))
    except KeyboardInterrupt:
        kept = format_ in ROWS and not isinstance(stream, io.StringIO)
        raise Interrupted(
            f"interrupted after {len(done):,} of {films:,} films; "
            + ("the rows that are written are whole" if kept else "no answer is written"),
            hint="the same command begins with the first film again",
        ) from None
    return done


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
    if format_ in ROWS:
        return as_csv(predictions, labels=labels) if format_ == "csv" else as_jsonl(predictions)
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
    return "".join(row_of(row, "jsonl") for row in predictions)


def as_csv(predictions: Sequence[Prediction], *, labels: Sequence[str]) -> str:
    """``path,prediction,confidence,p_<label>...,answer,reason,set``, a row a file; labels of a set stand between ``|``.

    A name is written as it is, also one that a spreadsheet takes for a formula.
    """
    columns = ["path", "prediction", "confidence", *(f"p_{label}" for label in labels), "answer", "reason", "set"]
    return _csv_line(columns) + "".join(row_of(row, "csv", labels=labels) for row in predictions)


def row_of(row: Prediction, format_: str, *, labels: Sequence[str] = ()) -> str:
    """The line of one answer in one of :data:`ROWS`."""
    if format_ == "jsonl":
        return json.dumps(row.as_dict(), ensure_ascii=False, allow_nan=False) + "\n"
    p = [f"{value:.6f}" for value in row.probabilities.values()] or [""] * len(labels)
    confidence = "" if row.confidence is None else f"{row.confidence:.6f}"
    may_be = "|".join(row.set or ())
    return _csv_line([row.path, row.prediction or "", confidence, *p, row.answer, row.reason, may_be])


def _csv_line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
