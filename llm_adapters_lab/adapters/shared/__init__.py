"""Base classes and functions that several adapters share."""
