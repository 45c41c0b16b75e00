"""Logs of a run: metrics, experiment trackers, device usage, console messages."""
