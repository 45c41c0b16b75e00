"""Evaluation: linear probes, nearest neighbours and effective rank of frozen features; accuracy of classifiers."""
