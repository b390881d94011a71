"""`make fuzz`: every entry point for some time, or for some number of inputs; exit 1 where something was found.

python -m fuzz                       # 60 seconds each
python -m fuzz --seconds 600 header attention
python -m fuzz --total 1000000 --keep    # what is missing to a million, and keep what was reached (fuzz/corpora)
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fuzz import build, check, corpora, results

FINDINGS = build.BUILD / "findings"
# of an input, in seconds; `check.SECONDS`, of processor time, is the stricter one, but can't end what never ends
# somebody stopped it: libFuzzer says 72, the system and shells name the signal
_STOPPED = {72, *(code for number in (signal.SIGTERM, signal.SIGINT) for code in (-number, 128 + number))}
_OPTIONS = ["-timeout=20", "-rss_limit_mb=1000", "-max_len=4096", "-print_final_stats=1", "-verbosity=1"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz the parsers and the native kernels.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="entry points; all where none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each")
    parser.add_argument("--runs", type=int, default=0, help="inputs for each, instead of seconds")
    parser.add_argument("--total", type=int, default=0, help="inputs that are missing to so many, with earlier runs")
    parser.add_argument("--keep", action="store_true", help="minimise what was reached, and keep it")
    options = parser.parse_args()
    known = [*check.NAMES, *build.DRIVERS]
    if unknown := set(options.names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    names = options.names or known
    if drivers := [name for name in names if name in build.DRIVERS]:
        build.build_fuzzers(drivers)
    return 1 if sum([fuzz(name, options) for name in names]) else 0


def command(name: str) -> list[str]:
    return [str(build.BUILD / name)] if name in build.DRIVERS else [sys.executable, "-m", "fuzz.one", name]


def fuzz(name: str, options: argparse.Namespace) -> int:
    """One entry point; returns how many findings it made (it stops at the first)."""
    folder, before = build.BUILD / "corpora" / name, set(_files(name))
    corpora.unpack([*corpora.load(name), *(check.seeds(name) if name in check.NAMES else [])], folder)
    runs = max(0, options.total - results.since_finding(name)) if options.total else options.runs
    if options.total and not runs:
        return 0
    limit = f"-runs={runs}" if runs else f"-max_total_time={options.seconds}"
    started = time.monotonic()
    log = build.BUILD / f"{name}.log"
    with log.open("wb") as stream:
        done = subprocess.run(
            [*command(name), limit, *_OPTIONS, f"-artifact_prefix={FINDINGS / name}-", str(folder)],
            cwd=build.HERE.parent, stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip
    said = log.read_text(encoding="utf-8", errors="replace")
    found = findings(done.returncode, sorted(file.name for file in set(_files(name)) - before))
    count = re.findall(r"(?:Done |executed_units:\s+|^#)(\d+)", said, re.MULTILINE)
    reached = re.findall(r"cov: (\d+)", said)
    result = {"name": name, "date": datetime.date.today().isoformat(), "inputs": max(map(int, count), default=0),
              "seconds": round(time.monotonic() - started), "edges": int(reached[-1]) if reached else 0,
              "findings": found}  # fmt: skip
    print(json.dumps(result), flush=True)
    results.add(result)
    if found:
        print("\n".join(said.splitlines()[-60:]), flush=True)
    elif options.keep:
        _keep(name, folder)
    return len(found)


def findings(code: int, inputs: list[str]) -> list[str]:
    """What a fuzzer found that ended with the exit code `code` and wrote `inputs`: where there are none, how it ended,
    unless that was well, or because somebody stopped it."""
    return inputs or ([f"exit {code}"] if code and code not in _STOPPED else [])


def _files(name: str) -> list[Path]:
    FINDINGS.mkdir(parents=True, exist_ok=True)
    return list(FINDINGS.glob(f"{name}-*"))


def _keep(name: str, folder: Path) -> None:
    if name in build.DRIVERS:
        with tempfile.TemporaryDirectory() as small:
            subprocess.run([*command(name), "-merge=1", *_OPTIONS, small, str(folder)], capture_output=True, check=True)
            inputs = corpora.pack(Path(small))
    else:  # libFuzzer can't start atheris anew, as a merge would; but it has replaced inputs by smaller ones all along
        inputs = corpora.pack(folder)
    print(f"{name}: {corpora.keep(name, inputs)} inputs are kept", flush=True)


if __name__ == "__main__":
    sys.exit(main())
