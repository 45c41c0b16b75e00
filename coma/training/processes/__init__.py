"""Processes of a run: starting them, joining them, stopping them, noticing that one hangs."""
