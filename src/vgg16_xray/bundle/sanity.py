"""Whether a heat map means something: does the answer live where the heat is, and does the map depend on the model?"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray.bundle.explain import enlarged, grad_cam
from vgg16_xray.progress import progress

if TYPE_CHECKING:
    from vgg16_xray.bundle.classify import Classifier
    from vgg16_xray.learn.vgg16 import VGG16

#: Drawn films of each class that has a lesion, the first seed, and their side.
DRAWN, SEED, SIDE = 4, 500, 256


def stages(model: VGG16) -> dict[str, int]:
    """What of a network is drawn anew, from the last layer down, in words -> the layer of ``features`` to begin at."""
    from vgg16_xray.learn.vgg16 import BLOCKS

    last = model.blocks
    return {"head": BLOCKS[last], f"head and block {last}": BLOCKS[last - 1], "all layers": 0}


def share_inside(heat: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """How much of the heat (h, w) lies inside a mask (H, W) bool, and what an even heat would have there: its area."""
    at_size = enlarged(heat, (mask.shape[0], mask.shape[1])).astype(np.float64)
    total = at_size.sum()
    return (float(at_size[mask].sum() / total) if total > 0 else 0.0), float(mask.mean())


def insertion_and_deletion(
    classifier: Classifier, film: np.ndarray, heat: np.ndarray, label: int, *, steps: int = 14, seed: int | None = None
) -> Mapping[str, np.ndarray]:
    """How a class's probability falls when the hottest parts go first, and rises when they come first (Petsiuk 2018).

    A part is a cell of the heat map. What is gone is replaced by the film blurred beyond recognition: a black hole
    would be something to see.

    Args:
        classifier: What answers.
        film: (H, W) uint8.
        heat: (h, w).
        label: Number of the class.
        steps: Films that are asked on the way, the first with nothing and the last with everything changed.
        seed: Take the cells in a random order: what a picture without meaning would give.

    Returns:
        ``share`` (steps,) of the cells that were changed, ``deletion`` and ``insertion`` (steps,) probabilities.
    """
    from PIL import Image, ImageFilter

    square = classifier.square(film)
    side = len(square)
    blurred = np.asarray(Image.fromarray(square).filter(ImageFilter.GaussianBlur(side / 10)))
    scores = heat.ravel() if seed is None else np.random.default_rng(seed).random(heat.size)
    rank = np.empty(heat.size)
    rank[np.argsort(-scores, kind="stable")] = np.arange(heat.size)
    share = np.linspace(0.0, 1.0, steps)
    rows, columns = (np.arange(side) * n // side for n in heat.shape)
    place = rank.reshape(heat.shape)[rows][:, columns]
    taken = place < share[:, None, None] * heat.size
    found = [
        classifier.predict_arrays(np.where(taken, new, old), feature_map=False).probabilities[:, label]
        for old, new in ((square, blurred), (blurred, square))
    ]
    return {"share": share, "deletion": found[0], "insertion": found[1]}


def area_under(curve: Mapping[str, np.ndarray], name: str) -> float:
    """Mean height of a curve over the shares, 0 to 1: low is good for ``deletion``, high for ``insertion``."""
    heights = (curve[name][1:] + curve[name][:-1]) / 2
    return float((heights * np.diff(curve["share"])).sum())


def randomised_alike(
    model: VGG16, films: Sequence[np.ndarray], *, preprocessing: str, seed: int = 0
) -> dict[str, float]:
    """How like the model's heat maps are those of the model with its last layers drawn anew (Adebayo et al. 2018).

    A map that stays as it was shows the film and not what the model learned.

    Args:
        model: The network, with a head that has maps.
        films: (224, 224) uint8 each.
        preprocessing: A name of :data:`vgg16_xray.config.PREPROCESSING`.
        seed: Of the drawing.

    Returns:
        What is drawn anew (:func:`stages`) -> mean rank correlation (Spearman) of the maps of all classes.
    """
    before = _maps(model, films, preprocessing)
    found = {}
    for name, first in stages(model).items():
        other = copy.deepcopy(model)
        draw_anew(other, first=first, seed=seed)
        after = _maps(other, films, preprocessing)
        found[name] = float(np.mean([_rank_correlation(a, b) for a, b in zip(before, after, strict=True)]))
    return found


def draw_anew(model: VGG16, *, first: int, seed: int) -> None:
    """Draw a network's weights anew (He et al. 2015), its biases left, from layer `first` of ``features`` to the end.

    Args:
        model: Changed in place.
        first: See :func:`stages`.
        seed: Of the drawing.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in [*model.features[first:].children(), *model.classifier.children()]:
            if isinstance(weight := getattr(layer, "weight", None), torch.nn.Parameter):
                fan_in = weight[0].numel()
                weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)


def _maps(model: VGG16, films: Sequence[np.ndarray], preprocessing: str) -> list[np.ndarray]:
    """A map a film and class, before the negative part is cut off: what ranks are taken of must not be mostly zeros."""
    import torch

    from vgg16_xray.bundle.graph import cam_weights, last_relu
    from vgg16_xray.learn.weights import normalise

    with torch.no_grad():
        layers = model.features[: last_relu(model) + 1]
        maps = layers(normalise(torch.from_numpy(np.stack(films)), preprocessing)).numpy()
    weights = cam_weights(model, preprocessing=preprocessing, size=len(films[0]))
    assert weights is not None, "a head without maps was refused before"
    return [np.tensordot(row, one.astype(np.float64), axes=1) for one in maps for row in weights]


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(values.ravel())).astype(np.float64) for values in (a, b)]
    return float(
        ((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())).mean() / (ranks[0].std() * ranks[1].std())
    )


def measure(
    classifier: Classifier, model: VGG16, films: Sequence[np.ndarray], *, preprocessing: str, steps: int = 8
) -> dict[str, Any]:
    """All of it for one bundle.

    Args:
        classifier: The bundle.
        model: The network that it was made of.
        films: (224, 224) uint8 each, films that the model was not fitted to.
        preprocessing: A name of :data:`vgg16_xray.config.PREPROCESSING`.
        steps: See :func:`insertion_and_deletion`.

    Returns:
        ``films``; ``deletion`` and ``insertion``: areas by ``heat`` and in ``random`` order; ``randomised``: see
        :func:`randomised_alike`; ``drawn``: ``films``, share of the heat ``inside`` the drawn lesion, its ``area``.
    """
    areas: dict[str, dict[str, list[float]]] = {name: {"heat": [], "random": []} for name in ("deletion", "insertion")}
    with progress("what heat maps are worth", total=len(films)) as counter:
        for number, film in enumerate(films):
            outputs = classifier.predict_arrays([film])
            label = int(outputs.probabilities[0].argmax())
            heat = grad_cam(classifier.cam_weights[label], outputs.feature_map[0])
            for order, seed in (("heat", None), ("random", number)):
                curve = insertion_and_deletion(classifier, film, heat, label, steps=steps, seed=seed)
                for name, found in areas.items():
                    found[order].append(area_under(curve, name))
            counter.advance()
    return {
        "films": len(films),
        **{name: {order: float(np.mean(values)) for order, values in found.items()} for name, found in areas.items()},
        "randomised": randomised_alike(model, films, preprocessing=preprocessing),
        "drawn": _drawn(classifier),
    }


def _drawn(classifier: Classifier) -> dict[str, Any]:
    """Share of the predicted class's heat inside the lesions of drawn films, where the answer is the drawn class."""
    from vgg16_xray.films.phantom import CLASSES, draw

    shares = []
    for label in sorted(set(CLASSES) & set(classifier.labels) - {"Normal"}):
        for number in range(DRAWN):
            film = draw(label, seed=SEED + number, size=SIDE)
            outputs = classifier.predict_arrays([film.pixels])
            if classifier.labels[int(outputs.probabilities[0].argmax())] == label:
                heat = grad_cam(classifier.cam_weights[classifier.labels.index(label)], outputs.feature_map[0])
                shares.append(share_inside(heat, film.opacity))
    inside, area = (float(part) for part in np.mean(shares, axis=0)) if shares else (None, None)
    return {"films": len(shares), "inside": inside, "area": area}
