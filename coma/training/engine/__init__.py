"""DeepSpeed's engine, and the state that it keeps: checkpoints, optimizer state, averages, offload."""
