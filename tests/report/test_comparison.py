from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fabricate import LABELS, fabricate
from test_page import Page

from vgg16_xray.cli import _run
from vgg16_xray.report.comparison import forest, say_compared, write_comparison
from vgg16_xray.rundir import ComparisonDir, RunDir
from vgg16_xray.trust.compare import compare

HOSTILE = "<img src=x onerror=alert(1)> [b]&amp;"


def hashed_run(path: Path, **options: Any) -> RunDir:
    """A fabricated run in which hashes of pixels look like hashes: their first digits differ too."""
    run = fabricate(path, pixels=np.zeros((240, 1, 1), dtype=np.uint8), **options)
    manifest = pd.read_parquet(run.manifest)
    hashes = [hashlib.sha256(film.encode()).hexdigest() for film in manifest["pixels_sha256"]]
    manifest.assign(pixels_sha256=hashes).to_parquet(run.manifest)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunDir]:
    """Two runs on the same films, the second much better, and a third that is the first again."""
    folder = tmp_path_factory.mktemp("compared")
    poor, good = (hashed_run(folder / name, skill=skill) for name, skill in (("poor", 1.0), ("good", 4.0)))
    shutil.copytree(poor.path, folder / "again")
    return [poor, good, RunDir(folder / "again")]


@pytest.fixture(scope="module")
def found(runs: list[RunDir]) -> dict[str, Any]:
    return compare(runs, replicates=200)


def page_of(found: dict[str, Any], folder: Path) -> tuple[str, Page]:
    text = write_comparison(found, ComparisonDir(folder)).read_text("utf-8")
    return text, Page(text)


def test_the_page_asks_the_network_for_nothing_and_runs_no_script(found: dict[str, Any], tmp_path: Path) -> None:
    text, page = page_of(found, tmp_path)
    assert not re.search(r"https?:|@import|url\(", text)
    assert not page.attributes("script")
    (policy,) = [a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert (policy or "").startswith("default-src 'none'")
    for _, attributes in page.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))


def test_the_page_tells_the_verdicts_and_that_it_is_for_research(found: dict[str, Any], tmp_path: Path) -> None:
    _, page = page_of(found, tmp_path)
    assert "good is better in accuracy" in page.words
    assert "these films show no difference in accuracy" in page.words
    assert "Research use only. Not a medical device; not for diagnosis or treatment." in page.words
    assert "A run is one training." in page.words
    for label in LABELS:
        assert f"Sensitivity, {label}" in page.words
    (picture,) = page.attributes("img")
    assert (picture["src"] or "").startswith("data:image/png;base64,iVBOR")
    assert picture["alt"]


def test_the_numbers_lie_beside_the_page(found: dict[str, Any], tmp_path: Path) -> None:
    page_of(found, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "comparison.json").read_text("utf-8")) == found
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"comparison.html", "comparison.json"}


def test_the_same_comparison_gives_the_same_bytes(found: dict[str, Any], tmp_path: Path) -> None:
    assert page_of(found, tmp_path / "a")[0] == page_of(found, tmp_path / "b")[0]


def test_names_are_shown_and_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = (HOSTILE, "_a", "$x$")
    hostile = [hashed_run(tmp_path / name, labels=labels) for name in ("_run", "[b]run[b] & <i>")]
    found = compare(hostile, replicates=20)
    _, page = page_of(found, tmp_path / "out")
    assert len(page.attributes("img")) == 1
    assert not page.attributes("i")
    assert " ".join(HOSTILE.split()) in page.words
    assert "[b]run[b] & <i> against _run" in page.words
    say_compared(found)
    assert "[b]run[b] & <i> against _run" in capsys.readouterr().out


def test_figures_that_are_not_defined_are_a_dash(runs: list[RunDir], tmp_path: Path) -> None:
    """No paired film is of the rarest class."""
    copies = []
    for run in runs[:2]:
        copy = RunDir(Path(shutil.copytree(run.path, tmp_path / run.path.name)))
        manifest, said = pd.read_parquet(copy.manifest), pd.read_csv(copy.predictions, keep_default_na=False)
        side = np.where(manifest["label"] == LABELS[-1], "train", manifest["split"])
        manifest.assign(split=side).to_parquet(copy.manifest)
        said.assign(split=side).to_csv(copy.predictions, index=False)
        copies.append(copy)
    found = compare(copies, replicates=50)
    assert found["comparisons"][0]["per_class"][LABELS[-1]]["f1"]["difference"] is None
    _, page = page_of(found, tmp_path / "out")
    assert "not defined on these films" in page.words
    assert f"No paired film is of {LABELS[-1]}" in page.words


def test_the_picture_shows_as_many_runs_as_there_are(found: dict[str, Any]) -> None:
    two = {**found, "comparisons": found["comparisons"][:1]}
    high = [int.from_bytes(forest(each)[20:24], "big") for each in (two, found)]
    assert high[0] < high[1]


def test_the_terminal_shows_every_figure_with_its_verdict(
    found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    say_compared(found)
    out = capsys.readouterr().out
    assert "48 test films in 48 groups are paired by their pixels, none is left out" in out
    for run in ("good", "again"):
        assert f"{run} against poor: 48 films, 95 % intervals" in out
    (row, same) = [line for line in out.splitlines() if "│ Accuracy" in line]
    assert row.split("│")[5].strip() == "better"
    assert same.split("│")[4].strip() == "0.000"
    assert same.split("│")[5].strip() == "no difference shown"
    assert "Research use only" in out


def test_the_command_writes_json_alone_to_standard_output(
    runs: list[RunDir], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _run(["compare", *(str(run.path) for run in runs), "--format", "json", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads((out / "comparison.json").read_text("utf-8"))
    assert said.err == f"comparison: {out / 'comparison.html'}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}"], "runs: must be two or more, found 1"),
        (["{0}", "{1}", "--format", "csv"], "--format: must be one of table, json, found 'csv'"),
        (["{0}", "nowhere"], "nowhere: must be a run directory, found none"),
        (["{0}", "{1}", "--out", "{0}/run.toml"], "--out: must be a folder, found the file"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    runs: list[RunDir], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["compare", *(argument.format(*(run.path for run in runs)) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_report_shows_the_comparison_until_the_model_is_another(runs: list[RunDir], tmp_path: Path) -> None:
    copies = [RunDir(Path(shutil.copytree(run.path, tmp_path / run.path.name))) for run in runs[:2]]
    poor, good = (str(run.path) for run in copies)
    assert _run(["report", poor]) == 0
    assert '<section id="comparison"' not in copies[0].report.read_text("utf-8")
    assert _run(["report", poor, "--against", good]) == 0
    text = copies[0].report.read_text("utf-8")
    words = Page(text).words
    found = json.loads((copies[0].path / "comparison.json").read_text("utf-8"))
    accuracy = found["comparisons"][0]["overall"]["accuracy"]
    assert f"{accuracy['difference']:+.3f}{accuracy['low']:+.3f} to {accuracy['high']:+.3f}better" in words
    assert "48 films in 48 groups, paired by their pixels, which no run had seen: test films of poor; test" in words
    shutil.rmtree(good)  # the report is made of the run alone
    assert _run(["report", poor]) == 0
    assert copies[0].report.read_text("utf-8") == text
    test = json.loads(copies[0].test.read_text("utf-8"))
    copies[0].test.write_text(json.dumps(test | {"checkpoint_sha256": "another"}), "utf-8")
    assert _run(["report", poor]) == 0
    assert "is of models that this run no longer has" in Page(copies[0].report.read_text("utf-8")).words
