"""Does a model's heat map look where the disease is? On films with drawn opacities, its own films taken out first."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vgg16_xray import RESEARCH_USE_ONLY, __version__
from vgg16_xray.bundle import localise
from vgg16_xray.bundle.classify import Classifier
from vgg16_xray.bundle.format import BundleConfig, BundleDir, read_bundle_config, read_own_films
from vgg16_xray.errors import UnreadableFilm, UserError
from vgg16_xray.files import require_writable, saying_why_not_written, write_json
from vgg16_xray.films.decode import SIZE, pixels_sha256, to_square
from vgg16_xray.films.masks import FLAGS, LUNGS, OPACITIES, Drawn, MaskedFilm, masked_films, read_drawn
from vgg16_xray.progress import progress
from vgg16_xray.rundir import HeatDir, RunDir, sha256_of


def heat(
    model: Path | None,
    data: Path,
    *,
    out: Path | None = None,
    trained_on: Sequence[Path] = (),
    flags: Mapping[str, Sequence[int]] = FLAGS,
    healthy: str | None = None,
    random: int = localise.RANDOM,
    into_card: bool = False,
) -> dict[str, Any]:
    """Measure a model's heat maps against drawn opacities and lungs.

    Args:
        model: A bundle or a run; the model in the package by default.
        data: Films with masks, see :mod:`vgg16_xray.films.masks`.
        out: Folder for ``heat.json`` and ``heat.jpg``; of a run the run itself, where its report and its next export
            find them.
        trained_on: The run, or the folders of films, that the model learned from; by default the run, or what a bundle
            keeps of its own films. Films that are among them are taken out.
        flags: Structure -> the bits that say it in a mask of several structures.
        healthy: The class that is no disease; by default "Normal", where the model has it.
        random: How many networks with random weights are asked.
        into_card: Write the figures into the bundle's configuration and card.

    Returns:
        ``films``, and what :func:`vgg16_xray.bundle.localise.measure` finds.

    Raises:
        UserError: There is no such model, no film with a mask is left, or the head has no maps.
    """
    run = _run_of(model)
    if into_card and (run is not None or model is None):
        raise UserError(
            f"--card: must have a bundle of yours for --model, found {'a run' if run else 'the package'}",
            hint="the export of a run that has heat.json puts it into the card",
        )
    classifier = _open(model, run)
    classifier.cam_weights  # noqa: B018 (a head without maps is refused before films are read)
    if healthy is not None and healthy not in classifier.labels:
        raise UserError(f"--healthy: must be one of {', '.join(classifier.labels)}, found {healthy!r}")
    healthy = healthy or "Normal"
    if (left := left_in(model, out)) is not None:
        require_writable(left.parent)
    films, drawn, broken = _read(data, flags)
    own: list[dict[str, Any]] = []
    sources = list(trained_on) or ([run.path] if run is not None and run.manifest.exists() else [])
    hashes = [pixels_sha256(one.film) for one in drawn]
    kept_of_own = None if sources or run is not None else read_own_films(classifier.bundle, classifier.config)
    if sources or kept_of_own is not None:
        from vgg16_xray.steps.own_films import own_films, remembered

        names, squares = [film.name for film in films], [to_square(one.film, SIZE) for one in drawn]
        if kept_of_own is not None:
            own = remembered(kept_of_own, names, hashes, squares)
        else:
            with own_films(sources) as known:
                own = known.among(names, hashes, squares)
    taken = {entry["film"] for entry in own}
    kept = [i for i, film in enumerate(films) if film.name not in taken]
    if not kept:
        raise UserError(f"{data}: must hold films with masks that the model was not trained on, found none")
    drawn, by_network = _with_lungs([drawn[i] for i in kept])
    ill = localise.classes_of_disease(classifier.labels, healthy)
    maps = localise.maps_of(classifier, [one.film for one in drawn], ill, what="heat maps")
    found = {
        "research_use_only": RESEARCH_USE_ONLY,
        "version": __version__,
        "model": "the model in the package" if model is None else str(model),
        "checkpoint_sha256": classifier.config.checkpoint_sha256,
        "data": str(data),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "films": {
            "found": len(films) + len(broken),
            "unreadable": broken,
            "own": own,
            "looked_for_own": bool(sources) or kept_of_own is not None,
            "measured": len(kept),
            "lungs_by_network": by_network,
        },
        **localise.measure(
            classifier,
            drawn,
            maps,
            names=[films[i].name for i in kept],
            groups=[_group(films[i], hashes[i]) for i in kept],
            healthy=healthy,
            random=random,
        ),
    }
    if left is not None:
        _draw(HeatDir(left.parent), drawn, maps, found["each"])
        write_json(left, found)
    if into_card and model is not None:
        from vgg16_xray.bundle.export import seal

        folder = BundleDir(model)
        config = read_bundle_config(folder)
        seal(folder, replace(config, figures=dict(config.figures) | {"localisation": localise.summary(found)}))
    return found


def _draw(folder: HeatDir, drawn: Sequence[Drawn], maps: localise.Maps, each: Sequence[Mapping[str, Any]]) -> None:
    """Draw films under their heat, from the one with most of it on the opacities to the one with least."""
    from vgg16_xray.report.heat import Shown, draw_heat

    if order := localise.spread_by_share(each):
        draw_heat(folder.picture, [Shown(drawn=drawn[i], heat=maps.heat[i], row=each[i]) for i in order])
        return
    with saying_why_not_written(folder.picture):
        folder.picture.unlink(missing_ok=True)


def left_in(model: Path | None, out: Path | None) -> Path | None:
    """The file that :func:`heat` leaves for these arguments, if any."""
    run = _run_of(model)
    folder = out if out is not None else run.path if run is not None else None
    return None if folder is None else HeatDir(folder).numbers


def _run_of(model: Path | None) -> RunDir | None:
    return None if model is None or BundleDir(model).config.exists() else RunDir(model)


def _open(model: Path | None, run: RunDir | None) -> Classifier:
    """A bundle as it answers; of a run its network in float32."""
    if run is None:
        return Classifier.load(model)
    from vgg16_xray.extras import require
    from vgg16_xray.learn.checkpoint import load_model
    from vgg16_xray.steps.folds import ensemble

    require("train", purpose="vgg16-xray heat")
    if not run.best.exists():
        if run.path.is_dir() and ensemble(run):
            raise UserError(
                f"{run.path}: must have one model, found those of folds", hint=f"take one: --model {run.path}/folds/1"
            )
        raise UserError(f"--model: must be a bundle or a run with a trained model, found none in {run.path}")
    run.require_step("train", made_by="train")
    network, config = load_model(run.best)
    about = BundleConfig(
        labels=config.labels,
        size=config.size,
        preprocessing=config.preprocessing,
        train_from=config.train_from,
        blocks=config.blocks,
        recipe="",
        temperature=1.0,
        head={"kind": config.head},
        checkpoint_sha256=sha256_of(run.best),
    )
    return localise.classifier_of(network, BundleDir(run.path), about)


def _read(data: Path, flags: Mapping[str, Sequence[int]]) -> tuple[list[MaskedFilm], list[Drawn], list[dict[str, str]]]:
    """Films on which something is drawn, and those that cannot be read."""
    films, drawn, broken = [], [], []
    found = masked_films(data)
    with progress("films and masks", total=len(found)) as counter:
        for film in found:
            try:
                one = read_drawn(film, flags)
            except UnreadableFilm as error:
                broken.append({"film": film.name, "reason": str(error)})
            else:
                if one.structures:
                    films.append(film)
                    drawn.append(one)
            counter.advance()
    if not films:
        first = f", first {broken[0]['reason']}" if broken else ""
        raise UserError(f"{data}: must hold films on which {OPACITIES} or {LUNGS} are drawn, found none{first}")
    return films, drawn, broken


def _with_lungs(drawn: Sequence[Drawn]) -> tuple[list[Drawn], int]:
    """Where nobody drew lungs, those that the package's network finds (docs/lungs.md); on how many films."""
    from PIL import Image

    from vgg16_xray.trust.lungs import find_lungs

    if any(LUNGS in one.structures for one in drawn):
        # Who drew lungs on some films left them out on others for a reason: one of them cannot be seen.
        return list(drawn), 0
    lungs = find_lungs(np.stack([to_square(one.film, SIZE) for one in drawn]))
    found = []
    for one, mask, seen in zip(drawn, lungs.masks, lungs.found, strict=True):
        if not seen:
            found.append(one)
            continue
        shape = one.film.shape[1], one.film.shape[0]
        at_size = np.asarray(Image.fromarray(mask).resize(shape, Image.Resampling.NEAREST))
        found.append(replace(one, structures={**one.structures, LUNGS: at_size}))
    return found, int(lungs.found.sum())


def _group(film: MaskedFilm, sha256: str) -> str:
    """The patient where known, else what the film shows."""
    return f"patient {film.patient_id}" if film.patient_id else f"film {sha256}"
