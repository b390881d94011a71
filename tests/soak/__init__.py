"""The soak: runs that are killed again and again, compared bit for bit with runs that were never stopped."""
