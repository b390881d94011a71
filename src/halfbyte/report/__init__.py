"""A run's files, or a selection -> one page: read (files), words, pictures, sections, page, selection (the whole)."""
