"""The op `product`: rows times a frozen matrix, packed or dense, and its transpose; reference.py specifies it."""
