"""A folder, a table or the Kaggle tree -> one row a film: path, label, patient, source, split, mask.

Accepted layouts, the whole contract:

- ``DATA/<class>/*`` and deeper below the class folder;
- ``DATA/<class>/images/*`` with ``masks/`` beside it (the Kaggle tree). A file below a folder ``masks`` or ``mask``, or
  one named ``<film>_mask``, is a mask and never a film. ``DATA/<class>.metadata.xlsx`` gives the source;
- ``DATA/{train,val,test}/<class>/*``: the split is kept;
- a table, CSV or Parquet: ``path,label[,patient_id,source,split,mask]``, paths relative to the table's folder.

A folder that holds nothing but one other folder is looked through. A ``metadata.csv`` in DATA with a column ``path``
says more of films that the folders hold; what it says of label, patient, source, split and mask goes before the folder's
name. Hidden files are passed over; any other file that is not a film is listed with the reason.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from vgg16_xray.errors import UserError
from vgg16_xray.films.decode import SUFFIXES
from vgg16_xray.films.split import SPLITS, TEST, TRAIN, VALIDATION

#: Names that people give to the three sides.
SIDE_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "test": TEST,
    "testing": TEST,
}
MASK_FOLDERS = frozenset({"masks", "mask"})
#: Written by operating systems and archivers beside the films.
IGNORED = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
TABLE_SUFFIXES = frozenset({".csv", ".parquet"})
METADATA = "metadata.csv"


@dataclass(frozen=True, kw_only=True)
class FilmRow:
    """One film as the dataset describes it; nothing of it has been decoded."""

    #: Path below the collection's root, with forward slashes.
    path: str
    #: Name of the collection it belongs to.
    collection: str
    label: str
    #: None where unknown.
    patient_id: str | None = None
    #: Hospital or publication that the film comes from; None where unknown.
    source: str | None = None
    #: ``train``, ``validation`` or ``test`` where the dataset says so.
    split: str | None = None
    #: Path of its mask below the collection's root.
    mask: str | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Every film of one or several collections."""

    films: tuple[FilmRow, ...]
    #: Root folder of each collection, absolute, by the collection's name.
    collections: Mapping[str, Path]
    #: Files that are not films: (collection, path, reason).
    left_out: tuple[tuple[str, str, str], ...] = ()
    #: What a user should know and no row says.
    notes: tuple[str, ...] = ()
    #: Number of masks that belong to no film.
    masks_without_film: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in their order, which from here on is stored and never inferred again."""
        return tuple(sorted({film.label for film in self.films}))

    def file_of(self, film: FilmRow) -> Path:
        """Absolute path of a film."""
        return self.collections[film.collection] / film.path


@dataclass
class _Found:
    films: list[FilmRow] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    masks_without_film: int = 0


def scan(data: Sequence[Path], *, mapping: Mapping[str, str] | None = None) -> Dataset:
    """List the films of one or several collections.

    Args:
        data: Folders or tables in the layouts above. With more than one, the collection's name is the source of films
            that say nothing else.
        mapping: ``{folder or label: label}``; to an empty label: the films are left out.

    Returns:
        The films in the order of their collection and path.

    Raises:
        UserError: A path is missing or in no accepted layout, a table lacks a column, fewer than two classes are left.
    """
    if not data:
        raise UserError("DATA: must name at least one folder or table, found none")
    collections: dict[str, Path] = {}
    films: list[FilmRow] = []
    left_out: list[tuple[str, str, str]] = []
    notes: list[str] = []
    masks_without_film = 0
    for given in data:
        root = Path(os.path.abspath(given))
        name = _free_name(root.stem if root.is_file() else root.name, collections)
        found, base = _scan_one(root, name)
        collections[name] = base
        if len(data) > 1:
            found.films = [film if film.source else replace(film, source=name) for film in found.films]
        films += found.films
        left_out += [(name, path, reason) for path, reason in found.left_out]
        notes += found.notes
        masks_without_film += found.masks_without_film
    films = _rename_labels(films, mapping or {})
    _check_splits(films)
    labels = sorted({film.label for film in films})
    if len(labels) < 2:
        raise UserError(
            f"{' '.join(map(str, data))}: must hold films of at least two classes, found "
            + (f"one, '{labels[0]}'" if labels else "no film"),
            hint="expected DATA/<class>/*, DATA/<class>/images/*, DATA/{train,val,test}/<class>/*, or a table path,label",
        )
    return Dataset(
        films=tuple(sorted(films, key=lambda film: (film.collection, film.path))),
        collections=collections,
        left_out=tuple(sorted(left_out)),
        notes=tuple(notes),
        masks_without_film=masks_without_film,
    )


def parse_mapping(pairs: Iterable[str]) -> dict[str, str]:
    """Read ``FOLDER=LABEL`` pairs as given to ``--map``.

    Raises:
        UserError: A pair has no ``=``, no folder, or a folder that stood before.
    """
    mapping: dict[str, str] = {}
    for pair in pairs:
        folder, equals, label = pair.partition("=")
        if not equals or not folder.strip() or folder.strip() in mapping:
            raise UserError(f"--map: must be FOLDER=LABEL, each FOLDER once, found '{pair}'")
        mapping[folder.strip()] = label.strip()
    return mapping


def _free_name(wanted: str, taken: Mapping[str, Any]) -> str:
    wanted = wanted or "data"
    names = (wanted if n == 1 else f"{wanted}-{n}" for n in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def _scan_one(root: Path, name: str) -> tuple[_Found, Path]:
    if root.is_file():
        if root.suffix.lower() in TABLE_SUFFIXES:
            return _scan_table(root, name), root.parent
        hint = "unpack it first: vgg16-xray download --from-zip FILE --to DIR" if root.suffix == ".zip" else None
        raise UserError(f"{root}: must be a folder, or a table in CSV or Parquet, found another file", hint=hint)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder or table")
    try:
        base = _look_through(root)
        found = _scan_folder(base, name)
    except OSError as error:
        raise UserError(f"{error.filename or root}: cannot be read ({error.strerror})") from error
    return found, base


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name.lower() not in IGNORED
    )


def _look_through(root: Path) -> Path:
    """Go down while a folder holds one folder only, and that one holds folders that could be classes."""
    while len(folders := _subfolders(root)) == 1:
        inner = [entry for entry in _subfolders(folders[0]) if entry.name.lower() not in MASK_FOLDERS | {"images"}]
        if not inner:
            break
        root = folders[0]
    return root


def _scan_folder(root: Path, name: str) -> _Found:
    found = _Found()
    folders = [folder for folder in _subfolders(root) if folder.name.lower() not in MASK_FOLDERS]
    sides = {folder: SIDE_NAMES.get(folder.name.lower()) for folder in folders}
    if TRAIN in sides.values() and len(folders) > 1 and None not in sides.values():
        classes = [(folder, side) for given, side in sides.items() for folder in _subfolders(given)]
    else:
        classes = [(folder, None) for folder in folders]
    for folder, side in classes:
        _scan_class(root, folder, name, side, found)
    said = _read_metadata(root)
    sources = _read_kaggle_sources(root)
    found.films = [
        _with_what_is_said(_with_source(film, sources), said.pop(film.path, None), where=f"{root / METADATA}")
        for film in found.films
    ]
    if said:
        found.notes.append(
            f"{root / METADATA}: {len(said)} of its rows name files that are not there, first {next(iter(said))}"
        )
    return found


def _scan_class(root: Path, folder: Path, name: str, side: str | None, found: _Found) -> None:
    films: dict[str, FilmRow] = {}
    masks: list[str] = []
    for file in _walk(folder):
        path = file.relative_to(root).as_posix()
        if any(part.lower() in MASK_FOLDERS for part in file.relative_to(folder).parts[:-1]):
            masks.append(path)
        elif file.suffix.lower() in SUFFIXES or (not file.suffix and _starts_like_dicom(file)):
            films[path] = FilmRow(path=path, collection=name, label=folder.name, split=side)
        else:
            found.left_out.append((path, "not an image by its name"))
    by_stem = {str(PurePosixPath(path).with_suffix("")): path for path in films}
    for path in list(films):
        # <film>_mask beside <film>: a mask too.
        of = by_stem.get(str(PurePosixPath(path).with_suffix("")).removesuffix("_mask"))
        if of is not None and of != path:
            del films[path]
            films[of] = replace(films[of], mask=path)
    by_name = {_without_image_folder(path): path for path in films}
    for path in masks:
        of = by_name.get(_without_image_folder(path).removesuffix("_mask"))
        if of is None:
            found.masks_without_film += 1
        else:
            films[of] = replace(films[of], mask=path)
    found.films += films.values()


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f.lower() not in IGNORED)
        for file in sorted(files):
            if not file.startswith(".") and file.lower() not in IGNORED:
                yield Path(place, file)


def _raise(error: OSError) -> None:
    raise error


def _starts_like_dicom(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _without_image_folder(path: str) -> str:
    """``Normal/images/a.png`` and ``Normal/masks/a.png`` -> ``Normal/a``."""
    pure = PurePosixPath(path)
    parents = [part for part in pure.parts[:-1] if part.lower() not in MASK_FOLDERS | {"images"}]
    return "/".join([*parents, pure.stem])


def _read_kaggle_sources(root: Path) -> dict[str, str]:
    """``<class>.metadata.xlsx`` of the Kaggle tree: FILE NAME, FORMAT, SIZE, URL -> {file name in lower case: source}."""
    sources: dict[str, str] = {}
    for workbook in sorted(root.glob("*.metadata.xlsx")):
        from openpyxl import load_workbook

        try:
            rows = load_workbook(workbook, read_only=True, data_only=True).active.iter_rows(values_only=True)
            columns = [str(cell or "").strip().upper() for cell in next(rows, ())]
            where = columns.index("FILE NAME"), columns.index("URL")
            sources |= {
                f"{workbook.name.split('.')[0]}/{str(row[where[0]]).strip()}".lower(): source_of_url(str(row[where[1]]))
                for row in rows
                if row[where[0]] and row[where[1]]
            }
        except Exception as error:
            # A damaged workbook raises from zipfile, xml or openpyxl alike.
            raise UserError(
                f"{workbook}: must be a workbook with columns FILE NAME and URL, found {type(error).__name__}: {error}",
                hint="delete it to go on without sources",
            ) from error
    return sources


def source_of_url(url: str) -> str:
    """Short name of a publication: the host, and on hosts of many publishers the first two parts of the path."""
    parts = urlsplit(url.strip())
    host = (parts.hostname or url.strip()).removeprefix("www.")
    inner = [part for part in parts.path.split("/") if part][:2]
    return "/".join([host, *inner]) if host in ("github.com", "kaggle.com") else host


def _with_source(film: FilmRow, sources: Mapping[str, str]) -> FilmRow:
    source = sources.get(f"{film.label}/{PurePosixPath(film.path).stem}".lower())
    return replace(film, source=source) if source else film


def _read_metadata(root: Path) -> dict[str, dict[str, str]]:
    file = root / METADATA
    if not file.is_file():
        return {}
    rows, columns = _read_csv(file)
    return {_clean(row["path"]): row for row in rows if row.get("path")} if "path" in columns else {}


def _read_csv(file: Path) -> tuple[list[dict[str, str]], list[str]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened)
            rows = [{key: (value or "").strip() for key, value in row.items() if key is not None} for row in reader]
            return rows, list(reader.fieldnames or [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: must be a CSV table in UTF-8, found {error}") from error


def _clean(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).as_posix()


def _with_what_is_said(film: FilmRow, row: Mapping[str, str] | None, *, where: str) -> FilmRow:
    if row is None:
        return film
    said: dict[str, str] = {key: row[key] for key in ("label", "patient_id", "source", "mask") if row.get(key)}
    if row.get("split"):
        said["split"] = _side(row["split"], where=f"{where}, {film.path}")
    return replace(film, **said)


def _side(text: str, *, where: str) -> str:
    try:
        return SIDE_NAMES[text.strip().lower()]
    except KeyError:
        raise UserError(f"{where}: split must be one of {', '.join(SPLITS)}, found '{text}'") from None


def _scan_table(file: Path, name: str) -> _Found:
    if file.suffix.lower() == ".parquet":
        import pandas as pd

        try:
            table = pd.read_parquet(file).astype(object)
        except Exception as error:
            raise UserError(f"{file}: must be a Parquet table, found {error}") from error
        columns = [str(column) for column in table.columns]
        rows = [
            {str(key): "" if pd.isna(value) else str(value).strip() for key, value in row.items()}
            for row in table.to_dict("records")
        ]
    else:
        rows, columns = _read_csv(file)
    for needed in ("path", "label"):
        if needed not in columns:
            raise UserError(f"{file}: must have a column '{needed}', found {', '.join(columns) or 'no columns'}")
    found = _Found()
    seen: dict[str, str] = {}
    for row in rows:
        path = row["path"]
        if not path:
            found.left_out.append(("", "the table's row has no path"))
            continue
        path = _clean(path)
        # An absolute path, or one that climbs out, is the table's author's choice: it is read, never written.
        path = os.path.relpath(path, file.parent) if os.path.isabs(path) else path
        if not row["label"]:
            found.left_out.append((path, "the table gives no label"))
        elif path not in seen:
            seen[path] = row["label"]
            found.films.append(
                _with_what_is_said(FilmRow(path=path, collection=name, label=row["label"]), row, where=str(file))
            )
        elif seen[path] != row["label"]:
            raise UserError(f"{file}: a film must have one label, found '{seen[path]}' and '{row['label']}' for {path}")
    return found


def _rename_labels(films: list[FilmRow], mapping: Mapping[str, str]) -> list[FilmRow]:
    present = Counter(film.label for film in films)
    for folder in mapping:
        if folder not in present:
            raise UserError(f"--map: '{folder}' must be a class of the data, found {', '.join(sorted(present))}")
    renamed = [replace(film, label=mapping.get(film.label, film.label)) for film in films]
    return [film for film in renamed if film.label]


def _check_splits(films: Sequence[FilmRow]) -> None:
    given = [film for film in films if film.split]
    if given and len(given) < len(films):
        without = next(film for film in films if not film.split)
        raise UserError(
            f"split: must be given for every film or for none, found {len(given)} of {len(films)}, not {without.path}"
        )
