"""CPU time of reading samples of many channels, by decoder and by how the bytes are laid out and packed.

    python -m benchmarks.band_decoders [--side 256] [--channels 13] [--rounds 9] [--json OUT]

Every decoder reads the same scene, one after the other, round after round; a figure is the median over the rounds, in
milliseconds of CPU a sample. `window` is a window of 60% of the area, as a random crop takes. A decoder that is not
installed (imagecodecs makes tifffile faster; it is 26 MB) or cannot read a layout is left out. The scene is smooth
with noise, which packs about as well as 12-bit satellite bands do.
"""

import argparse
import importlib.util
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tifffile

from coma.shards.images.array_files import npy
from coma.shards.images.arrays import array_facts, read_window

Decoder = Callable[[bytes], npt.NDArray[Any] | None]

_LAYOUTS: dict[str, dict[str, Any]] = {
    "uncompressed, strips": {},
    "uncompressed, planar": {"planar": True},
    "uncompressed, tiles": {"tile": (128, 128)},
    "deflate, strips": {"compression": "zlib", "rowsperstrip": 64},
    "deflate, one strip": {"compression": "zlib", "rowsperstrip": 1 << 20},
    "deflate + predictor, strips": {"compression": "zlib", "predictor": True, "rowsperstrip": 64},
    "deflate + predictor, planar": {"compression": "zlib", "predictor": True, "planar": True},
    "deflate + predictor, planar tiles": {
        "compression": "zlib",
        "predictor": True,
        "planar": True,
        "tile": (128, 128),
    },
}


def scene(side: int, channels: int, seed: int = 0) -> npt.NDArray[np.uint16]:
    """Draw a scene [H, W, C] of smooth waves, a brightness for each channel, and noise."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / 64
    waves = np.zeros((side, side))
    for _ in range(12):
        down, right, phase = generator.uniform(0.2, 6, 3)
        waves += generator.normal() * np.sin(x * right + y * down + phase)
    levels = 1500 + 400 * waves[..., None] * generator.uniform(0.5, 2, channels)
    noisy = levels + generator.normal(0, 40, (side, side, channels))
    return np.clip(noisy, 0, 10_000).astype(np.uint16)


def files(whole: npt.NDArray[np.uint16]) -> dict[str, bytes]:
    """Return the scene in every layout."""
    written = {}
    for name, options in _LAYOUTS.items():
        planar = bool(options.get("planar"))
        file = io.BytesIO()
        tifffile.imwrite(
            file,
            np.moveaxis(whole, 2, 0) if planar else whole,
            photometric="minisblack",
            planarconfig="separate" if planar else "contig",
            **{name: value for name, value in options.items() if name != "planar"},
        )
        written[name] = file.getvalue()
    return written | {".npy": npy.encode(whole)}


def measure(side: int, channels: int, rounds: int) -> dict[str, Any]:
    """Time every decoder on every layout."""
    whole = scene(side, channels)
    edge = round(side * 0.6**0.5)
    top, left = (side - edge) // 2, (side - edge) // 3
    ways: dict[str, Decoder] = {
        "coma": lambda data: _coma(data, 0, 0, side),
        "coma, window": lambda data: _coma(data, top, left, edge),
        "tifffile": lambda data: None if data.startswith(npy.MAGIC) else tifffile.imread(io.BytesIO(data)),
    }
    ways |= _nvimgcodec()
    layouts = {}
    for name, data in files(whole).items():
        pixels = ways["coma"](data)
        assert pixels is not None
        assert np.array_equal(pixels, whole), name
        usable = {way: decode for way, decode in ways.items() if decode(data) is not None}
        times: dict[str, list[float]] = {way: [] for way in usable}
        for _ in range(rounds):
            for way, decode in usable.items():
                began = time.process_time()
                decode(data)
                times[way].append(1e3 * (time.process_time() - began))
        layouts[name] = {"bytes": len(data), "cpu_ms": {way: statistics.median(each) for way, each in times.items()}}
    return {
        "side": side,
        "channels": channels,
        "imagecodecs": importlib.util.find_spec("imagecodecs") is not None,
        "layouts": layouts,
        "zstd_cpu_ms": _zstd(whole, rounds),
    }


def _coma(data: bytes, top: int, left: int, side: int) -> npt.NDArray[Any]:
    return np.ascontiguousarray(read_window(data, array_facts(data).format, top, left, side, side))


def _nvimgcodec() -> dict[str, Decoder]:
    """The decoder that comes with DALI, on the CPU."""
    try:
        from nvidia import nvimgcodec
    except ImportError:
        return {}
    backend = nvimgcodec.Backend(nvimgcodec.CPU_ONLY)
    decoder = nvimgcodec.Decoder(device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=[backend])
    parameters = nvimgcodec.DecodeParams(allow_any_depth=True, color_spec=nvimgcodec.UNCHANGED)

    def decode(data: bytes) -> npt.NDArray[Any] | None:
        image = None if data.startswith(npy.MAGIC) else decoder.decode(data, params=parameters)
        return None if image is None else np.asarray(image.cpu())

    return {"nvImageCodec": decode}


def _zstd(whole: npt.NDArray[np.uint16], rounds: int) -> dict[str, float]:
    """Time of zstd, which GDAL writes too, and how many times fewer bytes it takes than no compression."""
    packed = pa.compress(whole.tobytes(), codec="zstd", asbytes=True)
    times = []
    for _ in range(rounds):
        began = time.process_time()
        pa.decompress(packed, whole.nbytes, codec="zstd", asbytes=True)
        times.append(1e3 * (time.process_time() - began))
    return {"whole": statistics.median(times), "ratio": whole.nbytes / len(packed)}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--channels", type=int, default=13)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result = measure(given.side, given.channels, given.rounds)
    ways = ("coma", "coma, window", "tifffile", "nvImageCodec")
    print(f"{'ms of CPU a sample':34s} {'bytes':>10s} " + " ".join(f"{way:>12s}" for way in ways))
    for name, layout in result["layouts"].items():
        cells = (f"{layout['cpu_ms'][way]:12.2f}" if way in layout["cpu_ms"] else f"{'-':>12s}" for way in ways)
        print(f"{name:34s} {layout['bytes']:10,} " + " ".join(cells))
    zstd = result["zstd_cpu_ms"]
    print(f"zstd alone: {zstd['whole']:.2f} ms, {zstd['ratio']:.2f} times fewer bytes than uncompressed")
    print(f"imagecodecs, which tifffile uses: {'installed' if result['imagecodecs'] else 'not installed'}")
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
