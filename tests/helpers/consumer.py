"""A consumer of the stream in a process of its own, for tests that stop and kill it.

It takes batches and notes what each held. Every few steps it commits: one file with the stream's state and all notes
so far takes the place of the one before. Started again, it goes on from there.
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from coma.pipeline import Batch, Stream

OPTIONS = {"image_size": 64, "unit_size": 16, "views": 3, "seed": 5, "workers": 1}


@dataclass(frozen=True)
class Life:
    """What a consumer does until it ends."""

    data: str
    folder: str  # its files
    batch_size: int
    until: int  # samples consumed
    state: dict[str, Any] | None = None  # of a stream to go on from, if nothing is committed
    rank: int = 0
    world_size: int = 1
    save_every: int = 3  # steps
    save_s: float = 0.0  # from writing a file to renaming it, as on a slow disk
    step_s: float = 0.0

    def command(self) -> list[str]:
        return [sys.executable, __file__, json.dumps(asdict(self))]


def digests(batch: Batch) -> list[str]:
    """What each sample of a batch shows: its pixels, its units and its label."""
    assert batch.labels is not None
    parts = zip(batch.images, batch.units, batch.labels, strict=True)
    return [xxhash.xxh3_64_hexdigest(b"".join(each.numpy().tobytes() for each in part)) for part in parts]


def note(batch: Batch, consumed: int) -> dict[str, object]:
    return {"consumed": consumed, "samples": batch.samples.tolist(), "digests": digests(batch)}


def main() -> None:
    life = Life(**json.loads(sys.argv[1]))
    committed = Path(life.folder) / f"committed-{life.rank}.json"
    temporary = committed.with_suffix(".tmp")
    diary = os.open(Path(life.folder) / f"diary-{life.rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sharing = {"rank": life.rank, "world_size": life.world_size}
    with Stream(life.data, batch_size=life.batch_size, **sharing, **OPTIONS) as stream:
        before = {"stream": life.state, "notes": []}
        if committed.exists():
            before = json.loads(committed.read_text())
        if before["stream"]:
            stream.load_state_dict(before["stream"])
        notes = before["notes"]
        while stream.consumed < life.until:
            batch = next(stream)
            notes.append(note(batch, stream.consumed))
            os.write(diary, json.dumps(notes[-1]).encode() + b"\n")
            time.sleep(life.step_s)
            if len(notes) % life.save_every == 0 or stream.consumed >= life.until:
                temporary.write_text(json.dumps({"stream": stream.state_dict(), "notes": notes}))
                time.sleep(life.save_s)
                temporary.replace(committed)


if __name__ == "__main__":
    main()
