# make demo   train three formulas on handwritten digits and draw the picture
# make test   the test suite, without the slow sweeps
# make bench  time every kernel of the benchmark against its peers (25 minutes; BENCH=--quick for 3)
# make gpu    on a machine with a GPU and a CUDA build of PyTorch: the suite on it, then the benchmark
# All make .venv first, with the versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint types wheel golden bench gpu clean

demo: .venv/installed
	$(BIN)/symconv demo

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-all: .venv/installed
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

wheel: .venv/installed
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist .

golden: .venv/installed
	$(BIN)/python -m pytest -q tests/test_golden.py tests/test_cpp.py tests/test_cuda.py -k golden --update-golden

bench: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/bench.py --json benchmarks/bench.json --plot benchmarks/bench.png $(BENCH)

gpu:
	$(PYTHON) -c "import torch; assert torch.cuda.is_available(), 'this PyTorch sees no GPU'"
	$(PYTHON) -m pip install --quiet --editable ".[bench,cuda,dev]"
	$(PYTHON) -m pytest -q -n auto -m "gpu and not slow" tests
	$(PYTHON) benchmarks/bench.py --device cuda --minutes 4 --seconds 0.1 --no-compile --json benchmarks/gpu.json --plot benchmarks/gpu.png $(BENCH)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'symconv needs Python 3.11 or newer: make PYTHON=python3.11 ...')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
