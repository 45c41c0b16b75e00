"""DICOM single frames, by pydicom: facts of their headers, and their values in the unit that the file states.

Stored values become others by the file's rescale slope and intercept, such as Hounsfield units: where both are whole
numbers as int16, else as float32.
Legend: H, W sides in pixels, C channels.
"""

import io
from typing import Any

import numpy as np

from coma.errors import UsageError
from coma.shards.images.array_files.facts import ArrayFacts, Pixels
from coma.shards.images.formats import BadImageError

_MAGIC_AT, _MAGIC = 128, b"DICM"
_CHANNELS = {"MONOCHROME1": 1, "MONOCHROME2": 1, "RGB": 3}
_INT16 = np.iinfo(np.int16)


def is_dicom(data: bytes) -> bool:
    """Whether bytes are a DICOM file."""
    return data.startswith(_MAGIC, _MAGIC_AT)


def facts(data: bytes) -> ArrayFacts:
    """Return the facts about a DICOM file.

    Raises BadImageError if it is no single frame of plain values, and whatever pydicom raises over damage.
    """
    header = _read(data, stop_before_pixels=True)
    kind = str(header.get("PhotometricInterpretation", "without a kind of pixels"))
    if kind not in _CHANNELS:
        raise BadImageError(f"unsupported format: DICOM {kind}, whose values are not plain ones")
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise BadImageError("animated: a DICOM of several frames; save one frame a file")
    width, height = int(header.get("Columns", 0)), int(header.get("Rows", 0))
    if not (width and height):
        raise BadImageError("unreadable: it has no pixels")
    return ArrayFacts(width, height, _CHANNELS[kind], _dtype(header), "dicom", kept=False, why="DICOM")


def read(data: bytes) -> Pixels:
    """Read the values [H, W, C] of a DICOM file.

    Raises BadImageError, and whatever pydicom raises over damage, or if it lacks a decoder.
    """
    header = _read(data)
    stored = np.asarray(header.pixel_array)
    dtype, (slope, intercept) = np.dtype(_dtype(header)), _rescale(header)
    if (slope, intercept) != (1, 0):
        values = stored.astype(np.float64) * slope + intercept
        if dtype.kind == "i" and not (_INT16.min <= values.min() and values.max() <= _INT16.max):
            raise BadImageError(
                f"unsupported format: DICOM of values from {values.min():g} to {values.max():g}, int16 has "
                f"{_INT16.min} to {_INT16.max}"
            )
        stored = values
    pixels = stored.astype(dtype)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _dtype(header: Any) -> str:
    slope, intercept = _rescale(header)
    if (slope, intercept) != (1, 0):
        return "int16" if slope.is_integer() and intercept.is_integer() else "float32"
    return f"{'int' if header.get('PixelRepresentation') else 'uint'}{int(header.get('BitsAllocated', 0))}"


def _rescale(header: Any) -> tuple[float, float]:
    """Return slope and intercept."""
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)


def _read(data: bytes, stop_before_pixels: bool = False) -> Any:
    """Read a file. Raises UsageError, which ends the run, if pydicom is missing: the same command resumes it."""
    try:
        import pydicom
    except ImportError:
        from coma.installed.installation import installation  # only where something is missing

        raise UsageError(f"--channels needs pydicom to read DICOM: {installation().extra('dicom')}") from None
    return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=stop_before_pixels)
