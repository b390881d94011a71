"""Dense weights to codes and constants."""
