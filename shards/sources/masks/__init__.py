"""Segmentation masks beside images: which mask belongs to which image, and what the values of its pixels mean."""
