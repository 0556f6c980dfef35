# Targets for people and CI alike; `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
PYTEST_FLAGS ?=
DEMO_FLAGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format soak clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv with the pinned dependencies (quick when nothing changed)

# The stamp lies inside the environment, so that deleting the environment deletes it too.
$(STAMP): pyproject.toml constraints.txt hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; try: make setup PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## fetch the default target, then answer with and without the drafter
	$(BIN)/dspark fetch smollm2-135m
	$(BIN)/dspark demo --policy fixed:3 $(DEMO_FLAGS)

test: setup  ## all tests but the soak ones, under 10 minutes
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: setup  ## ruff check, ruff format --check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak: setup  ## long checks, outside CI
	$(BIN)/python -m pytest -m soak $(PYTEST_FLAGS)

clean:  ## remove the environment, caches and builds (not data, models or drafters)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
