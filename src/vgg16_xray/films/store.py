"""Pixels once: every film decoded, stretched and kept as one memory-mapped array on the disk."""

from __future__ import annotations

import mmap
import os
import shutil
from pathlib import Path

import numpy as np

from vgg16_xray.errors import UserError
from vgg16_xray.files import saying_why_not_written, size_in_words

#: After so many bytes were read, the pages are handed back to the system, so that a process that has walked through
#: a store of any size holds at most about so much of it.
RELEASE_AFTER_BYTES = 64 * 1024 * 1024


class ArrayStore:
    """An array of rows in a ``.npy`` file, read row by row without ever being held in memory as a whole.

    Args:
        path: A ``.npy`` file of shape (N, ...).

    Raises:
        UserError: The file is missing, truncated, or not such an array.
    """

    def __init__(self, path: Path) -> None:
        try:
            # Not np.load: it would also open a zip archive of arrays, or offer to unpickle.
            self._rows = np.lib.format.open_memmap(path, mode="r")
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file") from error
        except Exception as error:
            # A damaged header makes numpy raise ValueError, OSError, SyntaxError, tokenize.TokenError, ...
            raise UserError(
                f"{path}: must be a whole .npy array, found {error}",
                hint="delete it, and the command that made it makes it again",
            ) from error
        if not self._rows.ndim:
            raise UserError(f"{path}: must be an array of rows, found a single number")
        self.path = path
        self._read_bytes = 0

    def __len__(self) -> int:
        """Number of rows, N."""
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return tuple(self._rows.shape)

    @property
    def dtype(self) -> np.dtype:
        """The array's dtype."""
        return self._rows.dtype

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Copy rows.

        Args:
            indices: (B,) int, each in 0..N-1, in any order, repeats allowed.

        Returns:
            (B, ...) in the store's dtype, a copy.

        Raises:
            IndexError: An index is outside 0..N-1 (negative ones too: they would silently be another film).
        """
        indices = np.asarray(indices)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"indices: must lie in 0..{len(self) - 1}, found {indices.min()}..{indices.max()}")
        rows = np.asarray(self._rows[indices])
        self._read_bytes += rows.nbytes
        if self._read_bytes >= RELEASE_AFTER_BYTES:
            self._release()
        return rows

    def _release(self) -> None:
        self._read_bytes = 0
        release(self._rows)


def create_array(path: Path, *, shape: tuple[int, ...], dtype: type) -> np.memmap:
    """Create a ``.npy`` file whose room on the disk is taken at once, and map it for writing.

    Without that, a disk that fills up later would end the process with a bus error in the middle of a row.

    Raises:
        UserError: The disk has no room for it, or the folder cannot be written.
    """
    needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with saying_why_not_written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if needed > (free := shutil.disk_usage(path.parent).free):
            raise UserError(f"{path}: needs {size_in_words(needed)} of disk, found {size_in_words(free)} free")
        rows = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            try:
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError:
                path.unlink()  # Else what it took of a full disk would stay taken.
                raise
    return rows


def release(rows: np.ndarray) -> None:
    """Hand the resident pages of a memory-mapped array back to the system; what they hold stays in the file."""
    mapped = getattr(rows, "_mmap", None)
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
