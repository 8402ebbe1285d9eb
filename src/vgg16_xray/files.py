"""Files and folders that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vgg16_xray.errors import UserError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error.

    The content is on the disk before the name is, so a reader, or a machine that lost power, sees the old file or the
    new one and never half of either. A block that raises leaves neither the temporary file nor a changed `path`.
    Where `path` is a link, the file that it leads to is replaced, and the link stays.

    Raises:
        UserError: The disk is full, the folder cannot be written, or a device or pipe stands there, which is left.
    """
    with saying_why_not_written(path):
        if is_device(path):
            raise UserError(f"{path}: must be a file, found a device or pipe")
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with saying_why_not_written(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(target)
    finally:
        # Nothing to remove where a folder of the path is a file or closed to us; then the error above counts.
        with suppress(OSError):
            temporary.unlink()


def is_device(path: Path) -> bool:
    """Whether something stands there, perhaps behind a link, that is neither file nor folder.

    Raises:
        OSError: It cannot be found out.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def replace_folder(new: Path, old: Path) -> None:
    """Let a folder take the name of another, which is removed; a process killed meanwhile leaves one of both there.

    Where the system cannot exchange two folders in one step (Windows, some network file systems), a kill between two
    steps leaves the old one under the name of the new one with ``.old`` behind it.

    Args:
        new: The folder, whole.
        old: The name that it shall have, on the same file system; a folder there, or nothing.

    Raises:
        UserError: It cannot be renamed.
    """
    with saying_why_not_written(old):
        if not old.exists():
            new.rename(old)
            return
        if _exchange(new, old):
            shutil.rmtree(new)
            return
        aside = new.with_name(f"{new.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        old.rename(aside)
        new.rename(old)
        shutil.rmtree(aside)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system cannot. Python's ``os`` does not offer it."""
    at, exchange = (-100, 2) if sys.platform == "linux" else (-2, 2)  # AT_FDCWD, RENAME_EXCHANGE or RENAME_SWAP
    try:
        library = ctypes.CDLL(None)
        rename = library.renameat2 if sys.platform == "linux" else library.renameatx_np
    except (AttributeError, OSError, TypeError):
        return False
    return bool(rename(at, os.fsencode(one), at, os.fsencode(other), exchange) == 0)


@contextmanager
def saying_why_not_written(path: Path) -> Iterator[None]:
    """Turn an operating-system error while `path` is written into one line that names it."""
    try:
        yield
    except OSError as error:
        # PermissionError and "No space left on device" arrive here; errors of reading carry their own file name.
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error})", hint="nothing finished was lost"
        ) from error


def require_writable(folder: Path) -> None:
    """Refuse a folder before long work if no file can be written into it, or if it cannot be made; makes nothing.

    Raises:
        UserError: It cannot be written into, or its nearest parent that there is cannot.
    """
    with saying_why_not_written(folder):
        there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        with tempfile.TemporaryFile(dir=there):
            pass


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all; floats that are not finite are refused rather than written as NaN."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: must be JSON, found {error}") from error


def size_in_words(count: float) -> str:
    """Bytes as people read them: ``1.84 GB``."""
    units = ("B", "KB", "MB", "GB")
    power = next((power for power in range(3) if count < 1000 ** (power + 1)), 3)
    return f"{count / 1000**power:,.{2 if power == 3 else 0}f} {units[power]}"
