"""Whose film a DICOM file holds: patient and study under names that do not say who.

A collection that comes as DICOM seldom has a table of patients beside it, but each file names its own. Two films of one
person on two sides of a split are a leak, so the names are read; they are kept as the beginning of a SHA-256, equal for
equal names. That keeps them out of manifests, reports and logs. It does not make them secret: whoever can guess a
PatientID can compute its hash.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vgg16_xray.films.dataset import FilmRow
from vgg16_xray.films.decode import without_warnings

#: What is read, by DICOM's keywords (PS3.6).
ELEMENTS = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")
#: Hexadecimal digits that are kept: of a million patients two share them with a probability below 1e-7.
DIGITS = 16
#: What anonymisers write in place of a PatientID, letters and digits alone: it names nobody.
NOBODY = frozenset(
    {"anon", "anonymous", "anonymized", "anonymised", "deidentified", "removed", "unknown", "none", "null", "na"}
)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a DICOM file says of whom it shows; None where it says nothing."""

    #: A name for PatientID (0010,0020) and its issuer (0010,0021).
    patient: str | None = None
    #: A name for StudyInstanceUID (0020,000D).
    study: str | None = None


def identity_of(file: Path) -> Identity:
    """Read patient and study of a DICOM file; of any other file, and of a damaged one, nothing is known.

    Args:
        file: Any file; its pixels are not read.
    """
    import pydicom

    try:
        with file.open("rb") as opened:
            if opened.read(132)[128:] != b"DICM":
                return Identity()
        with without_warnings():
            dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(ELEMENTS))
        # As bytes: pydicom would check a value that is asked for as text, and print one that breaks DICOM's rules.
        raw = (getattr(dataset.get_item(name), "value", None) for name in ELEMENTS)
        patient, issuer, study = (value.strip(b" \0") if isinstance(value, bytes) else b"" for value in raw)
    except Exception:
        # Damaged files make pydicom raise nearly anything; the film itself decides whether it can be used.
        return Identity()
    plain = "".join(filter(str.isalnum, patient.decode("latin-1"))).lower()
    said = plain.strip("0x") and plain not in NOBODY
    return Identity(
        patient=_hidden(issuer + b"\n" + patient) if said else None, study=_hidden(study) if study else None
    )


def _hidden(name: bytes) -> str:
    return f"dicom-{hashlib.sha256(name).hexdigest()[:DIGITS]}"


def name_patients(films: Sequence[FilmRow], identities: Sequence[Identity]) -> tuple[list[FilmRow], list[str]]:
    """Give films whose patient the data do not name those that their files name.

    What the data say goes first: of a film whose patient they name nothing else is believed. A name that every file of
    a collection bears, where there are several, tells nobody from nobody and is not believed either.

    Args:
        films: (N,) rows of a dataset.
        identities: (N,) as from :func:`identity_of`.

    Returns:
        (N,) rows, and notes of what was done.
    """
    borne: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"patient": [], "study": []})
    for film, who in zip(films, identities, strict=True):
        for of, name in (("patient", who.patient), ("study", who.study)):
            if name:
                borne[film.collection][of].append(name)
    notes = []
    for collection, of_collection in sorted(borne.items()):
        for of, names in of_collection.items():
            if len(names) > 1 and len(set(names)) == 1:
                notes.append(f"{collection}: all its DICOM files name one {of}, which was not believed")
                names.clear()
    named, of_patient, of_study = [], 0, 0
    for film, who in zip(films, identities, strict=True):
        believed = borne[film.collection]
        patient = who.patient if believed["patient"] and not film.patient_id else None
        study = who.study if believed["study"] and not film.patient_id and not film.study_id else None
        named.append(replace(film, patient_id=film.patient_id or patient, study_id=film.study_id or study))
        of_patient, of_study = of_patient + bool(patient), of_study + bool(study)
    if of_patient or of_study:
        notes.append(
            f"the patient of {of_patient} films and the study of {of_study}, which the data do not name, were read "
            "from their DICOM files and stand in the manifest as hashes"
        )
    return named, notes
