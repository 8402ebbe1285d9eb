"""Where a model has no business answering: pictures that are no frontal chest films, and films it knows too little of.

Two questions, asked of every film before its answer is shown:

Is it a frontal chest film, upright, not a negative, not a photograph of one? Told from a small copy of the picture, a
few figures of its greys, and where the network's embedding of it lies among those of the training films, by a logistic
regression against pictures of other kinds (:mod:`vgg16_xray.films.nonfilms`). If not, it is *refused*.

Does the model know enough of it? A class is answered from a probability on that is fixed on the validation films, so
that a stated share of them is refused or abstained. Below it the model has *abstained*: its prediction is shown, and
marked.
What was measured of both, and what did not help: docs/refusal.md.

What :func:`fit` gives is JSON; :func:`judge` needs numpy and Pillow alone.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vgg16_xray.films.nonfilms import FILM, INVERTED, OTHER, PHOTOGRAPHED, TURNED, VERDICTS, make

#: Share of the validation films that may be refused or abstained.
RATE = 0.05
#: The part of it that the first question may cost.
RATE_OF_FILM = 0.01
#: No more is asked of a probability: a calibration by some hundred films of a class does not tell 0.98 from 0.999.
CEILING = 0.98
#: Sides of the copies that a picture is looked at as.
SMALL, LARGE = 16, 128
#: Numbers that :func:`look` gives: the small copy, its greys, figures, waves and their peaks.
LOOKS = SMALL**2 + 16 + 15 + 5 + 5
#: Directions of the embedding that are kept: those along which training films differ most.
DIRECTIONS = 24
#: Pictures of each kind that are no films, and films, that the first question is fitted on.
EACH, FILMS = 60, 700

#: What is said of a picture that is no film, by what it is taken for.
REASONS = {
    TURNED: "it looks like a chest film that lies on its side or stands on its head",
    INVERTED: "it looks like a negative: air white and bones black",
    PHOTOGRAPHED: "it looks like a photograph of a film or of a monitor; take the file itself",
    OTHER: "it does not look like a frontal chest radiograph",
}

Floats = NDArray[np.float64]


def look(pixels: NDArray[np.uint8]) -> Floats:
    """What a picture looks like from afar, whatever its size.

    Args:
        pixels: (H, W) uint8.

    Returns:
        (F,) float64: the picture as 16 x 16 standardised greys, then figures of greys, edges, symmetry, and waves.
    """
    picture = Image.fromarray(pixels)
    small = np.asarray(picture.resize((SMALL, SMALL), Image.Resampling.BOX), dtype=np.float64)
    large = np.asarray(picture.resize((LARGE, LARGE), Image.Resampling.BILINEAR), dtype=np.float64)
    greys = np.bincount((large / 16).astype(np.int64).ravel(), minlength=16)[:16] / large.size
    across, down = np.abs(np.diff(large, axis=1)), np.abs(np.diff(large, axis=0))
    level = small - small.mean()
    mirrored = float((level * level[:, ::-1]).sum() / max(float((level**2).sum()), 1e-9))
    upside = float((level * level[::-1]).sum() / max(float((level**2).sum()), 1e-9))
    border = np.concatenate([large[:4].ravel(), large[-4:].ravel(), large[:, :4].ravel(), large[:, -4:].ravel()])
    # Moiré and screens are waves: single frequencies far above their neighbourhood.
    power = np.abs(np.fft.rfft2((large - large.mean()) * np.outer(*[np.hanning(LARGE)] * 2))) ** 2
    radius = np.hypot(np.fft.fftfreq(LARGE)[:, None], np.fft.rfftfreq(LARGE)[None]) * LARGE
    rings = [(radius >= a) & (radius < b) for a, b in ((3, 6), (6, 12), (12, 24), (24, 40), (40, 64))]
    bands = [np.log(power[ring].mean() + 1) for ring in rings]
    peaks = [np.log((power[ring].max() + 1) / (np.median(power[ring]) + 1)) for ring in rings]
    figures = [
        large.mean() / 255,
        large.std() / 255,
        (border.mean() - large.mean()) / 255,
        border.std() / 255,
        float(np.mean(large <= 2)),
        float(np.mean(large >= 253)),
        float(np.mean(across == 0)),
        np.log1p(across.mean()),
        np.log1p(down.mean()),
        np.log1p(np.percentile(across, 99)),
        np.log1p(np.percentile(down, 99)),
        mirrored,
        upside,
        sum(count > 0 for count in picture.histogram()) / 256,
        float(-(greys * np.log(greys + 1e-9)).sum()),
    ]
    return np.concatenate([(level / max(float(small.std()), 1.0)).ravel(), greys, figures, bands, peaks])


# -- numbers that travel in JSON


def packed(values: NDArray[Any]) -> dict[str, Any]:
    """An array as half precision in base64, with its shape."""
    halves = np.asarray(values, dtype="<f2")
    return {"shape": list(halves.shape), "float16": base64.b64encode(halves.tobytes()).decode()}


@lru_cache(maxsize=64)
def _unpacked_text(text: str, shape: tuple[int, ...]) -> Floats:
    values = np.frombuffer(base64.b64decode(text), dtype="<f2").astype(np.float64).reshape(shape)
    values.flags.writeable = False
    return values


def unpacked(packed: Mapping[str, Any]) -> Floats:
    """What :func:`packed` packed, as float64; read-only."""
    return _unpacked_text(packed["float16"], tuple(packed["shape"]))


# -- is it a film


def _inputs(film: Mapping[str, Any], looks: Floats, embeddings: Floats) -> Floats:
    """(N, D): what the regression sees, of looks (N, F) and embeddings (N, E)."""
    centred = (embeddings - unpacked(film["centre"])) / unpacked(film["spread"])
    along = centred @ unpacked(film["directions"])
    # How far off the training films a film lies, along the directions in which they differ and besides.
    rest = np.log(np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 1e-3))
    along = along / unpacked(film["deviations"])
    far = np.log(np.maximum((along**2).mean(axis=1), 1e-3))
    return np.column_stack([looks, np.clip(along, -8, 8), rest, far])


def verdicts(film: Mapping[str, Any], looks: Floats, embeddings: Floats) -> Floats:
    """(N, V) what N pictures are, as probabilities of :data:`VERDICTS`.

    Args:
        film: ``refusal["film"]`` of :func:`fit`.
        looks: (N, F), a row of :func:`look` a picture.
        embeddings: (N, E).
    """
    inputs = (_inputs(film, looks, embeddings) - unpacked(film["mean"])) / unpacked(film["scale"])
    logits = np.clip(inputs, -6, 6) @ unpacked(film["weights"]) + unpacked(film["bias"])
    logits = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(logits / logits.sum(axis=1, keepdims=True))


def fit_film(looks: Floats, embeddings: Floats, names: Sequence[str], *, strength: float = 0.01) -> dict[str, Any]:
    """Fit the first question, but for its threshold.

    Args:
        looks: (N, F) of films and other pictures.
        embeddings: (N, E).
        names: (N,) what each is, of :data:`VERDICTS`.
        strength: How far the weights may go (scikit-learn's C).
    """
    from sklearn.linear_model import LogisticRegression

    of_films = np.array([name == FILM for name in names])
    embeddings = np.asarray(embeddings, dtype=np.float64)
    centre, spread = embeddings[of_films].mean(axis=0), embeddings[of_films].std(axis=0)
    spread = np.maximum(spread, 1e-2 * spread.mean() + 1e-6)
    centred = (embeddings[of_films] - centre) / spread
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    kept = vectors[:, ::-1][:, :DIRECTIONS]
    film: dict[str, Any] = {
        "centre": packed(centre),
        "spread": packed(spread),
        "directions": packed(kept),
        "deviations": packed(np.sqrt(np.maximum(values[::-1][: kept.shape[1]], 1e-4))),
    }
    inputs = _inputs(film, looks, embeddings)
    mean, scale = inputs[of_films].mean(axis=0), np.maximum(inputs.std(axis=0), 1e-3)
    film |= {"mean": packed(mean), "scale": packed(scale)}
    inputs = np.clip((inputs - unpacked(film["mean"])) / unpacked(film["scale"]), -6, 6)
    places = np.array([VERDICTS.index(name) for name in names])
    present = np.unique(places)
    counts = np.bincount(places, minlength=len(VERDICTS))
    weights = 1 / counts[places] * len(places) / len(present)
    model = LogisticRegression(C=strength, max_iter=400).fit(inputs, places, sample_weight=weights)
    coefficients, bias = np.zeros((inputs.shape[1], len(VERDICTS))), np.full(len(VERDICTS), -1e4)
    if len(present) == 2:  # scikit-learn then has one row, of the second
        coefficients[:, present[1]], bias[present] = model.coef_[0], (0.0, float(model.intercept_[0]))
    else:
        coefficients[:, present], bias[present] = model.coef_.T, model.intercept_
    return film | {"weights": packed(coefficients), "bias": packed(bias)}


def _lowest_answered(values: Floats, share: float) -> float:
    """The threshold below which at most `share` of the values lie."""
    if len(values) == 0:
        return 0.0
    return float(np.sort(values)[int(np.floor(share * len(values) + 1e-9))])


# -- does the model know enough of it

#: Names of the class that says "nothing found", without capitals, blanks, or signs.
NEGATIVE = frozenset({"normal", "healthy", "nofinding", "nofindings", "negative", "control", "controls"})


def negative_class(labels: Sequence[str], targets: NDArray[Any]) -> int:
    """The class that needs no evidence: that of :data:`NEGATIVE` by its name, else the one with most films.

    Args:
        labels: K names.
        targets: (N,) int.
    """
    named = [k for k, label in enumerate(labels) if "".join(filter(str.isalpha, label.lower())) in NEGATIVE]
    return named[0] if named else int(np.bincount(targets, minlength=len(labels)).argmax())


def fit_evidence(
    probabilities: NDArray[Any], targets: NDArray[Any], labels: Sequence[str], *, rate: float
) -> list[float]:
    """From which probability on each class is answered.

    The negative class is always answered. Of each other class the same share of the films that are rightly answered
    with it is given up, as large as `rate` of all films allows, but none above :data:`CEILING`: what is wrongly
    answered falls first.

    Args:
        probabilities: (N, K) calibrated, of films that the model was not fitted to.
        targets: (N,) int.
        labels: K names.
        rate: Share of all these films that may be abstained.

    Returns:
        (K,) thresholds; 0 where nothing is asked.
    """
    probabilities, targets = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    answer, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    positive = [k for k in range(len(labels)) if k != negative_class(labels, targets)]

    def thresholds(share: float) -> Floats:
        cuts = np.zeros(len(labels))
        for k in positive:
            cuts[k] = min(_lowest_answered(sure[(answer == k) & (targets == k)], share), CEILING)
        return cuts

    shares = np.arange(0, 0.9, 0.005)
    allowed = [s for s in shares if np.mean(sure < thresholds(s)[answer]) <= rate]
    return [float(cut) for cut in thresholds(max(allowed, default=0.0))]


def fit(
    *,
    films: Sequence[NDArray[np.uint8]],
    embed: Callable[[Sequence[NDArray[np.uint8]]], NDArray[Any]],
    validation: Sequence[NDArray[np.uint8]],
    embeddings: NDArray[Any],
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    labels: Sequence[str],
    rate: float = RATE,
    each: int = EACH,
    seed: int = 1234,
) -> dict[str, Any]:
    """Fit both questions to a model.

    Args:
        films: (H, W) uint8 each, training films; :data:`FILMS` of them, drawn at random, are enough.
        embed: The model: films -> embeddings (n, E).
        validation: (H, W) uint8 each, V films on which the model was calibrated.
        embeddings: (V, E) of them.
        probabilities: (V, K) of them, calibrated.
        targets: (V,) int, their classes.
        labels: K names.
        rate: Share of the validation films that may be refused or abstained.
        each: Pictures of each kind that is no film.
        seed: Of the pictures.

    Returns:
        What :func:`judge` wants and JSON holds: ``film``, ``evidence`` (``thresholds``), ``rate``, ``labels``, and
        ``validation``, what it did there (``refused``, ``abstained``: counts; ``abstained_by_class``).

    Raises:
        ValueError: There are no films.
    """
    if len(films) == 0 or len(validation) == 0:
        raise ValueError(f"films, validation: must be at least one each, found {len(films)} and {len(validation)}")
    targets, probabilities = np.asarray(targets), np.asarray(probabilities, dtype=np.float64)
    pictures, _, names = make(films, each=each, seed=seed)
    film = fit_film(
        np.stack([look(picture) for picture in [*films, *pictures]]),
        np.concatenate([np.asarray(embed(part), dtype=np.float64) for part in (films, pictures)]),
        [FILM] * len(films) + names,
    )
    looks = np.stack([look(picture) for picture in validation])
    is_film = verdicts(film, looks, np.asarray(embeddings, dtype=np.float64))[:, 0]
    film["threshold"] = _lowest_answered(is_film, min(RATE_OF_FILM, rate))
    taken = is_film >= film["threshold"]
    left = max(0.0, (rate * len(targets) - np.sum(~taken)) / max(1, taken.sum()))
    cuts = fit_evidence(probabilities[taken], targets[taken], labels, rate=left) if taken.any() else [0.0] * len(labels)
    abstained = taken & (probabilities.max(axis=1) < np.array(cuts)[probabilities.argmax(axis=1)])
    return {
        "film": film,
        "evidence": {"thresholds": cuts},
        "rate": rate,
        "labels": list(labels),
        "validation": {
            "films": len(targets),
            "refused": int(np.sum(~taken)),
            "abstained": int(abstained.sum()),
            "by_class": {
                label: {"films": int((targets == k).sum()), "abstained": int((abstained & (targets == k)).sum())}
                for k, label in enumerate(labels)
            },
        },
    }


def judge(
    refusal: Mapping[str, Any], *, looks: Floats, probabilities: NDArray[Any], embedding: NDArray[Any]
) -> tuple[str, str]:
    """Whether a picture is answered.

    Args:
        refusal: What :func:`fit` gave.
        looks: (F,), what :func:`look` gives of it at its original size.
        probabilities: (K,) calibrated.
        embedding: (E,).

    Returns:
        ``answered``, ``abstained`` or ``refused``, and why: words, empty where it is answered.
    """
    of = verdicts(refusal["film"], looks[None], np.asarray(embedding, dtype=np.float64)[None])[0]
    if of[0] < refusal["film"]["threshold"]:
        return "refused", REASONS[VERDICTS[1 + int(of[1:].argmax())]]
    best = int(np.argmax(probabilities))
    wanted, found = refusal["evidence"]["thresholds"][best], float(probabilities[best])
    if found < wanted:
        label = refusal["labels"][best]
        return "abstained", (
            f"{label} is answered from a probability of {wanted:.3f} on, found {found:.3f}: below it, films of other "
            "hospitals are too often taken for it"
        )
    return "answered", ""
