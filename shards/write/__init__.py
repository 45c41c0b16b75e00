"""Writing of shards: options, layout, worker processes, resuming and merging."""
