# Targets: setup run published test check docs ui bench faults clean; see README.md.
VENV := .venv
BIN := $(abspath $(VENV))/bin
MARK := $(VENV).installing
PYTHON ?= python3
# No telemetry.
export DVC_NO_ANALYTICS := true
export DAGSTER_DISABLE_TELEMETRY := yes
export DAGSTER_HOME := $(abspath .dagster)
export PATH := $(BIN):$(PATH)

.PHONY: setup run published test check docs ui bench faults clean

# Takes the build of torch that suits the machine, as far as pip finds one, and says at the end which it is: with an
# NVIDIA driver the release without a suffix, which is for CUDA; without, the one for CPUs, which saves gigabytes.
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
DRIVER ?= /proc/driver/nvidia/version
BUILD = $(if $(wildcard $(DRIVER)),===$(TORCH),==$(TORCH)+cpu)
setup: $(VENV)/.installed
	@$(BIN)/python -c "from pd_pipeline.doctor import accelerator; print(*accelerator(), sep='\n')"

# The file $(MARK) exists during an installation. If it exists at the start, the last installation was killed, and the
# environment is rebuilt.
define install
	@if [ -e $(MARK) ] || [ ! -x $(BIN)/pip ]; then rm -rf $(VENV); touch $(MARK); $(PYTHON) -m venv $(VENV); fi
	@touch $(MARK)
	$(if $(1),,@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt 'torch$(BUILD)' 2>/dev/null || true)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.$(1)'
	@touch $@ && rm -f $(MARK)
endef

ifneq ($(wildcard $(MARK)),)
.PHONY: $(VENV)/.installed
endif

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call install,)

$(VENV)/.installed-test: $(VENV)/.installed
	$(call install,[test])

$(VENV)/.installed-docs: $(VENV)/.installed
	$(call install,[docs])

$(VENV)/.installed-bench: $(VENV)/.installed
	$(call install,[bench])

run: $(VENV)/.installed
	@pd-pipeline graph --write
	@dvc --wait-for-lock repro --quiet
	@echo "report: $(abspath data/reports/index.html)"

published: $(VENV)/.installed
	@cd published && pd-pipeline run all
	@echo "report: $(abspath published/data/reports/index.html)"

test: $(VENV)/.installed-test
	$(BIN)/pytest

# Broken links and anchors are errors, and so are pages that load something from the network. Without --quiet, since
# --strict only counts warnings that are printed.
SITE = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: $(VENV)/.installed-test $(VENV)/.installed-docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pd-pipeline graph --check
	cd published && $(BIN)/pd-pipeline graph --check
	$(SITE)

docs: $(VENV)/.installed-docs
	$(SITE)
	@echo "documentation: $(abspath site/index.html)"

ui: $(VENV)/.installed
	@mkdir -p $(DAGSTER_HOME) && cp dagster.yaml $(DAGSTER_HOME)/dagster.yaml
ifdef DAGSTER_POSTGRES_URL
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[postgres]'
	@cat docs/examples/dagster-postgres.yaml >> $(DAGSTER_HOME)/dagster.yaml
endif
	$(BIN)/dagster dev -w workspace.yaml -h 127.0.0.1

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks

faults: $(VENV)/.installed-test
	$(BIN)/python -m tests.faults

# Removes the outs that the pipeline recorded, and digests.json; your own files in data/ and the targets of links are
# kept. dvc.lock and the DVC cache are kept too, so `dvc checkout` restores outs; `dvc gc -w` empties the cache.
clean:
	@$(PYTHON) -m pd_pipeline.clean .
	@$(PYTHON) -m pd_pipeline.clean published
	rm -rf $(VENV) $(MARK) pd_pipeline.egg-info site
