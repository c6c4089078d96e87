# One command per concern, the same by hand and in CI. A fresh clone needs python3 (3.11 or later) and make.
#
#   make demo     install into .venv, build a base with the bundled model, leave demo/comparison.png and a report
#   make test     run the tests
#   make check    lint, format, types
#   make bench    measure what the README claims; fails if a figure misses its bar
#   make bench-batches  compare a mixed batch with its halves (part of make bench)
#   make bench-overhead   cost of an enabled but abstaining engine (part of make bench)
#   make bench-kill   kill a build twenty times and count what is left
#   make bench-build  kill workers and drivers of a build on a cluster twenty times and compare what is left; its rate
#   make bench-growth    what growing costs an image, and how soon it is found
#   make bench-eviction  compare what a full base lets go, on a replayed stream of requests
#   make soak         grow, read and compact one base while processes are killed, for half an hour (SOAK=2: two minutes)
#   make bench-fuzz   feed the reader of bases damaged files for ten minutes (MINUTES=2: for two)
#   make bench-operations  bytes and milliseconds of what docs/operations.md tells
#   make bench-gate   measure what the default gate is chosen by
#   make bench-search  compare search in large bases with an exact scan
#   make bench-device  what retrieval costs on a GPU; where there is none it measures nothing
#   make bench-page   keep what benchmarks left in bench/, and write docs/benchmarks.md from it
#   make bench-style  measure styles that a base does not hold
#   make figures  write the README's figures and picture from what demo and bench left
#   make docs     write docs/cli.md, docs/experiments.md, docs/solvers.md and docs/pipelines.md from code and tests
#   make clean    remove what the others made, .venv too
#
# PYTHON=python3.12 chooses the interpreter. TORCH_INDEX=https://download.pytorch.org/whl/cpu takes PyTorch without
# CUDA from its own index, which saves some gigabytes on a machine without a GPU.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
MINUTES ?= 10
SOAK ?= 30

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

export HF_HUB_DISABLE_TELEMETRY ?= 1
export DO_NOT_TRACK ?= 1

.PHONY: venv demo test check bench bench-batches bench-overhead bench-gate bench-search bench-device bench-style bench-kill bench-build bench-fuzz bench-operations bench-growth bench-eviction bench-page soak figures report docs clean
.DEFAULT_GOAL := demo

venv: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "redi needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

demo: $(INSTALLED)
	$(BIN)/redi demo --out demo

# Files in their own order: pytest-xdist would leave those of few tests for the end, which are the longest.
test: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(TESTS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	status=0; for each in bench batches overhead; do $(BIN)/python benchmarks/$$each.py --out bench || status=1; done; exit $$status

bench-batches: $(INSTALLED)
	$(BIN)/python benchmarks/batches.py --out bench

bench-overhead: $(INSTALLED)
	$(BIN)/python benchmarks/overhead.py --out bench

bench-gate: $(INSTALLED)
	$(BIN)/python benchmarks/gate.py --out bench

bench-search: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/search.py --out bench

bench-device: $(INSTALLED)
	$(BIN)/python benchmarks/device.py --out bench

bench-style: $(INSTALLED)
	$(BIN)/python benchmarks/style.py --out bench

bench-kill: $(INSTALLED)
	$(BIN)/python benchmarks/kill_build.py --json bench/kill_build.json

bench-build: $(INSTALLED)
	status=0; for each in build cluster_rate; do $(BIN)/python benchmarks/$$each.py --out bench || status=1; done; exit $$status

bench-page: $(INSTALLED)
	$(BIN)/python benchmarks/page.py

bench-growth: $(INSTALLED)
	$(BIN)/python benchmarks/growth.py --out bench

bench-eviction: $(INSTALLED)
	$(BIN)/python benchmarks/eviction.py --out bench

soak: $(INSTALLED)
	$(BIN)/python benchmarks/soak.py --minutes $(SOAK) --out bench

bench-fuzz: $(INSTALLED)
	$(BIN)/python -m pip install --quiet atheris
	$(BIN)/python benchmarks/fuzz.py --minutes $(MINUTES) --out bench

bench-operations: $(INSTALLED)
	$(BIN)/python benchmarks/operations.py --out bench

figures: $(INSTALLED)
	$(BIN)/python benchmarks/readme.py

report: $(INSTALLED)
	$(BIN)/redi experiments report

docs: $(INSTALLED)
	$(BIN)/python -m redi.cli.reference > docs/cli.md
	$(BIN)/python -m redi.experiments.costs > docs/experiments.md
	$(BIN)/python tests/solver_table.py > docs/solvers.md.new && mv docs/solvers.md.new docs/solvers.md
	HF_HUB_OFFLINE=1 $(BIN)/python tests/pipeline_table.py docs/pipelines.md

clean:
	rm -rf $(VENV) demo bench build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
