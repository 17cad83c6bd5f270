# Needs a POSIX shell, make, and Python 3.11 or newer with pip. `make` alone lists the targets.

VENV ?= .venv
PARAMS ?= params/demo.yaml
# The Pythons that `make venv` tries, in this order: the pins were tested on 3.11.
PYTHON ?= python3.11 python3

BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
# Python compiles what it imports and keeps that; compiling every package at once would take longer than the installation.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: help venv spine reproduce test lint lab bench-drr bench-store bench-synthesis bench-augment bench-networks bench-proposal bench-standing bench-refine site clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | \
		while IFS='|' read -r target text; do printf '%-16s %s\n' "$$target" "$$text"; done

venv: $(DEV)  ## Make the virtual environment from constraints.txt

$(RUNTIME): pyproject.toml constraints.txt
	@set -e; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		for python in $(PYTHON) none; do \
			if [ "$$python" = none ]; then \
				echo 'No Python 3.11 or newer found: install one, or name it with PYTHON=...' >&2; exit 1; \
			fi; \
			if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
		done; \
		echo "Making $(VENV) with $$python"; \
		"$$python" -m venv $(VENV); \
	fi
	$(INSTALL) -e .
	@touch $@

$(DEV): $(RUNTIME)
	$(INSTALL) -e '.[dev]'
	@touch $@

spine: $(RUNTIME)  ## Two simulated radiographs to a spine with the shipped weights: runs/spine/
	$(BIN)/transvert reproduce params/spine.yaml --from 04

reproduce: $(RUNTIME)  ## Run the four notebooks in order: make reproduce PARAMS=params/smoke.yaml
	$(BIN)/transvert reproduce $(PARAMS)

test: $(DEV)  ## Unit tests, the notebooks as saved, and a papermill run, in two processes
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests

lint: $(DEV)  ## Check style, types and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

lab: $(RUNTIME)  ## Open the notebooks in JupyterLab
	$(BIN)/jupyter-lab --ServerApp.root_dir='$(CURDIR)' notebooks/01_drr_synthesis.ipynb

bench-drr: .venv-bench/.installed  ## Time, accuracy and memory of DRR engines: benchmarks/speed/drr.md
	.venv-bench/bin/python -m benchmarks.speed.drr

bench-store: .venv-bench/.installed  ## Size, writing and reading of a subject's samples: benchmarks/speed/store.md
	.venv-bench/bin/python -m benchmarks.speed.store

bench-synthesis: $(DEV)  ## Time from a CT to its samples in the store: benchmarks/speed/synthesis.md
	$(BIN)/python -m benchmarks.speed.synthesis

bench-augment: $(DEV)  ## Training samples per second: benchmarks/speed/augment.md
	$(BIN)/python -m benchmarks.speed.augment

bench-networks: $(DEV)  ## Size, time and memory of the networks: benchmarks/speed/networks.md
	$(BIN)/python -m benchmarks.speed.networks

bench-proposal: $(DEV)  ## Accuracy of landmarks proposed from a few clicks: benchmarks/tables/proposal.md
	$(BIN)/python -m benchmarks.tables.proposal

bench-standing: $(DEV)  ## Spines from simulated standing radiographs beside the truth: benchmarks/standing_phantom/reconstruction.md
	$(BIN)/python -m benchmarks.standing_phantom.reconstruction

bench-refine: $(DEV)  ## What refining a reconstruction by gradients changes: benchmarks/studies/refinement.md
	$(BIN)/python -m benchmarks.studies.refinement

# A separate environment: the other engines bring some 5 GB that nothing else needs.
.venv-bench/.installed: benchmarks/speed/requirements.txt $(RUNTIME)
	$(BIN)/python -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -r benchmarks/speed/requirements.txt -e .
	@touch $@

site: $(VENV)/.site  ## Render notebooks, guides and API as pages, offline: build/site/index.html
	$(BIN)/python docs/site/stage.py build/pages
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet -c docs/site build/pages build/site

$(VENV)/.site: $(DEV)
	$(INSTALL) -e '.[site]'
	@touch $@

clean:  ## Remove caches and builds; the environment and runs/ stay
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +
