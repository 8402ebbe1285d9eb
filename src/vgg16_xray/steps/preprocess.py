"""Step 2: every film decoded once, checked, hashed, compared with all others, put on a side, and its pixels kept.

Reads a dataset. Leaves ``manifest.parquet``, ``split.csv``, ``quarantine.csv``, ``pixels.npy``, ``leaks.json``,
``pairs.csv`` and the first sections of ``run.toml``.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray.config import SEED
from vgg16_xray.errors import UnreadableFilm, UserError
from vgg16_xray.files import read_json, saying_why_not_written, whole_file, write_json, write_text
from vgg16_xray.films import split as splitting
from vgg16_xray.films.dataset import Dataset, FilmRow, scan
from vgg16_xray.films.decode import SIZE, decode, pixels_sha256, to_square
from vgg16_xray.films.identity import Identity, identity_of, name_patients
from vgg16_xray.films.store import ArrayStore, create_array, release
from vgg16_xray.progress import progress
from vgg16_xray.rundir import RunDir, key_of, read_config, update_config
from vgg16_xray.trust import leaks
from vgg16_xray.trust.near_copies import Pair

if TYPE_CHECKING:
    import pandas as pd

STEP = "preprocess"
#: Raised when the same film would give other pixels than before.
VERSION = 1
#: Raised when other films would be taken for one, or a row would say something else.
COPIES_VERSION = 3
#: Raised when a line of the journal would say something else.
JOURNAL_VERSION = 2
#: Columns of the manifest, in their order.
COLUMNS = (
    "path",
    "collection",
    "label",
    "pixels_sha256",
    "content",
    "patient_id",
    "study_id",
    "origin",
    "source",
    "width",
    "height",
    "mask",
    "group",
    "split",
)
#: Films that share what one of these says stay on one side.
CONNECTIONS = ("patient_id", "study_id", "origin")
RESPLIT = "--resplit makes a new split in place of the data's own"
#: Films between two notes of how far decoding has come.
NOTE_EVERY = 256


@dataclass(frozen=True, kw_only=True)
class Preprocessed:
    """What step 2 made."""

    films: int
    quarantined: int
    #: (label, split) -> films.
    counts: Mapping[tuple[str, str], int]
    #: Whether everything was there already.
    already_done: bool


def preprocess(
    data: Sequence[Path],
    run: RunDir,
    *,
    mapping: Mapping[str, str] | None = None,
    seed: int = SEED,
    resplit: bool = False,
    like: RunDir | None = None,
    size: int = SIZE,
    dataset: Dataset | None = None,
    to_train: bool = True,
) -> Preprocessed:
    """Scan, decode, hash, compare, group, split and store the films of one or several collections.

    Args:
        data: Folders or tables, see :mod:`vgg16_xray.films.dataset`.
        run: Where to put what is made.
        mapping: ``{folder: label}``, see :func:`vgg16_xray.films.dataset.scan`.
        seed: Seed of the split.
        resplit: Make a new split even where the dataset brings one.
        like: Another run: a film that it has, whatever it is called and however it is encoded here, stays on its side.
        size: Side of the stored square, pixels.
        dataset: What :func:`vgg16_xray.films.dataset.scan` found in `data`, where that is known already.
        to_train: Refuse a class that is not on every side, which an audit does without.

    Raises:
        UserError: The data cannot be used: no two classes, a class with too few films.
        Leak: The dataset's own split has a patient, or copies of a film, on two sides.
    """
    started = time.monotonic()
    without_splits = resplit or like is not None
    if dataset is None:
        dataset = scan(data, mapping=mapping, without_splits=without_splits)
    elif without_splits:
        dataset = replace(dataset, films=tuple(replace(film, split=None) for film in dataset.films))
    listing = listing_of(dataset)
    before = read_manifest(like) if like else None
    key = key_of(
        VERSION,
        COPIES_VERSION,
        listing,
        [
            [film.label, film.patient_id, film.study_id, film.origin, film.source, film.split, film.mask]
            for film in dataset.films
        ],
        [dataset.left_out, [*dataset.notes, *dataset.unused], dataset.masks_without_film],
        seed,
        size,
        None if before is None else fingerprint(before),
    )
    outputs = [run.manifest, run.split, run.quarantine, run.pixels, run.config, run.leaks, run.pairs]
    if run.is_done(STEP, key, outputs):
        manifest = read_manifest(run)
        if to_train:
            check_sides(manifest)
        return _summary(manifest, _count_rows(run.quarantine), already_done=True)
    with saying_why_not_written(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
    staged, films, broken, of_dicom = decode_all(dataset, run, key=decoded_key(listing, size), size=size)
    if len({decoded.film.label for decoded in films}) < 2:
        first = f", first {broken[0][0].path}: {broken[0][1]}" if broken else ""
        raise UserError(
            f"{', '.join(map(str, dataset.collections.values()))}: must hold readable films of at least two classes, "
            f"found {len(films)} readable films in all and {len(broken)} others{first}"
        )
    pairs = find_copies_once(staged, films)
    was = None if before is None or like is None else _found_before(staged, films, like=like, before=before)
    manifest, late = _manifest(films, pairs, seed=seed, was=was)
    if to_train:
        check_sides(manifest, hint=RESPLIT if manifest.attrs["split_given"] else None)
    quarantine = [(f"{collection}/{path}", reason) for collection, path, reason in dataset.left_out]
    quarantine += [(f"{film.collection}/{film.path}", reason) for film, reason in broken]
    # From here on the files are exchanged one by one: until all are there, none of them is taken for this step's. What
    # was measured on other films must not be taken for these films' either.
    others = run.config.exists() and read_config(run).get("data", {}).get("fingerprint") != fingerprint(manifest)
    run.unstamp(*(run.stamps() if others else [STEP]))
    with whole_file(run.manifest) as temporary:
        manifest.to_parquet(temporary, index=False)
    split_columns = ["collection", "path", "label", "group", "split"]
    _write_csv(run.split, manifest[split_columns] if was is None else manifest[split_columns].assign(was=was.names))
    write_leaks(run, manifest, pairs, broken=len(broken))
    _write_rows(run.quarantine, ("path", "reason"), sorted(quarantine))
    update_config(
        run,
        run={"seed": seed, "size": size},
        data={
            "labels": sorted(set(manifest["label"])),
            "films": len(manifest),
            "quarantined": len(quarantine),
            "fingerprint": fingerprint(manifest),
            "split": _how_split(manifest, seed=seed, like=like),
            "masks_without_film": dataset.masks_without_film,
            "unused": list(dataset.unused),
            "notes": [*dataset.notes, *_on_masks(dataset), *of_dicom, *late],
            "collections": {name: str(root) for name, root in dataset.collections.items()},
        },
    )
    # Last, because what is staged need not be decoded again if the disk fills up before.
    with saying_why_not_written(run.pixels):
        staged.replace(run.pixels)
    run.stamp(STEP, key, seconds=time.monotonic() - started)
    shutil.rmtree(_staging(run), ignore_errors=True)
    return _summary(manifest, len(quarantine), already_done=False)


def _on_masks(dataset: Dataset) -> list[str]:
    alone = dataset.masks_without_film
    return [f"{alone:,} masks have no film of their name, and were not used"] if alone else []


def read_manifest(run: RunDir) -> pd.DataFrame:
    """Read the manifest and check it: a leak across the split is an error in every step that follows.

    Returns:
        A row a film; row i is film i of ``pixels.npy``.

    Raises:
        UserError: The manifest is missing or damaged, or does not fit the stored pixels.
        Leak: A group stands on two sides.
    """
    import pandas as pd

    run.require_step(STEP, made_by="preprocess DATA --out")
    try:
        manifest = pd.read_parquet(run.manifest)
    except Exception as error:
        raise UserError(
            f"{run.manifest}: must be a whole Parquet table, found {error}",
            hint="delete it, and preprocess or run makes it again",
        ) from error
    # A run that was made before near-copies were looked for knows exact ones alone.
    for name, stand_in in (("content", manifest.get("pixels_sha256")), ("study_id", ""), ("origin", "")):
        if name not in manifest and stand_in is not None:
            manifest[name] = stand_in
    if missing := [name for name in COLUMNS if name not in manifest]:
        raise UserError(f"{run.manifest}: must have the columns {', '.join(COLUMNS)}, found no {', '.join(missing)}")
    if len(manifest) != (rows := len(ArrayStore(run.pixels))):
        raise UserError(
            f"{run.manifest}: must have a row for each film of {run.pixels.name}, found {len(manifest)} for {rows}"
        )
    if wrong := sorted(set(manifest["split"]) - set(splitting.SPLITS)):
        raise UserError(f"{run.manifest}: split must be one of {', '.join(splitting.SPLITS)}, found '{wrong[0]}'")
    splitting.check_no_leak(groups=_groups(manifest), splits=list(manifest["split"]), names=_names(manifest))
    return manifest


def check_sides(manifest: pd.DataFrame, *, hint: str | None = None) -> None:
    """Refuse films of which no model can be made and measured, see :func:`.split.check_every_class_on_every_side`.

    Raises:
        UserError: A class has no film on some side.
    """
    splitting.check_every_class_on_every_side(
        labels=list(manifest["label"]),
        splits=list(manifest["split"]),
        groups=list(manifest["group"]),
        pixels=list(manifest["content"]),
        hint=hint,
    )


def fingerprint(manifest: pd.DataFrame) -> str:
    """A key of what the films show, what they are called, and on which side they stand."""
    return key_of(*(list(manifest[name]) for name in ("pixels_sha256", "label", "group", "split")))


def _groups(manifest: pd.DataFrame) -> list[str]:
    return splitting.group_films(
        list(manifest["pixels_sha256"]), list(manifest["content"]), *(_within(manifest, name) for name in CONNECTIONS)
    )


def _within(manifest: pd.DataFrame, name: str) -> list[str | None]:
    # Two collections may number their patients alike.
    return [
        f"{collection}/{said}" if said else None
        for collection, said in zip(manifest["collection"], manifest[name], strict=True)
    ]


def _names(manifest: pd.DataFrame) -> list[str]:
    return [f"{collection}/{path}" for collection, path in zip(manifest["collection"], manifest["path"], strict=True)]


def listing_of(dataset: Dataset) -> list[Any]:
    """What tells, without decoding, that the files are the same as before."""
    rows: list[Any] = [{name: str(root) for name, root in dataset.collections.items()}]
    for film in dataset.films:
        try:
            status = dataset.file_of(film).stat()
            # The time of the last change of the inode too: copying tools set the other one back, and a file whose
            # permissions were mended must be tried again.
            state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        except OSError:
            state = []
        rows.append([film.collection, film.path, *state])
    return rows


def decoded_key(listing: Sequence[Any], size: int) -> str:
    """A key of what is decoded: it depends on the files alone, so that another seed, label or split finds it done."""
    return key_of(VERSION, JOURNAL_VERSION, listing, size)


def _staging(run: RunDir) -> Path:
    return run.path / ".preprocess"


@dataclass(frozen=True)
class Decoded:
    """A film whose pixels are on the disk."""

    film: FilmRow
    sha256: str
    width: int
    height: int
    #: What the file itself says of whom it shows.
    who: Identity


def decode_all(
    dataset: Dataset, run: RunDir, *, key: str, size: int
) -> tuple[Path, list[Decoded], list[tuple[FilmRow, str]], list[str]]:
    """Decode every film; row i of the returned file is film i of the returned list.

    Films whose patient the data do not name have the one that a DICOM file names, see
    :func:`vgg16_xray.films.identity.name_patients`, whose notes come last.

    The journal has a line a film, written after the pixels are on the disk, so that a run that was killed goes on
    behind the last line.
    """
    staging = _staging(run)
    journal, pixels = staging / f"{key}.jsonl", staging / f"{key}.npy"
    lines = _read_journal(journal) if pixels.exists() else []
    if not lines:
        shutil.rmtree(staging, ignore_errors=True)
        store = create_array(pixels, shape=(len(dataset.films), size, size), dtype=np.uint8)
    else:
        store = np.lib.format.open_memmap(pixels, mode="r+")
        # Without what was half written of the last line, lest the next is joined to it.
        write_text(journal, "".join(json.dumps(line) + "\n" for line in lines))
    rows = sum("sha256" in line for line in lines)
    todo = dataset.films[len(lines) :]
    pending: list[dict[str, Any]] = []

    def note() -> None:
        store.flush()
        release(store)
        with saying_why_not_written(journal), journal.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in pending)
            file.flush()
            os.fsync(file.fileno())
        lines.extend(pending)
        pending.clear()

    with progress("decode films", total=len(dataset.films)) as bar:
        bar.start_at(len(lines))
        for film, result in _in_order(dataset, todo, size):
            if isinstance(result, UnreadableFilm):
                # An error is one line, whatever the file is called.
                where = " ".join(f"{dataset.file_of(film)}:".split())
                pending.append({"path": film.path, "reason": str(result).removeprefix(f"{where} ")})
            else:
                square, decoded = result
                store[rows] = square
                rows += 1
                line: dict[str, Any] = {"path": film.path, "sha256": decoded.sha256}
                line["size"] = [decoded.width, decoded.height]
                if who := {name: value for name, value in asdict(decoded.who).items() if value}:
                    line["who"] = who
                pending.append(line)
            bar.advance()
            if len(pending) >= NOTE_EVERY:
                note()
    note()
    films, broken = [], []
    for film, line in zip(dataset.films, lines, strict=True):
        if "sha256" in line:
            width, height = line["size"]
            films.append(Decoded(film, line["sha256"], width, height, Identity(**line.get("who", {}))))
        else:
            broken.append((film, line["reason"]))
    named, notes = name_patients([decoded.film for decoded in films], [decoded.who for decoded in films])
    films = [replace(decoded, film=film) for decoded, film in zip(films, named, strict=True)]
    return _shortened(pixels, rows=len(films), size=size), films, broken, notes


def _shortened(pixels: Path, *, rows: int, size: int) -> Path:
    """Cut the unused rows of broken films off the end of the file: a shorter shape in its header, then truncation."""
    stored = np.lib.format.open_memmap(pixels, mode="r")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": stored.dtype.str, "fortran_order": False, "shape": (rows, size, size)}
    )
    # numpy pads headers to a multiple of 64 bytes with room to spare, so that a smaller shape takes no less.
    if len(header.getvalue()) != stored.offset:
        raise AssertionError(f"{pixels}: header of {len(header.getvalue())} bytes in place of {stored.offset}")
    # Also where the shape is right already: a process may have been killed between the two writes.
    with saying_why_not_written(pixels), pixels.open("r+b") as file:
        file.write(header.getvalue())
        file.truncate(len(header.getvalue()) + rows * size * size)
        file.flush()
        os.fsync(file.fileno())
    return pixels


def _read_journal(journal: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    if journal.exists():
        for line in journal.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                # The machine stopped in the middle of this line.
                break
    return lines


def _in_order(
    dataset: Dataset, films: Sequence[FilmRow], size: int
) -> Iterator[tuple[FilmRow, tuple[np.ndarray, Decoded] | UnreadableFilm]]:
    """Decode on all cores, a bounded number of films ahead, and give them in their order."""

    def work(film: FilmRow) -> tuple[np.ndarray, Decoded] | UnreadableFilm:
        try:
            pixels = decode(dataset.file_of(film))
        except UnreadableFilm as error:
            return error
        height, width = pixels.shape
        who = identity_of(dataset.file_of(film))
        return to_square(pixels, size), Decoded(film, pixels_sha256(pixels), width, height, who)

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[tuple[FilmRow, Future[tuple[np.ndarray, Decoded] | UnreadableFilm]]] = deque()
        try:
            for film in films:
                ahead.append((film, pool.submit(work, film)))
                if len(ahead) > 4 * workers:
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def find_copies_once(staged: Path, films: Sequence[Decoded]) -> list[Pair]:
    """Which of the decoded films are the same; kept beside them, so that another seed, label or split finds it done.

    A search that was killed goes on behind its last finished part.
    """
    file = staged.with_suffix(f".copies-{COPIES_VERSION}.json")
    if file.exists():
        return [Pair(**pair) for pair in read_json(file)]
    kept = staged.with_suffix(f".search-{COPIES_VERSION}")
    pairs = leaks.find_copies(ArrayStore(staged).take, [film.sha256 for film in films], kept=kept)
    write_json(file, [asdict(pair) for pair in pairs])
    shutil.rmtree(kept, ignore_errors=True)
    return pairs


def write_leaks(run: RunDir, manifest: pd.DataFrame, pairs: Sequence[Pair], *, broken: int) -> dict[str, Any]:
    """Leave ``leaks.json`` and ``pairs.csv``; `broken` is the number of files that could not be read.

    Returns:
        What ``leaks.json`` holds, see :func:`vgg16_xray.trust.leaks.summarise`.
    """
    found = leaks.summarise(
        pairs,
        content=list(manifest["content"]),
        sha256=list(manifest["pixels_sha256"]),
        names=_names(manifest),
        labels=list(manifest["label"]),
        collections=list(manifest["collection"]),
        patients=[patient or "" for patient in _within(manifest, "patient_id")],
    )
    found["broken"] = broken
    write_json(run.leaks, found)
    columns = tuple(name for name in (found["pairs"] or [{}])[0] if name != "rows") or ("first", "second", "same")
    _write_rows(run.pairs, columns, [tuple(pair[name] for name in columns) for pair in found["pairs"]])
    return found


@dataclass(frozen=True)
class _Before:
    """What another run knew of these films."""

    #: (N,) side there, and what the film is called there; empty where it is new.
    sides: list[str]
    names: list[str]
    #: Films of the other run that are here no more.
    gone: int


def _found_before(staged: Path, films: Sequence[Decoded], *, like: RunDir, before: pd.DataFrame) -> _Before:
    """Find each film in another run by what it shows."""
    old, new, many = ArrayStore(like.pixels), ArrayStore(staged), len(before)
    if old.shape[1:] != new.shape[1:]:
        raise UserError(
            f"--like {like.path}: must hold films of {new.shape[1]} x {new.shape[2]} pixels, found "
            f"{old.shape[1]} x {old.shape[2]}"
        )

    def take(rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *new.shape[1:]), np.uint8)
        first = rows < many
        out[first], out[~first] = old.take(rows[first]), new.take(rows[~first] - many)
        return out

    hashes = [*before["pixels_sha256"], *(film.sha256 for film in films)]
    sides, names = [""] * len(films), [""] * len(films)
    before_sides, before_names = list(before["split"]), _names(before)
    seen: set[int] = set()
    # The surest last, so that it has the last word.
    kept = staged.with_suffix(f".like-{COPIES_VERSION}-{fingerprint(before)}")
    for pair in reversed(leaks.find_copies(take, hashes, first_of_second=many, kept=kept)):
        if pair.same:
            sides[pair.second - many] = before_sides[pair.first]
            names[pair.second - many] = before_names[pair.first]
            seen.add(pair.first)
    return _Before(sides=sides, names=names, gone=many - len(seen))


def table_of(films: Sequence[Decoded], pairs: Sequence[Pair]) -> pd.DataFrame:
    """The manifest without groups and sides: a row a film."""
    import pandas as pd

    hashes = [film.sha256 for film in films]
    return pd.DataFrame(
        {
            "path": [d.film.path for d in films],
            "collection": [d.film.collection for d in films],
            "label": [d.film.label for d in films],
            "pixels_sha256": hashes,
            "content": leaks.contents(hashes, pairs),
            "patient_id": [d.film.patient_id or "" for d in films],
            "study_id": [d.film.study_id or "" for d in films],
            "origin": [d.film.origin or "" for d in films],
            "source": [d.film.source or "" for d in films],
            "width": [d.width for d in films],
            "height": [d.height for d in films],
            "mask": [d.film.mask or "" for d in films],
        }
    )


def _manifest(
    films: Sequence[Decoded], pairs: Sequence[Pair], *, seed: int, was: _Before | None
) -> tuple[pd.DataFrame, list[str]]:
    table = table_of(films, pairs)
    labels, content = list(table["label"]), list(table["content"])
    table["group"] = groups = _groups(table)
    given = [d.film.split or "" for d in films]
    notes: list[str] = []
    if given[0]:
        table["split"] = _given_split(given, labels=labels, groups=groups, pixels=content, seed=seed)
    else:
        kept, moved = _kept_sides(groups, was) if was else ({}, [])
        table["split"] = splitting.split_films(labels=labels, groups=groups, pixels=content, seed=seed, kept=kept)
        if was:
            notes += _notes_on_before(table, was, moved)
    splitting.check_no_leak(groups=groups, splits=list(table["split"]), names=_names(table))
    table.attrs["split_given"] = bool(given[0])
    exact = len(content) - table["pixels_sha256"].nunique()
    near = len(content) - len(set(content)) - exact
    if exact:
        are = " is an exact copy" if exact == 1 else "s are exact copies"
        notes.append(f"{exact} film{are} of another; copies stand on one side of the split")
    if near:
        notes.append(
            f"{near} film{' shows' if near == 1 else 's show'} what another shows, encoded, cut or mirrored otherwise "
            "(pairs.csv); copies stand on one side of the split"
        )
    if contradicted := splitting.conflicts(labels=labels, pixels=content):
        notes.append(
            f"{len(contradicted)} films show what a film of another class shows, first "
            f"{table['path'][contradicted[0]]}, all in leaks.json"
            + ("" if given[0] else "; they are used for training only")
        )
    return table, notes


def _kept_sides(groups: Sequence[str], was: _Before) -> tuple[dict[str, str], list[int]]:
    """Side of each group that was there, and films that cannot stay where they were: their group had two sides."""
    sides: dict[str, set[str]] = {}
    for group, side in zip(groups, was.sides, strict=True):
        if side:
            sides.setdefault(group, set()).add(side)
    kept = {group: found.pop() if len(found) == 1 else splitting.TRAIN for group, found in sides.items()}
    return kept, [i for i, side in enumerate(was.sides) if side and kept[groups[i]] != side]


def _notes_on_before(table: pd.DataFrame, was: _Before, moved: Sequence[int]) -> list[str]:
    new = sum(not name for name in was.names)
    notes = [
        f"{len(table) - new} films were there before and {new} are new; {was.gone} of those before are gone. What each "
        "was called is in split.csv"
    ]
    contradicted = [i for i, side in enumerate(was.sides) if side and table["split"][i] != side and i not in set(moved)]
    if moved:
        notes.append(
            f"{len(moved)} films had to move to training, first {table['path'][moved[0]]}: what connects them was not "
            "known before and stood on two sides"
        )
    if contradicted:
        notes.append(
            f"{len(contradicted)} films had to move to training, first {table['path'][contradicted[0]]}: they now "
            "stand under two labels"
        )
    return notes


def _how_split(manifest: pd.DataFrame, *, seed: int, like: RunDir | None) -> str:
    if manifest.attrs["split_given"]:
        return "given with the data"
    return f"80/10/10 by group, seed {seed}" + (f", films of {like.path.resolve()} on their sides" if like else "")


def _given_split(
    given: Sequence[str], *, labels: Sequence[str], groups: Sequence[str], pixels: Sequence[str], seed: int
) -> list[str]:
    """The dataset's own split; validation films are taken from training where it brings none."""
    splits = list(given)
    if splitting.VALIDATION not in splits:
        rows = [i for i, side in enumerate(splits) if side == splitting.TRAIN]
        dealt = splitting.split_films(
            labels=[labels[i] for i in rows],
            groups=[groups[i] for i in rows],
            pixels=[pixels[i] for i in rows],
            seed=seed,
            test=0,
        )
        for i, side in zip(rows, dealt, strict=True):
            splits[i] = side
    return splits


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def _write_rows(path: Path, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    import pandas as pd

    _write_csv(path, pd.DataFrame(rows, columns=list(columns)))


def _count_rows(path: Path) -> int:
    import pandas as pd

    return len(pd.read_csv(path))


def _summary(manifest: pd.DataFrame, quarantined: int, *, already_done: bool) -> Preprocessed:
    counts = Counter(zip(manifest["label"], manifest["split"], strict=True))
    return Preprocessed(films=len(manifest), quarantined=quarantined, counts=counts, already_done=already_done)
