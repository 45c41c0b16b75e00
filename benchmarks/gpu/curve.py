"""Loss curves of one run on a GPU and on a CPU, in float32 and bfloat16: same seed, same batches.

All runs decode on the CPU, so that they see the same pictures to the last bit, but for one that decodes on the GPU.
They go side by side: nothing is timed.
"""

import itertools
import json
import statistics
from pathlib import Path

from benchmarks.gpu.coma_command import CommandFailed, options, start, steps_of, wait
from benchmarks.gpu.part import Measuring

_HIDDEN = {"CUDA_VISIBLE_DEVICES": ""}
_END = 20
"""Last steps, whose mean losses are compared as well: less noisy than single steps."""


def measure_curve(measuring: Measuring) -> None:
    """Train the runs, and compare pairs of them."""
    runs: dict[str, tuple[str, str, bool]] = {"cpu fp32": ("fp32", "cpu", False)}
    pairs = [("cpu fp32", "cpu bf16")]
    if measuring.on_gpu:
        runs |= {
            "gpu fp32": ("fp32", "cpu", True),
            "gpu fp32 again": ("fp32", "cpu", True),
            "gpu bf16": ("bf16", "cpu", True),
            "gpu bf16, decoded there": ("bf16", "gpu", True),
        }
        pairs = [
            ("cpu fp32", "gpu fp32"),
            ("gpu fp32", "gpu fp32 again"),
            ("gpu fp32", "gpu bf16"),
            ("gpu bf16", "gpu bf16, decoded there"),
        ]
    else:
        runs["cpu bf16"] = ("bf16", "cpu", False)
    if all(measuring.has(run=one, beside=other) for one, other in pairs):
        return
    losses = _losses(measuring, runs)
    for one, other in pairs:
        if one not in losses or other not in losses:
            continue
        mine, theirs = losses[one], losses[other]
        differences = [abs(a - b) for a, b in zip(mine, theirs, strict=True)]
        ends = [statistics.mean(each[-_END:]) for each in (mine, theirs)]
        measuring.put(
            {"run": one, "beside": other},
            steps=len(mine),
            mean_difference=statistics.mean(differences),
            greatest_difference=max(differences),
            at_step=differences.index(max(differences)) + 1,
            first_step_difference=differences[0],
            first_loss=mine[0],
            last_mean_loss=ends[0],
            beside_last_mean_loss=ends[1],
        )
    measuring.note(f"last mean loss: over the last {min(_END, len(next(iter(losses.values()), [])))} steps")


def _losses(measuring: Measuring, runs: dict[str, tuple[str, str, bool]]) -> dict[str, list[float]]:
    """Train all runs side by side; losses of those that did not fail."""
    numbers = itertools.count()
    started = {}
    for name, (precision, decode, on_gpu) in runs.items():
        run = measuring.scratch / f"run-{next(numbers)}"
        size = options(measuring, model="dyvit_nano", image_size=32, patch_size=2, batch_size=64)
        words = ["pretrain", str(measuring.data), "--out", str(run), *size, "--decode", decode]
        words += ["--steps", str(4 if measuring.quick else 200), "--ds-config", str(_ds_config(measuring, precision))]
        words += ["--save-every", "100000"]
        log = run.with_suffix(".log")
        started[name] = run, log, start(measuring, words, log, **({} if on_gpu else _HIDDEN))
    losses = {}
    for name, (run, log, process) in started.items():
        try:
            wait(measuring, process, log)
            lines = steps_of(run)
            if any(line["loss"] is None for line in lines):
                raise CommandFailed("it has a loss that is not finite")
        except CommandFailed as error:
            measuring.put({"run": name, "beside": None}, failed=str(error))
            continue
        losses[name] = [float(line["loss"]) for line in lines]
        measuring.series(name, losses[name])
    return losses


def _ds_config(measuring: Measuring, precision: str) -> Path:
    """Write `zero1` with a precision of its own, as a GPU that has bf16 would take that by itself."""
    from coma.deepspeed_configs import __file__ as packaged

    content = json.loads((Path(packaged).parent / "zero1.json").read_text())
    path = measuring.scratch / f"{precision}.json"
    path.write_text(json.dumps(content | {"bf16": {"enabled": precision == "bf16"}}))
    return path
