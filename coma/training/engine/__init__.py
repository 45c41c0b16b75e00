"""DeepSpeed's engine and its state: checkpoints, optimizer state, EMA of the weights, NVMe offload."""
