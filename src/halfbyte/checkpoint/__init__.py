"""What lies on disk: opening, mapping, loading and packing checkpoints."""
