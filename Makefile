# `make` alone lists the targets. Every target does its own set-up and may be repeated.
.DEFAULT_GOAL := help
.PHONY: help setup rppg rppg-qat rppg-w4a8 gate test test-all check lint bench arm-check avx2-check clean
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON3 ?= python3
PYTHON := .venv/bin/python
PIP := $(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
RUN_READY := .venv/.ready-rppg
DEV_READY := .venv/.ready-dev
RPPG_DATA := build/data/rppg
RECIPE := models/rppg/recipe.yaml

# A worker a core; the tests of one file stay together, for they share what they have built.
PYTEST := $(PYTHON) -m pytest --numprocesses auto --dist loadfile

export ORT_DISABLE_TELEMETRY := 1

help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/bin/python:
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "onnxq needs Python 3.11 or newer; say which with: make PYTHON3=python3.11 …" >&2; exit 2; }
	@echo "creating .venv"
	@$(PYTHON3) -m venv .venv

$(RUN_READY): pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing what the rPPG system needs into .venv"
	@$(PIP) --editable '.[rppg]'
	@touch $@

$(DEV_READY): $(RUN_READY)
	@echo "installing what the checks need into .venv"
	@$(PIP) --editable '.[dev]'
	@touch $@

setup: $(DEV_READY) ## virtual environment with pinned versions in .venv

$(RPPG_DATA)/.ready: $(RUN_READY)
	@$(PYTHON) -m models.rppg.synthesize --out $(RPPG_DATA) --splits calibration test
	@touch $@

rppg: $(RPPG_DATA)/.ready ## rPPG heart rate: checkpoint → verified INT8 → bundle for STM32N6
	@$(PYTHON) -m onnxq run $(RECIPE)

rppg-w4a8: $(RPPG_DATA)/.ready ## the same network with 4-bit weights, for an onnxruntime on x86
	@$(PYTHON) -m onnxq run models/rppg/recipe-w4a8.yaml

rppg-qat: $(RPPG_DATA)/.ready ## the same network fine-tuned with its rounding, for an onnxruntime on x86
	@$(PYTHON) -m onnxq run models/rppg/recipe-qat.yaml

gate: $(RPPG_DATA)/.ready ## CI gate on rPPG: exit 0 passed, 1 worse than allowed, 2 not judged
	@$(PYTHON) -m onnxq verify $(RECIPE)

test: $(DEV_READY) ## all tests but the long ones
	@$(PYTEST) -m "not long"

test-all: $(DEV_READY) ## all tests
	@$(PYTEST)

check: lint ## format, lint, types, floors, fast tests
	@$(PYTEST) -m "not slow and not long"

lint: $(DEV_READY) ## format, lint, types, floors
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy
	@$(PYTHON) -c 'from importlinter.cli import lint_imports_command as c; c()'

bench: $(RPPG_DATA)/.ready ## the figures that the README promises
	@$(PYTHON) -m benchmarks.rppg
	@$(PYTHON) -m benchmarks.calibration --quick

arm-check: $(if $(BUNDLE),$(RUN_READY),$(RPPG_DATA)/.ready) ## a bundle's self-test on emulated Cortex-A72 and A76 (BUNDLE=folder)
	@$(if $(BUNDLE),,$(PYTHON) -m onnxq run $(RECIPE) --target ort-arm64)
	@$(PYTHON) -m tools.emulation arm $(if $(BUNDLE),--bundle $(BUNDLE))

avx2-check: $(if $(BUNDLE),$(RUN_READY),$(RPPG_DATA)/.ready) ## the same on an emulated x86 without VNNI (BUNDLE=folder)
	@$(if $(BUNDLE),,$(PYTHON) -m onnxq run $(RECIPE) --target ort-x86-avx2)
	@$(PYTHON) -m tools.emulation avx2 $(if $(BUNDLE),--bundle $(BUNDLE))

clean: ## remove results and caches; .venv stays
	@rm -rf build .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
