"""A bundle's numbers fitted anew to a site's own labelled films; its network stays as it is, to the byte."""

from __future__ import annotations

import base64
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vgg16_xray import __version__
from vgg16_xray.bundle.classify import Classifier, check, golden_of
from vgg16_xray.bundle.export import refuse_to, seal
from vgg16_xray.bundle.format import PIXELS, PROBABILITIES, BundleConfig, BundleDir, session_of
from vgg16_xray.errors import UserError
from vgg16_xray.evaluate import Film, calibrated_shares, gather
from vgg16_xray.files import replace_folder, whole_file, write_json
from vgg16_xray.films.decode import decode
from vgg16_xray.trust import prevalence, shift
from vgg16_xray.trust.calibrate import ALPHA
from vgg16_xray.trust.recalibrate import (
    AS_IT_WAS,
    FOLDS,
    LEAST,
    TEMPERATURE,
    Fitted,
    How,
    Scaling,
    Site,
    choose,
    compare_methods,
    fit,
    measure,
)


@dataclass(frozen=True)
class Recalibrated:
    """What was made."""

    bundle: BundleDir
    config: BundleConfig
    #: What was left out of the films, see :class:`vgg16_xray.evaluate.Gathered`.
    films: dict[str, Any]


def recalibrate(
    bundle: Path,
    data: Sequence[Path],
    to: Path,
    *,
    mapping: Mapping[str, str] | None = None,
    trained_on: Path | None = None,
    prior: Sequence[str] = (),
    refusal_rate: float | None = None,
) -> Recalibrated:
    """Fit a bundle's scaling and thresholds to a site's films, and write the bundle that has them.

    Args:
        bundle: The bundle; it is only read.
        data: Folders or tables of labelled films, at least :data:`vgg16_xray.trust.recalibrate.LEAST` of each of the
            bundle's classes, in as many groups as there are folds.
        to: Folder to make; a bundle that is there is replaced when the new one is whole.
        mapping: ``{folder: label}``.
        trained_on: Where the films are that the model was trained on, see :func:`vgg16_xray.evaluate.evaluate`.
        prior: ``LABEL=SHARE``: how common classes are at the site, where the films do not say it; classes that are not
            named share what is left as they do among the films.
        refusal_rate: Share of the site's films that may be refused or abstained; the bundle's own by default.

    Returns:
        The bundle. ``config.recalibrated`` holds what was done: ``films`` by class, ``groups``, ``time``, ``version``,
        ``method``, ``methods`` (:func:`vgg16_xray.trust.recalibrate.compare_methods`), ``scale`` and ``shift`` (K
        each), ``calibrated_on`` and ``prior`` (label -> share), ``operating``, and what
        :func:`vgg16_xray.trust.recalibrate.measure` says of before and after.

    Raises:
        UserError: `bundle` is none, or there are too few films of a class.
    """
    refuse_to(to)
    if to.exists() and to.resolve() == bundle.resolve():
        raise UserError(f"--to: must be another folder than the bundle's, found {to}")
    classifier = Classifier.load(bundle)
    labels, config = classifier.labels, classifier.config
    gathered = gather(classifier, data, model=bundle, mapping=mapping, trained_on=trained_on)
    site = _site(classifier, gathered.dataset, gathered.films)
    _refuse_too_few(site, labels, data)
    how = _how(config, labels, refusal_rate)
    compared = compare_methods(site, how)
    fitted = fit(site, how, method=choose(compared))
    evidence = None if config.refusal is None else config.refusal["evidence"]["thresholds"]
    found = measure(site, how, conformal=config.conformal, evidence=evidence)
    # The mix of classes for which the probabilities now hold: that of these films where it was fitted to.
    shares = how.calibrated_on
    if fitted.method not in (AS_IT_WAS, TEMPERATURE):
        shares = np.bincount(site.targets, minlength=len(labels)) / len(site.targets)
    wanted = prevalence.parse_prior(prior, labels, shares) if prior else None
    if wanted is not None:
        fitted = _for_prior(fitted, site, how, wanted / np.maximum(shares, 1e-6))
    done = {
        "films": {label: int(np.sum(site.targets == k)) for k, label in enumerate(labels)},
        "groups": len(set(site.groups)),
        "own": len(gathered.about["own"]),
        "looked_for_own": gathered.about["looked_for_own"],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "version": __version__,
        "folds": FOLDS,
        "method": fitted.method,
        "methods": compared,
        "scale": fitted.scaling.scale.tolist(),
        "shift": fitted.scaling.shift.tolist(),
        "calibrated_on": dict(zip(labels, how.calibrated_on.tolist(), strict=True)),
        "prior": dict(zip(labels, (shares if wanted is None else wanted).tolist(), strict=True)),
        "prior_given": wanted is not None,
        "operating": fitted.operating,
        **found,
    }
    embeddings = np.stack([film.embedding for film in gathered.films if film.embedding is not None])
    new = replace(
        config,
        temperature=fitted.scaling.temperature,
        conformal=None if config.conformal is None else fitted.conformal,
        refusal=_refusal(config, fitted, how, embeddings),
        recalibrated=done,
    )
    return Recalibrated(BundleDir(to), _write(BundleDir(bundle), to, new, fitted.scaling), gathered.about)


def _site(classifier: Classifier, dataset: Any, films: Sequence[Film]) -> Site:
    from vgg16_xray.trust.refuse import look, verdicts

    refusal = classifier.config.refusal
    score = np.ones(len(films))
    if refusal is not None:
        looks = np.stack([look(decode(dataset.file_of(film.row))) for film in films])
        embeddings = np.stack([np.asarray(film.embedding, dtype=np.float64) for film in films])
        score = verdicts(refusal["film"], looks, embeddings)[:, 0]
    return Site(
        logits=np.stack([np.asarray(film.logits, dtype=np.float64) for film in films]),
        targets=np.array([classifier.labels.index(film.row.label) for film in films], dtype=np.int64),
        groups=[film.group for film in films],
        film=score,
    )


def _refuse_too_few(site: Site, labels: Sequence[str], data: Sequence[Path]) -> None:
    films = Counter(labels[k] for k in site.targets)
    groups = Counter(labels[k] for k, _ in {*zip(site.targets.tolist(), site.groups, strict=True)})
    if any(films[label] < LEAST for label in labels):
        found = ", ".join(f"{label} {films[label]}" for label in labels)
        raise UserError(f"{data[0]}: must hold at least {LEAST} films of each class, found {found}")
    if any(groups[label] < FOLDS for label in labels):
        found = ", ".join(f"{label} {groups[label]}" for label in labels)
        raise UserError(f"{data[0]}: must hold each class's films of at least {FOLDS} patients, found {found}")


def _how(config: BundleConfig, labels: tuple[str, ...], refusal_rate: float | None) -> How:
    refusal, before = config.refusal, config.recalibrated
    classes = len(labels)
    if before is not None:
        scaling = Scaling(np.array(before["scale"]), np.array(before["shift"]))
    else:
        scaling = Scaling(np.full(classes, 1 / config.temperature), np.zeros(classes))
    calibrated_on = calibrated_shares(config)
    if calibrated_on is None:
        raise UserError("config.json: must say under trained_on.films what was calibrated on, found nothing")
    rate = None
    if refusal is not None:
        rate = float(refusal["rate"]) if refusal_rate is None else refusal_rate
    return How(
        labels=labels,
        before=scaling,
        calibrated_on=calibrated_on,
        alpha=float(config.conformal["alpha"]) if config.conformal else ALPHA,
        rate=rate,
        film_threshold=0.0 if refusal is None else float(refusal["film"]["threshold"]),
    )


def _for_prior(fitted: Fitted, site: Site, how: How, ratio: np.ndarray) -> Fitted:
    """The same for another mix of classes than that of the films: each shift moves, and the thresholds with it."""
    scaling = Scaling(fitted.scaling.scale, fitted.scaling.shift + np.log(np.maximum(ratio, 1e-6)))
    moved = fit(site, replace(how, before=scaling), method=AS_IT_WAS)
    return replace(moved, method=fitted.method)


def _refusal(config: BundleConfig, fitted: Fitted, how: How, embeddings: np.ndarray) -> dict[str, Any] | None:
    if config.refusal is None:
        return None
    known = config.refusal.get("shift")
    if known is not None and len(embeddings) >= 2 * shift.LEAST:
        # From now on the site's own films are what a folder, or a server's last hours, is held against.
        known = shift.fit(embeddings)
    return {
        **config.refusal,
        "film": {**config.refusal["film"], "threshold": fitted.film_threshold},
        "evidence": {"thresholds": fitted.evidence},
        "rate": how.rate,
        "shift": known,
    }


def _write(bundle: BundleDir, to: Path, config: BundleConfig, scaling: Scaling) -> BundleConfig:
    from vgg16_xray.bundle.graph import rescaled

    written = BundleDir(to.with_name(f".{to.name}.tmp"))
    shutil.rmtree(written.path, ignore_errors=True)
    written.path.mkdir(parents=True)
    graphs = set(bundle.graphs().values())
    for file in bundle.hashed():
        if file in graphs:
            with whole_file(written.path / file.name) as temporary:
                temporary.write_bytes(rescaled(file.read_bytes(), scale=scaling.scale, shift=scaling.shift))
        else:
            shutil.copyfile(file, written.path / file.name)
    _answer_golden(bundle, written, config)
    done = seal(written, config)
    check(written.path)
    replace_folder(written.path, to)
    return done


def _answer_golden(bundle: BundleDir, written: BundleDir, config: BundleConfig) -> None:
    """The same golden films, and what the new graphs answer; the least certain stays in front."""
    sessions = {name: session_of(file.read_bytes()) for name, file in written.graphs().items()}
    films = []
    for one in golden_of(bundle, config):
        answers = {
            name: session.run([PROBABILITIES], {PIXELS: one.film[None]})[0][0] for name, session in sessions.items()
        }
        films.append(
            {
                "name": one.name,
                "png": base64.b64encode(one.png).decode("ascii"),
                "probabilities": {name: [round(float(p), 6) for p in answer] for name, answer in answers.items()},
            }
        )
    write_json(
        written.golden,
        {
            "labels": list(config.labels),
            "films": sorted(films, key=lambda film: max(max(answer) for answer in film["probabilities"].values())),
        },
    )
