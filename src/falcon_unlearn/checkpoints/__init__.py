"""Write checkpoints in the standard format."""
