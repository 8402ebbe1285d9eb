"""Step 1: the COVID-19 Radiography Database on the disk, whole or not there.

It comes from Kaggle, from a zip that was downloaded by hand, or lies there already. Everything is gathered in
``<to>.partial``, beside the target, and gets the target's name only when it is complete and its marker,
``download.json``, is written: a folder of that name is never half a dataset, and the next run goes on with what
``<to>.partial`` holds.

What kagglehub 1.0 does, and what we add. It downloads one archive into its cache, goes on with a cut-off one, compares
its MD5 where the server sends one, and unpacks with :mod:`zipfile` (no path leaves the folder, links become plain
files), again from the start when that was interrupted; a marker in its cache says that a version is complete. Its
``output_dir`` would refuse or empty a folder that an interrupted run left, so it is not used: for the one call its
cache is moved into ``<to>.partial`` (``KAGGLEHUB_CACHE``), from where the finished tree is renamed, not copied. While
it unpacks, the archive and the tree are both on the disk, about 2 GB.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import shlex
import shutil
import stat
import sys
import time
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vgg16_xray.errors import UserError
from vgg16_xray.extras import require
from vgg16_xray.files import read_json, saying_why_not_written, write_json
from vgg16_xray.films.dataset import IGNORED, MASK_FOLDERS, SIDE_NAMES
from vgg16_xray.films.decode import SUFFIXES
from vgg16_xray.films.split import TRAIN
from vgg16_xray.progress import progress
from vgg16_xray.rundir import sha256_of

#: Rahman et al., "COVID-19 Radiography Database", on Kaggle.
HANDLE = "tawsifurrahman/covid19-radiography-database"
URL = f"https://www.kaggle.com/datasets/{HANDLE}"
#: Radiographs per class, masks not counted, as that page states them.
PUBLISHED: Mapping[str, int] = {"COVID": 3616, "Lung_Opacity": 6012, "Normal": 10192, "Viral Pneumonia": 1345}
#: Written into a finished download, last of all.
MARKER = "download.json"
#: The published zip unpacks to less than 1 GiB in 42,000 members; what is far above that is no radiograph collection.
MOST_BYTES = 8 * 2**30
MOST_MEMBERS = 200_000
ELSEWHERE = "name another folder with --to"
_CHUNK = 1 << 20
#: What reading a damaged or hostile zip raises: structure, codecs (bz2 says OSError, an unknown one
#: NotImplementedError, which is a RuntimeError), names (ValueError).
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """A dataset that is complete."""

    #: Where the class folders are: what the later steps take as DATA.
    folder: Path
    #: Radiographs per class; masks are not counted.
    counts: Mapping[str, int]
    #: Kaggle's number of the version, ``sha256:<hex>`` of the zip, or None where nobody knows.
    version: str | None
    #: How it came: ``kaggle``, ``zip`` or ``folder``.
    came: str
    #: What the user should know, one line each.
    warnings: tuple[str, ...] = ()


def download(
    *, to: Path, from_zip: Path | None = None, most_bytes: int = MOST_BYTES, most_members: int = MOST_MEMBERS
) -> Downloaded:
    """Put the dataset into a folder, or say that it is there already.

    Can be killed at any moment and run again: what was fetched and unpacked is kept. A finished download, and class
    folders that the user put there, are left as they are.

    Args:
        to: Folder that will hold the dataset. It must not exist yet, be empty, or hold the dataset.
        from_zip: The zip as Kaggle's page gives it; None to fetch it from Kaggle.
        most_bytes: Limit on the unpacked size of `from_zip`, in bytes.
        most_members: Limit on the number of members of `from_zip`.

    Returns:
        Where the class folders are and how many radiographs they hold. Numbers that differ from the published ones
        are a warning, not an error: it may be a later version, or a part.

    Raises:
        UserError: `to` holds something else; `from_zip` is missing, damaged, hostile, too large or holds no two
            classes; Kaggle cannot be reached or refuses; the disk is full.
        MissingExtra: Kaggle is asked, and the extra ``kaggle`` is not installed.
    """
    to = to.resolve()
    if from_zip is not None and not from_zip.is_file():
        raise UserError(f"{from_zip}: must be a zip file, found {'a folder' if from_zip.is_dir() else 'no such file'}")
    there = _already_there(to, from_zip)
    if there is not None:
        return there
    if from_zip is not None:
        return _from_zip(from_zip, to, most_bytes=most_bytes, most_members=most_members)
    return _from_kaggle(to)


def _partial(to: Path) -> Path:
    return to.with_name(f"{to.name}.partial")


def _already_there(to: Path, from_zip: Path | None) -> Downloaded | None:
    """The dataset that `to` holds; None where it can be made there."""
    if not to.exists():
        return None
    if not to.is_dir():
        raise UserError(f"{to}: must be a folder, found a file")
    if not any(to.iterdir()):
        if to.is_mount() or to == Path.cwd():
            # The finished tree takes the folder's place by a rename, which these two do not survive.
            raise UserError(
                f"{to}: must be a new folder, found a mount point or the current folder",
                hint=f"name a folder inside it, for example {to / 'radiography'}",
            )
        return None
    inner, counts = _count(_files_below(to))
    marker = _read_marker(to)
    # Beside a marker any class will do; without one the folder could be a collection of other datasets.
    if len(counts) < 2 or (marker is None and not {*map(_plain, counts)} & {*map(_plain, PUBLISHED)}):
        what = "a download from which the films were removed" if marker else "something else"
        raise UserError(
            f"{to}: must be new, empty, or hold a folder of images for each class of the dataset, found {what}",
            hint=ELSEWHERE,
        )
    if marker is None:
        if from_zip is not None:
            raise UserError(
                f"{to}: holds class folders already, nothing is unpacked over them",
                hint=ELSEWHERE,
            )
        return Downloaded(folder=to / inner, counts=counts, version=None, came="folder", warnings=_differences(counts))
    if from_zip is not None and marker["version"] != (version := f"sha256:{sha256_of(from_zip)}"):
        raise UserError(
            f"{to}: holds a finished download of version {marker['version']} already, found {version} in {from_zip}",
            hint=ELSEWHERE,
        )
    warnings = _differences(counts)
    if counts != marker["counts"]:
        changed = "; ".join(
            f"{name} {marker['counts'].get(name, 0):,} then, {counts.get(name, 0):,} now"
            for name in sorted({*counts, *marker["counts"]})
            if counts.get(name) != marker["counts"].get(name)
        )
        warnings = (f"{to}: films were added or removed since the download: {changed}", *warnings)
    return Downloaded(
        folder=to / inner, counts=counts, version=marker["version"], came=marker["came"], warnings=warnings
    )


def _read_marker(to: Path) -> dict[str, Any] | None:
    file = to / MARKER
    if not file.exists():
        return None
    marker = read_json(file)
    wanted = {"came": str, "counts": dict, "version": str | None}
    if not isinstance(marker, dict) or not all(isinstance(marker.get(key), kind) for key, kind in wanted.items()):
        raise UserError(f"{file}: must be what a finished download wrote, found something else", hint="delete it")
    return marker


def _finish(tree: Path, to: Path, *, films: int | None, came: str, version: str | None) -> Downloaded:
    """Give a complete tree, of `films` films where that is known, its marker and then its name."""
    inner, counts = _count(_files_below(tree))
    if films is not None and films != sum(counts.values()):
        raise UserError(
            f"{tree}: must hold {films:,} films by now, found {sum(counts.values()):,}",
            hint="is a second run at work there? run again when it has ended",
        )
    if hasattr(os, "sync"):  # Tens of thousands of small files: one flush before the marker, not one each.
        os.sync()
    marker = {
        "dataset": HANDLE,
        "came": came,
        "version": version,
        "counts": counts,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(tree / MARKER, marker)
    with saying_why_not_written(to):
        if to.exists():
            to.rmdir()
        tree.rename(to)
    _tidy(_partial(to))
    return Downloaded(folder=to / inner, counts=counts, version=version, came=came, warnings=_differences(counts))


def _tidy(partial: Path) -> None:
    """Delete what this module put into `partial`, and nothing of what somebody else may have put there."""
    # Leftovers are only a waste of space: failing to delete them is no reason to fail.
    for ours in [*partial.glob("zip-*"), partial / "kaggle"]:
        shutil.rmtree(ours, ignore_errors=True)
    with contextlib.suppress(OSError):
        for ours in partial.glob("writing-*.tmp"):
            ours.unlink()
        partial.rmdir()


# --- what a tree holds ---


def _files_below(root: Path) -> Iterator[PurePosixPath]:
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not _is_passed_over(name) and name.lower() not in MASK_FOLDERS]
        below = PurePosixPath(Path(place).relative_to(root).as_posix())
        yield from (below / name for name in files)


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


def _count(files: Iterable[PurePosixPath]) -> tuple[PurePosixPath, dict[str, int]]:
    """Count films by class, from names alone, so that a zip can be looked at before it is unpacked.

    The layouts are those of :func:`vgg16_xray.films.dataset.scan`, which reads more than names and, for the Kaggle
    tree, needs the extra ``train``.

    Args:
        files: Paths below one root.

    Returns:
        The folder that holds the class folders, below the root, and the number of films of each class.
    """
    films = [
        file.parts
        for file in files
        if file.suffix.lower() in SUFFIXES
        and not any(_is_passed_over(part) for part in file.parts)
        and not any(part.lower() in MASK_FOLDERS for part in file.parts[:-1])
    ]
    inner = PurePosixPath()
    while len({film[0] for film in films if len(film) > 1}) == 1:
        deeper = [film[1:] for film in films if len(film) > 1]
        if all(len(film) == 1 or film[0].lower() == "images" for film in deeper):
            break
        inner /= next(film[0] for film in films if len(film) > 1)
        films = deeper
    films = [film for film in films if len(film) > 1]
    sides = {SIDE_NAMES.get(film[0].lower()) for film in films}
    level = 1 if TRAIN in sides and len(sides) > 1 and None not in sides else 0
    counts = Counter(film[level] for film in films if len(film) > level + 1)
    return inner, dict(sorted(counts.items()))


def _differences(counts: Mapping[str, int]) -> tuple[str, ...]:
    """One line that compares with the published numbers; nothing where all agree."""
    differ = [
        f"{name} expected {_number(PUBLISHED.get(name, 0))}, found {_number(counts.get(name, 0))}"
        for name in [*PUBLISHED, *(name for name in counts if name not in PUBLISHED)]
        if PUBLISHED.get(name, 0) != counts.get(name, 0)
    ]
    if not differ:
        return ()
    return (
        f"films per class are not those of the published dataset: {'; '.join(differ)}; "
        "right for another version, a part or other data, otherwise something is missing",
    )


def _number(count: int) -> str:
    return f"{count:,}" if count else "none"


def _plain(name: str) -> str:
    """``Viral Pneumonia``, ``viral_pneumonia`` and ``Viral-Pneumonia`` alike."""
    return re.sub(r"[\s_-]+", " ", name).casefold()


# --- a zip ---


def _from_zip(zipped: Path, to: Path, *, most_bytes: int, most_members: int) -> Downloaded:
    partial = _partial(to)
    with _opened(zipped) as archive:
        members = _check_members(zipped, archive.infolist(), most_bytes=most_bytes, most_members=most_members)
        _, counts = _count(map(PurePosixPath, members))
        if len(counts) < 2:
            raise UserError(
                f"{zipped}: must hold a folder of images for each of at least two classes, found "
                + (f"one, '{next(iter(counts))}'" if counts else "none"),
                hint=f"the zip to bring is the one of {URL}",
            )
        sha256 = sha256_of(zipped)
        # The name says which zip it is of: what was unpacked of another one is not mixed in.
        tree = partial / f"zip-{sha256[:16]}"
        _unpack(zipped, archive, members, tree, partial / f"writing-{os.getpid()}.tmp", most_bytes=most_bytes)
    return _finish(tree, to, films=sum(counts.values()), came="zip", version=f"sha256:{sha256}")


@contextlib.contextmanager
def _opened(zipped: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(zipped)
    except OSError as error:
        raise UserError(f"{zipped}: cannot be read ({error.strerror or error})") from error
    except _DAMAGED as error:
        raise UserError(
            f"{zipped}: must be a whole zip file, found a damaged or cut off one ({error})", hint="download it again"
        ) from error
    with archive:
        yield archive


def _check_members(
    zipped: Path, infos: list[zipfile.ZipInfo], *, most_bytes: int, most_members: int
) -> dict[str, zipfile.ZipInfo]:
    """Refuse a zip that would write outside the folder, or more than it may, before anything is written.

    Returns:
        The files, by their path below the target with forward slashes. A member that is there twice with the same
        content is taken once.
    """
    if len(infos) > most_members:
        raise UserError(f"{zipped}: must have at most {most_members:,} members, found {len(infos):,}")
    files: dict[str, zipfile.ZipInfo] = {}
    #: Every file and folder in the spelling that came first, by what a disk that ignores case makes of it.
    spelled: dict[str, str] = {}
    folders: set[str] = set()
    for info in infos:
        name = info.orig_filename
        parts = _safe_parts(zipped, info)
        paths = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        for path in paths:
            first = spelled.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
            if first != path:
                raise UserError(
                    f"{zipped}: member {name!r}: must differ from the others by more than upper and lower case, "
                    f"found {first!r} too"
                )
        folders.update(paths if info.is_dir() else paths[:-1])
        if info.is_dir():
            continue
        before = files.setdefault(paths[-1], info)
        if (before.CRC, before.file_size) != (info.CRC, info.file_size):
            raise UserError(f"{zipped}: member {name!r}: must be there once, found two with different content")
    if both := sorted(folders & files.keys()):
        raise UserError(f"{zipped}: member {both[0]!r}: must be a file or a folder, found both")
    size = sum(info.file_size for info in files.values())
    if size > most_bytes:
        raise UserError(f"{zipped}: must unpack to at most {most_bytes:,} bytes, found {size:,}")
    return files


def _safe_parts(zipped: Path, info: zipfile.ZipInfo) -> tuple[str, ...]:
    """The member's path in parts, when it is a plain file or folder below the target."""
    # zipfile cuts `filename` at a null byte and swaps separators; the original is what other programs would see.
    name = info.orig_filename
    where = f"{zipped}: member {name!r}"
    parts = PurePosixPath(name).parts
    absolute = name.startswith("/") or re.match("[A-Za-z]:", name)
    if not parts or absolute or ".." in parts or "\\" in name or "\0" in name:
        raise UserError(f"{where}: its path must stay below the folder that it is unpacked to")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        raise UserError(
            f"{where}: must be a plain file or folder, found a {'link' if kind == stat.S_IFLNK else 'special file'}"
        )
    if info.flag_bits & 0x1:  # Bit 0 of the general purpose flag, APPNOTE.TXT 4.4.4.
        raise UserError(f"{where}: must not be encrypted, found an encrypted one")
    return parts


def _unpack(
    zipped: Path,
    archive: zipfile.ZipFile,
    members: Mapping[str, zipfile.ZipInfo],
    tree: Path,
    temporary: Path,
    *,
    most_bytes: int,
) -> None:
    """Write every member that is not there yet with the right size and CRC."""
    with saying_why_not_written(tree):
        tree.mkdir(parents=True, exist_ok=True)
    missing = {path: info for path, info in members.items() if not _is_intact(tree / path, info)}
    needed, free = sum(info.file_size for info in missing.values()), shutil.disk_usage(tree).free
    if needed > free:
        raise UserError(f"{tree}: unpacking needs {needed:,} bytes, found {free:,} free on the disk")
    left = most_bytes - sum(info.file_size for path, info in members.items() if path not in missing)
    try:
        with progress("unpack", total=len(members), unit="files") as counter:
            counter.start_at(len(members) - len(missing))
            for path, info in missing.items():
                left -= _unpack_one(zipped, archive, info, tree / path, temporary, at_most=left)
                counter.advance()
    finally:
        temporary.unlink(missing_ok=True)


def _is_intact(file: Path, info: zipfile.ZipInfo) -> bool:
    if not file.is_file() or file.stat().st_size != info.file_size:
        return False
    crc = 0
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc == info.CRC


def _unpack_one(
    zipped: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, temporary: Path, *, at_most: int
) -> int:
    """Write one member under a temporary name, and rename it when its CRC was right; return its size in bytes."""
    written = 0
    with saying_why_not_written(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as out:
            for chunk in _content(zipped, archive, info):
                written += len(chunk)
                if written > at_most:  # What a member declares can be a lie: what counts is what comes out.
                    raise UserError(f"{zipped}: member {info.filename!r}: unpacks to more than the limit leaves")
                out.write(chunk)
        if written != info.file_size:
            raise UserError(
                f"{zipped}: member {info.filename!r}: must unpack to {info.file_size:,} bytes, found {written:,}"
            )
        temporary.replace(target)
    return written


def _content(zipped: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The member's bytes, piece by piece; zipfile compares the CRC behind the last one."""
    try:
        with archive.open(info) as opened:
            while chunk := opened.read(_CHUNK):
                yield chunk
    except _DAMAGED as error:
        raise UserError(
            f"{zipped}: member {info.filename!r}: cannot be unpacked, the zip is damaged or cut off ({error})",
            hint="download it again; what was unpacked is kept",
        ) from error


# --- Kaggle ---


def _from_kaggle(to: Path) -> Downloaded:
    require("kaggle", purpose="vgg16-xray download")
    partial = _partial(to)
    cache = partial / "kaggle"
    with saying_why_not_written(partial):
        cache.mkdir(parents=True, exist_ok=True)
    try:
        found = _fetch(cache)
    except Exception as error:
        # kagglehub lets through whatever requests, zipfile, json and the file system raise.
        if _is_broken_archive(error):
            shutil.rmtree(cache, ignore_errors=True)
        kept = any(file.is_file() for file in partial.rglob("*"))
        if not kept:
            _tidy(partial)
        raise UserError(
            f"{to}: the dataset could not be fetched from Kaggle: {_reason(error)}",
            hint=("what was fetched is kept and the same command goes on from there; " if kept else "")
            + f"by hand: download the zip from {URL} in a browser, "
            + f"then: vgg16-xray download --from-zip FILE --to {shlex.quote(str(to))}",
        ) from error
    matched = re.search(r"/versions/(\d+)$", found.as_posix())
    version = matched[1] if matched else None
    if found.resolve().is_relative_to(cache.resolve()):
        if len(_count(_files_below(found))[1]) < 2:
            # An answer that is no dataset, which kagglehub would from now on call complete (to it, zeros are a tar).
            shutil.rmtree(cache, ignore_errors=True)
            _tidy(partial)
            raise UserError(f"{to}: Kaggle must give a folder of images for each class, found none in {HANDLE}")
        return _finish(found, to, films=None, came="kaggle", version=version)
    # In notebooks of Kaggle and Colab the dataset is mounted read-only: copying it would be a gigabyte for nothing.
    _tidy(partial)
    inner, counts = _count(_files_below(found))
    notice = f"this notebook has the dataset at {found / inner}: nothing was copied to {to}"
    return Downloaded(
        folder=found / inner, counts=counts, version=version, came="kaggle", warnings=(notice, *_differences(counts))
    )


def _fetch(cache: Path) -> Path:
    """Let kagglehub fetch the newest version into `cache`, with its own progress, rate and time left."""
    name = "KAGGLEHUB_CACHE"
    before = os.environ.get(name)
    os.environ[name] = str(cache)
    try:
        # kagglehub speaks on standard output, which belongs to the command's result.
        with contextlib.redirect_stdout(sys.stderr):
            import kagglehub

            return Path(kagglehub.dataset_download(HANDLE))
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _is_broken_archive(error: Exception) -> bool:
    """Whether what was fetched is useless: kagglehub would take it for complete again and again."""
    if isinstance(error, (zipfile.BadZipFile, zlib.error, EOFError)):
        return True
    return isinstance(error, ValueError) and "archive" in str(error).lower()


def _reason(error: Exception) -> str:
    import requests  # Comes with kagglehub.

    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        if status in (401, 403):
            return f"Kaggle refuses access (HTTP {status}), perhaps for want of a token, https://www.kaggle.com/settings/api"
        return f"Kaggle answers with HTTP {status}"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, (requests.ConnectionError, requests.Timeout)):
        return "no connection to Kaggle, is there a network?"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {str(error)[:200]}"
