"""What pre-training gains in segmentation: frozen maps of a trained network beside those that its training began with.

    python -m benchmarks.dense OUT [--seeds 3] [--steps 2200] [--train 2400] [--val 200] [--patches 10000]

Draws the demo's scenes with masks of their objects, pre-trains the demo's network on the images of train alone, once a
seed, and scores it before and after as `coma probe --task segmentation` does, at the defaults but for the number of
patches. What OUT holds already is taken as it is: the same command resumes, and prints the table again at the end. The
bar: 5 points of mIoU with every seed.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from coma.demo.demo import BASE_LR, BATCH_SIZE, DS_CONFIG, IMAGE_SIZE, MODEL, PATCH_SIZE, STEPS, VIEWS
from coma.demo.scene_files import write_scenes
from coma.evaluation.dense.segment import DenseOptions, masked_manifests, segment
from coma.runs.lines import append_line, read_lines
from coma.runs.read import build_model, load_autoencoder, read_config
from coma.shards.write.options import ShardOptions
from coma.shards.write.writer import shard
from coma.training import PretrainConfig, pretrain

BAR = 5.0
HEADS = {"miou": "logistic regression", "miou_knn": "neighbours"}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Train and score what is not there yet, print the table, and return its figures: a dict for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--train", type=int, default=2400, help="scenes to learn from")
    parser.add_argument("--val", type=int, default=200, help="scenes to test on")
    parser.add_argument("--patches", type=int, default=10_000)
    given = parser.parse_args(arguments)

    drawn, images, masked = (given.out / name for name in ("drawn", "shards", "masked"))
    if not drawn.exists():
        write_scenes(drawn, train=given.train, val=given.val, masks=True)
    for source, data in ((drawn / "images", images), (drawn, masked)):
        shard(source, data, ShardOptions())
    results, scores = given.out / "scores.jsonl", []
    known = {(line["seed"], line["trained"]): line for line in read_lines(results)}
    for seed in range(given.seeds):
        run = given.out / f"run{seed}"
        pretrain(_config(images, run, seed, given.steps))
        for trained in (False, True):
            line = known.get((seed, trained)) or _score(run, masked, given.patches, seed=seed, trained=trained)
            if (seed, trained) not in known:
                append_line(results, line)
            scores.append(line)
    print(table(scores))
    return scores


def table(scores: Sequence[dict[str, Any]]) -> str:
    """Return a table in Markdown: a line a seed, and the means."""
    head = [f"{words}, {when}" for words in HEADS.values() for when in ("before", "after", "gain")]
    rows = []
    for before, after in zip(scores[::2], scores[1::2], strict=True):
        rows.append([figure for key in HEADS for figure in (before[key], after[key], after[key] - before[key])])
    lines = [f"| {seed} | " + " | ".join(f"{figure:.1f}" for figure in row) + " |" for seed, row in enumerate(rows)]
    mean = [statistics.mean(column) for column in zip(*rows, strict=True)]
    lines.append("| mean | " + " | ".join(f"{figure:.1f}" for figure in mean) + " |")
    least = min(min(row[2], row[5]) for row in rows)
    verdict = f"least gain {least:.1f} points of mIoU; the bar is {BAR:g}"
    return "\n".join([f"| seed | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|", *lines, "", verdict])


def _config(data: Path, run: Path, seed: int, steps: int) -> PretrainConfig:
    """Return the demo's pre-training with a seed."""
    return PretrainConfig(
        data=data,
        model=MODEL,
        views=VIEWS,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        steps=steps,
        batch_size=BATCH_SIZE,
        base_lr=BASE_LR,
        seed=seed,
        out=run,
        ds_config=DS_CONFIG,
        save_every=steps,
    )


def _score(run: Path, data: Path, patches: int, *, seed: int, trained: bool) -> dict[str, Any]:
    """Score a run's network, or the very network that its training began with."""
    if trained:
        model = load_autoencoder(run)
    else:
        torch.manual_seed(seed)
        model = build_model(read_config(run)["config"])
    options = DenseOptions(most_patches=patches)
    scores = segment(model.backbone, *masked_manifests(data), options, stream_options=model.stream_options())
    return {"seed": seed, "trained": trained, **scores.metrics_line(0)}


if __name__ == "__main__":
    main()
