"""Checks of the machine for `coma doctor`: `examine` runs those of `machine` and `software`, each in a process."""
