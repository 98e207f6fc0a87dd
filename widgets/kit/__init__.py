"""What every panel is made of: base class, errors, folding, progress, live models."""
