# setup  run  published  test  check  ui  bench  clean: see README.md
VENV := .venv
BIN := $(abspath $(VENV))/bin
PYTHON ?= python3
# Nothing calls out.
export DVC_NO_ANALYTICS := true
export DAGSTER_DISABLE_TELEMETRY := yes
export DAGSTER_HOME := $(abspath .dagster)
export PATH := $(BIN):$(PATH)

.PHONY: setup run published test check ui bench clean

setup: $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

run: $(VENV)/.installed
	@pd-pipeline graph --write
	@dvc repro --quiet
	@echo "report: $(abspath data/reports/index.html)"

published: $(VENV)/.installed
	@cd published && pd-pipeline run all
	@echo "report: $(abspath published/data/reports/index.html)"

test: $(VENV)/.installed-test
	$(BIN)/pytest

check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pd-pipeline graph --check
	cd published && $(BIN)/pd-pipeline graph --check

ui: $(VENV)/.installed
	@mkdir -p $(DAGSTER_HOME) && cp dagster.yaml $(DAGSTER_HOME)/dagster.yaml
	$(BIN)/dagster dev -w workspace.yaml -h 127.0.0.1

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .work .dagster .pytest_cache .mypy_cache .ruff_cache data/*/ build *.egg-info
	rm -rf published/data/*/ published/.work published/dvc.lock published/.dvc/cache published/.dvc/tmp
