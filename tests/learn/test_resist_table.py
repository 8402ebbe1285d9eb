"""The tables of docs/resist.md are those that the script prints of what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["resist.jsonl", "resist-fast.jsonl"])
def test_the_tables_are_what_the_script_prints(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE / "scripts"))
    import compare_resisting

    measured = [json.loads(line) for line in (HERE / "docs" / name).read_text("utf-8").splitlines()]
    tables = compare_resisting.table(measured).split("\n\n")
    written = (HERE / "docs" / "resist.md").read_text("utf-8")
    assert all(table in written for table in tables if table.startswith("|"))
    assert sum(table.startswith("|") for table in tables) == 3
