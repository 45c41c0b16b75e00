"""Run folders: the names of their files, and what reads and reports them without DeepSpeed."""
