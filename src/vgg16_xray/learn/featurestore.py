"""What the frozen part yields, computed once and kept in half precision where all runs find it.

A store is a folder of shards. A shard holds the features of :data:`SHARD` films that follow each other, is a ``.npy``
file of its own, has its final name only when it is whole, and carries the checksum of its bytes in that name: file and
checksum cannot be parted by a kill. A shard that is not there, or not what its name says, is made (again).
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import shutil
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray import __version__, ranks
from vgg16_xray.errors import UserError
from vgg16_xray.files import read_json, saying_why_not_written, size_in_words, write_json
from vgg16_xray.films.store import RELEASE_AFTER_BYTES, release
from vgg16_xray.learn.devices import rows_on
from vgg16_xray.learn.engines import machine_in_words
from vgg16_xray.learn.features import FeatureSource, in_half_precision
from vgg16_xray.progress import progress
from vgg16_xray.rundir import CACHE_VARIABLE, CacheDir, StoreDir

if TYPE_CHECKING:
    import torch

#: Raised when the same films, weights and engine would give other features than before: stores outlive versions.
VERSION = 1
#: Films that go through the frozen part together. Fixed: rounding may differ with the size of a batch.
CHUNK = 32
#: Films of a shard, what a kill can cost: a minute on two cores. A multiple of CHUNK, so that batches are the same
#: whichever shards are made.
SHARD = 512
#: Seconds after which a shared folder surely shows what another machine wrote: NFS keeps a listing for up to 60.
SHOWN_AFTER_S = 90.0
#: Bytes that are read at once when a checksum is verified.
BLOCK_BYTES = 16 * 1024 * 1024
#: Linux maps more of a file than the row that is read: the whole large folio in which it lies, up to a huge page.
FAULT_AROUND_BYTES = 2 * 1024 * 1024

#: Shards whose checksum this process found right: path, inode, size, time of change.
_verified: set[tuple[str, int, int, int]] = set()


class StoredFeatures:
    """Reads features of films from the shards of a store; row i of the store is film i.

    Args:
        shards: (films, h, w, C) float16 each, mapped; all but the last of the same length.
        where: The store, for an error.
        rows: (n,) int, the only films that may be asked for; None: all.
        device: Where features are wanted; None: the processor.
    """

    def __init__(
        self,
        shards: Sequence[np.ndarray],
        *,
        where: Path,
        rows: np.ndarray | None = None,
        device: torch.device | None = None,
    ) -> None:
        import torch

        self._mapped, self._where = shards, where
        # Plain views: numpy's memmap class costs more for a row than the row.
        self._shards = [np.asarray(shard) for shard in shards]
        self._of_shard = len(shards[0])
        self._held = np.zeros(sum(len(shard) for shard in shards), dtype=bool)
        self._held[slice(None) if rows is None else rows] = True
        self._touched: set[int] = set()
        self._touched_bytes = 0
        self._rows = rows_on(_Shards(self), device or torch.device("cpu"))

    def only(self, rows: np.ndarray) -> StoredFeatures:
        """The same store, in which these films (n,) alone may be asked for."""
        same = copy.copy(self)
        same._held = np.zeros_like(self._held)
        same._held[rows] = True
        return same

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """See :class:`vgg16_xray.learn.features.FeatureSource`.

        Raises:
            KeyError: A film is not in the store, or may not be asked for.
        """
        rows = np.asarray(rows)
        inside = (rows >= 0) & (rows < len(self._held))
        if not inside.all() or not self._held[rows].all():
            raise KeyError(f"{self._where}: holds no features of some of the rows {rows}")
        return self._rows.take(rows).permute(0, 3, 1, 2).float()

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """(B, h, w, C) float16, from the disk."""
        out = np.empty((len(rows), *self._shards[0].shape[1:]), dtype=np.float16)
        shards, places = np.divmod(rows, self._of_shard)
        for i, (shard, at) in enumerate(zip(shards.tolist(), places.tolist(), strict=True)):
            out[i] = self._shards[shard][at]
            self._touched.add(shard)
        self._touched_bytes += out.nbytes + len(rows) * FAULT_AROUND_BYTES
        if self._touched_bytes >= RELEASE_AFTER_BYTES:
            for shard in self._touched:
                release(self._mapped[shard])
            self._touched, self._touched_bytes = set(), 0
        return out


@dataclass(frozen=True)
class _Shards:
    """The shards of a store as one array: a :class:`vgg16_xray.learn.devices.Readable`."""

    of: StoredFeatures
    dtype = np.dtype(np.float16)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.of._held), *self.of._shards[0].shape[1:])

    def take(self, indices: np.ndarray) -> np.ndarray:
        return self.of._read(indices)


def store_features(
    source: FeatureSource,
    *,
    films: int,
    shape: tuple[int, int, int],
    store: StoreDir,
    words: Mapping[str, Any],
    title: str,
    device: torch.device | None = None,
) -> StoredFeatures:
    """Compute features of films once and keep them; make only what is missing or damaged.

    Two runs that want the same store do not make it twice: the second waits for the first. The ranks of one run share
    the making, under the lock that the first of them holds.

    Args:
        source: Computes the features of films 0 to `films` - 1.
        films: N.
        shape: (C, h, w) of one film's features.
        store: Where to keep them. Its name must tell everything that the features depend on.
        words: What they are, for ``store.json``: read by people, never by the program.
        title: The same in a few words, for the line and the progress bar.
        device: Where they will be wanted; None: the processor.

    Raises:
        UserError: The disk has no room for them, or cannot be written.
    """
    maker = _Maker(source, films, shape, store, words, title)
    shards = maker.open()
    if ranks.agree(len(shards)) < maker.count:
        with ranks.held_by_first(_alone(store)):
            maker.make()
            ranks.wait()
            shards = maker.open()
    if len(shards) < maker.count:
        shards = maker.open(wait_s=SHOWN_AFTER_S if ranks.size() > 1 else 0)
        if len(shards) < maker.count:
            raise UserError(
                f"{store.path}: must hold what was written to it, found other bytes", hint="the disk may be failing"
            )
    # When it was used last; a cache that can only be read is as good.
    with contextlib.suppress(OSError):
        if ranks.first():
            os.utime(store.description)
    return StoredFeatures([shards[number] for number in range(maker.count)], where=store.path, device=device)


@dataclass(frozen=True)
class _Maker:
    source: FeatureSource
    films: int
    shape: tuple[int, int, int]
    store: StoreDir
    words: Mapping[str, Any]
    title: str

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-self.films // SHARD)

    def rows(self, number: int) -> np.ndarray:
        """(n,) films of a shard."""
        return np.arange(number * SHARD, min((number + 1) * SHARD, self.films))

    def shape_of(self, number: int) -> tuple[int, int, int, int]:
        """(n, h, w, C) of a shard."""
        channels, height, width = self.shape
        return len(self.rows(number)), height, width, channels

    def bytes_of(self, numbers: Collection[int]) -> int:
        """Bytes of the features of shards."""
        return sum(int(np.prod(self.shape_of(number))) * 2 for number in numbers)

    def open(self, *, wait_s: float = 0) -> dict[int, np.ndarray]:
        """Map the shards that are what their names say, {number: (n, h, w, C) float16}; wait for those that are not."""
        until = time.monotonic() + wait_s
        while len(shards := self._open()) < self.count and time.monotonic() < until:
            time.sleep(1)
        return shards

    def _open(self) -> dict[int, np.ndarray]:
        shards = {}
        for number, checksum, path in self.store.shards():
            if number < self.count and number not in shards:
                rows = _open(path, checksum, self.shape_of(number))
                if rows is not None:
                    shards[number] = rows
        return shards

    def make(self) -> None:
        """Make what is missing, a rank the next shard whenever it has made one."""
        missing = ranks.agree(self._prepare() if ranks.first() else [])
        if not missing:
            return
        with progress(self.title, total=self.films) as bar:
            bar.start_at(self.films - sum(len(self.rows(number)) for number in missing))
            for turn in ranks.turns(len(missing)):
                # Those before were given to this rank or to others.
                bar.advance(self.films - sum(len(self.rows(number)) for number in missing[turn:]) - bar.done)
                self._make(missing[turn], bar.advance)

    def _prepare(self) -> list[int]:
        """Which shards are to be made; what is damaged goes first, so that it takes no room."""
        good = self.open()
        for number, _, path in self.store.shards():
            if number not in good:
                print(f"{path}: not what its checksum says; it is made again", flush=True)
                with saying_why_not_written(path):
                    path.unlink()
        missing = [number for number in range(self.count) if number not in good]
        if not missing:
            return missing
        self._find_room(missing)
        write_json(
            self.store.description,
            {
                **self.words,
                "films": self.films,
                "shape": list(self.shape),
                "format": "float16, a row a film, (h, w, C)",
                "bytes": self.bytes_of(range(self.count)),
                "shards": self.count,
                "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "made_on": machine_in_words(),
                "made_by": f"vgg16-xray {__version__}",
            },
        )
        return missing

    def _find_room(self, missing: Sequence[int]) -> None:
        channels, height, width = self.shape
        whole, needed = self.bytes_of(range(self.count)), self.bytes_of(missing)
        free = shutil.disk_usage(self.store.path).free
        there = f", {size_in_words(whole - needed)} of it there" if needed < whole else ""
        print(
            f"{self.title}: {self.films:,} films x {height} x {width} x {channels} in half precision, "
            f"{size_in_words(whole)}{there}; {size_in_words(free)} free; kept in {self.store.path}",
            flush=True,
        )
        if needed > free:
            raise UserError(
                f"{self.store.path}: needs {size_in_words(needed)} of disk, found {size_in_words(free)} free",
                hint=f"'vgg16-xray cache clear' makes room, {CACHE_VARIABLE} names another folder",
            )

    def _make(self, number: int, advance: Callable[[int], None]) -> None:
        unfinished = self.store.unfinished(number)
        rows = self.rows(number)
        try:
            with saying_why_not_written(unfinished):
                with unfinished.open("wb") as file:
                    checksum = zlib.crc32(header := _header(self.shape_of(number)))
                    file.write(header)
                    for start in range(0, len(rows), CHUNK):
                        chunk = rows[start : start + CHUNK]
                        block = _as_kept(self.source.take(chunk)).data
                        checksum = zlib.crc32(block, checksum)
                        file.write(block)
                        advance(len(chunk))
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.replace(self.store.shard(number, checksum))
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink()


def _as_kept(features: torch.Tensor) -> np.ndarray:
    """(B, C, h, w) of any float dtype -> (B, h, w, C) float16, contiguous."""
    rounded: np.ndarray = in_half_precision(features).permute(0, 2, 3, 1).cpu().numpy()
    return np.ascontiguousarray(rounded, dtype="<f2")


def _header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _open(path: Path, checksum: int, shape: tuple[int, ...]) -> np.ndarray | None:
    """Map a shard; None where it is not what its name and its store say."""
    try:
        state = path.stat()
        seen = (str(path), state.st_ino, state.st_size, state.st_mtime_ns)
        if seen not in _verified and _checksum(path) != checksum:
            return None
        rows = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):
        return None
    if rows.shape != shape or rows.dtype != np.float16:
        return None
    _verified.add(seen)
    return rows


def _checksum(path: Path) -> int:
    """CRC-32 of a file.

    The cache is guarded against a disk and a kill, not against a forger: CRC-32 finds every flip of up to 32 bits in a
    row and all but one in 4e9 of other damage, at the rate of the disk; BLAKE2b is slower (benchmarks/features.py).
    """
    checksum = 0
    with path.open("rb", buffering=0) as file:
        block = bytearray(BLOCK_BYTES)
        while size := file.readinto(block):
            checksum = zlib.crc32(memoryview(block)[:size], checksum)
    return checksum


@contextlib.contextmanager
def _alone(store: StoreDir, *, wait: bool = True) -> Iterator[bool]:
    """Hold a store; gives False where another process holds it and `wait` is False. A process that dies lets go."""
    import fcntl

    with contextlib.ExitStack() as held:
        mine = None
        while mine is None:
            # Not found: the store was cleared between two of these lines.
            with saying_why_not_written(store.path), contextlib.suppress(FileNotFoundError):
                store.path.mkdir(parents=True, exist_ok=True)
                lock = held.enter_context(store.lock.open("a"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not wait:
                        mine = False
                        continue
                    print(f"{store.path}: another process makes these features; waiting for it", flush=True)
                    fcntl.flock(lock, fcntl.LOCK_EX)
                # Else it is the lock of a folder that is no more.
                if os.path.samestat(os.fstat(lock.fileno()), store.lock.stat()):
                    mine = True
        yield mine


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A store in the cache, as the command line lists it."""

    store: StoreDir
    #: What ``store.json`` says; empty where it cannot be read.
    words: Mapping[str, Any]
    bytes: int
    #: Shards that are there. Their checksums are verified by who uses them.
    shards: int
    #: Seconds since the epoch.
    used: float

    def __str__(self) -> str:
        """One line: size, when it was used last, name, what it is."""
        of = self.words.get("shards", self.shards)
        whole = "" if self.shards == of else f", {self.shards} of {of} shards"
        what = self.words.get("what", "nothing tells what it is")
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used))
        return f"{size_in_words(self.bytes):>9}  used {used}  {self.store.path.name}  {what}{whole}"


def stored(cache: CacheDir) -> list[Stored]:
    """What is in the cache, the least recently used first."""
    found = []
    for store in cache.stores():
        with contextlib.suppress(OSError):  # A store that another process clears just now is none.
            words: Any = {}
            used = store.path.stat().st_mtime
            with contextlib.suppress(UserError, OSError):
                words = read_json(store.description)
                used = store.description.stat().st_mtime
            found.append(
                Stored(
                    store=store,
                    words=words if isinstance(words, dict) else {},
                    bytes=_bytes_in(store.path),
                    shards=len({number for number, _, _ in store.shards()}),
                    used=used,
                )
            )
    return sorted(found, key=lambda one: (one.used, one.store.path.name))


def clear(cache: CacheDir, *, older_than_days: float = 0.0) -> tuple[list[Stored], list[Stored]]:
    """Remove stores that were not used for so many days; a process that reads one of them goes on reading.

    Returns:
        What was removed, and what was left because a process is making it.

    Raises:
        UserError: The folder cannot be written.
    """
    removed, busy = [], []
    for one in stored(cache):
        if older_than_days and time.time() - one.used < older_than_days * 86_400:
            continue
        with _alone(one.store, wait=False) as alone:
            if not alone:
                busy.append(one)
                continue
            # Out of the way first, in one step: who wants this store now makes a new one.
            with saying_why_not_written(one.store.path):
                one.store.path.replace(one.store.leaving)
        removed.append(one)
    for rest in cache.leaving():  # Those of a call that was killed, too.
        with saying_why_not_written(rest):
            shutil.rmtree(rest)
    return removed, busy


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # A shard that is being made has just got its name.
            total += file.stat().st_size
    return total
