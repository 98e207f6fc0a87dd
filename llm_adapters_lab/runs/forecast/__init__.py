"""Forecasts of a run: size, memory, whether it fits, how long it takes."""
