"""Loss, images and epochs of each data set of a mixture, for the metrics of a step.

Legend: B images of this rank, M data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from coma.pipeline.mixture import Pattern
from coma.shards.manifest import Manifest, Mixture


class BySource:
    """Figures by data set; of one data set alone there are none."""

    def __init__(self, manifest: Manifest) -> None:
        self._mixture = manifest if isinstance(manifest, Mixture) else None
        self._pattern = Pattern(self._mixture.weights) if self._mixture else None

    def __bool__(self) -> bool:
        """Whether there are several data sets."""
        return self._mixture is not None

    def sums(self, samples: Tensor, losses: Tensor) -> list[float]:
        """Return sums over this rank's images, which add up over ranks: [2M] losses, then images, by data set.

        Args:
            samples: [B] ids.
            losses: [B] loss of each.
        """
        assert self._mixture
        numbers, count = self._mixture.source_of(samples.cpu().numpy()), len(self._mixture.members)
        values = losses.double().cpu().numpy()
        return [*np.bincount(numbers, values, count).tolist(), *np.bincount(numbers, minlength=count).tolist()]

    def figures(self, sums: Sequence[float], samples: int) -> dict[str, Any]:
        """Return the metrics of a step.

        Args:
            sums: [2M] of all ranks.
            samples: samples that the run has consumed, this step's included.
        """
        if self._mixture is None or self._pattern is None:
            return {}
        names, count = self._mixture.names, len(self._mixture.names)
        seen = self._pattern.counts(np.array([samples]))[:, 0].tolist()
        line: dict[str, Any] = {}
        for at, (name, member) in enumerate(zip(names, self._mixture.members, strict=True)):
            line[f"source/{name}/samples"] = seen[at]
            line[f"source/{name}/epochs"] = seen[at] / len(member)
            if images := sums[count + at]:
                line[f"source/{name}/loss"] = sums[at] / images
        return line
