"""What a model weighs and what a run will need, from shapes alone: no weights are read, torch is not imported."""
