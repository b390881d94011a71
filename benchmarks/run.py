"""Everything that `make bench` measures: each benchmark in a process of its own, then docs/performance.md.

    python benchmarks/run.py --shape 1b
    python benchmarks/run.py --shape 8b --folder /path/with/30GB/free

The checkpoints (random weights; nothing is downloaded) are made in the folder where they are missing. Without --folder
they go to a temporary folder and are removed at the end; what was made in a named folder stays with --keep only.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its modules would pass for packages of the same name (kernels, evaluate)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import shutil
import subprocess
import time

from benchmarks import shapes

HERE = Path(__file__).resolve().parent
ALONE = ("kernels", "linear")  # need no model; measured with the small shape
WITH_A_MODEL = ("load", "step", "decode", "evaluate")


def measure(script: str, *arguments: str) -> None:
    began = time.perf_counter()
    print(f"\n{script}:", flush=True)
    subprocess.run([sys.executable, str(HERE / f"{script}.py"), *arguments], check=True)
    print(f"{script} took {time.perf_counter() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=shapes.SHAPES, default="1b")
    parser.add_argument("--folder", type=Path, help="holds the checkpoints")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints in the folder")
    parser.add_argument("--only", nargs="*", choices=(*ALONE, *WITH_A_MODEL), help="some of the benchmarks")
    options = parser.parse_args()
    wanted = options.only or [*(ALONE if options.shape != "8b" else ()), *WITH_A_MODEL]
    if options.shape == "8b" and not options.only:
        wanted.remove("evaluate")  # the same loop as with 1b, at six times the time
    for script in ALONE:
        if script in wanted:
            measure(script)
    made = options.folder is not None and not options.folder.exists()
    with shapes.checkpoints(options.shape, options.folder) as folder:
        for script in WITH_A_MODEL:
            if script in wanted:
                measure(script, "--shape", options.shape, "--folder", str(folder))
    if made and not options.keep:
        shutil.rmtree(options.folder)
    measure("render")


if __name__ == "__main__":
    main()
