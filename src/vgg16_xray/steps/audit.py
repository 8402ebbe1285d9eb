"""Can a number that was measured on these films be believed? Leaks, shortcuts, sources, labels, and a verdict.

Works on a run directory after step 2, whatever was trained in it, or on a folder of films, for which it makes one.
Leaves ``audit.json`` and a finished file a part: a part that is done on the same films is not computed again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vgg16_xray.config import SEED
from vgg16_xray.errors import UnreadableFilm, UserError
from vgg16_xray.files import read_json, write_json
from vgg16_xray.films.dataset import scan
from vgg16_xray.films.decode import decode
from vgg16_xray.films.split import TRAIN, conflicts, group_films, how_few
from vgg16_xray.films.store import ArrayStore
from vgg16_xray.progress import progress
from vgg16_xray.rundir import AuditDir, RunDir, key_of, read_config
from vgg16_xray.steps.preprocess import fingerprint, preprocess, read_manifest
from vgg16_xray.trust import confounding
from vgg16_xray.trust.confounding import FEWEST_GROUPS
from vgg16_xray.trust.linear_probe import FOLDS, PERMUTATIONS, confusion, macro_f1, out_of_fold
from vgg16_xray.trust.lungs import find_lungs, why_no_lungs
from vgg16_xray.trust.noise import probabilities_out_of_fold, suspected
from vgg16_xray.trust.shortcuts import BATCH, LADDER, METADATA, WHOLE, describe, measure, metadata_of, sample, where
from vgg16_xray.trust.verdict import judge

if TYPE_CHECKING:
    import pandas as pd

STEP = "audit"
#: Raised when the same films would give other figures than before.
VERSION = 5
#: Films of a class on which the ladder is climbed: more make intervals narrower than the verdict needs.
PER_CLASS = 500
#: Suspected labels that are listed by name.
MOST_SUSPECTS = 200


class _Described:
    """What :func:`describe` makes of films, of each film once for all parts."""

    def __init__(self, pixels: ArrayStore) -> None:
        self._pixels = pixels
        self._done = np.zeros(len(pixels), bool)
        self._numbers: NDArray[np.float64] | None = None

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(N, D) of films `rows` (N,)."""
        missing = rows[~self._done[rows]]
        with progress("describe films", total=len(rows)) as bar:
            bar.start_at(len(rows) - len(missing))
            for start in range(0, len(missing), BATCH):
                some = missing[start : start + BATCH]
                numbers = describe(self._pixels.take(some))
                if self._numbers is None:
                    self._numbers = np.zeros((len(self._done), numbers.shape[1]))
                self._numbers[some], self._done[some] = numbers, True
                bar.advance(len(some))
        assert self._numbers is not None
        return self._numbers[rows]


class TooFewFilms(UserError):
    """There is nothing to judge by: too few groups in too few classes."""


@dataclass(frozen=True, kw_only=True)
class _Films:
    """What the parts are computed from."""

    run: RunDir
    manifest: pd.DataFrame
    pixels: ArrayStore
    described: _Described
    roots: Mapping[str, Path]
    #: Rows of classes that are large enough to be cross-validated.
    usable: NDArray[np.int64]
    #: Rows on which the ladder is climbed, a part of `usable`.
    rows: NDArray[np.int64]
    seed: int
    permutations: int
    #: Side by (collection, path), where the data bring a split of their own.
    given: Mapping[tuple[str, str], str]

    def column(self, name: str, rows: NDArray[np.int64]) -> list[str]:
        values = self.manifest[name].tolist()
        return [str(values[i]) for i in rows]

    def file(self, row: int, name: str = "path") -> Path:
        entry = self.manifest.iloc[row]
        return self.roots.get(entry["collection"], Path("?")) / entry[name]


def audit_data(
    data: Sequence[Path], run: RunDir, *, mapping: Mapping[str, str] | None = None, **options: Any
) -> dict[str, Any]:
    """Audit a folder or table of films: step 2 into `run`, then :func:`audit`.

    Where the data bring a split, it is judged, and not taken over.

    Raises:
        UserError: See :func:`vgg16_xray.steps.preprocess.preprocess`; or `run` holds a model, or other films' audit.
    """
    dataset = scan(data, mapping=mapping)
    run.require_audit_of(dataset.collections.values())
    preprocess(data, run, mapping=mapping, resplit=True, dataset=dataset, to_train=False)
    given = {(film.collection, film.path): film.split for film in dataset.films if film.split}
    if given:
        write_json(AuditDir(run.path).given, sorted([*film, side] for film, side in given.items()))
    else:
        AuditDir(run.path).given.unlink(missing_ok=True)
    return audit(run, given=given, **options)


def audit(
    run: RunDir,
    *,
    given: Mapping[tuple[str, str], str] | None = None,
    per_class: int = PER_CLASS,
    permutations: int = PERMUTATIONS,
    seed: int = SEED,
    only_ladder: bool = False,
) -> dict[str, Any]:
    """Audit the films of a run.

    Args:
        run: After step 2.
        given: ``{(collection, path): side}``, a split of the data's own to be judged in place of the run's; None takes
            that which :func:`audit_data` found, where the folder is an audit's and holds no model.
        per_class: Films of a class on which the ladder is climbed.
        permutations: Most permutations of a probe.
        seed: Of everything random.
        only_ladder: Leave out all but the ladder, and write no verdict.

    Returns:
        What ``audit.json`` holds, a key a part; the verdict under ``verdict``.

    Raises:
        UserError: The run is not preprocessed or is damaged.
        TooFewFilms: Two classes of enough groups are not there.
        Leak: The run's split has a group on two sides.
    """
    from threadpoolctl import threadpool_limits

    started = time.monotonic()
    films = _open(
        run,
        given=_given_before(run) if given is None else given,
        per_class=per_class,
        permutations=permutations,
        seed=seed,
    )
    of_run = (VERSION, fingerprint(films.manifest), list(films.manifest["source"]), per_class, permutations, seed)
    found: dict[str, Any] = {"films": _count(films)}
    parts = _parts(films, only_ladder=only_ladder)
    # A mask may be mended where it lies.
    state = _state_of_masks(films)
    of_masks = {name: [state] for name in ("masks", *(f"ladder.{rung.key}" for rung in LADDER if rung.needs_lungs))}
    # Matrices of 64 columns: a second thread gains nothing, and on a busy machine two wait for each other.
    with threadpool_limits(1, user_api="blas"), progress("audit", total=len(parts), unit="parts") as bar:
        for name, compute in parts.items():
            key = key_of(*of_run, name, sorted([*k, v] for k, v in films.given.items()), *of_masks.get(name, []))
            _put(found, name, _once(run, name, key, compute))
            bar.advance(note=name)
    if only_ladder:
        return found
    found["notes"] = _notes(films)
    found["unused"] = list(read_config(run).get("data", {}).get("unused", []))
    verdict = judge(found)
    found = {"verdict": verdict.verdict, **verdict.as_dict(), **found}
    write_json(AuditDir(run.path).numbers, found)
    if not films.given:
        run.stamp(STEP, key_of_audit(run), seconds=time.monotonic() - started)
    return found


def _given_before(run: RunDir) -> dict[tuple[str, str], str]:
    file = AuditDir(run.path).given
    if not file.exists() or "recipe" in read_config(run):
        return {}
    return {(collection, path): side for collection, path, side in read_json(file)}


def key_of_audit(run: RunDir) -> str:
    """Tells of which films an audit is, as step 2 left them."""
    return key_of(VERSION, run.stamps().get("preprocess", {}).get("key"))


def read_audit(run: RunDir) -> dict[str, Any] | None:
    """What the audit of a run found; None where there was none.

    Returns:
        What :func:`audit` does, and under ``fresh`` whether it is of the films that the run has now.

    Raises:
        UserError: ``audit.json`` is damaged.
    """
    numbers = AuditDir(run.path).numbers
    if not numbers.exists():
        return None
    found: dict[str, Any] = read_json(numbers)
    return found | {"fresh": run.is_done(STEP, key_of_audit(run), [numbers])}


def _open(
    run: RunDir,
    *,
    given: Mapping[tuple[str, str], str],
    per_class: int,
    permutations: int,
    seed: int,
) -> _Films:
    manifest = read_manifest(run)
    labels, groups = list(manifest["label"]), list(manifest["group"])
    in_class = Counter(label for label, _ in set(zip(labels, groups, strict=True)))
    usable = np.array([i for i, label in enumerate(labels) if in_class[label] >= FOLDS], dtype=np.int64)
    if len({labels[i] for i in usable}) < 2:
        content = list(manifest["content"])
        found = [
            f"{n} in class '{label}' with {labels.count(label)} films"
            + how_few(label, labels=labels, groups=groups, pixels=content)
            for label, n in sorted(in_class.items())
        ]
        raise TooFewFilms(
            f"{run.path}: an audit needs two classes of {FOLDS} groups or more (patients, or films and their copies), "
            f"found {', '.join(found)}",
            hint=f"which films are one stands in {run.pairs}" if len(set(content)) < len(content) else None,
        )
    sources = [str(manifest["source"].iloc[i]) for i in usable]
    rows = usable[
        sample(
            [labels[i] for i in usable], [groups[i] for i in usable], per_class=per_class, seed=seed, sources=sources
        )
    ]
    collections = read_config(run).get("data", {}).get("collections", {})
    pixels = ArrayStore(run.require(run.pixels, made_by="preprocess DATA --out"))
    return _Films(
        run=run,
        manifest=manifest,
        pixels=pixels,
        described=_Described(pixels),
        roots={name: Path(root) for name, root in collections.items()},
        usable=usable,
        rows=rows,
        seed=seed,
        permutations=permutations,
        given=given,
    )


def _once(run: RunDir, name: str, key: str, compute: Callable[[], Any]) -> Any:
    file = AuditDir(run.path).part(name)
    if file.exists():
        try:
            kept = read_json(file)
        except UserError:  # It is made again.
            kept = None
        if isinstance(kept, dict) and kept.get("key") == key:
            return kept["found"]
    found = compute()
    write_json(file, {"key": key, "found": found})
    return found


def _put(found: dict[str, Any], name: str, part: Any) -> None:
    """``ladder.border`` is the rung ``border`` of ``ladder``."""
    first, _, rung = name.partition(".")
    if rung:
        found.setdefault(first, {})[rung] = part
    else:
        found[first] = part


def _parts(films: _Films, *, only_ladder: bool) -> dict[str, Callable[[], Any]]:
    rungs = _Rungs(films)
    ladder: dict[str, Callable[[], Any]] = {
        f"ladder.{rung.key}": lambda rung=rung: rungs.measure(rung)  # type: ignore[misc]
        for rung in LADDER
    }
    if only_ladder:
        return {"masks": rungs.masks_refused, **ladder}
    return {
        "masks": rungs.masks_refused,
        "leaks": lambda: _leaks(films),
        "association": lambda: _association(films),
        **ladder,
        "source_within_class": lambda: confounding.source_within_class(
            rungs.whole(), rungs.labels, rungs.sources, rungs.groups, seed=films.seed, permutations=99
        ),
        "balanced_source": lambda: _balanced(films, rungs),
        "left_out_sources": lambda: confounding.leave_one_source_out(
            rungs.whole(), rungs.labels, rungs.sources, rungs.groups, seed=films.seed
        ),
        "where": lambda: _where(films, rungs),
        "noise": lambda: _noise(films),
    }


def _count(films: _Films) -> dict[str, Any]:
    manifest = films.manifest
    sources = set(manifest["source"]) - {""}
    return {
        "films": len(manifest),
        "groups": int(manifest["group"].nunique()),
        "labels": {label: int(n) for label, n in sorted(Counter(manifest["label"]).items())},
        "sources": len(sources),
        "without_source": int((manifest["source"] == "").sum()),
        "without_patient": int((manifest["patient_id"] == "").sum()),
        "on_the_ladder": len(films.rows),
        "split_of_data": bool(films.given) or read_config(films.run)["data"]["split"] == "given with the data",
        "seed": films.seed,
    }


def _notes(films: _Films) -> list[str]:
    left_out = sorted(set(films.manifest["label"]) - set(films.column("label", films.usable)))
    return [f"Too few patients to judge by are in {', '.join(left_out)}."] if left_out else []


# -- leaks and labels


def _leaks(films: _Films) -> dict[str, Any]:
    manifest = films.manifest
    names = list(zip(manifest["collection"], manifest["path"], strict=True))
    sides = [films.given.get(name, "") for name in names] if films.given else list(manifest["split"])
    return leaks_between(
        list(manifest["content"]), labels=list(manifest["label"]), groups=list(manifest["group"]), sides=sides
    )


def leaks_between(
    pixels: Sequence[str], *, labels: Sequence[str], groups: Sequence[str], sides: Sequence[str]
) -> dict[str, Any]:
    """Copies, films of one patient, study or origin across a split, and films under two labels.

    Args:
        pixels: (N,) hash of each film's pixels; films that are taken for copies have equal ones.
        labels: (N,).
        groups: (N,) what else connects films, as a manifest's groups do; empty where nothing is known.
        sides: (N,) ``train``, ``validation`` or ``test``.

    Returns:
        ``copies`` (films beyond the first of their kind), ``conflicts``, ``test_films`` (that are not for training) and
        ``test_films_leaked`` (of these, how many have a copy or another film of the group in training).
    """
    groups = group_films(pixels, [group or None for group in groups])
    trained = {group for group, side in zip(groups, sides, strict=True) if side == TRAIN}
    held = [group for group, side in zip(groups, sides, strict=True) if side and side != TRAIN]
    return {
        "copies": len(pixels) - len(set(pixels)),
        "conflicts": len(conflicts(labels=labels, pixels=pixels)),
        "test_films": len(held),
        "test_films_leaked": sum(group in trained for group in held),
    }


def _noise(films: _Films) -> dict[str, Any]:
    labels, groups = films.column("label", films.usable), films.column("group", films.usable)
    names = sorted(set(labels))
    truth = np.array([names.index(label) for label in labels])
    features = films.described.of(films.usable)
    probabilities = probabilities_out_of_fold(features, truth, groups, seed=films.seed)
    found = suspected(truth, probabilities)
    return {
        "films": len(truth),
        "suspected": len(found),
        "by_label": {
            label: {"films": int((truth == k).sum()), "suspected": int((truth[found] == k).sum())}
            for k, label in enumerate(names)
        },
        "listed": [
            {
                "row": int(films.usable[i]),
                "path": str(films.manifest["path"].iloc[films.usable[i]]),
                "label": names[truth[i]],
                "looks_like": names[int(probabilities[i].argmax())],
                "probability_of_label": round(float(probabilities[i, truth[i]]), 4),
            }
            for i in found[:MOST_SUSPECTS]
        ],
    }


# -- sources


def _association(films: _Films) -> dict[str, Any]:
    manifest = films.manifest
    return confounding.associate(
        list(manifest["label"]), list(manifest["source"]), list(manifest["group"]), seed=films.seed
    )


def _balanced(films: _Films, rungs: _Rungs) -> dict[str, Any] | None:
    predictions = out_of_fold(rungs.whole(), rungs.truth, rungs.groups, seed=films.seed)
    return confounding.balanced_source(predictions, rungs.labels, rungs.sources, rungs.groups, seed=films.seed)


def _where(films: _Films, rungs: _Rungs) -> dict[str, Any]:
    """Which cells give the source away; within a class where one has two sources, else whatever is known."""
    known = [i for i, source in enumerate(rungs.sources) if source]
    of_class = {
        label: [i for i in known if rungs.labels[i] == label and rungs.sources[i] in held]
        for label, held in _sources_of_classes(rungs).items()
        if len(held) > 1
    }
    if of_class:
        told, words = of_class, "the source, among films of one class"
        target = rungs.sources
    elif len(large := _large(rungs.sources, known)) > 1:
        told, words = {"": [i for i in known if rungs.sources[i] in large]}, "the source"
        target = rungs.sources
    else:
        told, words, target = {"": list(range(len(rungs.labels)))}, "the class", rungs.labels
    grids, weights = [], []
    for rows in told.values():
        names = sorted({target[i] for i in rows})
        truth = np.array([names.index(target[i]) for i in rows])
        grids.append(where(rungs.films[rows], truth, [rungs.groups[i] for i in rows], seed=films.seed, score=_skill))
        weights.append(len(rows))
    grid = np.average(np.stack(grids), axis=0, weights=weights)
    return {"told": words, "classes": sorted(name for name in told if name), "skill": grid.round(4).tolist()}


def _skill(features: NDArray[np.float64], truth: NDArray[np.int64], groups: Sequence[str], *, seed: int) -> float:
    """0 for what naming the classes at random in their shares reaches, 1 for all right."""
    classes = int(truth.max()) + 1
    score = macro_f1(confusion(truth, out_of_fold(features, truth, groups, seed=seed), classes))
    return (score - 1 / classes) / (1 - 1 / classes)


def _large(sources: Sequence[str], rows: Sequence[int]) -> set[str]:
    held = Counter(sources[i] for i in rows)
    return {source for source, n in held.items() if n >= FEWEST_GROUPS}


def _sources_of_classes(rungs: _Rungs) -> dict[str, set[str]]:
    groups: dict[tuple[str, str], set[str]] = {}
    for label, source, group in zip(rungs.labels, rungs.sources, rungs.groups, strict=True):
        if source:
            groups.setdefault((label, source), set()).add(group)
    out: dict[str, set[str]] = {}
    for (label, source), held in groups.items():
        if len(held) >= FEWEST_GROUPS:
            out.setdefault(label, set()).add(source)
    return out


# -- the ladder


class _Rungs:
    """The films on the ladder; what several parts need is made once, when it is first wanted."""

    def __init__(self, films: _Films) -> None:
        self._of = films
        self.labels, self.groups = films.column("label", films.rows), films.column("group", films.rows)
        self.sources = films.column("source", films.rows)
        names = sorted(set(self.labels))
        self.truth = np.array([names.index(label) for label in self.labels])
        self._films: NDArray[np.uint8] | None = None
        self._lungs: tuple[NDArray[np.bool_] | None, NDArray[np.bool_]] | None = None
        #: Index on the ladder -> what kind of fault its mask has, and the fault.
        self._refused: dict[int, tuple[str, str]] = {}

    @property
    def films(self) -> NDArray[np.uint8]:
        if self._films is None:
            self._films = self._of.pixels.take(self._of.rows)
        return self._films

    def whole(self) -> NDArray[np.float64]:
        return self._of.described.of(self._of.rows)

    def lungs(self) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_]]:
        """Masks of the data where they have plausible ones, else found; and on which films they are known."""
        if self._lungs is None:
            masks, known = self._read()
            missing = np.flatnonzero(~known)
            if len(missing):
                outlined = find_lungs(self.films[missing])
                masks[missing], known[missing] = outlined.masks, outlined.found
            self._lungs = (masks if known.any() else None), known
        return self._lungs

    def _read(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        masks, known, self._refused = read_masks(self._of, self._of.rows)
        return masks, known

    def masks_refused(self) -> dict[str, Any]:
        """How many masks the data bring, how many of them were not used, and both in words, empty where all were."""
        given = sum(map(bool, self._of.column("mask", self._of.rows)))
        if not given:
            return {"given": 0, "refused": 0, "words": ""}
        _, known = self.lungs()
        if not self._refused:
            return {"given": given, "refused": 0, "words": ""}
        kinds = Counter(kind for kind, _ in self._refused.values())
        row, (_, first) = next(iter(self._refused.items()))
        found = sum(bool(known[i]) for i in self._refused)
        left = len(self._refused) - found
        outlined = f"the network found the lungs of {found:,} of these films" if found else ""
        left_out = f"{left:,} of them are left out of the rungs that need lungs" if left else ""
        return {
            "given": given,
            "refused": len(self._refused),
            "words": f"{len(self._refused):,} of {given:,} masks that come with the films on the ladder were not used "
            f"({', '.join(f'{n:,} {kind}' for kind, n in kinds.items())}), first "
            f"{self._of.column('mask', self._of.rows[[row]])[0]}: {first}; "
            + ", and ".join(part for part in (outlined, left_out) if part),
        }

    def measure(self, rung: Any) -> dict[str, Any]:
        films = self._of
        lungs, known = self.lungs() if rung.needs_lungs else (None, np.ones(len(self.labels), bool))
        metadata = None
        if rung is METADATA:
            metadata = [metadata_of(films.file(int(row))) for row in films.rows]
        return measure(
            rung,
            self.films,
            self.labels,
            self.groups,
            seed=films.seed,
            lungs=lungs,
            found=known,
            metadata=metadata,
            described=self.whole() if rung is WHOLE else None,
            permutations=films.permutations,
        )


def read_masks(
    films: _Films, rows: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], dict[int, tuple[str, str]]]:
    """The data's own masks at the size of the stored films: what is not 0 is lung.

    Returns:
        (N, H, W) bool, (N,) bool on which films there is one that can be of lungs, and for each other one, by its index
        in `rows`, what kind of fault it has and the fault.
    """
    from PIL import Image

    height, width = films.pixels.shape[1:]
    masks, known = np.zeros((len(rows), height, width), bool), np.zeros(len(rows), bool)
    refused: dict[int, tuple[str, str]] = {}
    for i, row in enumerate(rows.tolist()):
        if films.manifest["mask"].iloc[row]:
            file = films.file(row, "mask")
            if not file.is_file():
                refused[i] = ("not there", "no such file")
                continue
            try:
                mask = decode(file)
            except UnreadableFilm as error:
                refused[i] = ("unreadable or blank", str(error).removeprefix(f"{file}: "))
                continue
            image = Image.fromarray((mask > 0).astype(np.uint8) * np.uint8(255))
            drawn = np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) > 0
            if why := why_no_lungs(drawn):
                refused[i] = ("not of lungs", why)
            else:
                masks[i], known[i] = drawn, True
    return masks, known, refused


def _state_of_masks(films: _Films) -> list[list[Any]]:
    """What tells, without reading them, that the masks on the ladder are the same as before."""
    state: list[list[Any]] = []
    for row in films.rows.tolist():
        if name := films.manifest["mask"].iloc[row]:
            try:
                status = films.file(row, "mask").stat()
                state.append([row, name, status.st_size, status.st_mtime_ns])
            except OSError:
                state.append([row, name])
    return state
