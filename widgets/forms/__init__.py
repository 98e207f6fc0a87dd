"""Forms: controls for specs, placements and runs."""
