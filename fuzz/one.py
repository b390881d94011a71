"""One Python entry point under atheris: `python -m fuzz.one NAME [options of libFuzzer] FOLDER`."""

from __future__ import annotations

import sys

import atheris

if __name__ == "__main__":
    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["halfbyte"]):
        from fuzz import check

        run = check.target(name, 5 * check.SECONDS)  # code that is watched is several times slower
    atheris.Setup([sys.argv[0], *options], run)
    atheris.Fuzz()
