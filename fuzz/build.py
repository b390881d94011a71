"""The drivers of the native kernels: with libFuzzer and sanitizers, or to replay inputs with the library as shipped."""

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
_FLAGS = ["-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-pthread"]
# Of the undefined behaviour that clang looks for, what AddressSanitizer and the closed pages find anyway is left out:
# with it all takes twice as long, and compiling the products a quarter of an hour.
_CHECKED = ["-fsanitize=address,undefined", "-fno-sanitize=pointer-overflow,null,object-size,vptr",
            "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]  # fmt: skip


def clang() -> str:
    """A clang++ that has libFuzzer. Raises RuntimeError where there is none. Clang 16 takes memory without end for the
    attention, so the newest is looked for first."""
    for name in (*(f"clang++-{version}" for version in range(24, 16, -1)), "clang++"):
        if (found := shutil.which(name)) and _has_fuzzer(found):
            return found
    raise RuntimeError("no clang++ with libFuzzer: on Debian, apt-get install clang-19 libclang-rt-19-dev")


def _has_fuzzer(compiler: str) -> bool:
    BUILD.mkdir(parents=True, exist_ok=True)
    code = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'
    command = [compiler, "-x", "c++", "-", "-fsanitize=fuzzer,address", "-o", str(BUILD / "probe")]
    return subprocess.run(command, input=code, text=True, capture_output=True).returncode == 0


def build_fuzzers(names: list[str]) -> None:
    """BUILD/NAME of each driver. What is newer than its sources stays. The attention takes a minute or two."""
    headers = [*KERNELS.rglob("*.h"), *SOURCES.glob("*.h")]
    objects = {kernel: BUILD / f"kernel-{kernel.replace('/', '-')}.o" for name in names for kernel in _kernels(name)}
    compiler = clang()
    jobs = []
    for kernel, out in objects.items():
        source = KERNELS / f"{kernel}.cpp"
        if _older(out, [source, *headers]):
            jobs.append(([compiler, *_FLAGS, *_CHECKED, "-fsanitize=fuzzer-no-link", "-c", str(source), "-o"], out))
    _run(jobs)
    jobs = []
    for name in names:
        source, parts = SOURCES / f"{name}.cpp", [objects[kernel] for kernel in _kernels(name)]
        if _older(BUILD / name, [source, *parts, *headers]):
            whole = [*_FLAGS, *_CHECKED, "-fsanitize=fuzzer", str(source), *map(str, parts)]
            jobs.append(([compiler, *whole, "-o"], BUILD / name))
    _run(jobs)


def _kernels(driver: str) -> list[str]:
    """The sources that a driver calls, without their ending; that of dequantise knows the instruction sets."""
    products = ["product/cpu", "product/fp32", "product/int16", "gate/cpu"]
    own = {"product_bf16": products, "product_few": products, "product_fp32": ["product/fp32"],
           "decoder": ["decoder/cpu", "attention/cpu", "norm/cpu", "rotary/cpu", *products]}  # fmt: skip
    return list(dict.fromkeys([*own.get(driver, [f"{driver}/cpu"]), "dequantise/cpu"]))


def build_replays(library: Path, folder: Path, compiler: str = "c++") -> dict[str, Path]:
    """A program for each driver that runs inputs through `library`, the built extension."""
    made = {name: folder / name for name in DRIVERS}
    flags, replay = ["-std=c++17", "-O1"], str(SOURCES / "replay.cpp")
    found = [str(library), f"-Wl,-rpath,{library.parent}"]
    _run([([compiler, *flags, str(SOURCES / f"{name}.cpp"), replay, *found, "-o"], out) for name, out in made.items()])
    return made


def _older(out: Path, sources: list[Path]) -> bool:
    return not out.exists() or out.stat().st_mtime < max(source.stat().st_mtime for source in sources)


def _run(jobs: list[tuple[list[str], Path]]) -> None:
    """Run compilers; each command lacks its last word, the file that it makes."""

    def compile_one(job: tuple[list[str], Path]) -> None:
        command, out = job
        part = out.with_name(out.name + ".part")
        done = subprocess.run([*command, str(part)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{out.name} can't be built:\n{done.stderr[-4000:]}")
        part.replace(out)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(compile_one, jobs))
