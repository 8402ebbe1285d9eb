"""The audit of drawn films whose faults are known: verdict, reasons, page, and what is not computed twice."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from vgg16_xray.cli import app
from vgg16_xray.errors import UserError
from vgg16_xray.files import read_json
from vgg16_xray.films.phantom import Faults, write_dataset
from vgg16_xray.report.audit import say_ladder, write_audit_page
from vgg16_xray.report.terminal import say_of_data
from vgg16_xray.rundir import AuditDir, RunDir, read_config
from vgg16_xray.steps import audit as step
from vgg16_xray.steps.audit import TooFewFilms, audit, audit_data, leaks_between
from vgg16_xray.steps.audit_leaks import audit_leaks
from vgg16_xray.steps.preprocess import preprocess
from vgg16_xray.trust.shortcuts import LADDER
from vgg16_xray.trust.verdict import CARE, STOP

TWO = {"COVID": 1.0, "Normal": 1.0}


@pytest.fixture(scope="module")
def bordered(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """48 films of two classes, one of them with a black frame, audited."""
    folder = tmp_path_factory.mktemp("bordered")
    write_dataset(folder / "films", films=48, seed=1, size=128, imbalance=TWO, faults=Faults(border=1.0))
    run = RunDir(folder / "audit")
    audit_data([folder / "films"], run, permutations=99)
    return run


def test_a_planted_border_is_named_and_the_number_is_not_to_be_believed(bordered: RunDir) -> None:
    found = json.loads(AuditDir(bordered.path).numbers.read_text("utf-8"))
    assert found["verdict"] == STOP
    assert found["reasons"][0]["rule"] == "told without the lungs"
    assert found["ladder"]["border"]["macro_f1"] > 0.9
    assert set(found["ladder"]) == {rung.key for rung in LADDER}
    # Drawn films come with masks, and with one source.
    assert found["ladder"]["lungs_erased"]["films_left_out"] == 0
    assert any("one source" in note for note in found["not_checked"])


def test_a_second_audit_computes_nothing_again(bordered: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    before = AuditDir(bordered.path).numbers.read_bytes()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(step, "measure", never)
    monkeypatch.setattr(step, "probabilities_out_of_fold", never)
    audit(bordered, permutations=99)
    assert AuditDir(bordered.path).numbers.read_bytes() == before
    AuditDir(bordered.path).part("ladder.border").unlink()
    with pytest.raises(AssertionError, match="computed again"):
        audit(bordered, permutations=99)


def test_the_map_of_cells_has_a_scale_and_says_when_it_may_be_chance(bordered: RunDir) -> None:
    found = read_json(AuditDir(bordered.path).numbers)
    page = write_audit_page(bordered, found).read_text("utf-8")
    assert 'class="scale"' in page
    assert "Orange outside the lungs" in page
    for rung in found["ladder"].values():
        rung["p"] = 0.5
    page = write_audit_page(bordered, found).read_text("utf-8")
    assert "best of 64 cells" in page
    assert "Orange outside the lungs" not in page
    assert '<figure class="heat">' in page
    found["where"]["skill"] = [[0.05] * 8] * 8
    assert "slight" in write_audit_page(bordered, found).read_text("utf-8").split("<figure class=")[1][:20]


def test_the_page_says_whose_split_was_judged_and_what_its_words_mean(bordered: RunDir) -> None:
    found = read_json(AuditDir(bordered.path).numbers)
    assert not found["films"]["split_of_data"]
    page = write_audit_page(bordered, found).read_text("utf-8")
    assert "this tool&#39;s (80/10/10 by group" in page or "this tool's (80/10/10 by group" in page
    for word in ("group", "probe", "rung"):
        assert f"<em>{word}</em>" in page
    assert f"audit of {bordered.path.name}<" not in page
    assert 'href="pairs.csv"' in page
    found["films"]["split_of_data"] = True
    assert "in the split that the data bring" in write_audit_page(bordered, found).read_text("utf-8")


def test_where_the_ladder_alone_is_climbed_the_command_says_where_the_figures_lie(
    bordered: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_json(AuditDir(bordered.path).numbers)
    monkeypatch.setattr(step, "audit", lambda run, **_: found)
    result = CliRunner().invoke(app, ["audit", "shortcuts", str(bordered.path)])
    assert result.exit_code == 0, result.output
    assert str(bordered.path / "audit" / "ladder.*.json") in result.output


def test_the_page_shows_verdict_reasons_and_ladder_and_asks_nobody(bordered: RunDir) -> None:
    found = json.loads(AuditDir(bordered.path).numbers.read_text("utf-8"))
    page = write_audit_page(bordered, found).read_text("utf-8")
    assert "Cannot be believed" in page
    for reason in found["reasons"][:3]:
        assert reason["headline"] in page
    assert all(rung.name in page for rung in LADDER)
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert "Research use only" in page


def test_a_split_of_the_data_that_leaks_is_judged_and_not_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "drawn", films=40, seed=2, size=128, imbalance=TWO, films_per_patient=(1, 1), masks=False)
    for label in TWO:
        files = sorted((tmp_path / "drawn" / label / "images").iterdir())
        for side, some in (("train", files[:16]), ("test", files[14:])):  # Two films of each class on both sides.
            (tmp_path / "films" / side / label).mkdir(parents=True)
            for number, file in enumerate(some):
                target = tmp_path / "films" / side / label / file.name
                target.write_bytes(file.read_bytes())
                if side == "test" and number == 0:  # One of them encoded, and called, otherwise.
                    Image.open(target).resize((150, 120)).save(target.with_name("again.jpg"), quality=60)
                    target.unlink()
    found = audit_data([tmp_path / "films"], RunDir(tmp_path / "audit"), permutations=19)
    assert found["leaks"]["test_films_leaked"] == 4
    assert found["leaks"]["test_films"] == 12
    assert "leak across the split" in [reason["rule"] for reason in found["reasons"]]
    assert found["verdict"] == STOP
    # The folder of the audit, audited again without the data, has not forgotten their split.
    assert audit(RunDir(tmp_path / "audit"), permutations=19)["leaks"] == found["leaks"]


def test_leaks_by_copy_and_by_patient() -> None:
    found = leaks_between(
        ["a", "a", "b", "c", "d"],
        labels=["x", "y", "x", "x", "x"],
        groups=["", "", "p", "p", ""],
        sides=["train", "test", "train", "test", "test"],
    )
    assert found == {"copies": 1, "conflicts": 2, "test_films": 3, "test_films_leaked": 2}


def test_two_labels_for_one_film_are_a_reason_for_care_at_least(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "films", films=40, seed=3, size=64, imbalance=TWO, faults=Faults(two_labels=1))
    (tmp_path / "films" / "Normal" / "notes.txt").write_text("no film")
    with (tmp_path / "films" / "metadata.csv").open("a") as table:
        table.write("Normal/nowhere.png\n")
    found = audit_data([tmp_path / "films"], RunDir(tmp_path / "audit"), permutations=19)
    assert found["leaks"]["conflicts"] == 2
    assert found["verdict"] in (CARE, STOP)
    assert "two labels" in [reason["rule"] for reason in found["reasons"]]
    page = write_audit_page(RunDir(tmp_path / "audit"), found).read_text("utf-8")
    assert f"<code>{read_config(RunDir(tmp_path / 'audit'))['data']['fingerprint']}</code>" in page
    assert "2 films stand under two labels, in 1 pair:" in page
    assert "Films that are one and stand under two labels: 1 pair<" in page
    for film in read_json(RunDir(tmp_path / "audit").leaks)["conflicts"][0]:
        assert page.count(film["film"]) == 2
    say_of_data(RunDir(tmp_path / "audit"))
    said = capsys.readouterr().out
    assert "1 files left out, with the reasons in" in said
    assert "1 file was left out, each with its reason in <code>quarantine.csv</code>" in page
    for note in ("rows name files that are not there, first Normal/nowhere.png", "what a film of another class shows"):
        assert note in said
        assert note in page.partition("What was noted of the data")[2]


def test_films_that_are_all_one_are_said_to_be_so_and_nothing_of_training(tmp_path: Path) -> None:
    write_dataset(tmp_path / "drawn", films=40, seed=6, size=64, imbalance=TWO, masks=False)
    film = next((tmp_path / "drawn" / "Normal" / "images").iterdir()).read_bytes()
    for label in "AB":
        (tmp_path / "films" / label).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "films" / label / f"{number}.png").write_bytes(film)
    run = RunDir(tmp_path / "audit")
    with pytest.raises(TooFewFilms, match="an audit needs two classes of 5 groups or more") as caught:
        audit_data([tmp_path / "films"], run)
    assert "1 in class 'A' with 6 films (1 group: " in str(caught.value)
    assert "6 show what a film of B shows" in str(caught.value)
    assert "training" not in str(caught.value)
    for _ in range(2):  # Step 2 is done, and still no training begins on it.
        with pytest.raises(UserError, match="class 'A': must have films for training, validation and test"):
            preprocess([tmp_path / "films"], run)


def test_masks_that_cannot_be_of_lungs_are_not_used_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "films", films=40, seed=5, size=128, imbalance=TWO)
    run = RunDir(tmp_path / "audit")
    assert audit_data([tmp_path / "films"], run, permutations=19, only_ladder=True)["masks"]["words"] == ""
    film, *masks = sorted((tmp_path / "films" / "Normal" / "masks").iterdir())
    film.write_bytes((tmp_path / "films" / "Normal" / "images" / film.name).read_bytes())
    masks[0].write_text("no picture")
    Image.new("L", (80, 50)).save(masks[1])
    masks[2].unlink()
    found = audit(run, permutations=19, only_ladder=True)
    assert (found["masks"]["given"], found["masks"]["refused"]) == (40, 4)
    words = found["masks"]["words"]
    assert words.startswith("4 of 40 masks that come with the films on the ladder were not used ")
    assert "(1 not of lungs, 2 unreadable or blank, 1 not there)" in words
    assert f"first Normal/masks/{film.name}: lungs must cover 6% to 60% of the film, found 100%" in words
    left = found["ladder"]["lungs_erased"]["films_left_out"]
    assert f"the network found the lungs of {4 - left} of these films" in words
    assert ("left out of the rungs" in words) == bool(left)
    say_ladder(found)
    assert f"note: {words}" in capsys.readouterr().out


def test_metadata_that_was_not_used_is_said_by_page_and_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "films", films=40, seed=4, size=64, imbalance=TWO, masks=False)
    (tmp_path / "films" / "metadata.csv").write_text("file,source\na.png,here\n")
    run = RunDir(tmp_path / "audit")
    found = audit_data([tmp_path / "films"], run, permutations=19)
    why = "metadata.csv was not used: it must have a column 'path', found file, source"
    assert why in found["not_checked"][0]
    page = html.unescape(write_audit_page(run, found).read_text("utf-8"))
    assert page.count(why) == 2
    assert "Add a column" not in page
    say_of_data(run)
    assert f"note: {tmp_path / 'films'}/{why}" in capsys.readouterr().out


def test_a_run_with_a_model_is_not_overwritten_by_the_audit_of_other_films(
    copy_of_run: RunDir, few_films: Path, snapshot: Callable[[Path], dict[str, tuple[int, bytes]]]
) -> None:
    before = snapshot(copy_of_run.path)
    with pytest.raises(UserError, match="--out: must be no run with a model"):
        audit_data([few_films], copy_of_run)
    with pytest.raises(UserError, match="--out: must be no run with a model"):
        audit_leaks([few_films], copy_of_run)
    assert snapshot(copy_of_run.path) == before


def test_an_audit_is_not_overwritten_by_that_of_other_films(bordered: RunDir, few_films: Path) -> None:
    before = AuditDir(bordered.path).numbers.read_bytes()
    with pytest.raises(UserError, match=r"--out: must be a folder of its own for .*few.*, found .* of .*bordered"):
        audit_data([few_films], bordered)
    assert AuditDir(bordered.path).numbers.read_bytes() == before
