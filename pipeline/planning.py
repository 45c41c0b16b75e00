"""The planner of a stream: which samples each step holds, for one data set, for several, or in a single pass."""

import logging

from coma.pipeline.mixture import MixedOrder
from coma.pipeline.order import Planner, SampleOrder, mixed
from coma.shards.manifest import Manifest, Mixture

log = logging.getLogger(__name__)


def planner_of(manifest: Manifest, seed: int, batch_size: int, *, training: bool) -> Planner:
    """Return the planner of a training run, or of one pass over the manifest as it stands."""
    order = order_of(manifest, seed) if training else None
    return Planner(order, len(manifest), batch_size)


def order_of(manifest: Manifest, seed: int) -> SampleOrder | MixedOrder:
    """Return the endless order of a data set or of a mixture."""
    if isinstance(manifest, Mixture):
        members = manifest.members
        lengths = [member.shard_lengths for member in members]
        return MixedOrder(lengths, manifest.weights, seed, [_is_mixed(member) for member in members])
    return SampleOrder(manifest, seed, mixed=_is_mixed(manifest))


def _is_mixed(manifest: Manifest) -> bool:
    """Whether each shard is a random draw of the data set, judged by the labels."""
    label = manifest.label
    is_mixed = label is None or mixed(label, manifest.shard_lengths)
    if not is_mixed:
        log.info("the shards of %s are sorted by class: samples are drawn from all of them at a time", manifest.place)
    return is_mixed
