"""The stream's own parts, one at a time, as ways."""

import os
from typing import Any

import nvidia.dali.fn as fn
import torch
import xxhash
from nvidia.dali import types

from coma.bench.ways import Sample, Way, run_graph
from coma.pipeline.decode import Decoder, HeaderCheck


def reading(sample: Sample) -> Way:
    """Byte ranges of the shards."""
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


def hashing(sample: Sample) -> Way:
    """xxh3-64 of every image, and its header parsed."""
    check, m = HeaderCheck(sample.batch_size), sample.manifest
    for ids in sample.batches():
        data = [sample.encoded[i] for i in ids]
        for image in data:
            xxhash.xxh3_64_intdigest(image)
        check.faults(data, m.width[ids], m.height[ids])
        yield len(ids)


def window_decoding(sample: Sample) -> Way:
    """The window's part of each image, decoded by the same operator as in the stream's graph."""
    feed = sample.inputs()

    def source() -> tuple[Any, ...]:
        batch = next(feed)
        return list(batch.data), batch.crops.start, batch.crops.shape

    def graph() -> Any:
        encoded, start, shape = fn.external_source(
            source=source,
            num_outputs=3,
            batch=True,
            dtype=[types.UINT8, types.INT32, types.INT32],
            ndim=[1, 1, 1],
        )
        return fn.decoders.image_slice(encoded, start=start, shape=shape, axes=[0, 1], output_type=types.RGB)

    return run_graph(sample, graph)


def whole_graph(sample: Sample) -> Way:
    """The stream's graph: decoding, resizing, normalising."""
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
"""By the names that a benchmark keeps their times under; in the order of the stream."""
