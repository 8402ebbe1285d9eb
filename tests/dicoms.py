"""DICOM files as a detector would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset


def dicom(pixels: np.ndarray, path: Path, *, syntax: str = "1.2.840.10008.1.2.1", **changes: Any) -> Path:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    data.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    data.BitsAllocated = pixels.dtype.itemsize * 8
    data.BitsStored = 12 if data.BitsAllocated == 16 else 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    big = syntax == "1.2.840.10008.1.2.2"
    data.PixelData = (pixels.byteswap() if big else pixels).tobytes()
    for name, value in changes.items():
        setattr(data, name, value)
    pydicom.dcmwrite(
        path, data, enforce_file_format=True, little_endian=not big, implicit_vr=syntax == "1.2.840.10008.1.2"
    )
    return path
