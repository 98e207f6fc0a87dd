"""Building blocks of the panels: base class, error display, small widgets, run status, loaded models."""
