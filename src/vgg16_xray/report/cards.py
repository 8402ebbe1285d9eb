"""What a paper and a reader ask of a model, answered where the run knows it and left open, visibly, where it does not.

A model card in the layout of Hugging Face, a data sheet, the checklists CLAIM 2024, TRIPOD+AI and STARD-AI, and a
paragraph for the methods of a paper: Markdown, written from the files of a run and nothing else.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg16_xray import RESEARCH_USE_ONLY, __version__
from vgg16_xray.errors import UserError
from vgg16_xray.files import read_json, write_text
from vgg16_xray.films.split import SPLITS
from vgg16_xray.report.terminal import counted
from vgg16_xray.rundir import CardsDir, FoldsDir, RunDir, read_config
from vgg16_xray.steps.folds import finished_folds
from vgg16_xray.trust.leaks import under_two_labels

if TYPE_CHECKING:
    import pandas as pd

CHECKLISTS = ("claim_2024", "tripod_ai", "stard_ai")
#: How an item stands: the run answers it; it answers a part; only a person can.
FILLED, PART, OPEN = "filled", "in part", "open"
LICENCE = "Apache-2.0"
LIBRARIES = ("torch", "numpy", "scikit-learn", "scipy", "pandas", "onnxruntime", "Pillow", "pydicom")
ASK = "**A person must add this.**"


@dataclass(frozen=True)
class Item:
    """An item of a checklist, and what the run says to it."""

    number: str
    topic: str
    asks: str
    #: :data:`FILLED`, :data:`PART` or :data:`OPEN`.
    state: str
    answer: str


@dataclass(frozen=True)
class Checklist:
    """A checklist, filled as far as the run knows."""

    name: str
    title: str
    long_title: str
    reference: str
    items: tuple[Item, ...]

    def count(self, state: str) -> int:
        """Number of items in a state."""
        return sum(item.state == state for item in self.items)


def write_cards(run: RunDir) -> tuple[Checklist, ...]:
    """Write all cards of a tested run, ``cards/*.md``.

    Returns:
        The checklists.

    Raises:
        UserError: The run has no test or no folds yet, or a file is damaged or cannot be written.
    """
    facts = facts_of(run)
    cards = CardsDir(run.path)
    lists = tuple(fill(name, facts) for name in CHECKLISTS)
    for checklist in lists:
        write_text(cards.file(checklist.name), _checklist_text(checklist, run))
    write_text(cards.file("model_card"), model_card(run, facts))
    write_text(cards.file("data_sheet"), data_sheet(run, facts))
    write_text(cards.file("methods"), methods(facts))
    return lists


def fill(name: str, facts: Mapping[str, str]) -> Checklist:
    """Answer the items of a checklist with what is known.

    Args:
        name: A name of :data:`CHECKLISTS`.
        facts: See :func:`facts_of`.
    """
    text = (Path(__file__).parent / "checklists" / f"{name}.toml").read_text("utf-8")
    content = tomllib.loads(text)
    items = []
    for number, topic, asks, key in content["items"]:
        answer = facts.get(key.removeprefix("+"), "")
        state = OPEN if not answer else PART if key.startswith("+") else FILLED
        items.append(Item(number, topic, asks, state, answer))
    return Checklist(name, content["title"], content["long_title"], content["reference"], tuple(items))


# -- what the run knows


def facts_of(run: RunDir) -> dict[str, str]:
    """Sentences that the run can vouch for, by what they are about.

    Raises:
        UserError: The run has no test or no folds yet, or a file of it is damaged.
    """
    import pandas as pd

    config = read_config(run)
    if (folds := finished_folds(run)) is None:
        run.require_step("test", made_by="test")
    else:
        # What the run is told to do next may be another recipe than that of the folds.
        trained = read_config(FoldsDir(run.path).fold(1))
        of_training = ("recipe", "training", "weights", "engine", "machine")
        config |= {name: trained[name] for name in of_training if name in trained}
    measured = folds["pooled"] if folds else read_json(run.test)
    manifest = pd.read_parquet(run.require(run.manifest, made_by="preprocess DATA --out"))
    try:
        return (
            _of_data(config, manifest, run, folds)
            | _of_training(config, measured, folds)
            | _of_result(measured, folds)
            | _of_copies(run)
            | _of_answers(measured, run, "out-of-fold" if folds else "test")
            | _of_audit(run)
            | _of_heat(run)
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.path}: must be as the steps wrote it, found {error!r} missing") from error


def _of_data(
    config: Mapping[str, Any], manifest: pd.DataFrame, run: RunDir, folds: Mapping[str, Any] | None
) -> dict[str, str]:
    labels = config["data"]["labels"]
    of_class = Counter(manifest["label"])
    held = Counter(zip(manifest["source"], manifest["label"], strict=True))
    films_of = Counter(manifest["source"])
    known = sorted((source for source in films_of if source), key=lambda source: (-films_of[source], source))
    sources = "; ".join(
        f"{source}: {', '.join(f'{label} {held[source, label]:,}' for label in labels if held[source, label])}"
        for source in known
    )
    left_out = _rows(run.quarantine)
    with_patient = int((manifest["patient_id"] != "").sum())
    if folds:
        split = (
            f"{folds['folds']} folds by group, each class evenly, seed {config['run']['seed']}: each is the test "
            "of one model, the next one chooses that model's epoch, the rest trains it."
        )
        films = {side: sorted({fold["films"][side] for fold in folds["each"]}) for side in SPLITS}
        counts = ", ".join(f"{side} {' or '.join(f'{n:,}' for n in some)}" for side, some in films.items())
        sides = f"Of each model: {counts}."
    else:
        split = _sentence(config["data"]["split"])
        in_side = Counter(zip(manifest["split"], manifest["label"], strict=True))
        of_sides = (f"{side} {', '.join(f'{label} {in_side[side, label]:,}' for label in labels)}" for side in SPLITS)
        sides = f"By side: {'; '.join(of_sides)}."
    sizes = Counter(zip(manifest["width"], manifest["height"], strict=True)).most_common(1)[0]
    return {
        "task": f"A VGG16 that sorts frontal chest radiographs into {_and(labels)}.",
        "design": "Retrospective: the films existed before the model was made.",
        "goal": "Making a model, and testing it on films of the same sources.",
        "intended_use": f"{RESEARCH_USE_ONLY} No clinical role is intended.",
        "sources": f"{len(manifest):,} films from {_and(list(config['data']['collections']))}. "
        + (f"By source: {sources}." if known else "The data name no source.")
        + (f" Of {films_of['']:,} films the source is unknown." if known and films_of[""] else ""),
        "eligibility": "Every film in the given folders that could be read and checked; "
        + (
            f"{left_out:,} files were left out, each with its reason in quarantine.csv."
            if left_out
            else "none was not."
        ),
        "missing": f"Files that cannot be read are left out and listed ({left_out:,} here). The patient is known for "
        f"{with_patient:,} of {len(manifest):,} films, the source for {len(manifest) - films_of['']:,}; "
        "nothing is imputed.",
        "flow": f"{len(manifest) + left_out:,} files, {left_out:,} left out, {len(manifest):,} used.",
        "sizes": f"Most films were {sizes[0][0]} x {sizes[0][1]} pixels when read ({sizes[1]:,} of {len(manifest):,}).",
        "labels": f"The label is the folder or table entry that the data came with: {_and(labels)}.",
        "preprocessing": f"Decoded to 8-bit grey, made square at {config['run']['size']} x {config['run']['size']} "
        f"pixels, normalised as '{config['recipe']['preprocessing']}'; training, test and prediction do the same.",
        "partitions": f"{split} {sides}",
        "disjoint": f"Groups: films of one patient where the patient is known ({with_patient:,} of {len(manifest):,} "
        "films), and copies of one film, however it was resized, cropped or encoded, are on one side.",
        "counts": f"{len(manifest):,} films in {manifest['group'].nunique():,} groups: "
        f"{', '.join(f'{label} {of_class[label]:,}' for label in labels)}. {sides}",
        "predictors": "The pixels of the film, and nothing else.",
    }


def _of_training(
    config: Mapping[str, Any], measured: Mapping[str, Any], folds: Mapping[str, Any] | None
) -> dict[str, str]:
    recipe = config["recipe"]
    changed = ", ".join(
        f"{name} {value}" for name, value in recipe["augmentation"].items() if value not in (0, 0.0, False)
    )
    select = str(recipe["select"]).replace("_", " ")
    return {
        "model": f"VGG16, configuration D{', its first four blocks' if recipe.get('blocks') == 4 else ''}, "
        f"trained from {recipe['train_from']}, head '{recipe['head']}', dropout {recipe['dropout']}; the layer table "
        "is in layers.json.",
        "software": f"kbs-vgg16-xray {config['run'].get('version', __version__)}, "
        f"{', '.join(f'{name} {found}' for name in LIBRARIES if (found := _version(name)))} (installed where these "
        f"cards were written). Trained on: {config['machine']['words']}; engine {config['engine']['name']}.",
        "initialisation": f"Base: {config['weights']['origin'].partition(';')[0]}. Head: Glorot uniform, seed "
        f"{config['training']['seed']}.",
        "training": f"Recipe '{recipe['name']}': {recipe['description']} At most {recipe['epochs']} epochs, batches of "
        f"{recipe['batch']}, {recipe['optimizer']}, highest rates {recipe['head_rate']} (head) and "
        f"{recipe['base_rate']} (base), schedule {recipe['schedule']}, weight decay {recipe['weight_decay']}, label "
        f"smoothing {recipe['label_smoothing']}, mixup {recipe['mixup']}, averaging of weights {recipe['ema']}. "
        f"Augmentation: {changed or 'none'}.",
        "imbalance": f"Class weights '{recipe['class_weights']}' in the loss. Probabilities are not corrected for it "
        "otherwise than by the calibration, where validation.json has one.",
        "selection": f"The epoch with the highest {select} on the validation films"
        + ("." if folds else f": epoch {measured['epoch']}."),
        "ensemble": f"{folds['folds']} models of a cross-validation; each film is judged by the one that had not seen "
        "its group."
        if folds
        else "None.",
        "output": "A probability for each class; the most probable class is the answer.",
        "availability": f"The software is kbs-vgg16-xray ({LICENCE}); the model is checkpoints/best of the run.",
        "stored": "Every film's probabilities are in predictions.csv or folds.csv; run.toml and steps.json say how "
        "they came about.",
        "blinding": "The model gets the pixels alone, no clinical information and no label.",
    }


def _of_result(measured: Mapping[str, Any], folds: Mapping[str, Any] | None) -> dict[str, str]:
    overall, intervals = measured["overall"], measured["intervals"]
    kind = "out of fold" if folds else "of the test"
    wanted = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1"}
    rows = [
        f"{label}: sensitivity {_figure(row['sensitivity'])}, specificity {_figure(row['specificity'])}, "
        f"F1 {_figure(row['f1'])}, {row['support']:,} films"
        for label, row in measured["per_class"].items()
    ]
    crossed = [
        f"{label} as {', '.join(f'{other} {n:,}' for other, n in zip(measured['labels'], row, strict=True))}"
        for label, row in zip(measured["labels"], measured["confusion"], strict=True)
    ]
    wrong = measured["images"] - sum(row[i] for i, row in enumerate(measured["confusion"]))
    return {
        "metrics": "Accuracy, balanced accuracy, macro-F1, AUROC, average precision, log loss; for each class "
        "precision, sensitivity, specificity, F1; confusion matrix, ROC and precision-recall curves.",
        "uncertainty": f"{100 * intervals['level']:.0f} % intervals: {intervals['method']}, "
        f"{intervals['replicates']:,} replicates, seed {intervals['seed']}.",
        "result": f"On {measured['images']:,} films {kind} in {measured['groups']:,} groups: "
        f"{', '.join(f'{words} {_figure(overall[name])}' for name, words in wanted.items())}.",
        "per_class": f"{'; '.join(rows)}.",
        "confusion": f"True class as answered: {'; '.join(crossed)}.",
        "failures": f"{wrong:,} of {measured['images']:,} films were named wrongly; they are listed in report.html.",
    }


def _of_copies(run: RunDir) -> dict[str, str]:
    """What the search for the same film again found."""
    if not run.leaks.exists():
        return {}
    found = read_json(run.leaks)
    films, pairs = under_two_labels(found)
    return {
        "copies": f"Copies were sought by laying film over film: {found['copies']:,} of {found['films']:,} films are "
        f"an earlier one again, {found['exact']:,} of them with equal pixels. "
        + (
            f"{films:,} films, in {counted(pairs, 'pair')}, stand under two labels and are on the training side."
            if films
            else "No film stands under two labels."
        )
    }


def _of_answers(measured: Mapping[str, Any], run: RunDir, films: str) -> dict[str, str]:
    """Calibration, and what is not answered."""
    told = {
        "refusal": "In these figures every film is answered. A bundle that is exported from the run refuses what is no "
        "upright frontal chest film and abstains where a class has too little evidence, by thresholds chosen on the "
        "validation films."
    }
    if readings := _rows(run.readings):
        told["readings"] = f"The test films were measured {'once' if readings == 1 else f'{readings} times'}."
    if (found := measured.get("calibration")) is None:
        return told
    before, after, sets = found["score"], found["probability"], found["conformal"][0]
    if "temperatures" in found:
        fitted_on = "each fold's validation films"
        temperatures = f"temperatures {', '.join(f'{one:.3f}' for one in found['temperatures'])}"
    else:
        fitted_on, temperatures = "the validation films", f"temperature {found['temperature']:.3f}"
    return told | {
        "calibration": f"Probabilities are calibrated by temperature scaling on {fitted_on} ({temperatures}); "
        f"on the {films} films the expected calibration error is {_figure(before['ece'])} "
        f"before and {_figure(after['ece'])} after ({after['ece_by_chance']['mean']:.3f} by chance alone), the Brier "
        f"score {_figure(before['brier'])} and {_figure(after['brier'])}. Conformal sets ({sets['score'].upper()}, "
        f"{'a threshold a class' if sets['by_class'] else 'one threshold'}) that promise to hold the truth for "
        f"{100 * (1 - sets['alpha']):.0f} % do so for {_figure(sets['coverage'])}, with {_figure(sets['size'])} "
        "classes in a set."
    }


def _of_audit(run: RunDir) -> dict[str, str]:
    from vgg16_xray.steps.audit import read_audit

    if (found := read_audit(run)) is None:
        return {}
    reasons = " ".join(f"{reason['headline']} {reason['evidence']}" for reason in found["reasons"][:3])
    rungs = [
        f"{name.replace('_', ' ')} {row['macro_f1']:.2f} ({row['low']:.2f}–{row['high']:.2f})"
        for name, row in found["ladder"].items()
        if "macro_f1" in row
    ]
    return {
        "verdict": f"The audit of the films says: {found['verdict']}. {reasons}".strip(),
        "robustness": f"Macro-F1 of a simple probe on reduced inputs: {'; '.join(rungs)}. Sources left out in turn: "
        "audit.json.",
    }


def _of_heat(run: RunDir) -> dict[str, str]:
    from vgg16_xray.bundle.localise import sentence
    from vgg16_xray.report.heat import read_heat

    if (found := read_heat(run)) is None or found["stale"]:
        return {}
    return {
        "explanation": "Grad-CAM of the logit of the most probable class of disease, on the last convolutional map, "
        f"checked against drawn masks, chance and networks with random weights. {sentence(found)}"
    }


# -- Markdown


def model_card(run: RunDir, facts: Mapping[str, str]) -> str:
    """The model card, with the header that Hugging Face reads."""
    name = run.path.resolve().name
    parts = [
        # Under which licence the trained weights may be given away hangs on the films' licences.
        "---\nlicense: other\nlicense_name: to-be-decided\nlibrary_name: kbs-vgg16-xray\n"
        "pipeline_tag: image-classification\ntags:\n- chest-x-ray\n- vgg16\n- research-use-only\n---",
        f"# {name}",
        f"**{RESEARCH_USE_ONLY}**",
        f"## Can its figures be believed?\n\n{facts.get('verdict', 'The films were not audited.')}",
        f"## Model details\n\n{facts['task']} {facts['model']} {facts['initialisation']}",
        f"## Uses\n\n{facts['intended_use']} Not for patients, not for films that are no frontal chest radiographs, "
        "not at a hospital where it was not tested.",
        f"## Training data\n\n{facts['sources']} {facts['partitions']} {facts['disjoint']}",
        f"## Training procedure\n\n{facts['preprocessing']} {facts['training']} {facts['selection']}",
        f"## Evaluation\n\n{facts['result']}\n\n{facts['per_class']}\n\n{facts['uncertainty']}\n\n"
        f"{' '.join(facts[name] for name in ('readings', 'calibration', 'refusal') if name in facts)}",
        "## Bias, risks and limitations\n\n"
        + "".join(f"{facts[name]} " for name in ("robustness", "explanation") if name in facts)
        + f"Films of other hospitals: not tested in this run. Sex, age, ethnicity: {ASK}",
        f"## Licence, contact\n\nThe software is {LICENCE}, ImageNet's weights of the base CC BY 4.0; what the "
        f"licences of the films allow for these weights, and whom to ask: {ASK}",
        f"## How to use\n\n```\nvgg16-xray predict FILM --model {name}\n```",
        f"## Software and machine\n\n{facts['software']}",
    ]
    return "\n\n".join(parts) + "\n"


def data_sheet(run: RunDir, facts: Mapping[str, str]) -> str:
    """A data sheet for the films (Gebru et al. 2021, its seven parts)."""
    parts = [
        f"# Data sheet: the films of {run.path.resolve().name}",
        f"**{RESEARCH_USE_ONLY}** After Gebru et al., Datasheets for Datasets, Commun ACM 2021;64(12).",
        f"## Motivation\n\nWhy the collections were made, by whom, who paid: {ASK}",
        f"## Composition\n\n{facts['counts']} {facts['sources']} {facts['sizes']} {facts['labels']} "
        f"{facts.get('copies', '')}".rstrip(),
        f"## Collection\n\n{facts['design']} Where, when, with whose consent: {ASK}",
        f"## Preprocessing\n\n{facts['eligibility']} {facts['preprocessing']}",
        f"## Uses\n\n{facts.get('verdict', 'The films were not audited.')}",
        f"## Distribution\n\nLicences of the collections: {ASK}",
        f"## Maintenance\n\nWho keeps the collections, how errors are mended: {ASK}",
    ]
    return "\n\n".join(parts) + "\n"


def methods(facts: Mapping[str, str]) -> str:
    """A paragraph for a paper, every number in it out of the run."""
    order = (
        *("sources", "eligibility", "partitions", "disjoint", "copies", "preprocessing", "model", "initialisation"),
        *("training", "selection", "ensemble", "uncertainty", "readings", "result", "per_class", "calibration"),
        *("refusal", "explanation", "verdict", "software"),
    )
    told = [facts[name] for name in order if facts.get(name) and facts[name] != "None."]
    return f"# Methods\n\n{' '.join(told)}\n\n*{RESEARCH_USE_ONLY}*\n"


def _checklist_text(checklist: Checklist, run: RunDir) -> str:
    rows = "\n".join(
        f"| {item.number} | {item.topic}: {item.asks} | {item.state} | {_cell(item)} |" for item in checklist.items
    )
    return (
        f"# {checklist.title}, for {run.path.resolve().name}\n\n{checklist.long_title}. The items are told in our own "
        f"words; the checklist itself: {checklist.reference}.\n\nOf {len(checklist.items)} items the run fills "
        f"{checklist.count(FILLED)}, {checklist.count(PART)} in part, and leaves {checklist.count(OPEN)} open.\n\n"
        f"| item | what it asks for | state | answer |\n|---|---|---|---|\n{rows}\n\n*{RESEARCH_USE_ONLY}*\n"
    )


def _cell(item: Item) -> str:
    answer = item.answer.replace("|", "\\|").replace("\n", " ")
    return answer if item.state == FILLED else f"{answer} {ASK}".strip()


def _figure(entry: Mapping[str, float | None]) -> str:
    if entry["value"] is None:
        return "not defined"
    low, high = entry.get("low"), entry.get("high")
    return f"{entry['value']:.3f}" + (f" ({low:.3f}–{high:.3f})" if low is not None and high is not None else "")


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def _rows(table: Path) -> int:
    """Rows of a CSV below its header; 0 where there is none."""
    import csv

    if not table.exists():
        return 0
    with table.open(encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.reader(file)) - 1


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
