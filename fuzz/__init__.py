"""Fuzzing of what reads files, and of the native kernels: see docs/reliability.md. `python -m fuzz` is `make fuzz`."""
