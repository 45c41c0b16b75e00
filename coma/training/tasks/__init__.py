"""Tasks for the training loop: pre-training and fine-tuning, with their scorers, previews and augmentation."""
