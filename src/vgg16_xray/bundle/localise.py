"""Does the heat map look where the disease is? Heat against what somebody drew, against chance and against no learning.

Pointing game (Zhang et al., *Top-down neural attention by excitation backprop*, IJCV 2018): whether the hottest point
lies on a structure, without a tolerance. Share of the heat that lies on it. Three things that know nothing of the
disease are asked the same: an even heat (the structure's share of the film), the network with all its weights drawn
anew, and the mean map of the other films, which is the same wherever the disease is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray.bundle.explain import enlarged, grad_cam
from vgg16_xray.films.masks import LUNGS, OPACITIES, Drawn
from vgg16_xray.progress import progress
from vgg16_xray.trust.intervals import bootstrap_weights, exact_interval, group_numbers, percentile_interval

if TYPE_CHECKING:
    from vgg16_xray.bundle.classify import Classifier
    from vgg16_xray.bundle.format import BundleConfig, BundleDir
    from vgg16_xray.learn.vgg16 import VGG16

LEVEL, REPLICATES, SEED = 0.95, 2000, 1234
#: Networks with random weights that are asked: the mean over them is what no learning gives.
RANDOM = 5
#: Heat on the opacities, as a share of the heat in the lungs: whether more is found than where the chest is.
WITHIN = "opacities within lungs"
REGIONS = (OPACITIES, LUNGS, WITHIN)
#: Who is asked -> what it is called; the second and later ones know nothing of the disease.
COLUMNS = {
    "model": "this model",
    "chance": "an even heat",
    "random": "random weights",
    "mean_map": "other films' mean map",
}
OTHERS = tuple(COLUMNS)[1:]
#: Of fewer films nothing is said.
LEAST = 5
#: Films that go through a network together.
BATCH = 8
#: Films that are drawn under their heat.
DRAWN = 8


@dataclass(frozen=True)
class Found:
    """What one map has on one structure of one film."""

    #: Whether the hottest point lies on it; NaN where there is no heat.
    pointed: float
    #: Share of the heat on it; NaN where there is no heat.
    share: float


NOWHERE = Found(float("nan"), float("nan"))


def on_structures(heat: np.ndarray, structures: Mapping[str, np.ndarray]) -> dict[str, Found]:
    """What of a heat map lies on what is drawn.

    Args:
        heat: (h, w), 0 or more.
        structures: Structure -> (H, W) bool with something drawn.

    Returns:
        A name of :data:`REGIONS` -> what was found; within the lungs where both are drawn and overlap.
    """
    shape = next(iter(structures.values())).shape
    at_size = enlarged(heat.astype(np.float32), (shape[0], shape[1])).astype(np.float64)
    hottest = np.unravel_index(int(at_size.argmax()), shape)
    found = {}
    for name, (on, within) in _pairs(structures).items():
        total = at_size.sum() if within is None else at_size[within].sum()
        # Within the lungs the hottest point is that of the lungs.
        point = hottest if within is None else np.unravel_index(int(np.where(within, at_size, -1.0).argmax()), shape)
        found[name] = Found(float(on[point]), float(at_size[on].sum() / total)) if total > 0 else NOWHERE
    return found


def by_chance(structures: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What an even heat has on what is drawn: its share of the film, or of the lungs."""
    return {
        name: float(on.mean() if within is None else on.sum() / within.sum())
        for name, (on, within) in _pairs(structures).items()
    }


def _pairs(structures: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Region -> where it is, and of what it is a part."""
    pairs: dict[str, tuple[np.ndarray, np.ndarray | None]] = {name: (mask, None) for name, mask in structures.items()}
    if OPACITIES in structures and LUNGS in structures:
        both = structures[OPACITIES] & structures[LUNGS]
        if both.any():
            pairs[WITHIN] = (both, structures[LUNGS])
    return pairs


def classifier_of(model: VGG16, folder: BundleDir, config: BundleConfig) -> Classifier:
    """A network as a classifier that answers in float32, without calibration and refusal.

    Args:
        model: With a head that has maps, or without.
        folder: What messages name.
        config: Classes, size and preprocessing of the network.
    """
    from vgg16_xray.bundle.classify import Classifier
    from vgg16_xray.bundle.format import session_of
    from vgg16_xray.bundle.graph import cam_weights, network_graph

    graph = network_graph(model, preprocessing=config.preprocessing, size=config.size, temperature=1.0)
    weights = cam_weights(model, preprocessing=config.preprocessing, size=config.size)
    head = dict(config.head) | {"cam_weights": None if weights is None else weights.tolist()}
    plain = replace(config, head=head, temperature=1.0, conformal=None, refusal=None)
    return Classifier(folder, plain, session_of(graph.SerializeToString()), "float32")


def with_random_weights(like: Classifier, *, seed: int) -> Classifier:
    """The same network with all its weights drawn anew, and no biases."""
    import torch

    from vgg16_xray.bundle.sanity import draw_anew
    from vgg16_xray.learn.vgg16 import build

    config = like.config
    model = build(classes=len(like.labels), head=str(config.head["kind"]), dropout=0.0, blocks=config.blocks).eval()
    draw_anew(model, first=0, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return classifier_of(model, like.bundle, config)


@dataclass(frozen=True)
class Maps:
    """What a network says of N films."""

    #: (N,) number of the predicted class.
    predicted: np.ndarray
    #: (N,) number of the class whose map it is.
    of: np.ndarray
    #: (N, h, w) float32.
    heat: np.ndarray
    #: (N,) "answered", "abstained" or "refused".
    answers: tuple[str, ...]


def maps_of(classifier: Classifier, films: Sequence[np.ndarray], ill: Sequence[int], *, what: str) -> Maps:
    """The maps of the class of disease that the network takes for most probable, film by film.

    Args:
        classifier: A bundle, or what :func:`classifier_of` makes.
        films: (H, W) uint8 each.
        ill: Numbers of the classes of disease.
        what: What the progress is called.
    """
    from vgg16_xray.bundle.classify import Outputs

    predicted, of, heat, answers = [], [], [], []
    weights = classifier.cam_weights
    with progress(what, total=len(films)) as counter:
        for start in range(0, len(films), BATCH):
            batch = films[start : start + BATCH]
            outputs = classifier.predict_arrays(batch)
            for i, film in enumerate(batch):
                p = outputs.probabilities[i]
                predicted.append(int(p.argmax()))
                of.append(max(ill, key=p.__getitem__))
                heat.append(grad_cam(weights[of[-1]], outputs.feature_map[i]))
                answers.append(classifier.judged("", film, Outputs(*(part[i] for part in outputs))).answer)
            counter.advance(len(batch))
    return Maps(np.array(predicted), np.array(of), np.stack(heat), tuple(answers))


def mean_of_others(heat: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """For each film the mean map of the films of other groups, each with its heat summing to 1.

    Args:
        heat: (N, h, w).
        groups: (N,) names; a film alone in a single group has no others, and an empty map.
    """
    sums = heat.sum(axis=(1, 2), keepdims=True)
    even = np.divide(heat, sums, out=np.zeros(heat.shape, np.float64), where=sums > 0)
    of_film, count = group_numbers(groups)
    of_group = np.zeros((count, *heat.shape[1:]))
    np.add.at(of_group, of_film, even)
    films = np.bincount(of_film[(sums > 0).ravel()], minlength=count)
    others = (films.sum() - films)[of_film, None, None]
    rest = even.sum(axis=0) - of_group[of_film]
    return np.divide(rest, others, out=np.zeros_like(rest), where=others > 0)


def classes_of_disease(labels: Sequence[str], healthy: str | None) -> list[int]:
    """Numbers of the classes that are not `healthy`; None: of all."""
    return [k for k, label in enumerate(labels) if label != healthy]


def measure(
    classifier: Classifier,
    drawn: Sequence[Drawn],
    maps: Maps,
    *,
    names: Sequence[str],
    groups: Sequence[str],
    healthy: str | None = "Normal",
    random: int = RANDOM,
) -> dict[str, Any]:
    """Whether the maps look where the disease is.

    The map is that of the most probable class of disease; where the network names a class of disease, that is the map
    which is shown. A film without heat has missed. Of the networks with random weights the mean over those with heat
    is taken, film by film.

    Args:
        classifier: See :func:`maps_of`.
        drawn: N films and what is drawn on them.
        maps: What :func:`maps_of` says of them, with the :func:`classes_of_disease`.
        names: (N,) what to call them.
        groups: (N,) patients, or films.
        healthy: The class that is no disease; None: all are.
        random: How many networks with random weights are asked.

    Returns:
        ``all`` and ``called_ill`` (films of which a class of disease is predicted): region -> ``films``, and under
        ``pointing`` and ``share`` figures of the ``model``, of ``chance``, ``random`` weights and the ``mean_map``, and
        differences ``against_*``; None for fewer than :data:`LEAST` films. ``called``, ``answers``: counts.
        ``without_heat``. ``each``: a row a film. ``intervals``.
    """
    labels = classifier.labels
    ill = classes_of_disease(labels, healthy)
    films = [one.film for one in drawn]
    structures = [one.structures for one in drawn]
    own = [on_structures(heat, of) for heat, of in zip(maps.heat, structures, strict=True)]
    others = mean_of_others(maps.heat, groups)
    at_mean = [on_structures(heat, of) for heat, of in zip(others, structures, strict=True)]
    drawn_anew = []
    for seed in range(random):
        network = with_random_weights(classifier, seed=seed)
        anew = maps_of(network, films, ill, what=f"random weights {seed + 1} of {random}")
        drawn_anew.append([on_structures(heat, of) for heat, of in zip(anew.heat, structures, strict=True)])
    chance = [by_chance(of) for of in structures]
    called_ill = np.isin(maps.predicted, ill)
    found: dict[str, Any] = {}
    for subset, kept in (("all", np.ones(len(films), bool)), ("called_ill", called_ill)):
        found[subset] = {}
        for region in REGIONS:
            rows = [i for i in np.flatnonzero(kept).tolist() if region in chance[i]]
            of_groups = [groups[i] for i in rows]
            table = {
                "chance": [Found(chance[i][region], chance[i][region]) for i in rows],
                "random": [_mean([one[i][region] for one in drawn_anew]) for i in rows],
                "mean_map": [at_mean[i][region] for i in rows],
            }
            found[subset][region] = _figures([own[i][region] for i in rows], table, of_groups)
    return {
        **found,
        "healthy": healthy if healthy in labels else None,
        "random_networks": random,
        "called": {label: int((maps.predicted == k).sum()) for k, label in enumerate(labels)},
        "answers": {answer: maps.answers.count(answer) for answer in ("answered", "abstained", "refused")},
        "without_heat": int((maps.heat.max(axis=(1, 2)) <= 0).sum()),
        "intervals": {
            "level": LEVEL,
            "method": "exact (Clopper and Pearson) for the model's pointing where each film is a group of its own, "
            "else percentile bootstrap over groups",
            "replicates": REPLICATES,
            "seed": SEED,
        },
        "each": [
            {
                "film": name,
                "predicted": labels[int(maps.predicted[i])],
                "answer": maps.answers[i],
                "map_of": labels[int(maps.of[i])],
                **{
                    region: {"chance": chance[i][region], **_row(own[i][region])}
                    for region in REGIONS
                    if region in own[i]
                },
            }
            for i, name in enumerate(names)
        ],
    }


def _row(found: Found) -> dict[str, Any]:
    missed = np.isnan(found.share)
    return {"pointed": not missed and bool(found.pointed), "share": 0.0 if missed else found.share}


def _mean(found: Sequence[Found]) -> Found:
    """Over the networks that have heat."""
    values = np.array([(one.pointed, one.share) for one in found if not np.isnan(one.share)])
    return Found(*map(float, values.mean(axis=0))) if len(values) else Found(0.0, 0.0)


def _figures(
    own: Sequence[Found], others: Mapping[str, Sequence[Found]], groups: Sequence[str]
) -> dict[str, Any] | None:
    """Means over the films of the pointing and of the share, and how far the model is above each of the others."""
    if len(own) < LEAST:
        return None
    columns = dict(zip(COLUMNS, [own, *(others[name] for name in OTHERS)], strict=True))
    result: dict[str, Any] = {"films": len(own), "groups": len(set(groups))}
    for number, what in enumerate(("pointing", "share")):
        values = np.nan_to_num(
            np.array([[(one.pointed, one.share)[number] for one in column] for column in columns.values()])
        )
        apart = values[0] - values[1:]
        names = [*columns, *(f"against_{name}" for name in OTHERS)]
        result[what] = dict(zip(names, bootstrapped(np.concatenate([values, apart]), groups), strict=True))
        if what == "pointing" and len(set(groups)) == len(groups):
            low, high = exact_interval(int(values[0].sum()), len(own), level=LEVEL)
            result[what]["model"] |= {"low": low, "high": high}
    return result


def bootstrapped(values: np.ndarray, groups: Sequence[str]) -> list[dict[str, float | None]]:
    """Means of M things over N films, each with its percentile interval of the bootstrap over groups.

    Args:
        values: (M, N).
        groups: (N,) names.

    Returns:
        M of ``value``, ``low``, ``high``.
    """
    chunks = bootstrap_weights(groups, replicates=REPLICATES, seed=SEED)
    drawn = np.concatenate([weights @ values.T / weights.sum(axis=1, keepdims=True) for weights in chunks])
    found: list[dict[str, float | None]] = []
    for mean, replicates in zip(values.mean(axis=1), drawn.T, strict=True):
        low, high = percentile_interval(replicates, level=LEVEL) or (None, None)
        found.append({"value": float(mean), "low": low, "high": high})
    return found


def spread_by_share(each: Sequence[Mapping[str, Any]]) -> list[int]:
    """Places, in ``each`` of :func:`measure`, of the films to draw: evenly from most heat on opacities to least."""
    order = sorted((i for i, row in enumerate(each) if OPACITIES in row), key=lambda i: -each[i][OPACITIES]["share"])
    chosen = np.unique(np.rint(np.linspace(0, len(order) - 1, min(DRAWN, len(order)))).astype(int))
    return [order[i] for i in chosen]


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """What ``heat.json`` holds, without the films and where they lie."""
    films = dict(found["films"]) | {"own": len(found["films"]["own"]), "unreadable": len(found["films"]["unreadable"])}
    return {name: value for name, value in found.items() if name not in ("each", "model", "data")} | {"films": films}


def sentence(found: Mapping[str, Any]) -> str:
    """What the figures say: whether the heat finds the opacities, or only where a film has its chest."""
    of = found["all"][OPACITIES]
    if of is None:
        return "Too few films with drawn opacities to say where the maps look."
    share, pointing = of["share"], of["pointing"]
    above = [COLUMNS[name] for name in OTHERS if (share[f"against_{name}"]["low"] or 0) > 0]
    rest = [name for name in COLUMNS.values() if name not in (*above, COLUMNS["model"])]
    said = (
        f"On {of['films']} films {_percent(share['model'])} of the heat lie on the drawn opacities, which cover "
        f"{_percent(share['chance'])} of the film; the hottest point lies on one for {_percent(pointing['model'])} of "
        "the films."
    )
    if not rest:
        said = f"{said} That is more heat than {_listed(above)} have there."
    elif not above:
        said = f"{said} That is not shown to be more heat than {_listed(rest)} have there: do not read these maps."
    else:
        said = f"{said} That is more heat than {_listed(above)} there, and not shown to be more than {_listed(rest)}."
    if (within := found["all"][WITHIN]) is None:
        return said
    inside = within["share"]
    found_there = (inside["against_chance"]["low"] or 0) > 0
    return (
        f"{said} Of the heat in the lungs {_percent(inside['model'])} lie on the opacities, which are "
        f"{_percent(inside['chance'])} of the lungs: "
        + ("within the chest, too, the maps find them." if found_there else "that the maps find them is not shown.")
    )


def _percent(figure: Mapping[str, float | None]) -> str:
    value, low, high = (100 * (figure[name] or 0.0) for name in ("value", "low", "high"))
    return f"{value:.0f} % ({low:.0f}–{high:.0f})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
