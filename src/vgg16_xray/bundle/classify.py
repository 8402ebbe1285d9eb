"""Answer for films with a bundle: ONNX Runtime, numpy and nothing that training needs."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from vgg16_xray.bundle.fields import found as shorter
from vgg16_xray.bundle.format import (
    FEATURE_MAP,
    OUTPUTS,
    PIXELS,
    BundleConfig,
    BundleDir,
    open_graph,
    read_bundle_config,
    read_text_as_json,
    session_of,
    verify,
)
from vgg16_xray.errors import UnreadableFilm, UserError, one_line
from vgg16_xray.films.decode import check_film, decode
from vgg16_xray.progress import progress

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    #: A file, the bytes of one, (H, W) uint8 pixels, or what was named and holds no film.
    Image: TypeAlias = "Path | str | bytes | np.ndarray | NoFilm"

#: Films that go through the network together: in int8, more are not faster.
BATCH = 8
PRECISIONS = ("auto", "int8", "float32")
#: How far a golden answer's probabilities may be from those that were written: machines add floats in different orders.
#: Bytes are the same everywhere.
TOLERANCE = 1e-3
#: What an answer may be; "refused": no frontal chest film.
ANSWERED, ABSTAINED, REFUSED, ERROR = ANSWERS = ("answered", "abstained", "refused", "error")


@dataclass(frozen=True)
class NoFilm:
    """What was named among films and holds none; its answer is the reason."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one film, the same through every door."""

    path: str
    #: Most probable class, also where the model abstains; None where the film could not be read.
    prediction: str | None = None
    #: Its probability.
    confidence: float | None = None
    #: In the model's order; empty where the film could not be read.
    probabilities: Mapping[str, float] = field(default_factory=dict)
    #: One of :data:`ANSWERS`.
    answer: str = ANSWERED
    #: Why there is no answer, or none that should be used.
    reason: str = ""
    #: Classes that the film may well be of (the conformal set); None where the model does not know.
    set: tuple[str, ...] | None = None
    #: (h, w) float32 Grad-CAM of the predicted class, 0 or more; None where it was not asked for or does not exist.
    heat: np.ndarray | None = field(default=None, repr=False, compare=False)
    #: (E,) float32 of a bundle, for the shift test over many films; None of other models and of what cannot be read.
    embedding: np.ndarray | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """As JSON says it."""
        return {
            "path": self.path,
            "prediction": self.prediction,
            "confidence": self.confidence,
            "probabilities": dict(self.probabilities),
            "answer": self.answer,
            "reason": self.reason,
            "set": None if self.set is None else list(self.set),
        }


class Outputs(NamedTuple):
    """What the graph gives for B films, float32 each."""

    #: (B, K) calibrated.
    probabilities: np.ndarray
    #: (B, K) before calibration.
    logits: np.ndarray
    #: (B, 1024).
    embedding: np.ndarray
    #: (B, 512, h, w), or (B, 0) where it was not asked for.
    feature_map: np.ndarray


@dataclass(frozen=True)
class Seen:
    """All that answering keeps of a film: 50 KB, whatever its size, so that its own pixels may go."""

    #: (size, size) uint8, what the network reads.
    square: np.ndarray
    #: (F,) float64, what the refusal looks at (:func:`vgg16_xray.trust.refuse.look`); None where nothing is refused.
    looks: np.ndarray | None


class Classifier:
    """A bundle, open for films. All its methods may be called from several threads at once.

    Made by :meth:`load`.
    """

    def __init__(
        self, bundle: BundleDir, config: BundleConfig, session: InferenceSession, precision: str, *, threads: int = 1
    ) -> None:
        """Take what :meth:`load` has checked; with one of `threads` the session decides how films share threads."""
        self.bundle, self.config, self.precision = bundle, config, precision
        #: What the user should know; of a bundle that was opened, nothing.
        self.notes: list[str] = []
        self._session, self._threads = session, threads
        self._starting = threading.Lock()
        self._each: tuple[InferenceSession, ThreadPoolExecutor] | None = None
        self._square = session_of(Path(__file__).with_name("square.onnx").read_bytes(), threads=1)
        self._side = np.array([config.size, config.size], dtype=np.int64)
        self._cam_weights = config.cam_weights

    @classmethod
    def load(cls, bundle: Path | None = None, *, precision: str = "auto", threads: int | None = None) -> Classifier:
        """Open a bundle; hashes are compared and one golden film is answered, so a damaged one never answers yours.

        Args:
            bundle: A folder that ``vgg16-xray export`` wrote; the model in the package by default.
            precision: ``int8``, ``float32``, or ``auto``: int8 where the bundle has it.
            threads: Threads for one film; ONNX Runtime's own choice by default.

        Raises:
            UserError: There is no bundle, or it is damaged, or holds what no bundle should; the line names it.
        """
        folder = BundleDir(Path(bundle)) if bundle is not None else BundleDir.packaged()
        if precision not in PRECISIONS:
            raise UserError(f"precision: must be one of {', '.join(PRECISIONS)}, found '{precision}'")
        config = read_bundle_config(folder)
        graphs = folder.graphs()
        chosen = next(iter(graphs), "") if precision == "auto" else precision
        if chosen not in graphs:
            raise UserError(f"{folder.path}: must hold a graph in {chosen or 'int8 or float32'}, found none")
        classifier = cls(
            folder,
            config,
            open_graph(folder, config, graphs[chosen], threads=threads),
            chosen,
            threads=threads or os.cpu_count() or 1,
        )
        verify(folder, config, folder.golden)
        classifier.replay(golden_of(folder, config)[:1])
        return classifier

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in the order of the probabilities."""
        return self.config.labels

    @property
    def cam_weights(self) -> np.ndarray:
        """(K, 512) Grad-CAM's weights of each class's logit on the feature map.

        Raises:
            UserError: The head has hidden layers, and no such weights.
        """
        if self._cam_weights is None:
            raise UserError(f"{self.bundle.path}: must have a linear head for heat maps, found one with hidden layers")
        return self._cam_weights

    @property
    def explains(self) -> bool:
        """Whether there is a map of what speaks for a class: not for a head with hidden layers."""
        return self._cam_weights is not None

    def square(self, film: np.ndarray) -> np.ndarray:
        """Stretch a film as the graph does it: (H, W) uint8 -> (size, size) uint8; films of one size share a batch."""
        if film.ndim != 2 or film.dtype != np.uint8 or not film.size:
            raise UserError(f"film: must be (H, W) uint8, found {film.shape} {film.dtype}")
        (out,) = self._square.run(None, {"film": film, "side": self._side})
        return np.asarray(out)

    def see(self, film: np.ndarray) -> Seen:
        """Everything about a film, (H, W) uint8 at its original size, that takes long where it is large."""
        return Seen(self.square(film), self._looks(film))

    def _looks(self, film: np.ndarray) -> np.ndarray | None:
        if self.config.refusal is None:
            return None
        from vgg16_xray.trust.refuse import look

        return look(film)

    def predict_arrays(self, films: Sequence[np.ndarray] | np.ndarray, *, feature_map: bool = True) -> Outputs:
        """The graph's outputs for one batch.

        Args:
            films: B films (H, W) uint8 of any sizes, as :func:`vgg16_xray.films.decode.decode` gives them.
            feature_map: Whether the last map is wanted, which is 400 KB a film.
        """
        squares = np.stack([self.square(film) for film in films])
        wanted = [name for name in OUTPUTS if feature_map or name != FEATURE_MAP]
        found = dict(zip(wanted, self._run(wanted, squares), strict=True))
        found.setdefault(FEATURE_MAP, np.zeros((len(squares), 0), np.float32))
        return Outputs(**found)

    def _run(self, wanted: Sequence[str], squares: np.ndarray) -> list[np.ndarray]:
        """The graph on (B, size, size) uint8: a film a thread as far as films go round, which is quicker than all
        threads on one film after the other; those that are left by all threads together. The numbers are the same.
        """
        whole = len(squares) // self._threads * self._threads if self._threads > 1 else 0
        parts: list[Sequence[np.ndarray]] = []
        if whole:
            session, pool = self._a_film_a_thread()
            parts += pool.map(lambda film: session.run(wanted, {PIXELS: film[None]}), squares[:whole])
        if whole < len(squares):
            parts.append(self._session.run(wanted, {PIXELS: squares[whole:]}))
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _a_film_a_thread(self) -> tuple[InferenceSession, ThreadPoolExecutor]:
        with self._starting:
            if self._each is None:
                graph = open_graph(self.bundle, self.config, self.bundle.graphs()[self.precision], threads=1)
                self._each = graph, ThreadPoolExecutor(self._threads, thread_name_prefix="film")
            return self._each

    def predict(self, images: Sequence[Image], *, explain: bool = False) -> list[Prediction]:
        """Answer for films, in their order; one that cannot be read is an answer too.

        Args:
            images: Files, the bytes of files, or (H, W) uint8 pixels.
            explain: Whether each answer carries its heat map.

        Raises:
            UserError: It is one film, and not several of them.
        """
        if isinstance(images, str | Path | bytes):
            raise UserError(f"images: must be several films, in a list, found one {type(images).__name__}")
        return list(self.stream(images, explain=explain))

    def stream(self, images: Sequence[Image], *, explain: bool = False, quiet: bool = True) -> Iterator[Prediction]:
        """The same, each answer as soon as it is there; `quiet` says that no progress is shown."""
        return in_order(
            images, decode_image, lambda names, films: self.answer(names, films, explain=explain), quiet=quiet
        )

    def answer(self, names: Sequence[str], films: Sequence[np.ndarray], *, explain: bool = False) -> list[Prediction]:
        """Answer for one batch of decoded films.

        Args:
            names: What to call them.
            films: (H, W) uint8 each, at their original size, which the refusal looks at.
            explain: See :meth:`predict`.
        """
        outputs = self.predict_arrays(films, feature_map=explain)
        return [
            self.judged(name, film, Outputs(*(part[i] for part in outputs)), explain=explain)
            for i, (name, film) in enumerate(zip(names, films, strict=True))
        ]

    def judged(self, name: str, film: np.ndarray | Seen, outputs: Outputs, *, explain: bool = False) -> Prediction:
        """The answer for one film from the graph's outputs for it (their rows, without the first axis).

        Args:
            name: What to call it.
            film: (H, W) uint8 at its original size, or what :meth:`see` kept of it.
            outputs: Of :meth:`predict_arrays`.
            explain: See :meth:`predict`.
        """
        from vgg16_xray.bundle.explain import grad_cam

        p = outputs.probabilities
        best = int(p.argmax())
        answer, reason, may_be = ANSWERED, "", None
        looks = film.looks if isinstance(film, Seen) else self._looks(film)
        if self.config.refusal is not None and looks is not None:
            from vgg16_xray.trust.refuse import judge

            answer, reason = judge(self.config.refusal, looks=looks, probabilities=p, embedding=outputs.embedding)
        if self.config.conformal is not None:
            from vgg16_xray.trust.calibrate import conformal_set

            may_be = tuple(self.labels[k] for k in conformal_set(self.config.conformal, p))
        return Prediction(
            path=shown(name),
            prediction=self.labels[best],
            confidence=round(float(p[best]), 6),
            probabilities={label: round(float(value), 6) for label, value in zip(self.labels, p, strict=True)},
            answer=answer,
            reason=reason,
            set=may_be,
            heat=grad_cam(self.cam_weights[best], outputs.feature_map) if explain and self.explains else None,
            embedding=outputs.embedding,
        )

    def shift_of(self, predictions: Sequence[Prediction]) -> dict[str, Any] | None:
        """Whether films, taken together, are like those that the model was calibrated on; no single answer is changed.

        Args:
            predictions: Of one folder, or of a time; those that were refused are no films and are left out.

        Returns:
            See :func:`vgg16_xray.trust.shift.test`; None where the bundle has nothing to compare with, or no film came.
        """
        from vgg16_xray.trust import shift

        known = (self.config.refusal or {}).get("shift")
        of_films = [p.embedding for p in predictions if p.answer in (ANSWERED, ABSTAINED) and p.embedding is not None]
        return None if known is None or not of_films else shift.test(known, np.stack(of_films))

    def replay(self, golden: Sequence[Golden]) -> float:
        """Answer for golden films, and compare; returns the largest difference of a probability.

        Raises:
            UserError: An answer is not the one that was written.
        """
        worst = 0.0
        for one in golden:
            found = self.predict_arrays([one.film], feature_map=False).probabilities[0]
            off = float(np.abs(found - one.probabilities[self.precision]).max())
            if not off <= TOLERANCE:
                raise UserError(
                    f"{self.bundle.path}: '{one.name}' in {self.precision} must give the probabilities that "
                    f"{self.bundle.golden.name} holds within {TOLERANCE}, found {off:.4f} off"
                )
            worst = max(worst, off)
        return worst


@dataclass(frozen=True)
class Golden:
    """A drawn film, and what a bundle must answer."""

    name: str
    #: The film as a PNG file.
    png: bytes
    #: (H, W) uint8.
    film: np.ndarray
    #: Precision -> (K,) calibrated probabilities.
    probabilities: Mapping[str, np.ndarray]


def golden_of(bundle: BundleDir, config: BundleConfig) -> list[Golden]:
    """Read ``golden.json``.

    Raises:
        UserError: It is missing, or holds something else.
    """
    found = []
    try:
        content = read_text_as_json(bundle.golden)
        # A bundle that was written before names were kept here holds none.
        if (named := content.get("labels", list(config.labels))) != list(config.labels):
            raise UserError(
                f"{bundle.config}: labels must be those in whose order {bundle.golden.name} answers, {shorter(named)}, "
                f"found {shorter(list(config.labels))}"
            )
        for film in content["films"]:
            png = base64.b64decode(film["png"], validate=True)
            answers = {name: np.array(film["probabilities"][name], dtype=np.float64) for name in bundle.graphs()}
            if any(answer.shape != (len(config.labels),) for answer in answers.values()):
                raise UserError(f"{bundle.golden}: must hold a probability for each class, found another number")
            found.append(Golden(str(film["name"])[:80], png, decode(png, name=f"{bundle.golden}"), answers))
    except UnreadableFilm as error:
        raise UserError(error.message) from error  # of a bundle it is no film that others are answered without
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{bundle.golden}: must hold films and their answers, found {str(error)[:80]}") from error
    if not found:
        raise UserError(f"{bundle.golden}: must hold a film, found none")
    return found


def check(bundle: Path) -> dict[str, float]:
    """Check a whole bundle: every hash, every graph, every golden film.

    Args:
        bundle: Its folder.

    Returns:
        Precision -> largest difference of a golden probability.

    Raises:
        UserError: Something is wrong; the line names it.
    """
    folder = BundleDir(bundle)
    config = read_bundle_config(folder)
    if not folder.graphs():
        raise UserError(f"{bundle}: must hold a graph, found none")
    for file in folder.hashable():
        if not file.exists() and file.name not in config.sha256:
            continue
        verify(folder, config, file)
    return {name: Classifier.load(bundle, precision=name).replay(golden_of(folder, config)) for name in folder.graphs()}


Prepared = TypeVar("Prepared")


def in_order(
    images: Sequence[Image],
    prepare: Callable[[Image], Prepared],
    answer: Callable[[Sequence[str], Sequence[Prepared]], list[Prediction]],
    *,
    quiet: bool = False,
    batch: int = BATCH,
) -> Iterator[Prediction]:
    """Answers in the order of the images; what prepares them runs beside the network, one batch ahead.

    Args:
        images: What was given.
        prepare: Runs in threads; an :class:`UnreadableFilm` that it raises becomes an answer.
        answer: Names and what was prepared of a batch -> its answers.
        quiet: Show no progress.
        batch: Films that are answered together.
    """

    def work(image: Image) -> Prepared | UnreadableFilm:
        try:
            return prepare(image)
        except UnreadableFilm as error:
            return error

    names = [name_of(image, number) for number, image in enumerate(images)]
    batches = [range(start, min(start + batch, len(images))) for start in range(0, len(images), batch)]
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress("predict", total=len(images), quiet=quiet) as bar:
        ahead = [pool.submit(work, images[i]) for i in batches[0]] if batches else []
        for number, rows in enumerate(batches):
            results = [future.result() for future in ahead]
            ahead = [pool.submit(work, images[i]) for i in batches[number + 1]] if number + 1 < len(batches) else []
            good = [(i, one) for i, one in zip(rows, results, strict=True) if not isinstance(one, UnreadableFilm)]
            answers = iter(answer([names[i] for i, _ in good], [one for _, one in good]) if good else ())
            for i, result in zip(rows, results, strict=True):
                yield _unreadable(names[i], result) if isinstance(result, UnreadableFilm) else next(answers)
            bar.advance(len(rows))


def decode_image(image: Image) -> np.ndarray:
    """(H, W) uint8 of a file, the bytes of one, or pixels.

    Raises:
        UnreadableFilm: It is no film.
    """
    if isinstance(image, NoFilm):
        raise UnreadableFilm(f"{image.name}: {image.reason}")
    if not isinstance(image, str | Path | bytes | np.ndarray):
        raise UnreadableFilm(f"film: must be a path, bytes or (H, W) uint8, found {type(image).__name__}")
    if not isinstance(image, np.ndarray):
        return decode(Path(image) if isinstance(image, str) else image)
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise UnreadableFilm(f"array: must be (H, W) uint8, found {image.shape} {image.dtype}")
    check_film(image, "array")
    return image


def name_of(image: Image, number: int) -> str:
    """What an image is called in its answer: the path, ``-`` for bytes, ``array <number>`` for pixels."""
    if isinstance(image, NoFilm):
        return image.name
    if isinstance(image, np.ndarray):
        return f"array {number}"
    return "-" if isinstance(image, bytes) else str(image)


def _unreadable(name: str, error: UnreadableFilm) -> Prediction:
    reason = str(error)
    for where in (one_line(name), "image", "array"):
        reason = reason.removeprefix(f"{where}: ")
    return Prediction(path=shown(name), answer=ERROR, reason=shown(reason))


def shown(text: str) -> str:
    """Text that can be written: a name on Linux is bytes, and those that are not UTF-8 cannot be."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
