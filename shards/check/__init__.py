"""Verification of a sharded data set against its manifest, tar by tar."""
