"""One file per entry point: `run(data)` gives it an input, `SEEDS` are the inputs that fuzzing begins with.

An input may end in an error of ours, and in nothing else.
"""
