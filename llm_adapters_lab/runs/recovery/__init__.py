"""What a run survives: its lock, its checkpoints, resuming, and the record of a failure."""
