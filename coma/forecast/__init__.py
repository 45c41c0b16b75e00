"""Forecasts of a run before it starts: steps, memory, disk and time, as `coma plan` prints them."""
