# make demo and make test need Python >= 3.11 and nothing else; both build their own environment in .venv.
#
# PYTHON=python3.12      take this interpreter
# TORCH="torch==2.13.0"  what to ask pip for, options included (a smaller CPU build, for instance)
# LOWEST_TORCH="torch==2.10.0"  the same for `make test-lowest`, with options of uv
# OUTPUT=folder          where `make demo` writes; otherwise falcon-demo, falcon-demo-2 ...

SHELL := /bin/sh
.DEFAULT_GOAL := help

# One torch thread per worker: more slow each other down.
WORKERS ?= auto
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
TORCH_FALLBACK := torch>=2.10
LOWEST := .venv-lowest
LOWEST_TORCH ?= torch==2.10.0
CANDIDATES := python3 python3.13 python3.12 python3.11 python
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
# Recursive, so that only rules that need an interpreter look for one.
PYTHON ?= $(shell for name in $(CANDIDATES); do \
  if "$$name" -c '$(SUITABLE)' >/dev/null 2>&1; then echo "$$name"; break; fi; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo test test-lowest lock lint clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

demo: $(VENV)/.installed  ## Make a small real model forget, and show the evidence (minutes).
	$(BIN)/falcon-unlearn demo $(if $(OUTPUT),--output "$(OUTPUT)")

test: lint  ## Run linters, types and tests.
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

test-lowest: $(VENV)/.created  ## Run the unit tests with every direct dependency at its lower bound.
	rm -rf $(LOWEST)
	$(BIN)/python -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip --disable-pip-version-check --quiet install uv
	VIRTUAL_ENV=$(LOWEST) $(LOWEST)/bin/uv pip install --resolution lowest-direct $(LOWEST_TORCH) --editable '.[dev]'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest tests/unit -m "not slow and not model" \
	  --junitxml=$(LOWEST)/tests.xml; test $$? -le 1
	$(LOWEST)/bin/python benchmarks/lowest_bounds.py --junit $(LOWEST)/tests.xml \
	  --output benchmarks/results/lowest_bounds.json

lock: $(VENV)/.installed-dev  ## Write the versions of this environment, after its tests have passed.
	$(PIP) install cyclonedx-python-lib
	$(BIN)/python benchmarks/tested_environment.py --lock requirements-tested.txt --bill sbom.cdx.json

lint: $(VENV)/.installed-dev  ## Run ruff, mypy and import-linter.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## Remove the environment and the caches of the tools.
	rm -rf $(VENV) $(LOWEST) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 with venv and ensurepip was found"; \
	  echo " hint: install one (on Debian also python3-venv), or name it: make PYTHON=/path/to/python3"; exit 3; }
	@"$(PYTHON)" -c '$(SUITABLE)' || { echo "error: $(PYTHON) is not a Python >= 3.11 with venv"; exit 3; }
	@echo "creating $(VENV) with $(PYTHON)"
	@rm -rf $(VENV)
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

# First and alone, so that nothing else decides which build of torch comes.
$(VENV)/.torch: $(VENV)/.created
	@echo "installing $(TORCH)"
	@$(PIP) install $(TORCH) || { echo "not to be had; installing $(TORCH_FALLBACK)"; \
	  $(PIP) install '$(TORCH_FALLBACK)'; }
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@echo "installing falcon-unlearn"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	@echo "installing falcon-unlearn and its development tools"
	@$(PIP) install --editable '.[dev]'
	@touch $(VENV)/.installed $@
