"""Films that come again: what step 2 makes of them."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dicoms import dicom
from vgg16_xray.errors import Leak
from vgg16_xray.files import read_json
from vgg16_xray.films.decode import decode
from vgg16_xray.films.phantom import draw, write_dataset
from vgg16_xray.films.split import TRAIN
from vgg16_xray.rundir import RunDir, read_config
from vgg16_xray.steps import preprocess as step
from vgg16_xray.steps.audit import leaks_between
from vgg16_xray.steps.preprocess import preprocess, read_manifest

TWO = {"COVID": 1, "Normal": 1}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "films"
    write_dataset(folder, films=40, seed=12, size=160, films_per_patient=(1, 1), imbalance=TWO, masks=False)
    return folder


@pytest.fixture
def data(drawn, tmp_path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "films"))


def film(data: Path, name: str) -> np.ndarray:
    return decode(data / name.split("-", maxsplit=1)[0] / "images" / f"{name}.png")


def save(data: Path, label: str, name: str, pixels: np.ndarray, **options: int) -> None:
    Image.fromarray(np.ascontiguousarray(pixels)).save(data / label / "images" / name, **options)


def test_near_copies_stand_on_one_side_and_those_under_two_labels_train(data, tmp_path):
    for n in range(1, 9):
        save(data, "COVID", f"again-{n}.jpg", film(data, f"COVID-{n}")[5:-8, 3:], quality=40)
    for n in range(1, 5):
        save(data, "COVID", f"mirrored-{n}.png", film(data, f"Normal-{n}")[:, ::-1])
    run = RunDir(tmp_path / "run")
    preprocess([data], run)
    manifest = read_manifest(run).assign(name=lambda table: table["path"].str.split("/").str[-1].str.split(".").str[0])
    rows = manifest.set_index("name")
    for n in range(1, 9):
        assert rows.loc[f"again-{n}", "content"] == rows.loc[f"COVID-{n}", "content"]
        assert rows.loc[f"again-{n}", "split"] == rows.loc[f"COVID-{n}", "split"]
    for n in range(1, 5):
        assert {rows.loc[f"mirrored-{n}", "split"], rows.loc[f"Normal-{n}", "split"]} == {TRAIN}
    assert manifest["content"].nunique() == 40
    found = read_json(run.leaks)
    assert (found["copies"], found["exact"], len(found["conflicts"])) == (12, 0, 4)
    assert [entry["film"] for entry in found["conflicts"][0]] == [
        "films/COVID/images/mirrored-1.png",
        "films/Normal/images/Normal-1.png",
    ]
    assert pd.read_csv(run.pairs)["same"].sum() == 12
    assert any(note.startswith("8 films show what a film of another class shows") for note in _notes(run))


def test_a_near_copy_across_a_split_that_the_data_bring_is_a_hard_error(drawn, tmp_path):
    data = tmp_path / "films"
    for number, file in enumerate(sorted(drawn.glob("*/images/*.png"))):
        side = ("train", "train", "val", "test")[number % 4]
        target = data / side / file.parent.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    file = next((data / "train/COVID").glob("*.png"))
    Image.open(file).resize((130, 150)).save(data / "test/COVID/other.jpg", quality=60)
    with pytest.raises(Leak, match=r"other\.jpg"):
        preprocess([data], RunDir(tmp_path / "run"))
    preprocess([data], RunDir(tmp_path / "run"), resplit=True)


def test_films_of_one_study_or_one_origin_stand_on_one_side(data, tmp_path):
    covid = [f"COVID/images/COVID-{n}.png" for n in range(1, 13)]
    lines = [f"{path},{'study' if n < 4 else ''},{'figure 1' if 3 <= n < 8 else ''}" for n, path in enumerate(covid)]
    (data / "metadata.csv").write_text("path,study_id,origin\n" + "\n".join(lines) + "\n")
    run = RunDir(tmp_path / "run")
    preprocess([data], run)
    manifest = read_manifest(run).set_index("path")
    assert len(set(manifest.loc[covid[:8], "group"])) == 1
    assert len(set(manifest.loc[covid[8:], "group"])) == 4


def test_films_of_a_patient_or_study_that_only_their_dicom_files_name_stand_on_one_side(data, tmp_path):
    for n in range(1, 15):
        path = data / f"COVID/images/COVID-{n}.png"
        # Six of one patient; then pairs, of one study each.
        who: dict[str, str] = {"PatientID": "4711"} if n < 7 else {"StudyInstanceUID": f"1.2.{n // 2}"}
        dicom(decode(path), path.with_suffix(".dcm"), **who)
        path.unlink()
    (data / "metadata.csv").write_text("path,patient_id\nCOVID/images/COVID-1.dcm,somebody else\n")
    dicom(draw("Normal", seed=9, size=160).pixels, data / "Normal/images/other.dcm", PatientID="4712")
    run = RunDir(tmp_path / "run")
    preprocess([data], run)
    group = read_manifest(run).set_index("path")["group"]
    of = {n: group[f"COVID/images/COVID-{n}.dcm"] for n in range(1, 15)}
    assert len({of[n] for n in range(2, 7)}) == 1
    assert of[1] != of[2]
    assert len({of[n] for n in range(7, 15)}) == 5
    assert any(note.startswith("the patient of 6 films and the study of 8,") for note in _notes(run))
    assert not any("4711" in file.read_text("latin-1") for file in run.path.rglob("*") if file.suffix != ".npy")


def test_a_collection_that_comes_again_keeps_every_film_on_its_side(drawn, data, tmp_path):
    before = RunDir(tmp_path / "before")
    preprocess([data], before, seed=5)
    old = read_manifest(before)
    again = tmp_path / "version 2"
    order = np.random.default_rng(0).permutation(len(old))
    for number, row in enumerate(order):
        target = again / old["label"][row] / "images" / f"x{number:03d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(data / old["path"][row]).resize((200, 200)).save(target, quality=70)
    gone = sorted(again.glob("COVID/images/*.jpg"))[0]
    gone.unlink()
    write_dataset(tmp_path / "more", films=8, seed=77, films_per_patient=(1, 1), imbalance=TWO, size=160, masks=False)
    for file in (tmp_path / "more").glob("*/images/*.png"):
        shutil.copy(file, again / file.parent.parent.name / "images" / f"new-{file.name}")
    run = RunDir(tmp_path / "run")
    preprocess([again], run, seed=99, like=before)
    split = pd.read_csv(run.split, keep_default_na=False)
    sides = dict(zip("films/" + old["path"], old["split"], strict=True))
    known = split[split["was"] != ""]
    assert len(known) == 39
    assert list(known["split"]) == [sides[name] for name in known["was"]]
    assert known["was"].nunique() == 39
    assert all(name.startswith("new-") for name in split[split["was"] == ""]["path"].str.split("/").str[-1])
    assert any(
        note.startswith("39 films were there before and 8 are new; 1 of those before are gone") for note in _notes(run)
    )
    # Without it, another seed deals them otherwise.
    other = RunDir(tmp_path / "other")
    preprocess([again], other, seed=99)
    assert list(pd.read_csv(other.split)["split"]) != list(split["split"])


def test_films_that_are_found_to_be_one_and_stood_on_two_sides_train(data, tmp_path):
    before = RunDir(tmp_path / "before")
    preprocess([data], before, seed=5)
    old = read_manifest(before)
    covid = old[old["label"] == "COVID"].groupby("split")["path"].first()
    (data / "metadata.csv").write_text(f"path,patient_id\n{covid['test']},P1\n{covid['validation']},P1\n")
    run = RunDir(tmp_path / "run")
    preprocess([data], run, seed=5, like=before)
    manifest = read_manifest(run).set_index("path")
    assert {manifest.loc[covid["test"], "split"], manifest.loc[covid["validation"], "split"]} == {TRAIN}
    assert any(note.startswith("2 films had to move to training") for note in _notes(run))


def test_what_was_compared_is_not_compared_again_after_a_kill(data, tmp_path, monkeypatch):
    run = RunDir(tmp_path / "run")
    monkeypatch.setattr(step, "write_leaks", lambda *_, **__: pytest.fail("stopped here"))
    with pytest.raises(pytest.fail.Exception):
        preprocess([data], run)
    monkeypatch.undo()
    monkeypatch.setattr(step.leaks, "find_copies", None)
    preprocess([data], run)
    assert len(read_manifest(run)) == 40


def test_a_manifest_from_before_near_copies_were_looked_for_can_be_read(data, tmp_path):
    run = RunDir(tmp_path / "run")
    preprocess([data], run)
    table = pd.read_parquet(run.manifest).drop(columns=["content", "study_id", "origin"])
    table.to_parquet(run.manifest, index=False)
    manifest = read_manifest(run)
    assert list(manifest["content"]) == list(manifest["pixels_sha256"])


@pytest.mark.parametrize("share", [0.01, 0.05])
def test_planted_near_copies_across_a_split_are_counted_as_leaks(share):
    films, rng = 400, np.random.default_rng(1)
    content = [f"c{n}" for n in range(films)]
    sides = ["train"] * 320 + ["test"] * 80
    for test_film in rng.choice(np.arange(320, 400), max(1, round(share * 80)), replace=False):
        content[test_film] = content[int(rng.integers(320))]
    found = leaks_between(content, labels=["A"] * films, groups=[""] * films, sides=sides)
    assert found["test_films_leaked"] == max(1, round(share * 80))


def _notes(run: RunDir) -> list[str]:
    return list(read_config(run)["data"]["notes"])
