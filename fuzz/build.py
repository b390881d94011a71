"""The drivers of the native kernels: with libFuzzer and sanitizers (clang), or to replay inputs with the shipped library."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE / "native"
KERNELS = HERE.parent / "src" / "halfbyte" / "kernels"
BUILD = HERE.parent / "build" / "fuzz"
DRIVERS = sorted(file.stem for file in SOURCES.glob("*.cpp") if file.stem != "replay")
_FLAGS = ["-std=c++17", "-O2", "-g1", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-pthread"]
_CHECKED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def clang() -> str:
    """A clang++ that has libFuzzer. Raises RuntimeError where there is none."""
    for name in ("clang++", *(f"clang++-{version}" for version in range(24, 13, -1))):
        if (found := shutil.which(name)) and _has_fuzzer(found):
            return found
    raise RuntimeError("no clang++ with libFuzzer: on Debian, apt-get install clang libclang-rt-dev")


def _has_fuzzer(compiler: str) -> bool:
    BUILD.mkdir(parents=True, exist_ok=True)
    code = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'
    command = [compiler, "-x", "c++", "-", "-fsanitize=fuzzer,address", "-o", str(BUILD / "probe")]
    return subprocess.run(command, input=code, text=True, capture_output=True).returncode == 0


def build_fuzzers(names: list[str]) -> None:
    """BUILD/NAME of each driver. What is newer than its sources stays."""
    headers = [*KERNELS.rglob("*.h"), *SOURCES.glob("*.h")]
    kernels = {file: BUILD / f"kernel-{file.parent.name}.o" for file in KERNELS.glob("*/cpu.cpp")}
    compiler = clang()
    jobs = [([compiler, *_FLAGS, *_CHECKED, "-fsanitize=fuzzer-no-link", "-c", str(source), "-o", str(out)], out)
            for source, out in kernels.items() if _older(out, [source, *headers])]  # fmt: skip
    _run(jobs)
    objects = sorted(kernels.values())
    _run([([compiler, *_FLAGS, *_CHECKED, "-fsanitize=fuzzer", str(SOURCES / f"{name}.cpp"), *map(str, objects), "-o",
            str(BUILD / name)], BUILD / name)
          for name in names if _older(BUILD / name, [SOURCES / f"{name}.cpp", *objects, *headers])])  # fmt: skip


def build_replays(library: Path, folder: Path, compiler: str = "c++") -> dict[str, Path]:
    """A program for each driver that runs inputs through `library`, the built extension."""
    made = {name: folder / name for name in DRIVERS}
    _run([([compiler, "-std=c++17", "-O1", str(SOURCES / f"{name}.cpp"), str(SOURCES / "replay.cpp"), str(library),
            f"-Wl,-rpath,{library.parent}", "-o", str(out)], out) for name, out in made.items()])  # fmt: skip
    return made


def _older(out: Path, sources: list[Path]) -> bool:
    return not out.exists() or out.stat().st_mtime < max(source.stat().st_mtime for source in sources)


def _run(jobs: list[tuple[list[str], Path]]) -> None:
    def compile_one(job: tuple[list[str], Path]) -> None:
        done = subprocess.run(job[0], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{job[1].name} can't be built:\n{done.stderr[-4000:]}")

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(compile_one, jobs))
