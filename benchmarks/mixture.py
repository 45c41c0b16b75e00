"""What a mixture of data sets costs, and how far its shares are off at any moment.

    python -m benchmarks.mixture [--mixes 3000] [--steps 200] [--rounds 15] [--model dyvit_tiny] [--batch-size 8]

Shares: random mixes of 2 to 14 data sets, whose weights span up to six decades; of each, the most that a data set's
number of images is away from its share of all, over 20,000 consecutive places of the run.

Order: CPU time to compute which samples are in a batch of 256, of one data set and of mixtures of the same shards.

Loss by data set: CPU time of forward and backward passes with the loss of each image and without it, in turns; ratios
to the mean of the turns before and after, of which the median and quartiles.
"""

import argparse
import random
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch

from coma.model.build import build
from coma.pipeline.mixture import MixedOrder, Pattern
from coma.pipeline.order import SampleOrder

_PLACES = 20_000
_BATCH = 256


def deviations(mixes: int) -> dict[int, float]:
    """Return the most that a data set was away from its share, in images, by the number of data sets."""
    draw, most = random.Random(0), dict[int, float]()
    for _ in range(mixes):
        decades = draw.randint(0, 6)
        weights = [1 + int(10 ** (draw.random() * decades)) for _ in range(draw.randint(2, 14))]
        places = np.arange(_PLACES) + sum(weights) * draw.randrange(10**6)
        counts = Pattern(weights).counts(places)
        first = counts[:, :1]  # exact, at a multiple of the sum
        shares = np.array(weights)[:, None] / sum(weights)
        away = np.abs((counts - first) - (places - places[0]) * shares).max()
        most[len(weights)] = max(most.get(len(weights), 0.0), float(away))
    return dict(sorted(most.items()))


def order_ms(steps: int) -> dict[str, float]:
    """Return the CPU time in milliseconds of computing a batch's samples, by the number of data sets."""
    shards = np.full(50, 1000)
    orders: dict[str, SampleOrder | MixedOrder] = {"1 data set": SampleOrder(np.tile(shards, 8), 0)}
    for count in (2, 4, 8):
        orders[f"{count} data sets"] = MixedOrder([shards] * count, range(1, count + 1), 0, [True] * count)
    times = {}
    for name, order in orders.items():
        order.global_batch(0, _BATCH)
        began_s = time.process_time()
        for step in range(steps):
            order.global_batch(step * _BATCH, _BATCH)
        times[name] = (time.process_time() - began_s) / steps * 1e3
    return times


def loss_ratios(model: str, batch_size: int, rounds: int) -> list[float]:
    """Return ratios of the CPU time of a step with the loss of each image to that of a step without."""
    torch.manual_seed(0)
    network = build(model, "coma", views=2, image_size=224, patch_size=None)
    images = torch.randn(batch_size, 3, 224, 224)
    units = torch.stack([torch.randperm(network.units) for _ in range(batch_size)])

    def step_s(keeps: bool) -> float:
        network.keeps_image_losses = keeps
        network.zero_grad()
        began_s = time.process_time()
        network(images, units).backward()
        return time.process_time() - began_s

    step_s(True)
    before_s, ratios = step_s(False), []
    for _ in range(rounds):
        with_s, after_s = step_s(True), step_s(False)
        ratios.append(2 * with_s / (before_s + after_s))
        before_s = after_s
    return ratios


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print three tables."""
    parser = argparse.ArgumentParser(description="What a mixture of data sets costs, and how exact its shares are.")
    parser.add_argument("--mixes", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", default="dyvit_tiny")
    parser.add_argument("--batch-size", type=int, default=8)
    given = parser.parse_args(arguments)
    print("data sets  images off its share, at most")
    for count, away in deviations(given.mixes).items():
        print(f"{count:>9}  {away:.3f}")
    print(f"\nsamples of a batch of {_BATCH}  CPU ms")
    for name, spent_ms in order_ms(given.steps).items():
        print(f"{name:>24}  {spent_ms:.3f}")
    ratios = loss_ratios(given.model, given.batch_size, given.rounds)
    low, median, high = statistics.quantiles(ratios, n=4)
    print(f"\nloss of each image, {given.model}: {median:.4f} of a step's CPU time (quartiles {low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()
