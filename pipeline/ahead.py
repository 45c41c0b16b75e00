"""Prefetching of remote shards, ahead of the samples that will be read from them."""

import logging
from collections import OrderedDict
from dataclasses import replace
from threading import Condition, Thread

import numpy as np

from coma.errors import DataError
from coma.pipeline.cache import ShardCache
from coma.pipeline.download import Stopped
from coma.pipeline.order import WINDOW_SAMPLES, Planner
from coma.shards.manifest import Manifest

log = logging.getLogger(__name__)

LOOK_AHEAD_SAMPLES = 2 * WINDOW_SAMPLES
STREAMS = 4
_SCAN_SAMPLES = 4096


class Upcoming:
    """The shards that samples from a position on will need, in the order of first need.

    Args:
        planner: the order in which samples are read.
        manifest: tells which shard each sample is in.
        start_sample: the first position.
        look_ahead: number of samples from the position on that are looked at: a window's and the next one's.
    """

    def __init__(
        self, planner: Planner, manifest: Manifest, start_sample: int, look_ahead: int = LOOK_AHEAD_SAMPLES
    ) -> None:
        self._planner = replace(planner, batch_size=min(_SCAN_SAMPLES, planner.samples_per_epoch))
        self._shard_id = manifest.shard_id
        self._look_ahead = min(look_ahead, 2 * planner.samples_per_epoch)
        self._scanned = start_sample
        self._last_need: OrderedDict[int, int] = OrderedDict()  # by shard, in the order of first need

    def at(self, position: int) -> list[int]:
        """Return the shards that the samples from `position` on need; positions may only grow."""
        while self._scanned < position + self._look_ahead:
            step = self._planner.at(self._scanned)
            if step is None:
                break
            shards = self._shard_id[step.samples]
            for shard in shards[np.sort(np.unique(shards, return_index=True)[1])].tolist():
                self._last_need[shard] = step.stop_sample
            self._scanned = step.stop_sample
        for shard in [shard for shard, last in self._last_need.items() if last <= position]:
            del self._last_need[shard]
        return list(self._last_need)


class FetchAhead:
    """Threads that fill a cache with the shards that will be needed next.

    A failure here is only logged: the reader that needs the shard tries again, and raises.

    Args:
        cache: where the shards go; `close` stops it too.
        upcoming: the shards that will be needed.
        start_sample: the position at which reading begins.
    """

    def __init__(self, cache: ShardCache, upcoming: Upcoming, start_sample: int) -> None:
        self._cache = cache
        self._upcoming = upcoming
        self._changed = Condition()
        self._position = start_sample
        self._wanted: list[int] = []
        self._asked: set[int] = set()
        self._closed = False
        self._threads = [
            Thread(target=self._run, name=f"coma-fetch-{number}", daemon=True) for number in range(STREAMS)
        ]
        self.advance(start_sample)
        needed_bytes = sum(cache.least_bytes[shard] for shard in self._wanted)
        if needed_bytes > cache.budget_bytes:
            log.warning(
                "the %d shards needed next have %.3g GB and the cache takes %.3g: some may be downloaded more "
                "than once; give it room with COMA_CACHE_BYTES",
                *(len(self._wanted), needed_bytes / 1e9, cache.budget_bytes / 1e9),
            )
        for thread in self._threads:
            thread.start()

    def advance(self, position: int) -> None:
        """Note that the samples before `position` have been read."""
        with self._changed:
            self._wanted = self._upcoming.at(position)
            self._asked.intersection_update(self._wanted)
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads, and every download of the cache."""
        self._cache.stop()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(10.0)

    def _wanted_after(self, wanted: list[int]) -> list[int]:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._wanted != wanted)
            return [] if self._closed else self._wanted

    def _next(self) -> int | None:
        return next((shard for shard in self._wanted if shard not in self._asked), None)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next() is not None)
                shard = self._next()
                if self._closed or shard is None:
                    return
                self._asked.add(shard)
                wanted = self._wanted
            try:
                while shard in wanted and not self._cache.fetch(shard, wanted):
                    wanted = self._wanted_after(wanted)  # the cache is full of needed shards: wait until one is read
            except Stopped:
                return
            except DataError as error:
                log.warning("fetching ahead: %s", error)
