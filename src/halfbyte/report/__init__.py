"""A run's files -> one page: read (files), words (what they say), pictures (how they look), page (the whole)."""
