"""Benchmarks of the stream, of training steps and of epochs on the user's own machine and data."""
