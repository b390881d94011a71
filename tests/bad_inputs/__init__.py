"""Bad inputs: each is declared once, walked through the command line by `test_bad_inputs.py`, and listed in
docs/reliability.md by `python -m tests.bad_inputs`.

A case starts from a good folder (`Place`) and breaks one thing in it.
"""
