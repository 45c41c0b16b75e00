"""Run folders without DeepSpeed: names of their files, JSON lines, reading a run and its report."""
