"""Writing of shards: options, layout, worker processes, merging, resuming."""
