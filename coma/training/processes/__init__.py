"""Processes of a run: launch, process group, signals to stop, watchdog."""
