"""A folder, a table or the Kaggle tree -> one row a film: path, label, patient, source, split, mask.

Accepted layouts, the whole contract:

- ``DATA/<class>/*`` and deeper below the class folder;
- ``DATA/<class>/images/*`` with ``masks/`` beside it (the Kaggle tree). A file below a folder ``masks`` or ``mask``, or
  one whose name ends in ``_mask``, is a mask and never a film. ``DATA/<class>.metadata.xlsx`` gives the source;
- ``DATA/{train,val,test}/<class>/*``: the split is kept;
- a table, CSV or Parquet: ``path,label[,patient_id,study_id,origin,source,split,mask]``, paths relative to its folder.

A folder that holds no other folder but one is looked through; links to folders are followed. A ``metadata.csv`` in DATA
with a column ``path`` says more of films that the folders hold; what it says (:data:`SAID`, and the split)
goes before the folder's name. It may be somebody else's file: one that says nothing of these films is not used, and
that is said. How tables may be written: :mod:`vgg16_xray.films.tables`. Hidden files are passed over; any other file in
a class folder that is not a film, and any film outside one, is listed with the reason.
"""

from __future__ import annotations

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
from vgg16_xray.films.tables import name_columns, read_csv

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
#: Columns of a table or of ``metadata.csv`` that say something of a film.
SAID = ("label", "patient_id", "study_id", "origin", "source", "mask")


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
    #: Examination that it belongs to, None where unknown.
    study_id: str | None = None
    #: What it was cut from, a publication's figure or another file; None where unknown.
    origin: str | None = None
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
    #: Each ``metadata.csv`` that lies there and was not used, and why.
    unused: tuple[str, ...] = ()
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
    unused: list[str] = field(default_factory=list)
    masks_without_film: int = 0


def scan(
    data: Sequence[Path],
    *,
    mapping: Mapping[str, str] | None = None,
    without_splits: bool = False,
    least_classes: int = 2,
) -> Dataset:
    """List the films of one or several collections.

    Args:
        data: Folders or tables in the layouts above. With more than one, the collection's name is the source of films
            that say nothing else.
        mapping: ``{folder or label: label}``; to an empty label: the films are left out.
        without_splits: Forget on which side the dataset puts its films.
        least_classes: Fewer are refused; a test elsewhere may have one.

    Returns:
        The films in the order of their collection and path.

    Raises:
        UserError: A path is missing or in no accepted layout, a table lacks a column, too few classes are left.
    """
    if not data:
        raise UserError("DATA: must name at least one folder or table, found none")
    roots: set[Path] = set()
    collections: dict[str, Path] = {}
    films: list[FilmRow] = []
    left_out: list[tuple[str, str, str]] = []
    notes: list[str] = []
    unused: list[str] = []
    masks_without_film = 0
    for given in data:
        # Not resolve(): a collection is called what the user calls it, not what a link leads to.
        root = Path(os.path.abspath(given))  # noqa: PTH100
        if not _is_utf8(str(root)):
            raise UserError(f"{_escaped(str(root))}: must have a name in UTF-8, found other bytes")
        if root in roots:
            raise UserError(f"{given}: must be named once, found it twice")
        roots.add(root)
        name = _free_name(root.stem if root.is_file() else root.name, collections)
        found, base = _scan_one(root, name)
        collections[name] = base
        if len(data) > 1:
            found.films = [film if film.source else replace(film, source=name) for film in found.films]
        films += found.films
        left_out += [(name, path, reason) for path, reason in found.left_out]
        notes += found.notes
        unused += found.unused
        masks_without_film += found.masks_without_film
    films = _rename_labels(films, mapping or {})
    if without_splits:
        films = [replace(film, split=None) for film in films]
    _check_splits(films)
    labels = sorted({film.label for film in films})
    if len(labels) < least_classes:
        at_least = "two classes" if least_classes == 2 else f"{least_classes} class(es)"
        raise UserError(
            f"{' '.join(map(str, data))}: must hold films of at least {at_least}, found "
            + (f"one, '{labels[0]}'" if labels else "no film"),
            hint="expected DATA/<class>/*, DATA/<class>/images/*, DATA/{train,val,test}/<class>/*, or a table with "
            "columns path and label",
        )
    return Dataset(
        films=tuple(sorted(films, key=lambda film: (film.collection, film.path))),
        collections=collections,
        left_out=tuple(sorted(left_out)),
        notes=tuple(notes),
        unused=tuple(unused),
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
    try:
        if root.is_file():
            if root.suffix.lower() in TABLE_SUFFIXES:
                return _scan_table(root, name), root.parent
            zipped = root.suffix.lower() == ".zip"
            hint = "unpack it first: vgg16-xray download --from-zip FILE --to DIR" if zipped else None
            raise UserError(f"{root}: must be a folder, or a table in CSV or Parquet, found another file", hint=hint)
        if not root.is_dir():
            raise UserError(f"{root}: no such folder or table")
        base = _look_through(root)
        return _scan_folder(base, name, given=root), base
    except OSError as error:
        raise UserError(f"{error.filename or root}: cannot be read ({error.strerror or error})") from error


def _is_utf8(name: str) -> bool:
    # Bytes that are not UTF-8 arrive as lone surrogates, which no table, TOML or terminal can write.
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _escaped(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


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


def _scan_folder(root: Path, name: str, *, given: Path) -> _Found:
    found = _Found()
    folders = [folder for folder in _subfolders(root) if folder.name.lower() not in MASK_FOLDERS]
    sides = {folder: SIDE_NAMES.get(folder.name.lower()) for folder in folders}
    places = [root]
    if TRAIN in sides.values() and len(folders) > 1:
        if None in sides.values():
            other = next(folder.name for folder, side in sides.items() if side is None)
            raise UserError(
                f"{root}: must hold class folders, or train, val and test folders, found both: "
                f"{next(folder.name for folder, side in sides.items() if side == TRAIN)} and {other}"
            )
        classes = [(folder, side) for of_side, side in sides.items() for folder in _subfolders(of_side)]
        places += folders
    else:
        classes = [(folder, None) for folder in folders]
    for place in places:
        for file in sorted(place.iterdir()):
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file():
                found.left_out.append((_escaped(file.relative_to(root).as_posix()), "lies in no class folder"))
    for folder, side in classes:
        _scan_class(root, folder, name, side, found)
    sources = _read_kaggle_sources(root)
    found.films = [_with_source(film, sources) for film in found.films]
    if (metadata := _find_metadata(root, given)) is not None:
        _read_metadata(metadata, root, found)
    return found


def _scan_class(root: Path, folder: Path, name: str, side: str | None, found: _Found) -> None:
    films: dict[str, FilmRow] = {}
    masks: list[str] = []
    for file in _walk(folder):
        path = file.relative_to(root).as_posix()
        if not _is_utf8(path):
            found.left_out.append((_escaped(path), "its name is not UTF-8"))
        elif any(part.lower() in MASK_FOLDERS for part in file.relative_to(folder).parts[:-1]):
            masks.append(path)
        elif may_be_film(file):
            if file.stem.lower().endswith("_mask"):
                masks.append(path)
            else:
                films[path] = FilmRow(path=path, collection=name, label=folder.name, split=side)
        else:
            found.left_out.append((path, "not an image by its name"))
    by_name = {_without_image_folder(path): path for path in films}
    for path in masks:
        bare = _without_image_folder(path)
        of = by_name.get(bare) or by_name.get(bare[: -len("_mask")] if bare.lower().endswith("_mask") else "")
        if of is None:
            found.masks_without_film += 1
        else:
            films[of] = replace(films[of], mask=path)
    found.films += films.values()


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, sorted. Links to folders are followed, but not back up and not to the same folder twice."""
    top = folder.resolve()
    seen: set[Path] = set()
    for place, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        real = Path(place).resolve()
        if real in seen or real in top.parents:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f.lower() not in IGNORED)
        for file in sorted(files):
            if not file.startswith(".") and file.lower() not in IGNORED:
                yield Path(place, file)


def _raise(error: OSError) -> None:
    raise error


def may_be_film(file: Path) -> bool:
    """Whether a file found in a folder is taken for a film: by its suffix, or, having none, by DICOM's prefix."""
    return file.suffix.lower() in SUFFIXES or (not file.suffix and _starts_like_dicom(file))


def _starts_like_dicom(file: Path) -> bool:
    try:
        if not file.is_file():  # To open a pipe would wait for ever.
            return False
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
    """``<class>.metadata.xlsx`` of the Kaggle tree, FILE NAME and URL -> {class/file in lower case: source}."""
    sources: dict[str, str] = {}
    for workbook in sorted(root.glob("*.metadata.xlsx")):
        from openpyxl import load_workbook

        try:
            rows = load_workbook(workbook, read_only=True, data_only=True).active.iter_rows(values_only=True)
            columns = [str(cell or "").strip().upper() for cell in next(rows, ())]
            where = columns.index("FILE NAME"), columns.index("URL")
            sources |= {
                f"{workbook.name.removesuffix('.metadata.xlsx')}/{str(row[where[0]]).strip()}".lower(): source_of_url(
                    str(row[where[1]])
                )
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
    try:
        parts = urlsplit(url.strip())
    except ValueError:  # Of a square bracket, say: the cell holds something else.
        return url.strip()
    host = (parts.hostname or url.strip()).removeprefix("www.")
    inner = [part for part in parts.path.split("/") if part][:2]
    return "/".join([host, *inner]) if host in ("github.com", "kaggle.com") else host


def _with_source(film: FilmRow, sources: Mapping[str, str]) -> FilmRow:
    source = sources.get(f"{film.label}/{PurePosixPath(film.path).stem}".lower())
    return replace(film, source=source) if source else film


def _find_metadata(root: Path, given: Path) -> Path | None:
    """The nearest ``metadata.csv`` from `root` up to the folder the user named."""
    folders = [root, *(parent for parent in root.parents if parent == given or given in parent.parents)]
    return next((folder / METADATA for folder in folders if (folder / METADATA).is_file()), None)


def _read_metadata(file: Path, root: Path, found: _Found) -> None:
    """Tell the films below `root` what the table says of them; it may say nothing of any, and then that is noted."""
    rows, columns = read_csv(file)
    named = ", ".join(columns) or "no columns"
    if "path" not in columns:
        found.unused.append(f"{file} was not used: it must have a column 'path', found {named}")
        return
    if not {*SAID, "split"}.intersection(columns):
        found.unused.append(
            f"{file} was not used: beside 'path' it must have a column of {', '.join((*SAID, 'split'))}, found {named}"
        )
        return
    below = "" if file.parent == root else f"{root.relative_to(file.parent).as_posix()}/"
    said: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["path"]:
            path = _clean(row["path"]).removeprefix(below)
            if said.setdefault(path, row) != row:
                raise UserError(f"{file}: a film must have one row, found two that differ for {row['path']}")
    films = {film.path for film in found.films}
    unknown = [row["path"] for path, row in said.items() if path not in films]
    if len(unknown) == len(said):
        first = f"none of its {len(said):,} rows does, first {unknown[0]}" if said else "it has no rows"
        found.unused.append(f"{file} was not used: it must name films by their path below {file.parent}; {first}")
        return
    if unknown:
        found.notes.append(
            f"{file}: {len(unknown):,} of its {len(said):,} rows name files that are not there, first {unknown[0]}"
        )
    found.films = [_with_what_is_said(film, said.get(film.path), where=str(file)) for film in found.films]


def _clean(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).as_posix()


def _with_what_is_said(film: FilmRow, row: Mapping[str, str] | None, *, where: str) -> FilmRow:
    if row is None:
        return film
    said: dict[str, str] = {key: row[key] for key in SAID if row.get(key)}
    if row.get("split"):
        said["split"] = _side(row["split"], where=f"{where}, {film.path}")
    return replace(film, **said)


def _side(text: str, *, where: str) -> str:
    try:
        return SIDE_NAMES[text.strip().lower()]
    except KeyError:
        raise UserError(f"{where}: split must be one of {', '.join(SPLITS)}, found '{text}'") from None


def _read_parquet(file: Path) -> tuple[list[dict[str, str]], list[str]]:
    import pandas as pd

    try:
        table = pd.read_parquet(file).astype(object)
        columns = name_columns(table.columns, file=file)
        cells = [
            ["" if pd.isna(value) else str(value).strip() for value in row]
            for row in table.itertuples(index=False, name=None)
        ]
    except UserError:
        raise
    except Exception as error:
        # Arrow raises its own errors for a damaged file; a cell that holds a list raises a ValueError.
        raise UserError(f"{file}: must be a Parquet table of plain values, found {error}") from error
    return [dict(zip(columns, row, strict=True)) for row in cells], columns


def _scan_table(file: Path, name: str) -> _Found:
    rows, columns = _read_parquet(file) if file.suffix.lower() == ".parquet" else read_csv(file)
    for needed in ("path", "label"):
        if needed not in columns:
            raise UserError(f"{file}: must have a column '{needed}', found {', '.join(columns) or 'no columns'}")
    found = _Found()
    seen: dict[str, str] = {}
    again = 0
    for row in rows:
        if not row["path"]:
            found.left_out.append(("", "the table's row has no path"))
            continue
        path = _clean(row["path"])
        # An absolute path, or one that climbs out, is the table's author's choice: it is read, never written.
        path = os.path.relpath(path, file.parent) if path.startswith("/") else path
        if not row["label"]:
            found.left_out.append((path, "the table gives no label"))
        elif path not in seen:
            seen[path] = row["label"]
            found.films.append(
                _with_what_is_said(FilmRow(path=path, collection=name, label=row["label"]), row, where=str(file))
            )
        elif seen[path] != row["label"]:
            raise UserError(f"{file}: a film must have one label, found '{seen[path]}' and '{row['label']}' for {path}")
        else:
            again += 1
    if again:
        found.notes.append(f"{file}: {again} of its rows name a film again; the first row counts")
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
