# Everything a user or a builder needs; `make help` lists it. Each target sets up what it uses.
SHELL := /bin/bash
PYTHON ?= python3.11
STUDY ?= pipelines/studies/demo.yaml
OUT ?=
SET ?=
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup run ui plan compile test test-slow lint format clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: JOBS=<processes of tests> STUDY=<study file> OUT=<folder of results> SET='section.key=value …' (no blanks in a value) PYTHON=<python 3.11>"

setup: $(READY) ## make the virtual environment .venv with pinned versions

$(READY): pyproject.toml images/constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; give Python 3.11 by PYTHON=…" >&2; exit 78; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint images/constraints.txt \
	  --editable '.[data,train,analysis,pipelines,dev]'
	@touch $@

run: $(READY) ## run a study (default: the demo) on this machine
	@$(BIN)/python -m pipelines run "$(STUDY)" $(if $(OUT),--out "$(OUT)") $(foreach s,$(SET),--set "$(s)")

ui: $(READY) ## open MLflow on the results in OUT (default: those of STUDY)
	@$(BIN)/python -m pipelines ui "$(or $(OUT),runs/$(basename $(notdir $(STUDY))))"

plan: $(READY) ## print tasks and cost of STUDY, and what is missing
	@$(BIN)/python -m pipelines plan "$(STUDY)" $(foreach s,$(SET),--set "$(s)")

compile: $(READY) ## write the pipeline of STUDY as KFP's YAML to OUT (default: runs/<study>.yaml)
	@$(BIN)/python -m pipelines compile "$(STUDY)" --out "$(or $(OUT),runs/$(notdir $(STUDY)))" $(foreach s,$(SET),--set "$(s)")

test: $(READY) ## run the tests, but for those that take minutes
	$(BIN)/python -m pytest -m "not slow" --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

test-slow: $(READY) ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: $(READY) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environment and caches; results in runs/ stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build src/*.egg-info
