"""Manifests for WebDataset tars that somebody else wrote, without rewriting them."""
