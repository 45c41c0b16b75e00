"""DeepSpeed configurations that `coma pretrain --ds-config NAME` knows by name.

====================  =====================================================================================
`zero0.json`          plain data parallelism: everything on every device
`zero1.json`          optimizer state split over the devices: the default, for models that fit one device
`zero2.json`          gradients split as well
`zero3.json`          parameters split as well: for models that do not fit one device
`zero2_offload.json`  as zero2, optimizer on the host: little GPU memory, slower steps
`zero3_offload.json`  as zero3, parameters and optimizer on the host: least GPU memory
`zero3_nvme.json`     as zero3_offload, optimizer on a drive: for hosts whose memory does not hold it either
====================  =====================================================================================

A file holds what DeepSpeed alone decides. Batch sizes, learning rate, weight decay and the schedule come from
the command line; precision from the hardware, unless the file has one of `bf16`, `fp16`, `torch_autocast`.
"""

from pathlib import Path

FOLDER = Path(__file__).parent


def packaged() -> dict[str, Path]:
    """Return the packaged configurations by name, without `.json`."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
