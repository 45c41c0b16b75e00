"""The benchmark of decoders runs, reads what it wrote, and keeps to the layouts that each decoder takes."""

from benchmarks.band_decoders import files, measure, scene


def test_every_layout_is_timed():
    result = measure(side=48, channels=5, rounds=1)
    assert set(result["layouts"]) == set(files(scene(48, 5)))
    for name, layout in result["layouts"].items():
        assert {"coma", "coma, window"} <= layout["cpu_ms"].keys()
        assert ("tifffile" in layout["cpu_ms"]) == (name != ".npy")
    sizes = {name: layout["bytes"] for name, layout in result["layouts"].items()}
    assert sizes["deflate + predictor, strips"] < sizes["deflate, strips"] < sizes["uncompressed, strips"]
