"""The committed page of results says what the committed files of the runs say."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_page_of_results_is_what_the_script_writes_from_the_files_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("collect_results", ROOT / "scripts" / "collect_results.py")
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    copied = Path(shutil.copytree(ROOT / "docs" / "results", tmp_path / "results"))
    (copied / "README.md").unlink()
    monkeypatch.setattr(script, "RESULTS", copied)
    monkeypatch.setattr("sys.argv", ["collect_results.py"])
    script.main()
    assert (copied / "README.md").read_text("utf-8") == (ROOT / "docs" / "results" / "README.md").read_text("utf-8")
