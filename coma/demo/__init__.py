"""The embedded default: a drawn data set and the whole road over it, in a few minutes on a CPU."""
