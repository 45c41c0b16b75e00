"""What all processes of a run must have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coma.errors import UsageError
from coma.training.config.ds_config import read_ds_config
from coma.training.config.options import PretrainConfig
from coma.training.config.resolve import resolve
from coma.training.setup import common_facts, compare


def facts(fingerprint: str = "f", data: str = "d", **fields: Any) -> dict[str, Any]:
    config = PretrainConfig(**{"steps": 9, "batch_size": 4, "data": Path(data), **fields})
    plan = resolve(
        config,
        read_ds_config(config.ds_config),
        data=data,
        fingerprint=fingerprint,
        samples_per_epoch=99,
        world_size=2,
        device="cpu",
        has_bf16=False,
    )
    return common_facts(config, plan)


def test_ranks_that_are_alike_may_keep_their_data_elsewhere() -> None:
    compare([("a", facts()), ("b", facts(data="/scratch/d", workers=3))])


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({**facts(), "torch": "1.0"}, r"rank 2 on c has torch '1.0' where rank 0 on a has '2"),
        ({**facts(), "deepspeed": "0.1"}, "rank 2 on c has deepspeed '0.1'"),
        (facts("g"), "rank 2 on c has data's fingerprint 'g' where rank 0 on a has 'f'"),
        (facts(base_lr=1e-3), "rank 2 on c has base_lr 0.001"),
        (
            {**facts(), "deepspeed.zero_optimization.stage": 2},
            "rank 2 on c has deepspeed.zero_optimization.stage 2 where rank 0 on a has 1",
        ),
    ],
)
def test_the_rank_that_differs_is_named_with_what_it_has(other: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        compare([("a", facts()), ("b", facts()), ("c", other)])
    assert "\n" not in str(caught.value)
