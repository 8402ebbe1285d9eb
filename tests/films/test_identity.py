"""Patients and studies of DICOM files: read where the data do not name them, and never in clear."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from dicoms import dicom
from vgg16_xray.films.dataset import FilmRow
from vgg16_xray.films.decode import decode
from vgg16_xray.films.identity import Identity, identity_of, name_patients
from vgg16_xray.films.phantom import draw


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return draw("Normal", seed=1, size=64).pixels


def test_equal_names_have_equal_hashes_and_the_name_is_not_in_them(tmp_path: Path, pixels: np.ndarray) -> None:
    said = [
        {"PatientID": "4711", "StudyInstanceUID": "1.2.3"},
        {"PatientID": "4711 ", "StudyInstanceUID": "1.2.4"},
        {"PatientID": "4711", "IssuerOfPatientID": "another hospital"},
        {"PatientID": "4712"},
    ]
    found = [identity_of(dicom(pixels, tmp_path / f"{n}.dcm", **elements)) for n, elements in enumerate(said)]
    assert len({who.patient for who in found}) == 3
    assert found[0].patient == found[1].patient
    assert found[0].study != found[1].study
    assert found[3].study is None
    assert all("4711" not in str(who.patient) for who in found)


@pytest.mark.parametrize("written", ["", "ANONYMOUS", "Anonymized", "000000", "xxx", "de-identified", "N/A"])
def test_what_anonymisers_write_names_nobody(tmp_path: Path, pixels: np.ndarray, written: str) -> None:
    assert identity_of(dicom(pixels, tmp_path / "film.dcm", PatientID=written)) == Identity()


def test_other_files_and_damaged_ones_name_nobody(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("PatientID 4711")
    (tmp_path / "damaged").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    for name in ("text", "damaged", "missing"):
        assert identity_of(tmp_path / name) == Identity()


def test_a_name_that_breaks_the_rules_is_not_printed(
    tmp_path: Path, pixels: np.ndarray, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    # LO holds 64 characters, a UID digits and dots.
    with warnings.catch_warnings(action="ignore"):
        file = dicom(pixels, tmp_path / "film.dcm", PatientID="Erika" * 20, StudyInstanceUID="Mustermann")
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert identity_of(file).patient
        decode(file)
    said = "".join([*capfd.readouterr(), caplog.text, *(str(warning.message) for warning in caught)])
    assert "Erika" not in said
    assert "Mustermann" not in said


def row(name: str, **said: str) -> FilmRow:
    return FilmRow(path=name, collection=said.pop("collection", "here"), label="Normal", **said)


def test_what_the_data_say_goes_before_what_the_files_say() -> None:
    films = [row("a", patient_id="P1"), row("b"), row("c", study_id="S1"), row("d")]
    files = [
        Identity(patient="dicom-1", study="dicom-x"),
        Identity(patient="dicom-1", study="dicom-x"),
        Identity(patient="dicom-2", study="dicom-y"),
        Identity(),
    ]
    named, notes = name_patients(films, files)
    assert [film.patient_id for film in named] == ["P1", "dicom-1", "dicom-2", None]
    assert [film.study_id for film in named] == [None, "dicom-x", "S1", None]
    assert notes == [
        "the patient of 2 films and the study of 1, which the data do not name, were read from their DICOM files and "
        "stand in the manifest as hashes"
    ]


def test_one_name_on_every_file_of_a_collection_is_not_believed() -> None:
    films = [row("a"), row("b"), row("c", collection="there"), row("d", collection="there")]
    files = [Identity(patient=f"dicom-{name}", study=f"dicom-{n}") for n, name in enumerate("xxxy")]
    named, notes = name_patients(films, files)
    assert [film.patient_id for film in named] == [None, None, "dicom-x", "dicom-y"]
    assert [film.study_id for film in named] == ["dicom-0", "dicom-1", "dicom-2", "dicom-3"]
    assert notes[0] == "here: all its DICOM files name one patient, which was not believed"
