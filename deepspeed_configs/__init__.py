"""Packaged DeepSpeed configurations, which `--ds-config` takes by name.

====================  =====================================================================================
`zero0.json`          plain data parallelism: everything on every device
`zero1.json`          optimizer state partitioned over the devices: the default, for models that fit one device
`zero2.json`          gradients partitioned as well
`zero3.json`          parameters partitioned as well: for models that do not fit one device
`zero2_offload.json`  as zero2, optimizer state in the host's memory: little GPU memory, slower steps
`zero3_offload.json`  as zero3, parameters and optimizer state in the host's memory: least GPU memory
`zero3_nvme.json`     as zero3_offload, optimizer state on NVMe: for hosts whose memory does not hold it either
====================  =====================================================================================

A file holds only what no option of the command decides. Batch sizes, learning rate, weight decay and the schedule
come from the command line; precision from the hardware, unless the file has one of `bf16`, `fp16`, `torch_autocast`.
"""

from pathlib import Path

FOLDER = Path(__file__).parent


def packaged() -> dict[str, Path]:
    """Return the packaged configurations by name, without `.json`."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
