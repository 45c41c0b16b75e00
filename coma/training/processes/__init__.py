"""Processes of a run: launch, process group, signals to stop, watchdog, state of torch that is the caller's."""
