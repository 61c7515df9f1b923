# Everything runs from .venv in this checkout; `make` alone lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow bench lint clean

# What `make demo` asks; any of these can be given on the command line: make demo DEMO_PROMPT='...'
export DEMO_PROMPT ?= Should Maria take the train or the bus to visit her grandmother? Think step by step and finish with 'So Maria takes the train.' or 'So Maria takes the bus.'
DEMO_MODEL ?= smollm2-135m-instruct
DEMO_REPORT ?= report.html
DEMO_ARGS ?= --outcome choice:train,bus --max-tokens 160 --tokens 6000 --seed 0

# Threads that wait by spinning make a model some ten times slower as soon as another process wants the cores.
export OMP_WAIT_POLICY ?= PASSIVE

BIN := .venv/bin
READY := .venv/.ready
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/pytest --jaxtyping-packages=cutaway,beartype.beartype

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

# One environment with every extra: a second one without the development tools would save a tenth of the
# download and could disagree with the one that is tested.
$(READY): pyproject.toml constraints.txt tools/setup
	@tools/setup $@

setup: $(READY)  ## create or update .venv

demo: $(READY)  ## explain one answer of a small model that ships with the set-up; writes report.html
	@$(BIN)/cutaway explain "$$DEMO_PROMPT" --model "$(DEMO_MODEL)" --report "$(DEMO_REPORT)" $(DEMO_ARGS)

# The tests run even when lint fails, so that one run tells everything. One worker a core, each with one thread.
WORKERS ?= -n auto --maxprocesses 8 --dist loadfile
test: $(READY)  ## lint, then every test but the slow ones
	@status=0; $(MAKE) --no-print-directory lint || status=1; \
	OMP_NUM_THREADS=1 $(PYTEST) $(WORKERS) -m "not slow" || status=1; exit $$status

test-slow: $(READY)  ## the tests on real models
	@$(PYTEST) -m slow

bench: $(READY)  ## measure, each benchmark beside its baseline
	@$(BIN)/python benchmarks/run.py

lint: $(READY)  ## style, types and the floors of the house
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

clean:  ## remove .venv and whatever tools left behind
	rm -rf .venv build dist report.html .*_cache .hypothesis src/*.egg-info
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
