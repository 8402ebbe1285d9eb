"""One self-contained page that tells what a run did, on what, how well, and how far that can be believed.

The page asks the network for nothing, and its content policy forbids that and every script but the page's own, which it
knows by its hash. Whatever comes from the user's data is escaped by the template engine.
"""

from __future__ import annotations

import base64
import collections
import csv
import hashlib
import json
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray import RESEARCH_USE_ONLY, __version__
from vgg16_xray.bundle.localise import COLUMNS, sentence
from vgg16_xray.errors import UserError
from vgg16_xray.files import read_json, write_text
from vgg16_xray.films.split import SPLITS, TEST, TRAIN
from vgg16_xray.films.store import ArrayStore
from vgg16_xray.report.cards import FILLED, OPEN, PART, write_cards
from vgg16_xray.report.charts import charts_of
from vgg16_xray.report.figures import PICTURES, best_epoch, has_interval
from vgg16_xray.report.heat import SUBSETS, read_heat, rows_of
from vgg16_xray.report.inline import as_jpeg, inlined, uri_of
from vgg16_xray.report.terminal import counted, signed_number
from vgg16_xray.rundir import AuditDir, CardsDir, ComparisonDir, FoldsDir, HeatDir, RunDir
from vgg16_xray.steps.folds import finished_folds
from vgg16_xray.trust.leaks import under_two_labels
from vgg16_xray.trust.shortcuts import RINGS, SECTORS

if TYPE_CHECKING:
    import jinja2
    import pandas as pd

#: Rows of a table that a reader still reads; the rest is counted, and stands in the named file.
MOST_ROWS = 200
#: Sources in the class-by-source table.
MOST_SOURCES = 40
UNKNOWN_SOURCE = "unknown"
#: Films in the table of films, mistakes first; side of their pictures, quality of JPEG, bytes of all of them.
MOST_FILMS, PICTURE_SIDE, PICTURE_QUALITY, MOST_PICTURE_BYTES = 1500, 64, 60, 2_500_000

#: Step, its name in steps.json, what it does, the command that does it.
STEPS = (
    ("Download", "download", "the dataset, whole or not at all", "download"),
    ("Preprocess", "preprocess", "every film decoded, checked, put on one side of the split, and stored", "preprocess"),
    ("Initialise", "initialise", "VGG16 with the weights of ImageNet, and a new head", "init"),
    ("Train", "train", "the trainable part fitted to the training films", "train"),
    ("Validate", "validate", "the best epoch chosen and measured on the validation films", "validate"),
    ("Test", "test", "the model measured once on films that it never met", "test"),
)
OVERALL_NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "macro_auroc": "Macro AUROC",
    "macro_average_precision": "Macro average precision",
    "log_loss": "Log loss",
}
OVERALL_MEANINGS = {
    "accuracy": "share of the films that were named rightly",
    "balanced_accuracy": "mean of the classes' sensitivities: every class counts alike, however rare",
    "macro_f1": "mean of the classes' F1",
    "macro_auroc": "mean of the classes' areas under the ROC curve",
    "macro_average_precision": "mean of the classes' areas under the precision-recall curve",
    "log_loss": "how surprised the probabilities were by the truth; 0 is best",
}
PER_CLASS_NAMES = {
    "precision": "Precision",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "f1": "F1",
    "auroc": "AUROC",
    "average_precision": "Average precision",
}


def write_report(run: RunDir) -> Path:
    """Write the page from whatever the run has so far; what is missing is named in it.

    The same run directory gives the same bytes.

    Returns:
        Its path, :attr:`RunDir.report`.

    Raises:
        UserError: A file of the run is damaged, or the page cannot be written.
    """
    filters: dict[str, Callable[..., str]] = {
        "percent": percent_words,
        "figure": figure_words,
        "interval": interval_words,
        "duration": duration,
        "signed_number": signed_number,
    }
    write_text(run.report, template("report.html.j2", filters).render(_content(run)))
    return run.report


def template(name: str, filters: Mapping[str, Callable[..., str]]) -> jinja2.Template:
    """A template of the report that escapes what it is given and refuses a name that it is not given.

    Args:
        name: A file in ``templates``.
        filters: What the template calls beside ``count``, ``counted``, ``has_interval`` and ``spectrum``.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vgg16_xray.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": lambda number: f"{number:,}", "counted": counted, **filters}
    environment.globals |= {"has_interval": has_interval, "spectrum": RINGS * SECTORS}
    return environment.get_template(name)


# -- how numbers are written


def date_words() -> str:
    """Today, ``2026-11-26``, as a page says when it was written."""
    return time.strftime("%Y-%m-%d")


def percent_words(share: float | None) -> str:
    """``94.6 %``."""
    return "not defined" if share is None else f"{100 * share:.1f} %"


def figure_words(figure: Mapping[str, float | None], *, percent: bool = False) -> str:
    """The value of a figure, ``0.946`` or ``94.6 %``."""
    value = figure["value"]
    if value is None:
        return "not defined"
    return f"{100 * value:.1f} %" if percent else f"{value:.3f}"


def interval_words(figure: Mapping[str, float | None], *, percent: bool = False) -> str:
    """Both bounds, or nothing where the bootstrap knows none."""
    low, high = figure.get("low"), figure.get("high")
    if low is None or high is None or not has_interval(figure):
        return ""
    return f"{100 * low:.1f}–{100 * high:.1f} %" if percent else f"{low:.3f}–{high:.3f}"


def duration(seconds: float) -> str:
    """Seconds in words: ``0.4 s``, ``41 s``, ``30 min 31 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


# -- what the page says


def _content(run: RunDir) -> dict[str, Any]:
    config_text = run.config.read_text("utf-8", errors="replace") if run.config.exists() else ""
    config = _toml(config_text)
    manifest = _manifest(run)
    layers = read_json(run.layers) if run.layers.exists() else None
    leaks = read_json(run.leaks) if run.leaks.exists() else None
    stamps, history, script = run.stamps(), _history(run), _template_file("report.js")
    # Without the stamp they are those of other films, or of models that are being exchanged.
    test = read_json(run.test) if run.test.exists() and "test" in stamps else None
    validation = read_json(run.validation) if run.validation.exists() and "validate" in stamps else None
    of_folds = FoldsDir(run.path)
    folds = read_json(of_folds.numbers) if of_folds.numbers.exists() and "folds" in stamps else None
    seeds = read_json(of_folds.seeds) if of_folds.seeds.exists() and "seeds" in stamps else None
    return {
        "name": run.path.resolve().name,
        "path": run.path.as_posix(),
        "package_version": __version__,
        "research_use_only": RESEARCH_USE_ONLY,
        "css": style_sheet("report.css"),
        "audit_css": style_sheet("audit.css"),
        "audit": _audit(run, manifest),
        **_cards(run, tested=folds is not None or test is not None),
        "facts": _facts(config, folds),
        "config_text": config_text,
        "notes": [str(note) for name in ("unused", "notes") for note in config.get("data", {}).get(name, [])],
        "steps": _steps(run, in_folds=folds is not None),
        "folds": folds,
        "folds_stale": folds is not None and finished_folds(run) is None,
        "seeds": seeds,
        "test": test,
        "validation": validation,
        "readings": _readings(run),
        "comparison": _comparison(run),
        "heat": _heat(run),
        "overall_names": OVERALL_NAMES,
        "overall_meanings": OVERALL_MEANINGS,
        "per_class_names": PER_CLASS_NAMES,
        "best_epoch": best_epoch(run),
        "data": _data(manifest) if manifest is not None else None,
        "leaks": leaks,
        "two_labels": under_two_labels(leaks) if leaks else None,
        "belief": believe(manifest) if manifest is not None else None,
        "quarantine": _quarantine(run),
        "pictures": _pictures(run),
        "charts": collections.defaultdict(lambda: None, charts_of(run, test, history)),
        "films": _films(run, of_folds, tested=test is not None, in_folds=folds is not None),
        "script": script,
        "script_hash": f"'sha256-{base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()}'",
        "layers": layers,
        "parameters": _parameters(layers["layers"]) if layers else None,
        "history": history,
        "most_rows": MOST_ROWS,
        "states": (FILLED, PART, OPEN),
        "card_file": lambda name: CardsDir(run.path).file(name).relative_to(run.path).as_posix(),
        "files": {name: getattr(run, name).name for name in ("quarantine", "predictions", "report", "history", "test")}
        | {"leaks_page": run.leaks_page.name if run.leaks_page.exists() else None}
        | {"audit": AuditDir(run.path).page.name, "folds": of_folds.numbers.name, "folds_table": of_folds.table.name},
    }


def _readings(run: RunDir) -> list[dict[str, str]]:
    """The rows of the log of the test films' readings."""
    if not run.readings.exists():
        return []
    with run.readings.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _comparison(run: RunDir) -> dict[str, Any] | None:
    """What ``report --against`` left, as long as it compares the models that the run has now."""
    from vgg16_xray.trust.compare import checkpoints

    numbers = ComparisonDir(run.path).numbers
    if not numbers.exists():
        return None
    found: dict[str, Any] = read_json(numbers)
    try:
        return found | {"stale": found["runs"][0]["checkpoints"] != checkpoints(run)}
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{numbers}: must be as 'report --against' wrote it, found {error!r}", hint="delete it"
        ) from error


def _heat(run: RunDir) -> dict[str, Any] | None:
    """What ``vgg16-xray heat`` found, in the words of the page."""
    if (found := read_heat(run)) is None:
        return None
    return found | {
        "sentence": sentence(found),
        "columns": COLUMNS,
        "rows": {title: rows_of(found, subset) for subset, title in SUBSETS.items()},
    }


def _films(run: RunDir, of_folds: FoldsDir, *, tested: bool, in_folds: bool) -> dict[str, Any] | None:
    """The films that were measured, mistakes first and the surest of them at the top, each with a small picture."""
    import pandas as pd

    file = run.predictions if tested and run.predictions.exists() else of_folds.table if in_folds else None
    if file is None or not file.exists() or (manifest := _manifest(run)) is None:
        return None
    texts = dict.fromkeys(("path", "collection", "label", "split", "patient_id", "source", "prediction"), str)
    table = pd.read_csv(file, dtype=texts, keep_default_na=False, na_values={"confidence": [""]})
    of_test = file == run.predictions
    if of_test:
        table = table[table["split"] == TEST]
    table = table.assign(right=table["prediction"] == table["label"])
    table = table.sort_values(["right", "confidence", "path"], ascending=[True, False, True], kind="stable")
    row_of = {key: i for i, key in enumerate(zip(manifest["collection"], manifest["path"], strict=True))}
    rows, room = [], MOST_PICTURE_BYTES
    pixels = ArrayStore(run.pixels) if run.pixels.exists() else None
    for film in table.head(MOST_FILMS).to_dict("records"):
        row = row_of.get((film["collection"], film["path"]))
        picture = (
            None if pixels is None or row is None or room <= 0 else _small_picture(pixels.take(np.array([row]))[0])
        )
        room -= len(picture or "")
        rows.append(
            {
                "name": film["path"],
                "source": "" if row is None else manifest["source"].iloc[row],
                "label": film["label"],
                "prediction": film["prediction"],
                "right": film["right"],
                "confidence": float(film["confidence"]),
                "calibrated": float(film["calibrated_confidence"]) if "calibrated_confidence" in film else None,
                "picture": picture,
            }
        )
    return {
        "rows": rows,
        "total": len(table),
        "left_out": len(table) - len(rows),
        "of": "test films" if of_test else "films, each judged by the model that never saw it",
        "file": file.name,
        "labels": sorted({*table["label"], *table["prediction"]}),
        "columns": (
            ("Name", False),
            ("Source", False),
            ("True class", False),
            ("Called", False),
            ("Score", True),
            ("Probability", True),
        ),
    }


def _small_picture(film: np.ndarray) -> str:
    """(S, S) uint8 as a ``data:`` address."""
    return uri_of(as_jpeg(film, quality=PICTURE_QUALITY, side=PICTURE_SIDE))


def style_sheet(name: str) -> Any:
    """A style sheet of the package, which, with the script and nothing else, a template does not escape."""
    return _template_file(name)


def _template_file(name: str) -> Any:
    from markupsafe import Markup

    return Markup((Path(__file__).parent / "templates" / name).read_text("utf-8"))


def _audit(run: RunDir, manifest: pd.DataFrame | None) -> dict[str, Any] | None:
    """What the audit of the run's films said; whether it was of the films that the run has now."""
    from vgg16_xray.report.audit import ladder_rows, told
    from vgg16_xray.steps.audit import read_audit
    from vgg16_xray.trust.shortcuts import WHOLE

    if manifest is None or not run.pixels.exists() or (found := read_audit(run)) is None:
        return None
    return {
        "told": told(found),
        "stale": not found["fresh"],
        "ladder": ladder_rows(found, manifest, ArrayStore(run.pixels)),
        "whole": found["ladder"].get(WHOLE.key, {}).get("macro_f1"),
    }


def _cards(run: RunDir, *, tested: bool) -> dict[str, Any]:
    """The checklists, or why there are none: a run of another version may lack what they ask for."""
    if not tested:
        return {"cards": None, "no_cards": ""}
    try:
        return {"cards": write_cards(run), "no_cards": ""}
    except UserError as error:
        return {"cards": None, "no_cards": str(error)}


def _toml(text: str) -> dict[str, Any]:
    """The configuration as values; a file that was written by hand and is not TOML is still shown as text."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


def _facts(config: Mapping[str, Any], folds: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What identifies a run, where ``run.toml`` says it; with its folds, where it has some."""
    wanted = (
        ("Package", "run", "version"),
        ("Started", "run", "started"),
        ("Command", "run", "command"),
        ("Data", "data", "collections"),
        ("Split", "data", "split"),
        ("Data fingerprint", "data", "fingerprint"),
        ("Recipe", "recipe", "name"),
        ("Weights", "weights", "origin"),
        ("Seed", "run", "seed"),
        ("Machine", "machine", "words"),
        ("Engine", "engine", "name"),
    )
    facts = []
    for name, section, key in wanted:
        part = config.get(section, {})
        value = part.get(key) if isinstance(part, dict) else None
        if value in (None, "", [], {}):
            continue
        facts.append((name, ", ".join(map(str, value)) if isinstance(value, list | dict) else str(value)))
        if key == "split" and folds:
            facts.append(("Folds", f"{folds['folds']} by group, which do not use the split"))
    return facts


def _manifest(run: RunDir) -> pd.DataFrame | None:
    import pandas as pd

    if not run.manifest.exists():
        return None
    table = pd.read_parquet(run.manifest)
    for name in ("patient_id", "source"):
        table[name] = table[name].fillna("").astype(str)
    return table


def _steps(run: RunDir, *, in_folds: bool) -> list[dict[str, Any]]:
    stamps = run.stamps()
    steps = []
    for number, (name, key, words, command) in enumerate(STEPS, start=1):
        stamp = stamps.get(key)
        # A folder that was there already needs no download: that step is then done by whoever made the folder.
        given = key == "download" and stamp is None and "preprocess" in stamps
        of_folds = in_folds and stamp is None and key in ("train", "validate", "test")
        steps.append(
            {
                "number": number,
                "name": name,
                "words": words,
                "command": f"vgg16-xray {command} {run.path}",
                "state": "done" if stamp else "given" if given else "folds" if of_folds else "missing",
                "seconds": stamp.get("seconds") if stamp else None,
                "finished": str(stamp.get("finished", "")).replace("T", " ")[:19] if stamp else "",
            }
        )
    return steps


def _data(manifest: pd.DataFrame) -> dict[str, Any]:
    labels = sorted(manifest["label"].unique())
    found: dict[Any, int] = manifest.groupby(["label", "split"]).size().to_dict()
    rows = [
        {
            "label": label,
            "counts": [int(found.get((label, side), 0)) for side in SPLITS],
            "total": int((manifest["label"] == label).sum()),
        }
        for label in labels
    ]
    known = manifest[manifest["patient_id"] != ""]
    copies = manifest["pixels_sha256"].duplicated()
    labels_of = manifest.groupby("pixels_sha256")["label"].nunique()
    sizes = Counter(f"{w} × {h}" for w, h in zip(manifest["width"], manifest["height"], strict=True))
    return {
        "splits": SPLITS,
        "labels": labels,
        "rows": rows,
        "totals": [int((manifest["split"] == side).sum()) for side in SPLITS],
        "groups": [int(manifest.loc[manifest["split"] == side, "group"].nunique()) for side in SPLITS],
        "films": len(manifest),
        "all_groups": int(manifest["group"].nunique()),
        "patients": len(set(zip(known["collection"], known["patient_id"], strict=True))),
        "films_with_patient": len(known),
        "copies": int(copies.sum()),
        "contradicted": int((labels_of > 1).sum()),
        "masks": int((manifest["mask"].fillna("") != "").sum()),
        "sizes": sizes.most_common(3),
        "kinds_of_sizes": len(sizes),
    }


@dataclass(frozen=True, kw_only=True)
class Belief:
    """What the manifest says about class and source, and what follows for the number."""

    #: ``confounded``: no source has two classes; ``partly``: some classes stand alone; ``mixed``; ``unknown``.
    verdict: str
    headline: str
    sentences: tuple[str, ...]
    labels: tuple[str, ...]
    #: (source, films of each class, number of classes in it), the largest source first.
    table: tuple[tuple[str, tuple[int, ...], int], ...]
    sources_left_out: int
    #: Share of the test films that the source alone would name rightly; None where no source is known.
    from_source_alone: float | None


def believe(manifest: pd.DataFrame) -> Belief:
    """Find out whether a class can be told by where its films come from.

    Args:
        manifest: Columns ``label``, ``source`` (empty where unknown), ``patient_id``, ``split``.
    """
    labels = tuple(sorted(manifest["label"].unique()))
    counts: dict[str, Counter[str]] = {}
    for source, label in zip(manifest["source"], manifest["label"], strict=True):
        counts.setdefault(source, Counter())[label] += 1
    known = {source: found for source, found in counts.items() if source}
    unknown = counts.get("", Counter())
    known_films: Counter[str] = sum(known.values(), Counter())
    # A class whose known sources no other class has: telling the source tells the class. Where the source of most of
    # its films is unknown, nothing is said.
    alone = [
        label
        for label in labels
        if known_films[label] > unknown[label] and all(len(found) == 1 for found in known.values() if found[label])
    ]
    verdict, headline, sentences = _verdict(labels, alone, known, unknown)
    without_patient = int((manifest["patient_id"] == "").sum())
    if without_patient:
        sentences.append(
            f"The patient is unknown for {without_patient:,} of {len(manifest):,} films. Copies stand on one "
            "side of the split, but other films of such a patient may stand on two, which makes the test too easy."
        )
    rows = sorted(known.items(), key=lambda item: (-item[1].total(), item[0]))
    if unknown:
        rows.append(("", unknown))
    return Belief(
        verdict=verdict,
        headline=headline,
        sentences=tuple(sentences),
        labels=labels,
        table=tuple(
            (source or UNKNOWN_SOURCE, tuple(found[label] for label in labels), len(found))
            for source, found in rows[:MOST_SOURCES]
        ),
        sources_left_out=max(0, len(rows) - MOST_SOURCES),
        from_source_alone=_from_source_alone(manifest) if known else None,
    )


def _verdict(
    labels: Sequence[str], alone: Sequence[str], known: Mapping[str, Counter[str]], unknown: Counter[str]
) -> tuple[str, str, list[str]]:
    cannot_tell = "The model may have learned to recognise the hospital, and the accuracy cannot tell."
    some_unknown = (
        f"The source of {unknown.total():,} films is unknown; for them nothing can be said."
        if unknown and known
        else None
    )
    if not known:
        headline = "The source of the films is unknown, so this number may measure the hospital instead of the disease"
        sentences = [
            "The data do not say from which hospital or collection a film comes. If the classes come from different "
            f"places, which is so in most public collections of this kind, other things than lungs tell them apart. "
            f"{cannot_tell}"
        ]
        return "unknown", headline, sentences
    if len(alone) == len(labels):
        headline = "Every class comes from hospitals of its own, so this number does not show that the lungs were read"
        sentences = [
            "No source has films of more than one class: whoever recognises the hospital, by a letter in the corner, "
            "the border, the brightness or the age of the patients, knows the class without looking at a lung. "
            f"{cannot_tell}"
        ]
        verdict = "confounded"
    elif alone:
        one = len(alone) == 1
        headline = f"{len(alone)} of {len(labels)} classes come from hospitals of their own"
        sentences = [
            f"The films of {_listed(alone)} come from sources that no other class has. For "
            f"{'this class' if one else 'these classes'}, recognising the hospital is enough. {cannot_tell}"
        ]
        verdict = "partly"
    else:
        verdict = "mixed"
        headline = (
            "Sources and classes are not the same thing here, which rules out the crudest error and not the finer ones"
        )
        sentences = [
            "No class comes only from sources of its own. Their shares may still differ from source to source, and a "
            "model can use that: look at the table."
        ]
        if unknown.total() > sum(found.total() for found in known.values()):
            verdict = "unknown"
            headline = (
                "The source of most films is unknown, so this number may measure the hospital instead of the disease"
            )
    if some_unknown:
        sentences.append(some_unknown)
    return verdict, headline, sentences


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _from_source_alone(manifest: pd.DataFrame) -> float | None:
    """Accuracy on the test films of naming each source's most frequent class among the training films."""
    train, test = (manifest[manifest["split"] == side] for side in (TRAIN, TEST))
    if train.empty or test.empty:
        return None
    most = Counter(train["label"]).most_common()
    usual = min(label for label, n in most if n == most[0][1])
    by_source: dict[str, Counter[str]] = {}
    for source, label in zip(train["source"], train["label"], strict=True):
        by_source.setdefault(source, Counter())[label] += 1
    guess = {source: max(sorted(found), key=found.__getitem__) for source, found in by_source.items()}
    right = [guess.get(s, usual) == label for s, label in zip(test["source"], test["label"], strict=True)]
    return sum(right) / len(right)


def _quarantine(run: RunDir) -> dict[str, Any] | None:
    import pandas as pd

    if not run.quarantine.exists():
        return None
    table = pd.read_csv(run.quarantine, dtype=str, keep_default_na=False)
    return {
        "files": len(table),
        "reasons": Counter(table["reason"]).most_common(10),
        "rows": list(zip(table["path"][:MOST_ROWS], table["reason"][:MOST_ROWS], strict=True)),
    }


def _pictures(run: RunDir) -> dict[str, dict[str, Any] | None]:
    pictures: dict[str, dict[str, Any] | None] = {}
    for name, picture in PICTURES.items():
        file = run.figures / picture.file
        pictures[name] = None
        if file.exists():
            pictures[name] = inlined(file.read_bytes()) | {
                "of_films": picture.of_films,
                "title": picture.title,
                "alt": picture.alt,
                "reading": picture.reading,
            }
    pictures["heat"] = _heat_picture(HeatDir(run.path).picture)
    return pictures


def _heat_picture(file: Path) -> dict[str, Any] | None:
    """The sheet that ``vgg16-xray heat`` drew, as the other pictures."""
    if not file.exists():
        return None
    return inlined(file.read_bytes()) | {
        "of_films": True,
        "title": "Films under their heat, from most of it on the opacities to least",
        "alt": "Films under their heat maps, with the borders of the opacities and lungs that somebody drew; below "
        "each how much of the heat lies on the opacities.",
        "reading": "Where a map finds the disease, the light colours lie within the cyan border. " + RESEARCH_USE_ONLY,
    }


def _parameters(layers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {
        "all": sum(layer["parameters"] for layer in layers),
        "base": sum(layer["parameters"] for layer in layers if layer["name"].startswith("features")),
        "trainable": sum(layer["parameters"] for layer in layers if layer["trainable"]),
    }


def _history(run: RunDir) -> list[dict[str, Any]]:
    import pandas as pd

    from vgg16_xray.learn.checkpoint import load_header

    if not run.history.exists():
        return []
    # The row of an epoch is written before the state that knows of it, so there is never one too few. A row that was
    # cut has no end of line.
    known = len(load_header(run.last)["history"]) if run.last.exists() else 0
    if (rows := run.history.read_bytes().count(b"\n") - 1) < known:
        raise UserError(
            f"{run.history}: must have the {known} epochs that {run.last.relative_to(run.path)} knows, found {rows}",
            hint=f"delete it, and 'vgg16-xray train {run.path}' writes it again",
        )
    return list(json.loads(pd.read_csv(run.history).to_json(orient="records")))
