"""Builds the native kernels: one shared library of kernels/*.cpp and kernels/*/*.cpp, loaded by ctypes
(kernels/native.py).

It needs no PyTorch headers, so one build serves every torch. It is optional: without a compiler the installation
succeeds, the kernels run in plain PyTorch, and `halfbyte doctor` says so. Everything else stands in pyproject.toml.
"""

import itertools
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

KERNELS = Path("src/halfbyte/kernels")

# Results are specified to the bit: no -ffast-math, no contraction of a * b + c. No -march=native: the instruction set
# is chosen at run time. GCC 12 warns of its own AVX-512 headers.
# Nobody looks at floating-point exceptions or at errno, and a loop that could set them is not turned into vectors.
UNIX = ["-O3", "-std=c++17", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-fvisibility=hidden",
        "-pthread", "-g0", "-Wno-maybe-uninitialized", "-Wno-uninitialized"]  # fmt: skip
OPENMP = ["-fopenmp"]  # shares torch's threads; compilers without it (Apple's) take threads of the library's own
OLD_ASSEMBLER = ["-DHALFBYTE_OLD_ASSEMBLER"]  # does not know the newest instructions that the compiler knows
MSVC = ["/O2", "/std:c++17", "/fp:precise", "/EHsc"]


class BuildKernels(build_ext):
    def build_extension(self, ext: Extension) -> None:
        if self.compiler.compiler_type == "msvc":
            ext.extra_compile_args = MSVC
            return super().build_extension(ext)
        for openmp, old in itertools.product((OPENMP, []), ([], OLD_ASSEMBLER)):
            ext.extra_compile_args, ext.extra_link_args = [*UNIX, *openmp, *old], ["-pthread", *openmp]
            try:
                return super().build_extension(ext)
            except (CompileError, LinkError) as error:
                failed = error
        raise failed

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []  # it is no Python module, so there is no PyInit function to export


setup(
    ext_modules=[
        Extension(
            "halfbyte.kernels._native",
            sources=sorted(path.as_posix() for pattern in ("*.cpp", "*/*.cpp") for path in KERNELS.glob(pattern)),
            depends=sorted(path.as_posix() for path in KERNELS.rglob("*.h")),
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
