"""Linear probes fitted by SGD as the papers of DINOv2 and MAE do, on features that are extracted once.

`dinov2` (arXiv 2304.07193): a classifier for each learning rate of a grid, all trained at once. `mae` (arXiv
2111.06377, A.1): batch normalisation without weights before the classifier, LARS, large batches. Both papers crop
images at random and flip them in every epoch; here each image is the one centre crop whose features were kept. The
grid's best is chosen on a fifth of the training rows, while DINOv2 reports the best on its test images, and DINOv2
sweeps the blocks and tokens that features are taken from as well, where here they are always the averaged tokens.

Legend: N training rows, M test rows, B of a batch, C channels, L classes, R learning rates.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coma.evaluation.features import held_out_fifth

logger = logging.getLogger(__name__)

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
"""DINOv2's grid, for a batch of 256."""
_SGD_BATCH = 1024
_SGD_PASSES = 10
_SGD_STEPS = 2500
"""Least number of steps, where ten passes over the rows are fewer."""

_MAE_BASE_LR = 0.1
_MAE_BATCH = 16_384
_MAE_EPOCHS = 90
_MAE_WARMUP = 10
_MAE_FEW_STEPS = 4
"""Number of steps in an epoch of a small data set, of smaller batches."""

_MOMENTUM = 0.9
_INIT_STD = 0.01


def sgd_logits(
    train_x: Tensor, train_labels: Tensor, test_x: Tensor, image: Tensor | None = None, *, steps: int | None = None
) -> Tensor:
    """Fit as DINOv2 does, with the best learning rate; return the test rows' logits [M, L].

    `image` [N] numbers the images that training rows are tiles of; None: they are none.
    """
    rate = choose_rate(train_x, train_labels, image=image, steps=steps)
    weight, bias = train_heads(train_x, train_labels, [rate], steps=steps)
    return test_x.float() @ weight[0] + bias[0]


def choose_rate(
    x: Tensor,
    labels: Tensor,
    rates: Sequence[float] = LEARNING_RATES,
    *,
    image: Tensor | None = None,
    steps: int | None = None,
) -> float:
    """Pick the learning rate with the best accuracy on a fifth of the rows, or of the images, fitted on the rest.

    Of equally good ones the lowest is taken. The test rows have no say.
    """
    held_out = held_out_fifth(len(x), image).to(x.device)
    if not held_out.any():
        return rates[len(rates) // 2]
    classes = int(labels.max()) + 1
    weight, bias = train_heads(x[~held_out], labels[~held_out], rates, classes=classes, steps=steps)
    rows, answers = x[held_out].float(), labels[held_out]
    right = [  # one rate at a time: the logits of a fifth of ImageNet are 1 GB
        int(((rows @ w + b).argmax(dim=1) == answers).sum()) for w, b in zip(weight, bias, strict=True)
    ]
    best = rates[max(range(len(rates)), key=lambda i: (right[i], -rates[i]))]
    logger.info("dinov2: learning rate %g of %d, chosen on a fifth of train", best, len(rates))
    return best


def train_heads(
    x: Tensor, labels: Tensor, rates: Sequence[float], *, classes: int | None = None, steps: int | None = None
) -> tuple[Tensor, Tensor]:
    """Train a linear classifier for each learning rate on the same batches: weights [R, C, L], biases [R, 1, L].

    Rows x [N, C] and labels [N] int64; momentum 0.9, no decay, rates that fall to 0 as a cosine.
    """
    x, classes = x.float(), classes or int(labels.max()) + 1
    batch = min(_SGD_BATCH, len(x))
    steps = steps or max(_SGD_STEPS, _SGD_PASSES * len(x) // batch)
    chance = torch.Generator().manual_seed(0)
    start = torch.randn(x.shape[1], classes, generator=chance) * _INIT_STD
    weight = start.to(x.device).repeat(len(rates), 1, 1)
    bias = torch.zeros(len(rates), 1, classes, device=x.device)
    speeds = [torch.zeros_like(weight), torch.zeros_like(bias)]
    lr = torch.tensor(rates, device=x.device).view(-1, 1, 1) * (batch / 256)
    for step, rows in zip(range(steps), _batches(len(x), batch, chance), strict=False):
        some = x[rows.to(x.device)]
        error = torch.softmax(some @ weight + bias, dim=2)  # [R, B, L]
        error[:, torch.arange(batch), labels[rows.to(labels.device)]] -= 1
        error /= batch
        falling = lr * (1 + cos(pi * step / steps)) / 2
        for value, speed, gradient in zip(
            (weight, bias), speeds, (some.T @ error, error.sum(dim=1, keepdim=True)), strict=True
        ):
            speed.mul_(_MOMENTUM).add_(gradient)
            value.sub_(falling * speed)
    return weight, bias


def lars_logits(train_x: Tensor, train_labels: Tensor, test_x: Tensor, _: Tensor | None = None) -> Tensor:
    """Fit as MAE does, with a fixed rate; return the test rows' logits [M, L].

    A step of LARS turns the weights by lr / 1000 of their norm, whatever the gradient's, and lr is in proportion to the
    batch: how far they come in 90 epochs is in proportion to N, and with a few thousand images they hardly leave
    where they began.
    """
    from timm.optim import Lars

    x, device = train_x.float(), train_x.device
    batch = max(2, min(_MAE_BATCH, len(x) // _MAE_FEW_STEPS))
    if batch < _MAE_BATCH:
        logger.info(
            "mae: batches of %d, not %d, as there are %d images to learn from; made for ImageNet, it learns too little "
            "from few",
            batch,
            _MAE_BATCH,
            len(x),
        )
    chance = torch.Generator().manual_seed(0)
    normalise = nn.BatchNorm1d(x.shape[1], affine=False, eps=1e-6).to(device)
    start = torch.randn(int(train_labels.max()) + 1, x.shape[1], generator=chance) * _INIT_STD
    weight = nn.Parameter(start.to(device))
    bias = nn.Parameter(torch.zeros(len(start), device=device))
    # MAE's LARS adapts to the weights' norm without weight decay too, and leaves the bias to plain SGD
    optimiser = Lars(
        [{"params": [weight], "always_adapt": True}, {"params": [bias], "always_adapt": False}], momentum=_MOMENTUM
    )
    epoch_steps = max(1, len(x) // batch)
    with torch.enable_grad():
        for step, rows in zip(range(_MAE_EPOCHS * epoch_steps), _batches(len(x), batch, chance), strict=False):
            for group in optimiser.param_groups:
                group["lr"] = _MAE_BASE_LR * batch / 256 * _mae_schedule(step / epoch_steps)
            rows = rows.to(device)
            loss = cross_entropy(normalise(x[rows]) @ weight.T + bias, train_labels[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    with torch.no_grad():
        logits: Tensor = normalise.eval()(test_x.float()) @ weight.T + bias
    return logits


def _mae_schedule(epoch: float) -> float:
    """Share of the learning rate: linear warm-up, then half a cosine down to 0."""
    if epoch < _MAE_WARMUP:
        return epoch / _MAE_WARMUP
    return (1 + cos(pi * (epoch - _MAE_WARMUP) / (_MAE_EPOCHS - _MAE_WARMUP))) / 2


def _batches(count: int, batch: int, chance: torch.Generator) -> Iterator[Tensor]:
    """Give full batches of row numbers without end, in a new order in each pass."""
    while True:
        order = torch.randperm(count, generator=chance)
        yield from torch.split(order[: count // batch * batch], batch)
