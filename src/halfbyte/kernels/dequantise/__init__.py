"""Codes and constants back to dense weights."""
