# Everything that is done with a checkout, by name. `make` alone prints the targets.
#
# Needs make and Python >= 3.11; all else is installed into .venv from the pinned, hashed requirements files.
# Another interpreter: make dev PYTHON=/opt/python/bin/python3.12

PYTHON ?=
WORKERS ?= 2
ARGS ?=

PYTHONS := $(if $(PYTHON),$(PYTHON),python3.13 python3.12 python3.11 python3 python)
PACKAGES := gateway providers normalization migrations
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check
BENCHES = $(filter-out bench/code_figures.py bench/_%,$(wildcard bench/*.py))

.DEFAULT_GOAL := help
.PHONY: help dev test chaos check format lint types contracts catalog migrations figures fix bench setup lock clean
.SUFFIXES:
.DELETE_ON_ERROR:

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# `exec` makes the gateway make's own child, so that a SIGTERM sent to make reaches it.
dev: $(VENV)/.runtime ## install what serving needs, start on http://127.0.0.1:8000, print a key and a curl line
	@exec $(BIN)/python -m gateway dev $(ARGS)

test: $(VENV)/.dev ## the whole test suite; one file: make test ARGS=tests/e2e
	$(BIN)/python -m pytest -rsx -n $(WORKERS) --dist loadfile $(ARGS)

chaos: $(VENV)/.dev ## 500 mixed requests, 50 at a time, before faulty stand-ins of fal and Replicate
	CHAOS=500:50 $(BIN)/python -m pytest -s tests/gateway/providers/test_chaos.py

check: format lint types contracts catalog migrations figures ## all that is checked without running: what CI runs before the tests

format: $(VENV)/.dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/basedpyright --warnings

contracts: $(VENV)/.dev
	$(BIN)/lint-imports --no-logo

catalog: $(VENV)/.dev
	$(BIN)/python -m gateway catalog check

migrations: $(VENV)/.dev
	$(BIN)/python -m gateway migrate --check

figures: $(VENV)/.dev
	$(BIN)/python bench/code_figures.py $(PACKAGES)

fix: $(VENV)/.dev ## format, and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## the benchmarks; never part of the tests
	@set -e; for bench in $(BENCHES); do echo "== $$bench"; $(BIN)/python -m "bench.$$(basename $$bench .py)" $(ARGS); done

setup: $(VENV)/.dev ## make .venv with everything for development

# The packages listed in pyproject.toml, resolved to one version each for all supported Pythons. No index host is written.
# Newer versions within the bounds: make lock ARGS=--upgrade
LOCK = UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links $(ARGS)
lock: $(BIN)/uv ## resolve pyproject.toml into requirements/*.txt anew
	$(LOCK) pyproject.toml --extra postgres -o requirements/runtime.txt
	$(LOCK) pyproject.toml --extra postgres --extra heic --group dev -c requirements/runtime.txt -o requirements/dev.txt
	printf 'hatchling\neditables\n' | $(LOCK) - -c requirements/dev.txt -o requirements/build.txt

clean: ## remove .venv and everything else that was made here; var/, with its database and keys, stays
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache tests/e2e/node_modules
	find $(PACKAGES) tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that venv writes, so an interrupted venv is made again.
$(BIN)/pip:
	@for python in $(PYTHONS); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "Making $(VENV) with $$python"; \
	    exec "$$python" -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo "No Python >= 3.11 among: $(PYTHONS). Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	exit 1

$(BIN)/uv: | $(BIN)/pip
	@$(PIP_INSTALL) uv

# A stamp is touched when its install succeeded; a newer requirements file makes it stale.
$(VENV)/.runtime: requirements/runtime.txt requirements/build.txt pyproject.toml | $(BIN)/pip
	@echo "Installing what serving needs (about a minute the first time)"
	@$(PIP_INSTALL) --require-hashes -r requirements/runtime.txt
	@$(PIP_INSTALL) --require-hashes -r requirements/build.txt
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.runtime | $(BIN)/pip
	@echo "Installing what the tests and checks need"
	@$(PIP_INSTALL) --require-hashes -r requirements/dev.txt
	@touch $@
