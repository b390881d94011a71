"""Attention of grouped queries, forward and backward, by blocks: nothing of the size of the scores is allocated."""
