"""DICOM frames become .npy with the values that the file states, and what is no single plain frame is set aside."""

import io
import sys

import numpy as np
import pydicom
import pytest
from arrays import drawn_array
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

from coma.errors import UsageError
from coma.shards.images.arrays import array_facts, read_window
from coma.shards.images.formats import BadImageError
from coma.shards.images.options import PixelOptions
from coma.shards.images.prepare_array import prepare_array


def dicom(pixels: np.ndarray, packed: bool = False, **tags: object) -> bytes:
    """A frame [H, W] or [H, W, 3] as DICOM."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset("x", {}, file_meta=meta, preamble=bytes(128))
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    header.Rows, header.Columns = pixels.shape[:2]
    header.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    header.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    header.PlanarConfiguration = 0
    header.BitsAllocated = header.BitsStored = 8 * pixels.itemsize
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    header.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(header, name, value)
    if packed:
        header.compress(RLELossless)
    file = io.BytesIO()
    pydicom.dcmwrite(file, header, enforce_file_format=True)
    return file.getvalue()


def prepared(data: bytes, channels: int = 1) -> np.ndarray:
    """The values that a shard has."""
    sample = prepare_array(data, PixelOptions(channels=channels))
    assert (sample.facts.format, sample.converted) == ("npy", "DICOM")
    facts = array_facts(sample.data)
    return read_window(sample.data, "npy", 0, 0, facts.height, facts.width)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_stored_values_are_kept(dtype):
    frame = drawn_array(1, dtype, 20, 30)[..., 0]
    for data in (dicom(frame), dicom(frame, packed=True), dicom(frame, RescaleSlope=1, RescaleIntercept=0)):
        values = prepared(data)
        assert values.dtype == dtype
        assert np.array_equal(values[..., 0], frame)


def test_colours_are_three_channels():
    frame = drawn_array(3, "uint8", 20, 30)
    assert np.array_equal(prepared(dicom(frame), 3), frame)


def test_values_are_those_in_the_unit_of_the_file():
    """Hounsfield units of a scanner that stores them from 0 on, as int16; other scales as float32."""
    frame = np.arange(600, dtype=np.uint16).reshape(20, 30)
    hounsfield = prepared(dicom(frame, RescaleSlope=1, RescaleIntercept=-1024))
    assert hounsfield.dtype == np.int16
    assert np.array_equal(hounsfield[..., 0], frame.astype(np.int16) - 1024)
    activity = prepared(dicom(frame, RescaleSlope=0.25, RescaleIntercept=0))
    assert activity.dtype == np.float32
    assert np.array_equal(activity[..., 0], frame / 4)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"NumberOfFrames": 2, "Rows": 10}, "animated: a DICOM of several frames"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "unsupported format: DICOM PALETTE COLOR"),
        ({"RescaleSlope": 100, "RescaleIntercept": 0}, "unsupported format: DICOM of values from 0 to 59900"),
        ({"PixelData": bytes(100)}, "unreadable: "),
        ({"NumberOfFrames": [1, 2]}, "unreadable: "),
        ({"RescaleSlope": [1, 2]}, "unreadable: "),
        ({"SamplesPerPixel": 3, "Rows": 10, "Columns": 20}, "unreadable: it holds other pixels than its header says"),
    ],
)
def test_reasons_of_dicoms_that_are_set_aside(tags, reason):
    with pytest.raises(BadImageError, match=f"^{reason}"):
        prepare_array(dicom(np.arange(600, dtype=np.uint16).reshape(20, 30), **tags), PixelOptions(channels=1))


def test_without_pydicom_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UsageError, match=r"--channels needs pydicom to read DICOM: .*dicom"):
        array_facts(dicom(np.zeros((4, 4), np.uint8)), 1)
