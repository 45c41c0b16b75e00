"""Tasks that the training loop can train: pre-training and fine-tuning, with what each needs."""
