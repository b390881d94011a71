"""Timings of every op and stage, each beside the stock stack and beside what the machine allows. See `run.py`."""
