"""Stages of the stream, each run alone as a loader is, to time them."""

import os
from typing import Any

import nvidia.dali.fn as fn
import torch
import xxhash
from nvidia.dali import types

from coma.bench.image_loaders import Sample, run_graph
from coma.bench.timing import Loading
from coma.pipeline.decode import Decoder, HeaderCheck


def reading(sample: Sample) -> Loading:
    """Read the byte ranges of the images out of the shards."""
    m = sample.manifest
    descriptors = [os.open(tar, os.O_RDONLY) for tar in sample.tars]
    try:
        for ids in sample.batches():
            for i in ids:
                os.pread(descriptors[m.shard_id[i]], int(m.size[i]), int(m.offset[i]))
            yield len(ids)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def hashing(sample: Sample) -> Loading:
    """Hash every image by xxh3-64 and parse its header."""
    check, m = HeaderCheck(sample.batch_size), sample.manifest
    for ids in sample.batches():
        data = [sample.encoded[i] for i in ids]
        for image in data:
            xxhash.xxh3_64_intdigest(image)
        check.faults(data, m.width[ids], m.height[ids])
        yield len(ids)


def window_decoding(sample: Sample) -> Loading:
    """Decode each image's crop window by the same operator as the stream's graph."""
    feed = sample.inputs()

    def source() -> tuple[Any, ...]:
        batch = next(feed)
        return list(batch.data), batch.crops.start, batch.crops.shape

    def graph() -> Any:
        encoded, start, shape = fn.external_source(
            source=source, num_outputs=3, batch=True, dtype=[types.UINT8, types.INT32, types.INT32], ndim=[1, 1, 1]
        )
        return fn.decoders.image_slice(encoded, start=start, shape=shape, axes=[0, 1], output_type=types.RGB)

    return run_graph(sample, graph)


def whole_graph(sample: Sample) -> Loading:
    """Run the stream's graph: decoding, resizing, normalising."""
    feed = sample.inputs()
    decoder = Decoder(
        lambda: next(feed),
        batch_size=sample.batch_size,
        device=torch.device("cpu"),
        decode_on_gpu=False,
        threads=1,
        depth=2,
    )
    while (images := decoder.run()) is not None:
        yield len(images)


STAGES = {"read": reading, "checked": hashing, "window": window_decoding, "graph": whole_graph}
"""The stages by the names under which their times are kept, in the order of the stream."""
