"""What fuzzing reached and found, run again: each input ends well or in one error of ours, within a second."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import build, check, corpora
from halfbyte.kernels import native
from tests.kernels.test_native import test_the_native_library_was_built as built


@pytest.mark.parametrize("name", check.NAMES)
def test_parsers_take_every_input_that_is_kept(name: str) -> None:
    run, inputs = check.target(name), [*check.seeds(name), *corpora.load(name)]
    assert len(inputs) > 10
    for data in inputs:
        run(data)


compiled = pytest.mark.skipif(
    shutil.which("c++") is None or sys.platform == "win32", reason="drivers need a C++ compiler and pages of POSIX"
)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The drivers, with the library as it is shipped and buffers that end at a closed page."""
    built()
    library = native.library()
    return build.build_replays(Path(library._name), tmp_path_factory.mktemp("drivers"))


@compiled
@pytest.mark.parametrize("name", build.DRIVERS)
def test_kernels_stay_within_their_buffers(name: str, programs: dict[str, Path]) -> None:
    inputs = corpora.load(name)
    assert len(inputs) > 10
    piped = b"".join(struct.pack("<I", len(data)) + data for data in inputs)
    done = subprocess.run([programs[name]], input=piped, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-500:]
    assert done.stdout.decode() == f"{len(inputs)} inputs\n"


@compiled
def test_a_byte_too_far_ends_a_driver(tmp_path: Path) -> None:
    """The closed pages are what the test above stands on."""
    code = '#include "harness.h"\nstatic void drive(fuzz::Input& input) {\n  fuzz::Buffers buffers(input);\n'
    code += "  volatile char* made = buffers.make<char>(10);\n  made[input.byte() == 1 ? 10 : 9] = 1;\n"
    code += "  buffers.check();\n}\n"
    source = tmp_path / "driver.cpp"
    source.write_text(code + 'FUZZ_DRIVER(drive)\nextern "C" int halfbyte_isas() { return 1; }\n')
    program = tmp_path / "driver"
    subprocess.run(["c++", "-std=c++17", f"-I{build.SOURCES}", source, build.SOURCES / "replay.cpp", "-o", program],
                   check=True)  # fmt: skip
    for places, last, fails in ((0, 0, False), (0, 1, True), (128, 0, False), (128, 1, True)):
        data = bytes([places, 0, 0, 1, last])  # where the buffer lies, what it is filled with
        done = subprocess.run([program], input=struct.pack("<I", len(data)) + data, capture_output=True)
        assert (done.returncode != 0) == fails, (places, last, done)
