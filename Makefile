# Two commands do everything on a fresh machine with Python 3.11 to 3.14: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
NATIVE := $(foreach KIND,h cpp,$(wildcard src/halfbyte/kernels/*.$(KIND) src/halfbyte/kernels/*/*.$(KIND)))

.PHONY: setup demo test lint soak fuzz bench bench-8b gpu-check clean

setup: $(READY)

# torch comes first and from the constraints file, so that nothing that asks for "torch" chooses another build.
$(READY): constraints.txt pyproject.toml setup.py $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	touch $(READY)

demo: $(READY)
	$(BIN)/halfbyte demo

# A process for each core (four at most: each takes 2 GB), file by file; plain `pytest PATH` runs in one, for some of them.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

# Some minutes: runs are killed 100 times and more, resumed, and compared with runs that were never stopped.
soak: $(READY)
	$(BIN)/python -m tests.soak --out build/soak.json

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every parser and kernel for FUZZ_SECONDS; FUZZ="header attention" for some of them. Needs Linux, a clang of 17 or later
# with libFuzzer (Debian: clang-19 libclang-rt-19-dev), and a Python that atheris has a wheel for. See docs/reliability.md.
FUZZ_SECONDS ?= 60
fuzz: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS) $(FUZZ)

# About a quarter of an hour on two cores; writes benchmarks/results/*.csv and docs/performance.md.
bench: $(READY)
	$(BIN)/python benchmarks/run.py --shape 1b

# Half an hour, 30 GB of disk and 24 GB of memory; the checkpoint goes into FOLDER and is removed after.
FOLDER ?= build/bench-8b
bench-8b: $(READY)
	$(BIN)/python benchmarks/run.py --shape 8b --folder $(FOLDER)

# Under nine minutes on a machine with an NVIDIA GPU, 26 GB of disk; see docs/gpu.md.
gpu-check: $(READY)
	$(BIN)/python benchmarks/gpu_check.py

clean:
	rm -rf $(VENV) build src/*.egg-info src/halfbyte/kernels/*.so
