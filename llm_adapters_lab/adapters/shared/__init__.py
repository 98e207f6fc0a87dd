"""Base classes that several adapters share."""
