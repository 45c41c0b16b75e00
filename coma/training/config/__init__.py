"""Configuration of a run: options as given, the DeepSpeed file, and what both resolve to."""
