"""Training that resists: each way of it trained with each source left out in turn, and what it answers there.

    python scripts/compare_resisting.py RUN --to FILE.jsonl [--jobs 8] [--minutes 8] [--ways WAY ...] [--recipe fast]
    python scripts/compare_resisting.py --table FILE.jsonl

RUN holds films of several sources, split (`vgg16-xray preprocess DATA DATA2 --out RUN`). A training learns from the
training films of all sources but one, is calibrated on their validation films, and is tested on their test films and on
every film of the source that was left out. A line of FILE is a training; one that is there is not trained again.

Block 5 learns (recipe `default`) on pool4 features that lie on the device; the ways `best...` train everything.
Made for one GPU, which `--jobs` processes share. On two cores with bf16 (`--jobs 1`) a training takes a
quarter of an hour, and the features of 10,221 films as long.
With `--recipe fast` a head alone learns, in as many seconds, in those ways that a head can take.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score

from vgg16_xray.config import Augmentation, Recipe, Resist, load_recipe
from vgg16_xray.files import whole_file
from vgg16_xray.films.split import TEST, TRAIN, VALIDATION
from vgg16_xray.films.store import ArrayStore
from vgg16_xray.learn import devices
from vgg16_xray.learn.augment import Augment
from vgg16_xray.learn.checkpoint import load_model
from vgg16_xray.learn.devices import Resident, choose_device, place, put
from vgg16_xray.learn.engines import Engine, FrozenPart, choose
from vgg16_xray.learn.features import ComputedFeatures
from vgg16_xray.learn.fit import TrainingData, fit, probabilities
from vgg16_xray.learn.vgg16 import split_at
from vgg16_xray.rundir import RunDir
from vgg16_xray.steps.initialise import assemble
from vgg16_xray.steps.preprocess import read_manifest
from vgg16_xray.steps.train import VIEW_DRAW, sources_of
from vgg16_xray.trust.calibrate import fit_temperature, logits_of, softmax
from vgg16_xray.trust.intervals import exact_interval
from vgg16_xray.trust.lungs import find_lungs
from vgg16_xray.trust.refuse import fit_evidence, negative_class
from vgg16_xray.trust.shortcuts import RUNGS, shown

SEED = 1234
NONE = "-"
#: Shares of the validation films that may be abstained.
RATES = (0.05, 0.10)
#: Room around the lungs, share of their box.
ROOM = 0.08
#: Views a film that are drawn once.
VIEWS = 4
EPOCHS = 6

MOVES = Augmentation(rotation=7.0, zoom=0.1, shift=0.05, exposure=0.2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """One way of training."""

    #: As the table calls it.
    words: str
    resist: Resist = dataclasses.field(default_factory=Resist)
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    #: What is done to every film, also to those that are tested: a key of :data:`FILMS`.
    films: str = "as they are"
    recipe: str = "default"
    epochs: int = EPOCHS

    @property
    def of_a_head(self) -> bool:
        """Whether a head alone can be trained so."""
        changes_maps = self.resist.mixstyle or self.resist.adversary or self.films == "inside"
        return self.recipe == "default" and not changes_maps


def _style(strength: float, moves: Augmentation | None = None) -> Augmentation:
    return dataclasses.replace(moves or Augmentation(), style=strength, views=VIEWS)


WAYS = {
    "plain": Way(words="nothing"),
    "moves": Way(words="films turned, shifted, scaled, gamma", augmentation=dataclasses.replace(MOVES, views=VIEWS)),
    "style0.5": Way(words="random style, strength 0.5", augmentation=_style(0.5)),
    "style1": Way(words="random style, strength 1", augmentation=_style(1.0)),
    "sampling": Way(words="sources of a class drawn equally often", resist=Resist(sampling="balanced")),
    "across": Way(words="mixup across sources", resist=Resist(mixup_across=True)),
    "mixstyle": Way(words="MixStyle 0.3 at pool4", resist=Resist(mixstyle=0.3)),
    "dro": Way(words="group DRO, step 0.05", resist=Resist(group_dro=0.05)),
    "adversary": Way(words="adversary for the source, 0.3", resist=Resist(adversary=0.3)),
    "equalised": Way(words="intensities standardised (histogram equalised)", films="equalised"),
    "crop": Way(words="cropped to the box of the lungs", films="crop"),
    "inside": Way(words="maps outside the lungs set to zero at pool4", films="inside"),
    "together": Way(
        words="style 0.5 and moves, sources by the root, mixup across, MixStyle",
        augmentation=_style(0.5, MOVES),
        resist=Resist(sampling="sqrt", mixup_across=True, mixstyle=0.3),
    ),
    "crop+style": Way(words="cropped to the lungs, style 0.5, moves", films="crop", augmentation=_style(0.5, MOVES)),
    "best": Way(words="recipe `best`", recipe="best", epochs=12, augmentation=MOVES),
    "best+style": Way(
        words="recipe `best`, style 0.5", recipe="best", epochs=12, augmentation=dataclasses.replace(MOVES, style=0.5)
    ),
}  # fmt: skip


def recipe_of(way: Way, name: str | None = None, epochs: int | None = None) -> Recipe:
    """The recipe of a way; `name` and `epochs` in place of its own."""
    recipe = load_recipe(name or way.recipe, epochs=epochs or (None if name else way.epochs))
    # What is mixed across sources must be mixed at all.
    mixup = recipe.mixup or (0.2 if way.resist.mixup_across else 0.0)
    return dataclasses.replace(recipe, augmentation=way.augmentation, resist=way.resist, mixup=mixup, patience=0)


# -- films


def equalised(films: np.ndarray) -> np.ndarray:
    """Each film with as many pixels of every grey, (N, H, W) uint8."""
    out = np.empty_like(films)
    for i, film in enumerate(films):
        ranks = np.cumsum(np.bincount(film.ravel(), minlength=256))
        out[i] = np.rint(255 * (ranks - ranks[0]) / max(1, ranks[-1] - ranks[0])).astype(np.uint8)[film]
    return out


def cropped(films: np.ndarray, masks: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Each film cut to the box of its lungs and a little room, stretched to its size; whole where none were found."""
    from vgg16_xray.films.decode import to_square

    out = films.copy()
    for i in np.flatnonzero(found):
        (top, bottom), (left, right) = (np.flatnonzero(masks[i].any(axis=axis))[[0, -1]] for axis in (1, 0))
        down, across = ROOM * (bottom - top), ROOM * (right - left)
        box = films[i][
            max(0, int(top - down)) : int(bottom + down) + 1, max(0, int(left - across)) : int(right + across) + 1
        ]
        out[i] = to_square(np.ascontiguousarray(box), films.shape[-1])
    return out


class Films:
    """Films of a run and what is made of them, each made once and kept in a folder that all processes read."""

    def __init__(self, run: RunDir, folder: Path) -> None:
        self.folder, self.pixels = folder, run.pixels
        manifest = read_manifest(run)
        self.labels = sorted(manifest["label"].unique())
        self.targets = manifest["label"].map({label: i for i, label in enumerate(self.labels)}).to_numpy(dtype=np.int64)
        self.names = manifest["source"].to_numpy(dtype=str)
        self.sources = sources_of(manifest)
        self.rows = {side: np.flatnonzero((manifest["split"] == side).to_numpy()) for side in (TRAIN, VALIDATION, TEST)}

    def prepare(self) -> None:
        """Find lungs, and make the changed films."""
        if (self.folder / "crop.npy").exists():
            return
        films = np.load(self.pixels)
        lungs = find_lungs(films)
        np.save(self.folder / "masks.npy", lungs.masks)
        np.save(self.folder / "found.npy", lungs.found)
        np.save(self.folder / "equalised.npy", equalised(films))
        test = self.rows[TEST][lungs.found[self.rows[TEST]]]
        np.save(self.folder / "erased_rows.npy", test)
        np.save(self.folder / "erased.npy", shown(RUNGS["lungs_erased"], films[test], lungs.masks[test]))
        np.save(self.folder / "crop.npy", cropped(films, lungs.masks, lungs.found))
        print(f"lungs found on {lungs.found.sum()} of {len(films)} films", flush=True)

    def store(self, kind: str) -> ArrayStore:
        """The films as a way wants them."""
        return ArrayStore(self.pixels if kind in ("as they are", "inside") else self.folder / f"{kind}.npy")


class OnDevice:
    """Features that lie on the device, a tensor a view; an epoch takes one of them for each film at random."""

    def __init__(self, views: Sequence[torch.Tensor], *, draw: int | None = None) -> None:
        self._views, self._draw = views, draw

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """See :class:`vgg16_xray.learn.features.FeatureSource`."""
        at = put(np.asarray(rows), self._views[0].device)
        if self._draw is None or len(self._views) == 1:
            return self._views[0].index_select(0, at)
        which = np.random.default_rng([SEED, self._draw, int(rows[0])]).integers(len(self._views), size=len(rows))
        chosen = put(which, at.device)
        out = self._views[0].index_select(0, at)
        for number, view in enumerate(self._views[1:], start=1):
            mine = (chosen == number)[:, None, None, None]
            out = torch.where(mine, view.index_select(0, at), out)
        return out


def on_device(frozen: FrozenPart, films: devices.Rows, count: int, change: Any = None) -> torch.Tensor:
    """(N, C, h, w) half precision, what the frozen part makes of all films."""
    source = ComputedFeatures(frozen, films, change=change)
    parts = [source.take(np.arange(start, min(start + 128, count))).half() for start in range(0, count, 128)]
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)


def kept(file: Path, make: Callable[[], torch.Tensor], device: torch.device) -> torch.Tensor:
    """What `make` made, kept in a file for the other ways that want it."""
    if file.exists():
        return torch.from_numpy(np.load(file)).to(device).contiguous(memory_format=torch.channels_last)
    made = make()
    with whole_file(file) as temporary, temporary.open("wb") as stream:
        np.save(stream, made.cpu().numpy())
    return made


# -- a training


def job(
    run: Path, folder: Path, way_name: str, left_out: Sequence[str], *, recipe_name: str | None, epochs: int | None
) -> Iterator[dict[str, Any]]:
    """Train a way with each of the sources left out; features are made once for all of them."""
    devices.STEPS_TO_COMPILE = 10**9  # Compiling takes longer than these trainings.
    way = WAYS[way_name]
    recipe = recipe_of(way, recipe_name, epochs)
    data, device = Films(RunDir(run), folder), choose_device().torch
    engine = choose(device=choose_device().name, train_from=recipe.train_from, race=True)
    count = len(data.targets)
    films = Resident(data.store(way.films), device)
    views: list[torch.Tensor] = []
    erased: torch.Tensor | None = None

    def change(draw: int) -> Augment | None:
        return Augment(way.augmentation, seed=SEED, draw=draw) if way.augmentation.changes else None

    for source in left_out:
        started = time.monotonic()
        model = assemble(recipe, classes=len(data.labels), weights=None, seed=SEED)
        place(model, device)
        prefix, _ = split_at(model, recipe.train_from)
        frozen = FrozenPart(prefix, preprocessing=recipe.preprocessing, engine=engine)
        if recipe.train_from != "all" and not views:
            name = f"features-{recipe.name}-{data.store(way.films).path.stem}.npy"
            views.append(kept(folder / name, partial(on_device, frozen, films, count), device))
            for number in range(1, way.augmentation.views + 1):
                views.append(on_device(frozen, films, count, change(VIEW_DRAW + number)))
            if way.films == "inside":
                views[:] = [view * _inside(data, device, view.shape[-1]) for view in views]
            if way.films == "as they are":
                store = ArrayStore(data.folder / "erased.npy")
                name = f"features-{recipe.name}-erased.npy"
                make = partial(on_device, frozen, Resident(store, device), len(store))
                erased = kept(folder / name, make, device)

        def features(epoch: int | None, frozen: FrozenPart = frozen) -> Any:
            if views:
                return OnDevice(views, draw=epoch)
            return ComputedFeatures(frozen, films, change=None if epoch is None else change(epoch))

        of_source = (data.names == source) if source != NONE else np.zeros(count, dtype=bool)
        rows = {side: of_side[~of_source[of_side]] for side, of_side in data.rows.items()}
        with tempfile.TemporaryDirectory() as name:
            best = Path(name) / "best.safetensors"
            history = fit(
                model,
                TrainingData(
                    targets=data.targets,
                    train=rows[TRAIN],
                    validation=rows[VALIDATION],
                    train_features=features,
                    validation_features=features(None),
                    sources=data.sources,
                ),
                recipe,
                labels=data.labels,
                size=224,
                seed=SEED,
                key="",
                engine=engine,
                last=Path(name) / "last",
                best=best,
                history=Path(name) / "history.csv",
            )
            model, _ = load_model(best)
        place(model, device)
        prefix, trainable = split_at(model, recipe.train_from)
        as_they_are = features(None, FrozenPart(prefix, preprocessing=recipe.preprocessing, engine=engine))
        trainable.eval()

        def answers(rows: np.ndarray, trainable: torch.nn.Module = trainable, source: Any = as_they_are) -> np.ndarray:
            return probabilities(trainable, source, rows, engine=engine)

        yield {
            "way": way_name,
            "left_out": source,
            "epochs": len(history),
            "seconds": round(time.monotonic() - started, 1),
            **measured(data, rows, of_source, answers),
            **_on_erased(data, erased, trainable, engine),
        }


def _inside(data: Films, device: torch.device, side: int) -> torch.Tensor:
    """(N, 1, side, side) half: 1 where a cell holds lung; all of a film on which none were found."""
    masks, found = np.load(data.folder / "masks.npy"), np.load(data.folder / "found.npy")
    cells = masks.reshape(len(masks), side, masks.shape[1] // side, side, masks.shape[2] // side).any(axis=(2, 4))
    cells[~found] = True
    return torch.from_numpy(cells[:, None]).to(device).half()


def _on_erased(
    data: Films, features: torch.Tensor | None, trainable: torch.nn.Module, engine: Engine
) -> dict[str, Any]:
    """Macro-F1 on test films whose lungs were erased: what is left of it was not read from the lungs."""
    if features is None:
        return {}
    truth = data.targets[np.load(data.folder / "erased_rows.npy")]
    p = probabilities(trainable, OnDevice([features]), np.arange(len(truth)), engine=engine)
    return {"erased_macro_f1": float(f1_score(truth, p.argmax(1), average="macro", zero_division=0))}


def measured(data: Films, rows: dict[str, np.ndarray], of_source: np.ndarray, answers: Any) -> dict[str, Any]:
    """Counts of what a model answers in-domain and on the source that was left out."""
    targets = data.targets
    validation = answers(rows[VALIDATION])
    temperature = fit_temperature(logits_of(validation), targets[rows[VALIDATION]])

    def calibrated(p: np.ndarray) -> np.ndarray:
        return softmax(logits_of(p), temperature)

    normal = negative_class(data.labels, targets)
    at = {
        rate: np.array(fit_evidence(calibrated(validation), targets[rows[VALIDATION]], data.labels, rate=rate))
        for rate in RATES
    }

    def of(p: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
        p = calibrated(p)
        named, sure = p.argmax(1), p.max(1)
        found: dict[str, Any] = {
            "films": len(truth),
            "right": int((named == truth).sum()),
            "positive": int((named != normal).sum()),
            "by_class": np.bincount(named, minlength=len(data.labels)).tolist(),
        }
        for rate, cuts in at.items():
            answered = sure >= cuts[named]
            found[f"{rate:g}"] = {
                "abstained": int((~answered).sum()),
                "right": int((answered & (named == truth)).sum()),
                "positive": int((answered & (named != normal)).sum()),
                "abstained_by_class": np.bincount(truth[~answered], minlength=len(data.labels)).tolist(),
            }
        return found

    p = answers(rows[TEST])
    truth = targets[rows[TEST]]
    strange = np.flatnonzero(of_source)
    return {
        "labels": data.labels,
        "test": of(p, truth)
        | {
            "macro_f1": float(f1_score(truth, p.argmax(1), average="macro", zero_division=0)),
            "of_class": np.bincount(truth, minlength=len(data.labels)).tolist(),
        },
        "strange": of(answers(strange), targets[strange]) if len(strange) else None,
        "class": data.labels[int(targets[strange][0])] if len(strange) else None,
    }


def _worker(run: Path, folder: Path, task: tuple[str, list[str]], to: Path, *, threads: int, **how: Any) -> None:
    torch.set_num_threads(threads)
    way, left_out = task
    for line in job(run, folder, way, left_out, **how):
        with to.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        strange = line["strange"]
        said = f"{strange['positive']} of {strange['films']} named positive" if strange else ""
        print(
            f"{way}, without {line['left_out']}: {line['seconds']} s, {line['test']['macro_f1']:.3f} {said}", flush=True
        )


# -- the table


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a way; columns in-domain, each healthy source left out, sources of ill films left out."""
    of_way: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        of_way[line["way"]][line["left_out"]] = line
    healthy = sorted({line["left_out"] for line in lines if line["class"] == "Normal"})
    ill = sorted({line["left_out"] for line in lines if line["class"] not in (None, "Normal")})
    out = []

    def share(count: int, of: int) -> str:
        low, high = exact_interval(count, of, level=0.95)
        return f"{count / of:.3f} ({low:.3f}–{high:.3f})"

    head = ["way", "accuracy", "macro-F1", "macro-F1, lungs erased", "abstained at 5 %, at 10 %", "of COVID"]
    out += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in (way for way in WAYS if way in of_way):
        if NONE not in of_way[name]:
            continue
        line = of_way[name][NONE]
        test, k = line["test"], line["labels"].index("COVID")
        erased = line.get("erased_macro_f1")
        cells = [
            WAYS[name].words,
            share(test["right"], test["films"]),
            f"{test['macro_f1']:.3f}",
            "" if erased is None else f"{erased:.3f}",
            ", ".join(f"{test[rate]['abstained'] / test['films']:.3f}" for rate in ("0.05", "0.1")),
            ", ".join(f"{test[rate]['abstained_by_class'][k] / test['of_class'][k]:.3f}" for rate in ("0.05", "0.1")),
        ]
        out.append("| " + " | ".join(cells) + " |")
    for title, sources, what in (
        ("healthy films of a source that was left out: named ill → answered ill at 5 %, at 10 %", healthy, "positive"),
        ("ill films of a source that was left out: named rightly → answered rightly at 5 %", ill, "right"),
    ):
        if not sources:
            continue
        out += ["", title, ""]
        counts = {
            source: next(w[source]["strange"]["films"] for w in of_way.values() if source in w) for source in sources
        }
        heads = ["way", *(f"{source} ({counts[source]})" for source in sources), "mean"]
        out += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for name in (way for way in WAYS if way in of_way):
            cells, shares = [], []
            for source in sources:
                if source not in of_way[name]:
                    cells.append("")
                    continue
                found = of_way[name][source]["strange"]
                rates = [found[what], found["0.05"][what], found["0.1"][what]][: 3 if what == "positive" else 2]
                shares.append([rate / found["films"] for rate in rates])
                cells.append(" → ".join(f"{rate / found['films']:.2f}" for rate in rates))
            if shares:
                mean = np.mean(shares, axis=0) if len(shares) == len(sources) else None
                cells.append("" if mean is None else " → ".join(f"{one:.2f}" for one in mean))
                out.append("| " + " | ".join([WAYS[name].words, *cells]) + " |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="a run, preprocessed")
    parser.add_argument("--to", type=Path, help="where a line a training goes")
    parser.add_argument("--table", type=Path, help="print the table of what was measured")
    parser.add_argument("--scratch", type=Path, help="where changed films lie; else a temporary folder")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--left-out", nargs="*", help="sources; all by default, and none of them")
    parser.add_argument("--jobs", type=int, default=4, help="processes that share the device")
    parser.add_argument("--recipe", choices=["fast"], help="of every way, in place of its own")
    parser.add_argument("--epochs", type=int, help="of every way, in place of its own")
    parser.add_argument("--minutes", type=float, default=60)
    given = parser.parse_args()
    if given.table:
        print(table([json.loads(line) for line in given.table.read_text("utf-8").splitlines()]))
        return
    until = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as name:
        folder = given.scratch or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        data = Films(RunDir(given.run), folder)
        data.prepare()
        normal = data.labels[negative_class(data.labels, data.targets)]
        of_normal = sorted(set(data.names[data.targets == data.labels.index(normal)]))
        several = [
            source
            for k in range(len(data.labels))
            if len(found := sorted(set(data.names[data.targets == k]))) > 1
            for source in found
        ]
        wanted = given.left_out or [NONE, *sorted(several, key=lambda source: source not in of_normal)]
        done = set()
        if given.to.exists():
            done = {(d["way"], d["left_out"]) for d in map(json.loads, given.to.read_text("utf-8").splitlines())}
        ways = [way for way in given.ways if WAYS[way].of_a_head or not given.recipe]
        todo = [(way, [s for s in wanted if (way, s) not in done]) for way in ways]
        spawn = multiprocessing.get_context("spawn")

        def run_one(task: tuple[str, list[str]]) -> None:
            if not task[1] or time.monotonic() > until:
                return
            threads = max(1, (os.cpu_count() or 1) // given.jobs)
            how = {"recipe_name": given.recipe, "epochs": given.epochs, "threads": threads}
            process = spawn.Process(target=_worker, args=(given.run, folder, task, given.to), kwargs=how)
            process.start()
            process.join(max(1.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                print(f"{task[0]}: out of time", flush=True)

        with ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(run_one, todo))
    print(table([json.loads(line) for line in given.to.read_text("utf-8").splitlines()]))


if __name__ == "__main__":
    main()
