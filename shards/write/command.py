"""Sharding as `coma shard` and `coma.shard` do it: a run, or a dry run, into the folder named or the default one."""

from collections.abc import Callable

from coma.shards.files import folder_at
from coma.shards.write.dry_run import DryRun, dry_run
from coma.shards.write.options import ShardCommand
from coma.shards.write.run import default_out
from coma.shards.write.summary import ShardProgress, ShardSummary
from coma.shards.write.writer import shard


def run_command(
    command: ShardCommand, progress: Callable[[ShardProgress], None] | None = None
) -> ShardSummary | DryRun:
    """Shard a source, or say what would be written. Raises what `coma.shards.write.writer.shard` raises."""
    out = default_out(command.source) if command.out is None else folder_at(command.out)
    if command.dry_run:
        return dry_run(command.source, out, command, progress)
    return shard(command.source, out, command, progress)
