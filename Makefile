# One command each: `make run`, `make check`, `make test`. Each sets up .venv first, where it is not up to date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.stamp

.DEFAULT_GOAL := help
.PHONY: help setup run check format test test-all test-libraries test-wheel bench docs docs-links lock

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(STAMP)  ## .venv as requirements.lock says (another Python: make setup PYTHON=python3.13)

# --clear: what the lock file no longer names goes too, and a half-made .venv is made anew. The stamp comes last.
# What Python may not write down itself (PYTHONDONTWRITEBYTECODE) would be compiled at each start, 0.4 s of a sweep.
$(STAMP): requirements.lock
	@$(PYTHON) 2>/dev/null -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "Python 3.11, 3.12 or 3.13 is needed, and '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not there)." >&2; \
	  echo "Name one that is: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --no-input --require-hashes -r requirements.lock
	$(BIN)/python -m compileall -q runner models datasets
	@touch $@

run: setup  ## train the default experiment (others: make run ARGS="experiment=digits_mlp seed=1")
	$(BIN)/python -m runner $(ARGS)

check: setup  ## lint, format, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict runner models datasets
	$(BIN)/lint-imports --no-logo

format: setup  ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Two at a time, a file's tests in one process: they share what is made once. Slow files first (tests/conftest.py).
test: setup  ## the tests of every day (one file: make test ARGS=tests/train/test_metrics.py)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: setup  ## every test, with a seed of its own (again with the same one: make test-all SEED=123)
	@seed=$${SEED:-$$(date +%s)}; echo "SEED=$$seed"; \
	TEST_SEED=$$seed $(BIN)/python -m pytest -m "" $(ARGS)

# Large libraries that nothing needs but what they are for, in an environment of their own (the extras hf, mlflow, trackio, wandb).
WITH_LIBRARIES := tests/experiment/test_trackers.py tests/experiment/test_experiments.py tests/experiment/test_libraries.py
test-libraries: .venv-libraries/installed.stamp  ## the tests beside W&B, MLflow, Trackio, timm and Hugging Face's libraries
	.venv-libraries/bin/python -m pytest -m "" $(or $(ARGS),$(WITH_LIBRARIES))

.venv-libraries/installed.stamp: .ci/libraries.lock
	$(PYTHON) -m venv --clear .venv-libraries
	.venv-libraries/bin/python -m pip install --disable-pip-version-check --no-input --require-hashes -r .ci/libraries.lock
	@touch $@

test-wheel: setup  ## install sdist and wheel for Python 3.11, 3.12 and 3.13 and use them elsewhere (one: ARGS=3.12)
	$(BIN)/python -m tests.installed $(ARGS)

bench: setup  ## the table of speed and start-up against other tools (minutes)
	$(BIN)/python -m tests.benchmarks $(ARGS)

# Warnings are errors, a link to a page or a heading that is not there among them. Nothing is fetched.
docs: setup  ## the documentation site: docs/_build/html/index.html
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html
	@echo docs/_build/html/index.html

docs-links: setup  ## ask every address of the documentation whether it is there (needs a network)
	$(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/linkcheck

# No index is written into the file: pip asks the one that its user has configured. Versions that stand stay as they
# are; a newer one: make lock ARGS="--upgrade-package ruff". What is held back stands in pyproject.toml, [tool.uv].
COMPILE := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate --no-emit-index-url --quiet
EXTRAS := dev docs metrics onnx optuna pandas parquet ray report slurm
lock:  ## make requirements.lock from pyproject.toml (needs uv)
	@command -v uv >/dev/null || { echo "uv is needed for this: https://docs.astral.sh/uv" >&2; exit 1; }
	$(COMPILE) $(EXTRAS:%=--extra %) --output-file requirements.lock $(ARGS)
	test -f .ci/libraries.lock || cp requirements.lock .ci/libraries.lock  # the same versions, where they can stay
	$(COMPILE) --all-extras --output-file .ci/libraries.lock $(ARGS)
	@! grep -n '://' requirements.lock .ci/libraries.lock
