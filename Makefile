# Two commands on a fresh machine: `make train` and `make test`. `make help` lists the rest.
#   PYTHON=python3.12      the interpreter that .venv is made with (3.11 or newer)
#   ARGS="--resume auto"   added to the command of `make train`, or to pytest's of `make test` and `make test-all`

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXPERIMENT ?= experiments/quickstart.toml
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU ')
RANKS := $(or $(filter-out 0,$(GPUS)),1)
THREADS := $(shell echo $$(( ($(CORES) + $(RANKS) - 1) / $(RANKS) )))

# The launcher would set one thread per process. Waiting threads sleep: spinning makes a step several times slower
# as soon as a neighbour needs a core.
export OMP_WAIT_POLICY ?= passive
export NO_ALBUMENTATIONS_UPDATE := 1

.DEFAULT_GOAL := help
.PHONY: help install train lint test test-all compare-infer incidents clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

install: $(INSTALLED) ## make .venv with the pinned dependencies, if it is missing or out of date

train: $(INSTALLED) ## train the quickstart experiment (EXPERIMENT=… ARGS=…)
	PATH="$(CURDIR)/$(BIN):$$PATH" \
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(THREADS)} \
	accelerate launch --quiet --num_processes $(RANKS) --num_machines 1 --mixed_precision no --dynamo_backend no \
	  camox/train.py $(EXPERIMENT) $(ARGS)

lint: $(INSTALLED) ## style, formatting, import rules, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy camox tools

test: lint ## lint, then every test but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-all: lint ## lint, then every test; the closing line goes to benchmarks/results/
	set -o pipefail; OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS) | tee /dev/stderr \
	  | tail -n 1 | tr -d '=' > benchmarks/results/test_all.txt
	$(BIN)/python -c "import platform, torch; print('Python', platform.python_version(), 'torch', torch.__version__)" \
	  >> benchmarks/results/test_all.txt

compare-infer: $(INSTALLED) ## measure inference anew: worse than the committed figures?
	$(BIN)/python tools/benchmark.py infer --json build/infer.json
	$(BIN)/python tools/benchmark.py compare benchmarks/results/infer.json build/infer.json

incidents: $(INSTALLED) ## everything in docs/stability.md done to a small run anew: table, plots and results
	rm -rf build/incidents
	CAMOX_INCIDENTS=build/incidents OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/incidents \
	  tests/training/test_trainer.py::test_a_run_stopped_in_mid_epoch_goes_on_bit_for_bit $(ARGS)
	$(BIN)/python tools/stability_page.py --records build/incidents

clean: ## remove caches and build outputs; .venv, data and runs stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find camox tests tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(INSTALLED): constraints.txt pyproject.toml
	@test -x $(BIN)/python || { \
	  found=; \
	  for python in $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	    $$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { found=$$python; break; }; \
	  done; \
	  test -n "$$found" || { \
	    echo "No Python 3.11 or newer found$(if $(PYTHON), at PYTHON=$(PYTHON)). Install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  }; \
	  echo "Making $(VENV) with $$($$found --version)"; \
	  $$found -m venv $(VENV); \
	}
	@echo "Installing the pinned dependencies (the first time this takes some minutes: torch is large)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "Done. For the commands by themselves: source $(VENV)/bin/activate"
