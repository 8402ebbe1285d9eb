"""A run directory made up for the tests of the report: films of noise, predictions drawn from a seeded generator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vgg16_xray import RESEARCH_USE_ONLY, __version__
from vgg16_xray.config import load_recipe
from vgg16_xray.files import write_json, write_text
from vgg16_xray.rundir import HeatDir, RunDir, sha256_of, update_config
from vgg16_xray.trust import calibrate, operating
from vgg16_xray.trust.metrics import evaluate

LABELS = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
#: What the public collections are like: no hospital has two classes.
CONFOUNDED = {
    "COVID": ("BIMCV", "Hannover"),
    "Lung_Opacity": ("NIH",),
    "Normal": ("RSNA",),
    "Viral Pneumonia": ("Kermany",),
}
STEPS = ("download", "preprocess", "initialise", "train", "validate", "test")


def fabricate(
    path: Path,
    *,
    labels: Sequence[str] = LABELS,
    sources: dict[str, tuple[str, ...]] | None = None,
    films: int = 240,
    upto: str = "test",
    skill: float = 3.0,
    pixels: np.ndarray | None = None,
    folder: str = "images",
    patients: bool = True,
) -> RunDir:
    """Make a run directory in which the steps up to `upto` are done.

    Args:
        path: Where; made if missing.
        labels: Classes; the first ones get the most films.
        sources: Sources of each class; by default :data:`CONFOUNDED` where that names the classes, else none.
        films: How many films in all.
        upto: Last step that is done.
        skill: How far the true class's logit stands out; large: no mistakes.
        pixels: (films, 224, 224) uint8; by default soft noise.
        folder: Folder below each class.
        patients: Whether the patients of some films are known.
    """
    random = np.random.default_rng(7)
    run = RunDir(path)
    path.mkdir(parents=True, exist_ok=True)
    done = STEPS[: STEPS.index(upto) + 1]
    if sources is None:
        sources = CONFOUNDED if set(labels) == set(CONFOUNDED) else {}
    share = 1 / np.arange(1, len(labels) + 1)
    label_of = sorted(random.permutation(np.resize(np.repeat(labels, np.ceil(share * 40).astype(int)), films)).tolist())
    sides = [("train", "train", "train", "validation", "test")[i % 5] for i in range(films)]
    rows = []
    for i, (label, side) in enumerate(zip(label_of, sides, strict=True)):
        names = sources.get(label, ())
        rows.append(
            {
                "path": f"{label}/{folder}/{label}-{i}.png",
                "collection": "radiography",
                "label": label,
                "pixels_sha256": f"{i // 3 if i in (1, 2) else i:064x}",
                "patient_id": f"p{i // 2}" if patients and label == labels[-1] else "",
                "source": names[i % len(names)] if names else "",
                "group": f"{i:016x}",
                "split": side,
                "width": 299,
                "height": 299,
                "mask": "",
            }
        )
    manifest = pd.DataFrame(rows)
    write_text(
        run.config,
        f'[run]\nversion = "{__version__}"\ncommand = "vgg16-xray run radiography --out demo"\nseed = 1234\n'
        "size = 224\n"
        'started = "2026-10-30T09:00:00+0000"\n\n[machine]\nwords = "2 cores, AVX-512, 8 GiB; Linux"\n\n'
        f'[data]\nlabels = {json.dumps(sorted(labels))}\nfilms = {films}\nfingerprint = "5b1f9d3c0a7e4412"\n'
        'split = "80/10/10 by group, seed 1234"\n'
        'notes = ["2 films are exact copies of another; copies stand on one side"]\n'
        'collections = { radiography = "/data/radiography" }\n\n'
        '[engine]\nname = "torch channels-last bf16"\nrate = 11.8\n',
    )
    update_config(
        run,
        recipe=load_recipe("default").as_dict(),
        training={"seed": 1234, "cycles": [8]},
        weights={"origin": "the package's weights; wants 'caffe'", "sha256": "cd" * 32, "file": ""},
    )
    seconds = {"download": 0.4, "preprocess": 41.2, "initialise": 1.3, "train": 1830.5, "validate": 12.0, "test": 15.8}
    write_json(
        run.steps,
        {name: {"key": "0" * 16, "finished": "2026-10-30T09:30:00+0000", "seconds": seconds[name]} for name in done},
    )
    if "preprocess" in done:
        manifest.to_parquet(run.manifest)
        if pixels is None:
            coarse = random.integers(30, 220, size=(films, 14, 14), dtype=np.uint8)
            pixels = np.repeat(np.repeat(coarse, 16, axis=1), 16, axis=2)
        np.save(run.pixels, pixels)
        pd.DataFrame(
            [
                ("COVID/images/broken.png", "cannot be decoded: truncated file"),
                ("COVID/images/empty.png", "empty file"),
                ("Normal/images/empty.png", "empty file"),
            ],
            columns=["path", "reason"],
        ).to_csv(run.quarantine, index=False)
        manifest[["path", "label", "group", "split"]].to_csv(run.split, index=False)
    if "initialise" in done:
        write_json(run.layers, _layers(len(labels)))
    if "train" in done:
        _history().to_csv(run.history, index=False)
    scores = random.normal(size=(films, len(labels)))
    truth = np.array([labels.index(label) for label in label_of])
    scores[np.arange(films), truth] += skill
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    for step, side, file in (("validate", "validation", run.validation), ("test", "test", run.test)):
        if step not in done:
            continue
        of_side = manifest["split"].eq(side).to_numpy()
        measured = evaluate(
            truth=truth[of_side],
            probabilities=probabilities[of_side],
            labels=labels,
            groups=manifest["group"][of_side].tolist(),
            replicates=200,
        )
        about = {
            "research_use_only": RESEARCH_USE_ONLY,
            "split": side,
            "checkpoint_sha256": "ab" * 32,
            "epoch": 6,
            "criterion": "highest validation macro_f1",
        }
        fitted = manifest["split"].eq("validation").to_numpy()
        calibration = calibrate.fit(probabilities[fitted], truth[fitted], manifest["group"][fitted].tolist())
        thresholds = operating.fit(probabilities[fitted], truth[fitted])
        if side == "validation":
            measured |= {"calibration": calibration, "operating": thresholds}
        else:
            of = probabilities[of_side], truth[of_side], manifest["group"][of_side].tolist()
            measured |= {
                "calibration": calibrate.test(calibration, *of),
                "operating": operating.measure(thresholds, *of, replicates=200),
            }
            write_text(
                run.readings, f"time,command,checkpoint_sha256\n2026-10-30T09:30:00+0000,vgg16-xray run,{'ab' * 32}\n"
            )
        epochs = {"epochs": json.loads(_history().to_json(orient="records"))} if side == "validation" else {}
        write_json(file, about | measured | epochs)
    if "test" in done:
        predictions = manifest[["path", "collection", "label", "split", "patient_id", "source"]].copy()
        predictions["prediction"] = [labels[k] for k in probabilities.argmax(axis=1)]
        predictions["confidence"] = probabilities.max(axis=1).round(6)
        predictions["calibrated_confidence"] = predictions["confidence"]
        for k, label in enumerate(labels):
            predictions[f"p_{label}"] = probabilities[:, k].round(6)
        predictions.to_csv(run.predictions, index=False)
    return run


def fabricate_heat(run: RunDir) -> None:
    """Leave what ``vgg16-xray heat`` would have left of 12 films, of a model that is made up too."""
    random = np.random.default_rng(3)
    run.best.parent.mkdir(parents=True, exist_ok=True)
    run.best.write_bytes(b"a model")

    def figure(low: float, high: float) -> dict[str, float]:
        value = float(random.uniform(low, high))
        return {"value": value, "low": value - 0.05, "high": value + 0.05}

    def of_region() -> dict[str, object]:
        names = {"model": (0.3, 0.5), "chance": (0.1, 0.2), "random": (0.1, 0.2), "mean_map": (0.2, 0.4)}
        names |= {"against_chance": (0.1, 0.2), "against_random": (0.1, 0.2), "against_mean_map": (-0.04, 0.04)}
        measures = {what: {name: figure(*bounds) for name, bounds in names.items()} for what in ("pointing", "share")}
        return {"films": 12, "groups": 12, **measures}

    regions = ("opacities", "lungs", "opacities within lungs")
    write_json(
        HeatDir(run.path).numbers,
        {
            "checkpoint_sha256": sha256_of(run.best),
            "data": "segmented",
            "films": {"found": 15, "measured": 12, "own": [{}] * 3},
            "called": dict.fromkeys(LABELS, 3),
            "random_networks": 5,
            **{subset: {region: of_region() for region in regions} for subset in ("all", "called_ill")},
        },
    )


def _history() -> pd.DataFrame:
    epoch = np.arange(1, 9)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "train_loss": (0.2 + 0.9 * np.exp(-epoch / 2)).round(4),
            "train_accuracy": (0.97 - 0.35 * np.exp(-epoch / 2)).round(4),
            "validation_loss": (0.3 + 0.6 * np.exp(-epoch / 2) + 0.004 * epoch).round(4),
            "validation_accuracy": (0.92 - 0.2 * np.exp(-epoch / 2) - 0.001 * (epoch - 6) ** 2).round(4),
            "validation_macro_f1": (0.88 - 0.3 * np.exp(-epoch / 2) - 0.001 * (epoch - 6) ** 2).round(4),
            "learning_rate": (0.002 * np.cos((epoch - 1) / 16 * np.pi)).round(6),
            "seconds": np.full(8, 228.1),
        }
    )


def _layers(classes: int) -> dict[str, object]:
    layers: list[dict[str, object]] = []
    into, side, position = 3, 224, 0
    for block, (convolutions, channels) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1):
        for _ in range(convolutions):
            layers.append(
                {
                    "name": f"features.{position}",
                    "kind": "Conv2d 3x3",
                    "output": [channels, side, side],
                    "parameters": 9 * into * channels + channels,
                    "trainable": block == 5,
                }
            )
            into, position = channels, position + 2
        side //= 2
        pool = {"name": f"features.{position}", "kind": "MaxPool2d 2x2", "output": [channels, side, side]}
        layers.append(pool | {"parameters": 0, "trainable": False})
        position += 1
    head = {
        "name": "head.dense",
        "kind": "Linear",
        "output": [classes],
        "parameters": 1025 * classes,
        "trainable": True,
    }
    recipe = {"head": "gap", "train_from": "block5", "preprocessing": "caffe", "weights": "packaged ImageNet base"}
    return recipe | {"layers": [*layers, head]}
