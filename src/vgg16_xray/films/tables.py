"""CSV tables as people and their spreadsheets write them.

Cells are parted by commas, semicolons (Excel, where the comma is the decimal sign) or tabs. The names of the columns
that mean something here (:data:`KNOWN`) count whatever their case and the blanks around them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from vgg16_xray.errors import UserError

#: Columns that mean something here: of a dataset's table, and of one that names masks.
KNOWN = frozenset(
    {"path", "label", "patient_id", "study_id", "origin", "source", "split", "mask", "image", "opacities", "lungs"}
)
#: What parts cells; of two that explain the first line equally well, the earlier one.
DELIMITERS = (",", ";", "\t")


def read_csv(file: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Read a table in UTF-8, with or without a byte-order mark.

    Args:
        file: The table; its first line names the columns.

    Returns:
        The rows, a text without surrounding blanks for every column (empty where a row ends early; what goes beyond the
        last column is dropped), and the columns in their order.

    Raises:
        UserError: It is not UTF-8 or no CSV, or names a column twice.
        OSError: It cannot be read.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            delimiter = _delimiter(opened.readline())
            opened.seek(0)
            lines = csv.reader(opened, delimiter=delimiter)
            columns = name_columns(next(lines, []), file=file)
            rows = [
                dict.fromkeys(columns, "") | dict(zip(columns, map(str.strip, line), strict=False))
                for line in lines
                if line
            ]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: must be a CSV table in UTF-8, found {error}", hint="a spreadsheet saves it as 'CSV UTF-8'"
        ) from error
    except csv.Error as error:
        raise UserError(f"{file}: must be a CSV table in UTF-8, found {error}") from error
    return rows, columns


def name_columns(header: Iterable[object], *, file: Path) -> list[str]:
    """The columns of a table by their names: the known ones in lower case, none with blanks around it.

    Raises:
        UserError: A known one stands there twice; the message names `file`.
    """
    columns = [_name(str(cell)) for cell in header]
    if twice := next((name for name in columns if name in KNOWN and columns.count(name) > 1), None):
        raise UserError(f"{file}: must name a column once, found '{twice}' {columns.count(twice)} times")
    return columns


def _name(cell: str) -> str:
    name = cell.strip()
    return name.lower() if name.lower() in KNOWN else name


def _delimiter(header: str) -> str:
    """The delimiter that makes the most known columns of the first line, then the most columns at all."""

    def explained(delimiter: str) -> tuple[int, int]:
        columns = [_name(cell) for cell in next(csv.reader([header], delimiter=delimiter), [])]
        return len(KNOWN.intersection(columns)), len(columns)

    return max(DELIMITERS, key=explained)
