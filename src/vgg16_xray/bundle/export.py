"""Make a bundle of a finished run: both graphs, what was measured of them, the card, golden films and hashes.

The network in float32 answers for the validation films, which fit the temperature; training films tell int8 its ranges;
int8 answers for the validation films too, and how far it is from float32 stands in the card. The two passes take the
time; what the first found is kept in the run, so that an export that was killed does not compute it again.
"""

from __future__ import annotations

import base64
import io
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray import __version__
from vgg16_xray.bundle.card import model_card
from vgg16_xray.bundle.classify import ABSTAINED, ANSWERED, ERROR, REFUSED, Classifier, check
from vgg16_xray.bundle.format import EMBEDDING, LOGITS, PIXELS, PROBABILITIES, BundleConfig, BundleDir, session_of
from vgg16_xray.bundle.localise import summary
from vgg16_xray.bundle.sanity import measure as measure_maps
from vgg16_xray.errors import UserError
from vgg16_xray.files import read_json, replace_folder, require_writable, whole_file, write_json, write_text
from vgg16_xray.films.dataset import may_be_film
from vgg16_xray.films.split import TEST, TRAIN, VALIDATION
from vgg16_xray.progress import progress
from vgg16_xray.rundir import HeatDir, RunDir, key_of, read_config, sha256_of
from vgg16_xray.trust.calibrate import fit_conformal, fit_temperature, softmax

if TYPE_CHECKING:
    import pandas as pd

    from vgg16_xray.films.store import ArrayStore
    from vgg16_xray.learn.checkpoint import ModelConfig
    from vgg16_xray.learn.vgg16 import VGG16

#: Training films that show int8 its ranges, the same number of each class.
CALIBRATION_FILMS = 128
#: Validation films that heat maps are measured on.
HEAT_FILMS = 12
#: Films of a class that the model does not know, that stand for it.
ELSEWHERE_FILMS = 100
#: Films that go through a graph together.
BATCH = 8
#: Golden films: class, seed, and (H, W), so that the graph's stretching is tried as well.
GOLDEN = (
    ("COVID", 11, (320, 256)),
    ("Lung_Opacity", 12, (299, 299)),
    ("Normal", 13, (224, 224)),
    ("Viral Pneumonia", 14, (256, 400)),
)


@dataclass(frozen=True)
class Exported:
    """What an export made."""

    bundle: BundleDir
    config: BundleConfig
    seconds: float


def export(
    run: RunDir, to: Path, *, elsewhere: Mapping[str, Path] | None = None, refusal_rate: float = 0.05
) -> Exported:
    """Make a bundle of a finished run.

    Args:
        run: A run whose steps 2 to 6 are finished.
        to: Folder to make; a bundle that is there is replaced when the new one is whole.
        elsewhere: What to call films of which the model knows no class -> their folder: what it answers there
            stands in the card.
        refusal_rate: Share of the validation films that may be refused or abstained (docs/refusal.md).

    Raises:
        UserError: The run has no single trained model, a step is missing, or `to` is something else than a bundle.
    """
    from vgg16_xray.learn.checkpoint import load_model
    from vgg16_xray.steps.preprocess import read_manifest
    from vgg16_xray.steps.train import open_pixels

    started = time.monotonic()
    _refuse_unusable(run, to)
    model, config = load_model(run.best)
    manifest = read_manifest(run)
    source = _Source(run, model, config, manifest, open_pixels(run, manifest))
    written = BundleDir(to.with_name(f".{to.name}.tmp"))
    done = seal(written, _write(source, written, refusal_rate))
    classifier = Classifier.load(written.path)
    figures = dict(done.figures)
    if classifier.explains:
        rows = evenly_by_class(source, VALIDATION, HEAT_FILMS)
        figures["heat_maps"] = measure_maps(
            classifier, model, list(source.pixels.take(rows)), preprocessing=config.preprocessing
        )
    if (numbers := HeatDir(run.path).numbers).exists():
        # What 'vgg16-xray heat' left, as long as it is of this model.
        found = read_json(numbers)
        if found["checkpoint_sha256"] == done.checkpoint_sha256:
            figures["localisation"] = summary(found)
    if elsewhere:
        figures["elsewhere"] = [answers_elsewhere(classifier, name, folder) for name, folder in elsewhere.items()]
    done = seal(written, replace(done, figures=figures))
    check(written.path)
    replace_folder(written.path, to)
    return Exported(BundleDir(to), done, time.monotonic() - started)


def refuse_to(to: Path) -> None:
    """Refuse a place where no bundle may be written.

    Raises:
        UserError: It holds something else than a bundle, or cannot be written beside.
    """
    if to.exists() and not BundleDir(to).config.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to: must be a new folder or a bundle, found {to} that is neither")
    require_writable(to.parent)


def _refuse_unusable(run: RunDir, to: Path) -> None:
    from vgg16_xray.steps.folds import ensemble

    if ensemble(run) and not run.best.exists():
        raise UserError(
            f"{run.path}: must have one model, found those of folds",
            hint=f"export one of them: vgg16-xray export {run.path}/folds/1 --to {to}",
        )
    for step in ("train", "validate", "test"):
        run.require_step(step, made_by=step)
    refuse_to(to)


@dataclass(frozen=True)
class _Source:
    """A trained network and its films."""

    run: RunDir
    model: VGG16
    config: ModelConfig
    manifest: pd.DataFrame
    pixels: ArrayStore

    def rows(self, side: str) -> np.ndarray:
        return np.flatnonzero((self.manifest["split"] == side).to_numpy())

    def targets(self, rows: np.ndarray) -> np.ndarray:
        number = {label: k for k, label in enumerate(self.config.labels)}
        return self.manifest["label"].iloc[rows].map(number).to_numpy(dtype=np.int64)

    def graph(self, **options: Any) -> bytes:
        from vgg16_xray.bundle.graph import network_graph

        how = options | {"preprocessing": self.config.preprocessing, "size": self.config.size}
        return network_graph(self.model, **how).SerializeToString()


def _write(source: _Source, bundle: BundleDir, refusal_rate: float) -> BundleConfig:
    """Write graphs, weights and golden films; what an earlier export left half-written is written over."""
    from vgg16_xray.bundle.graph import cam_weights
    from vgg16_xray.bundle.quantise import measure

    shutil.rmtree(bundle.path, ignore_errors=True)
    bundle.path.mkdir(parents=True)
    validation = source.rows(VALIDATION)
    targets = source.targets(validation)
    exact = _outputs_once(source, validation)
    temperature = fit_temperature(exact[LOGITS], targets)
    _write_bytes(bundle.float32, source.graph(temperature=temperature))

    films = source.pixels.take(evenly_by_class(source, TRAIN, CALIBRATION_FILMS))
    reached = measure(source.model, films, preprocessing=source.config.preprocessing, size=source.config.size)
    _write_bytes(bundle.int8, source.graph(temperature=temperature, int8=reached))
    coarse = _outputs(session_of(bundle.int8.read_bytes()), source.pixels, validation, "int8 on validation films")

    weights = cam_weights(source.model, preprocessing=source.config.preprocessing, size=source.config.size)
    probabilities = softmax(exact[LOGITS] / temperature)
    write_json(bundle.preprocessor, _preprocessor(source.config))
    shutil.copyfile(source.run.best, bundle.weights)
    write_own_films(bundle, source.manifest, source.pixels)
    write_json(bundle.golden, _golden(bundle, source.config.labels))
    return BundleConfig(
        labels=source.config.labels,
        size=source.config.size,
        preprocessing=source.config.preprocessing,
        train_from=source.config.train_from,
        blocks=source.config.blocks,
        recipe=source.config.recipe,
        temperature=temperature,
        head={
            "kind": source.config.head,
            "cam_weights": None if weights is None else [[float(f"{w:.7g}") for w in row] for row in weights],
        },
        conformal=fit_conformal(probabilities, targets),
        refusal=_refusal(source, validation, probabilities, exact[EMBEDDING], rate=refusal_rate),
        trained_on=trained_on(source.run, source.manifest),
        figures={
            "validation": read_json(source.run.validation),
            "test": read_json(source.run.test),
            "int8_against_float32": against(exact[LOGITS] / temperature, coarse[LOGITS] / temperature, targets),
            "audit": audited(source.run),
        },
        version=__version__,
        checkpoint_sha256=sha256_of(source.run.best),
    )


def seal(bundle: BundleDir, config: BundleConfig) -> BundleConfig:
    """Write the card, and the configuration with the hashes of all the other files.

    Args:
        bundle: All other files of it are written.
        config: Its configuration, but for the hashes.

    Returns:
        The configuration as it was written.
    """
    write_text(bundle.card, model_card(config))
    sealed = replace(config, sha256={file.name: sha256_of(file) for file in bundle.hashed()})
    write_json(bundle.config, sealed.as_dict())
    return sealed


def _refusal(
    source: _Source, validation: np.ndarray, probabilities: np.ndarray, embeddings: np.ndarray, *, rate: float
) -> dict[str, Any]:
    """What the bundle refuses and abstains from, fitted with the float32 graph."""
    from vgg16_xray.films.decode import to_square
    from vgg16_xray.trust import shift
    from vgg16_xray.trust.refuse import EACH, FILMS, fit

    session = session_of(source.graph(temperature=1.0))

    def embed(films: Sequence[np.ndarray]) -> np.ndarray:
        found = []
        with progress("pictures that refusal is fitted on", total=len(films)) as counter:
            for start in range(0, len(films), BATCH):
                batch = np.stack([to_square(film, source.config.size) for film in films[start : start + BATCH]])
                found.append(session.run([EMBEDDING], {PIXELS: batch})[0])
                counter.advance(len(batch))
        return np.concatenate(found)

    training = source.rows(TRAIN)
    known = training[np.linspace(0, len(training) - 1, min(FILMS, len(training))).round().astype(int)]
    enough = len(validation) >= 2 * shift.LEAST
    return {"shift": shift.fit(embeddings) if enough else None} | fit(
        films=list(source.pixels.take(known)),
        embed=embed,
        validation=list(source.pixels.take(validation)),
        embeddings=embeddings,
        probabilities=probabilities,
        targets=source.targets(validation),
        labels=source.config.labels,
        rate=rate,
        each=min(EACH, max(10, len(known) // 10)),
    )


def write_own_films(bundle: BundleDir, manifest: pd.DataFrame, pixels: ArrayStore) -> None:
    """Keep what a test elsewhere needs to find this model's films among its own.

    Args:
        bundle: Where it is kept; its configuration is sealed afterwards.
        manifest: (N rows), see :mod:`vgg16_xray.steps.preprocess`.
        pixels: (N, 224, 224) uint8.
    """
    from vgg16_xray.trust.own_films import remember

    squares = (pixels.take(np.array([row]))[0] for row in range(len(manifest)))
    known = remember(squares, manifest["pixels_sha256"].tolist(), manifest["split"].tolist())
    with whole_file(bundle.films) as temporary, temporary.open("wb") as file:
        np.save(file, known, allow_pickle=False)


def _write_bytes(path: Path, data: bytes) -> None:
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def _outputs_once(source: _Source, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What the float32 graph says of films, uncalibrated; kept in the run."""
    pixels = source.manifest["pixels_sha256"].iloc[rows].tolist()
    kept = source.run.outputs(key_of("float32", sha256_of(source.run.best), pixels))
    if kept.exists():
        with np.load(kept, allow_pickle=False) as arrays:
            return dict(arrays)
    session = session_of(source.graph(temperature=1.0))
    outputs = _outputs(session, source.pixels, rows, "float32 on validation films")
    with whole_file(kept) as temporary, temporary.open("wb") as file:
        np.savez(file, **outputs)  # type: ignore[arg-type]
    return outputs


def _outputs(session: Any, pixels: ArrayStore, rows: np.ndarray, what: str) -> dict[str, np.ndarray]:
    names = [LOGITS, EMBEDDING]
    found = []
    with progress(what, total=len(rows)) as counter:
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            found.append(session.run(names, {PIXELS: pixels.take(batch)}))
            counter.advance(len(batch))
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*found, strict=True), strict=True)}


def evenly_by_class(source: _Source, side: str, films: int) -> np.ndarray:
    """Rows of about so many films of a side: as many of each class where there are enough, spread over the run."""
    of_side, labels = source.rows(side), source.config.labels
    found = []
    for number in range(len(labels)):
        rows = of_side[source.targets(of_side) == number]
        count = min(len(rows), -(-films // len(labels)))
        found.append(rows[np.linspace(0, len(rows) - 1, count).round().astype(int)] if count else rows)
    return np.concatenate(found)


def answers_elsewhere(classifier: Classifier, name: str, folder: Path) -> dict[str, Any]:
    """What a model answers for films of which it knows no class: any answer is wrong.

    Args:
        classifier: The bundle.
        name: What to call them.
        folder: Where they are; some, spread over it, are taken.

    Returns:
        ``name``, ``films``; counts ``answered``, ``abstained``, ``refused``; ``as``: what they were answered as.
    """
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and may_be_film(file)]
    if not files:
        raise UserError(f"--elsewhere: must be a folder of films, found none in {folder}")
    places = np.linspace(0, len(files) - 1, min(len(files), ELSEWHERE_FILMS)).round().astype(int)
    answers = [one for one in classifier.stream([files[i] for i in places], quiet=False) if one.answer != ERROR]
    count = Counter(one.answer for one in answers)
    return {
        "name": name,
        "films": len(answers),
        **{answer: count[answer] for answer in (ANSWERED, ABSTAINED, REFUSED)},
        "as": dict(Counter(one.prediction for one in answers if one.answer == ANSWERED).most_common()),
    }


def against(exact: np.ndarray, coarse: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """How far int8 is from float32.

    Args:
        exact: (N, K) calibrated logits of float32.
        coarse: (N, K) of int8.
        targets: (N,) true classes.

    Returns:
        ``films``; ``agreement``, the share with the same answer; ``macro_f1`` of both and ``macro_f1_drop``; the
        largest and the mean difference of a probability.
    """
    answers = exact.argmax(axis=1), coarse.argmax(axis=1)
    f1 = [_macro_f1(targets, answer, exact.shape[1]) for answer in answers]
    apart = np.abs(softmax(exact) - softmax(coarse))
    return {
        "films": len(targets),
        "agreement": float((answers[0] == answers[1]).mean()),
        "macro_f1": {"float32": f1[0], "int8": f1[1]},
        "macro_f1_drop": f1[0] - f1[1],
        "worst_probability_difference": float(apart.max()),
        "mean_probability_difference": float(apart.mean()),
    }


def _macro_f1(targets: np.ndarray, answers: np.ndarray, classes: int) -> float:
    from vgg16_xray.trust.metrics import answer_figures

    confusion = np.zeros((1, classes, classes))
    np.add.at(confusion[0], (targets, answers), 1)
    return float(np.nanmean(answer_figures(confusion).f1))


def trained_on(run: RunDir, manifest: pd.DataFrame) -> dict[str, Any]:
    """What the model has seen, in counts."""
    config = read_config(run)
    return {
        "films": {
            side: dict(Counter(manifest["label"][manifest["split"] == side])) for side in (TRAIN, VALIDATION, TEST)
        },
        "collections": sorted(set(manifest["collection"])),
        "sources": dict(Counter(manifest["source"].fillna(""))),
        "split": config["data"]["split"],
        "fingerprint": config["data"]["fingerprint"],
        "weights": config["weights"]["origin"],
    }


def audited(run: RunDir) -> dict[str, Any]:
    """The verdict on the run's films as the card tells it.

    Returns:
        ``verdict``, None where the films were not audited; ``fresh``, whether they are still those that were audited;
        the strongest ``reasons`` in words; ``not_checked``.
    """
    from vgg16_xray.steps.audit import read_audit
    from vgg16_xray.trust.verdict import STRONGEST

    found = read_audit(run) or {"verdict": None, "fresh": False, "reasons": [], "not_checked": []}
    words = ("headline", "evidence", "remedy")
    return {
        "verdict": found["verdict"],
        "fresh": found["fresh"],
        "reasons": [{name: reason[name] for name in words} for reason in found["reasons"][:STRONGEST]],
        "not_checked": found["not_checked"],
    }


def _preprocessor(config: ModelConfig) -> dict[str, Any]:
    """In the words of Hugging Face's image processors; the graph does all of it."""
    from vgg16_xray.learn.weights import PREPROCESSING

    how = PREPROCESSING[config.preprocessing]
    return {
        "image_processor_type": "in the graph: give it grey pixels (B, H, W) uint8",
        "do_resize": True,
        "size": {"height": config.size, "width": config.size},
        "resample": 2,  # PIL.Image.Resampling.BILINEAR, antialiased
        "do_rescale": False,
        "do_normalize": True,
        "image_mean": list(how.mean),
        "image_std": list(how.divisor),
        "description": how.description,
    }


def _golden(bundle: BundleDir, labels: Sequence[str]) -> dict[str, Any]:
    from PIL import Image

    from vgg16_xray.films.phantom import draw

    sessions = {name: session_of(file.read_bytes()) for name, file in bundle.graphs().items()}
    films: list[dict[str, Any]] = []
    for label, seed, (height, width) in GOLDEN:
        size = max(height, width)
        film = draw(label, seed=seed, size=size).pixels
        top, left = (size - height) // 2, (size - width) // 2
        film = np.ascontiguousarray(film[top : top + height, left : left + width])
        png = io.BytesIO()
        Image.fromarray(film).save(png, "PNG", optimize=True)
        answers = {name: session.run([PROBABILITIES], {PIXELS: film[None]})[0][0] for name, session in sessions.items()}
        films.append(
            {
                "name": f"drawn {label}, {height} x {width}",
                "png": base64.b64encode(png.getvalue()).decode("ascii"),
                "probabilities": {name: [round(float(p), 6) for p in answer] for name, answer in answers.items()},
            }
        )
    # The least certain first: that one is asked whenever a bundle is opened, and a certain answer hides a small damage.
    films.sort(key=lambda film: max(film["probabilities"]["int8"]))
    return {"labels": list(labels), "films": films}
