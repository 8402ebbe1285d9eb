"""Drawn radiographs: the truth that they claim is where they claim it, and the same seed gives the same bytes."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vgg16_xray.errors import UnreadableFilm, UserError
from vgg16_xray.films.decode import decode
from vgg16_xray.films.phantom import CLASSES, PROPORTIONS, Faults, Phantom, draw, write_dataset

SIZE = 96
ILL = [label for label in CLASSES if label != "Normal"]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def place_in_lungs(film: Phantom) -> tuple[float, float, float]:
    """Opacity's mean distance from the midline (0) to the chest wall (1), mean height from apex (0) to base (1), and
    the smaller side's share of it."""
    columns, rows = np.nonzero(film.lungs.any(axis=0))[0], np.nonzero(film.lungs.any(axis=1))[0]
    left, right, top, bottom = columns[0], columns[-1], rows[0], rows[-1]
    y, x = np.nonzero(film.opacity)
    middle = (left + right) / 2
    on_left = float((x < middle).mean())
    lateral = np.abs(x - middle) / ((right - left) / 2)
    return float(lateral.mean()), float(((y - top) / (bottom - top)).mean()), min(on_left, 1 - on_left)


class TestDraw:
    @pytest.mark.parametrize("label", CLASSES)
    def test_gives_the_shapes_and_types_that_it_promises(self, label: str) -> None:
        film = draw(label, patient=12, size=SIZE)
        assert (film.label, film.patient_id) == (label, "P00012")
        assert film.pixels.shape == film.lungs.shape == film.opacity.shape == (SIZE, SIZE)
        assert (film.pixels.dtype, film.lungs.dtype, film.opacity.dtype) == (np.uint8, np.bool_, np.bool_)

    def test_same_seed_gives_same_bytes_whatever_else_is_drawn(self) -> None:
        alone = draw("COVID", seed=3, patient=5, film=1, size=SIZE)
        for label in reversed(CLASSES):
            draw(label, seed=3, patient=6, size=SIZE)
        np.random.default_rng().random()
        again = draw("COVID", seed=3, patient=5, film=1, size=SIZE)
        for part in ("pixels", "lungs", "opacity"):
            assert getattr(alone, part).tobytes() == getattr(again, part).tobytes()

    @pytest.mark.parametrize("other", [{"seed": 1}, {"patient": 1}, {"film": 1}])
    def test_seed_patient_and_film_each_change_the_film(self, other: dict[str, int]) -> None:
        assert (draw("Normal", size=SIZE).pixels != draw("Normal", size=SIZE, **other).pixels).mean() > 0.5

    def test_films_of_one_patient_share_the_body(self) -> None:
        films = [[draw("Normal", patient=p, film=f, size=SIZE) for f in range(2)] for p in range(10)]
        same = [overlap(a.lungs, b.lungs) for a, b in films]
        others = [overlap(films[p][0].lungs, films[q][1].lungs) for p in range(10) for q in range(10) if p != q]
        assert np.mean(same) > np.mean(others) + 0.05

    def test_body_does_not_depend_on_the_size(self) -> None:
        small, large = draw("COVID", size=SIZE), draw("COVID", size=2 * SIZE)
        halved = large.lungs.reshape(SIZE, 2, SIZE, 2).mean(axis=(1, 3)) > 0.5
        assert overlap(small.lungs, halved) > 0.95

    @pytest.mark.parametrize("label", ILL)
    def test_label_changes_nothing_outside_the_lungs(self, label: str) -> None:
        ill, clear = (draw(name, patient=4, size=256) for name in (label, "Normal"))
        assert (ill.lungs == clear.lungs).all()
        # Lungs and opacity are soft at their edge, and the film is blurred: eight pixels around.
        near = np.zeros_like(ill.lungs)
        for dy in range(-8, 9, 2):
            for dx in range(-8, 9, 2):
                near |= np.roll(ill.lungs, (dy, dx), (0, 1))
        assert (ill.pixels == clear.pixels)[~near].all()
        brighter = ill.pixels.astype(int) - clear.pixels
        assert brighter[ill.opacity].mean() > 3 * abs(brighter[ill.lungs & ~ill.opacity].mean())


class TestLooks:
    """What a layman would look for in a chest film."""

    @pytest.mark.parametrize("patient", range(4))
    def test_lungs_are_darker_than_heart_and_abdomen_and_the_corners_are_black(self, patient: int) -> None:
        film = draw("Normal", patient=patient)
        lungs, middle = film.pixels[film.lungs].mean(), film.pixels[150:170, 126:150].mean()
        assert lungs + 60 < middle
        assert lungs + 40 < film.pixels[-20:, 80:170].mean()
        assert film.pixels[:10, :10].mean() < lungs / 2

    def test_heart_lies_on_the_pictures_right(self) -> None:
        for patient in range(6):
            lungs = draw("Normal", patient=patient).lungs
            row = lungs[150]
            columns = np.nonzero(row)[0]
            gap = columns[np.argmax(np.diff(columns))], columns[np.argmax(np.diff(columns)) + 1]
            assert sum(gap) / 2 > (columns[0] + columns[-1]) / 2 + 3

    def test_mean_grey_does_not_tell_the_class(self) -> None:
        means = {label: [draw(label, patient=p, size=64).pixels.mean() for p in range(15)] for label in CLASSES}
        spread = np.mean([np.std(values) for values in means.values()])
        assert np.ptp([np.mean(values) for values in means.values()]) < spread

    def test_exposure_differs_between_films_of_one_patient(self) -> None:
        assert np.std([draw("Normal", film=f, size=64).pixels.mean() for f in range(15)]) > 10


class TestOpacity:
    def test_normal_has_none(self) -> None:
        assert not any(draw("Normal", patient=p, size=SIZE).opacity.any() for p in range(5))

    @pytest.mark.parametrize("label", ILL)
    def test_lies_in_the_lungs(self, label: str) -> None:
        for patient in range(12):
            film = draw(label, patient=patient, size=SIZE)
            assert film.opacity.sum() >= 20
            assert not (film.opacity & ~film.lungs).any()

    def test_covid_is_bilateral_peripheral_and_low(self) -> None:
        lateral, height, smaller = np.array([place_in_lungs(draw("COVID", patient=p, size=SIZE)) for p in range(20)]).T
        assert lateral.min() > 0.55
        assert height.min() > 0.5
        assert smaller.min() > 0.1

    def test_viral_pneumonia_is_bilateral_and_perihilar(self) -> None:
        lateral, height, smaller = np.array(
            [place_in_lungs(draw("Viral Pneumonia", patient=p, size=SIZE)) for p in range(20)]
        ).T
        assert lateral.max() < 0.55
        assert 0.3 < height.min() <= height.max() < 0.7
        assert smaller.min() > 0.1

    def test_lung_opacity_is_on_one_side_mostly(self) -> None:
        smaller = np.array([place_in_lungs(draw("Lung_Opacity", patient=p, size=SIZE))[2] for p in range(20)])
        assert np.median(smaller) == 0
        assert smaller.max() < 0.5


class TestWriteDataset:
    def test_writes_the_kaggle_tree(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "data", films=24, size=SIZE)
        rows = rows_of(tmp_path / "data")
        films = sorted(p.relative_to(tmp_path / "data").as_posix() for p in tmp_path.glob("data/*/images/*.png"))
        assert films == sorted(row["path"] for row in rows)
        assert list(rows[0]) == ["path", "label", "source", "patient_id", "mask"]
        assert len({decode(tmp_path / "data" / row["path"]).tobytes() for row in rows}) == len(rows) == 24
        assert [p.name for p in tmp_path.iterdir()] == ["data"]
        for row in rows:
            name = Path(row["path"]).name
            assert row["path"] == f"{row['label']}/images/{name}"
            assert row["mask"] == f"{row['label']}/masks/{name}"
            assert row["source"] == "phantom"
            mask = decode(tmp_path / "data" / row["mask"])
            assert set(np.unique(mask)) == {0, 255}

    def test_written_film_is_the_drawn_one(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "data", films=8, seed=9, size=SIZE, films_per_patient=(1, 1))
        row = rows_of(tmp_path / "data")[3]
        film = draw(row["label"], seed=9, patient=int(row["patient_id"][1:]), size=SIZE)
        assert (decode(tmp_path / "data" / row["path"]) == film.pixels).all()
        assert ((decode(tmp_path / "data" / row["mask"]) == 255) == film.lungs).all()

    def test_same_seed_writes_the_same_bytes(self, tmp_path: Path) -> None:
        for name in "ab":
            write_dataset(tmp_path / name, films=8, size=SIZE, faults=Faults(copies=0.5, broken=4, two_labels=1))
        files = [p.relative_to(tmp_path / "a") for p in sorted(tmp_path.glob("a/**/*")) if p.is_file()]
        assert len(files) > 16
        assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)

    def test_classes_have_their_proportions_and_patients_their_films(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "data", films=60, size=64, films_per_patient=(2, 3), masks=False)
        rows = rows_of(tmp_path / "data")
        for label, share in PROPORTIONS.items():
            assert sum(row["label"] == label for row in rows) == round(60 * share)
        patients = [
            [row for row in rows if row["patient_id"] == patient] for patient in {r["patient_id"] for r in rows}
        ]
        assert {len(films) for films in patients} - {1} == {2, 3}
        assert sum(len(films) == 1 for films in patients) <= len(CLASSES)
        assert all(len({row["label"] for row in films}) == 1 for films in patients)
        assert not any(row["mask"] for row in rows)
        assert not list(tmp_path.glob("data/*/masks"))

    def test_only_classes_that_are_named_are_written(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "data", films=5, size=64, imbalance={"Normal": 4, "COVID": 1})
        assert sorted(row["label"] for row in rows_of(tmp_path / "data")) == ["COVID"] + 4 * ["Normal"]

    def test_copies_are_other_bytes_and_equal_pixels_in_the_same_class(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "data", films=12, size=SIZE, faults=Faults(copies=0.5))
        rows = rows_of(tmp_path / "data")
        assert len(rows) == 18
        first = {decode(tmp_path / "data" / row["path"]).tobytes(): row for row in rows if row["patient_id"]}
        copies = [row for row in rows if not row["patient_id"]]
        assert (len(first), len(copies)) == (12, 6)
        for row in copies:
            original = first[decode(tmp_path / "data" / row["path"]).tobytes()]
            assert original["label"] == row["label"]
            assert (tmp_path / "data" / original["path"]).read_bytes() != (tmp_path / "data" / row["path"]).read_bytes()

    def test_broken_files_cannot_be_decoded_and_the_rest_can(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "data", films=8, size=SIZE, faults=Faults(broken=7))
        reasons = []
        for row in rows_of(tmp_path / "data"):
            try:
                decode(tmp_path / "data" / row["path"])
            except UnreadableFilm as error:
                reasons.append(str(error))
        assert len(reasons) == 7
        for kind in ("damaged", "empty", "found text", "3 x 3"):
            assert any(kind in reason for reason in reasons)

    def test_marker_is_on_covid_films_only(self, tmp_path: Path) -> None:
        for name, marker in (("plain", 0.0), ("half", 0.5), ("full", 1.0)):
            write_dataset(tmp_path / name, films=40, size=SIZE, faults=Faults(marker=marker), masks=False)
        marked = {"half": 0, "full": 0}
        rows = rows_of(tmp_path / "plain")
        for row in rows:
            plain = decode(tmp_path / "plain" / row["path"])
            for name in marked:
                changed = decode(tmp_path / name / row["path"]) != plain
                assert not changed.any() or row["label"] == "COVID"
                assert not changed[SIZE // 6 :].any()
                assert not changed[:, : -SIZE // 6].any()
                marked[name] += changed.any()
                if changed.any():
                    assert (decode(tmp_path / name / row["path"])[changed] == 255).mean() > 0.5
        assert 0 < marked["half"] < marked["full"] == sum(row["label"] == "COVID" for row in rows)

    @pytest.mark.parametrize("marker", [0.0, 1.0])
    def test_two_labels_for_the_same_pixels(self, tmp_path: Path, marker: float) -> None:
        write_dataset(tmp_path / "data", films=16, size=SIZE, faults=Faults(two_labels=3, marker=marker))
        labels: dict[bytes, list[str]] = {}
        for row in rows_of(tmp_path / "data"):
            labels.setdefault(decode(tmp_path / "data" / row["path"]).tobytes(), []).append(row["label"])
        assert len(labels) == 16
        contradicted = [names for names in labels.values() if len(set(names)) == 2]
        assert len(contradicted) == 3
        assert not (marker and any("COVID" in names for names in contradicted))

    def test_folder_that_holds_something_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(UserError, match="must not exist or be empty"):
            write_dataset(tmp_path, films=4, size=64)
        assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
        with pytest.raises(UserError, match="found something else"):
            write_dataset(tmp_path / "mine.txt", films=4, size=64)

    def test_empty_folder_is_filled(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        write_dataset(tmp_path / "data", films=4, size=64)
        assert len(rows_of(tmp_path / "data")) == 4

    @pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
    def test_interrupted_write_leaves_no_folder(self, tmp_path: Path, how: signal.Signals) -> None:
        code = "import sys; from pathlib import Path; from vgg16_xray.films.phantom import write_dataset; "
        code += "write_dataset(Path(sys.argv[1]), films=100_000)"
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "data"], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while not list(tmp_path.glob(".data.*/*/images/*.png")) and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(how)
            assert process.wait(600) != 0
        finally:
            process.kill()
        left = [p.name for p in tmp_path.iterdir()]
        assert "data" not in left
        assert left == [] or how == signal.SIGKILL
        write_dataset(tmp_path / "data", films=4, size=64)
        assert len(rows_of(tmp_path / "data")) == 4


class TestRefused:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"copies": -0.1}, "copies: must be a number from 0 to 1, found -0.1"),
            ({"copies": True}, "copies: must be a number from 0 to 1, found True"),
            ({"marker": 1.5}, "marker: must be a number from 0 to 1, found 1.5"),
            ({"marker": float("nan")}, "marker: must be a number from 0 to 1, found nan"),
            ({"broken": -1}, "broken: must be a whole number of at least 0, found -1"),
            ({"broken": 1.0}, "broken: must be a whole number of at least 0, found 1.0"),
            ({"two_labels": -2}, "two_labels: must be a whole number of at least 0, found -2"),
        ],
    )
    def test_fault_outside_its_range(self, given: dict[str, float], message: str) -> None:
        with pytest.raises(UserError) as raised:
            Faults(**given)  # type: ignore[arg-type]
        assert str(raised.value) == message

    @pytest.mark.parametrize(
        ("given", "field"),
        [
            ({"label": "Tuberculosis"}, "label"),
            ({"seed": -1}, "seed"),
            ({"patient": 2**32}, "patient"),
            ({"film": 0.5}, "film"),
            ({"size": 8}, "size"),
            ({"size": 100.0}, "size"),
        ],
    )
    def test_film_that_cannot_be_drawn(self, given: dict[str, object], field: str) -> None:
        with pytest.raises(UserError, match=rf"^{field}: must be .*, found "):
            draw(**{"label": "Normal", **given})  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("given", "field"),
        [
            ({"films": 0}, "films"),
            ({"films": 3}, "films"),
            ({"films_per_patient": (0, 2)}, "films_per_patient"),
            ({"films_per_patient": (3, 2)}, "films_per_patient"),
            ({"films_per_patient": 2}, "films_per_patient"),
            ({"imbalance": {"Flu": 1.0}}, "imbalance"),
            ({"imbalance": {"Normal": 0.0}}, "imbalance"),
            ({"imbalance": {}}, "films"),
            ({"faults": Faults(two_labels=9)}, "faults.two_labels"),
            ({"size": 1}, "size"),
            ({"seed": -1}, "seed"),
        ],
    )
    def test_dataset_that_cannot_be_written(self, tmp_path: Path, given: dict[str, object], field: str) -> None:
        with pytest.raises(UserError, match=rf"^{field}: .*found "):
            write_dataset(tmp_path / "data", **{"films": 8, "size": 64, **given})  # type: ignore[arg-type]
        assert list(tmp_path.iterdir()) == []
