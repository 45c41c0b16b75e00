"""The demo: a data set that is drawn, and all stages from images to probes on it, in a few minutes on a CPU."""
