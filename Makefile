# Needs a POSIX shell, make, and Python 3.11 or newer with pip. `make` alone lists the targets.

VENV ?= .venv
PARAMS ?= params/demo.yaml
# The Pythons that `make venv` tries, in this order: the pins were tested on 3.11.
PYTHON ?= python3.11 python3

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help venv spine reproduce test lint lab bench-drr bench-store bench-synthesis bench-augment bench-networks bench-proposal bench-standing bench-refine site clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | \
		while IFS='|' read -r target text; do printf '%-16s %s\n' "$$target" "$$text"; done

venv: $(INSTALLED)  ## Make the virtual environment from constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

spine: venv  ## Two simulated films to a spine by the shipped weights: runs/spine/
	$(BIN)/transvert reproduce params/spine.yaml --from 04

reproduce: venv  ## Run the four notebooks in order: make reproduce PARAMS=params/smoke.yaml
	$(BIN)/transvert reproduce $(PARAMS)

# The notebooks leave what they make in a folder that goes when they are done, so that runs/ stays as it was.
test: venv  ## Unit tests, the notebooks as they stand, and a papermill run
	$(BIN)/python -m pytest tests -m 'not reproduce'
	@runs=$$(mktemp -d) && trap 'rm -rf "$$runs"' EXIT && trap 'exit 130' INT TERM && \
		echo '$(BIN)/python -m pytest --nbval-lax notebooks/' && \
		TRANSVERT_RUNS="$$runs" $(BIN)/python -m pytest --nbval-lax notebooks/
	$(BIN)/python -m pytest tests -m reproduce

lint: venv  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: venv  ## Open the notebooks in JupyterLab
	$(BIN)/jupyter-lab notebooks/01_drr_synthesis.ipynb

bench-drr: .venv-bench/.installed  ## Time, accuracy and memory of the DRR engines: benchmarks/drr.md
	.venv-bench/bin/python -m benchmarks.drr

bench-store: .venv-bench/.installed  ## Size, writing and reading of a subject's samples: benchmarks/store.md
	.venv-bench/bin/python -m benchmarks.store

bench-synthesis: venv  ## What a CT costs on its way into the store: benchmarks/synthesis.md
	$(BIN)/python -m benchmarks.synthesis

bench-augment: venv  ## Training samples a second: benchmarks/augment.md
	$(BIN)/python -m benchmarks.augment

bench-networks: venv  ## Size, time and memory of the networks: benchmarks/networks.md
	$(BIN)/python -m benchmarks.networks

bench-proposal: venv  ## What landmarks proposed from a few clicks are worth: benchmarks/proposal.md
	$(BIN)/python -m benchmarks.proposal

bench-standing: venv  ## Spines from simulated standing films beside their truth: benchmarks/standing.md
	$(BIN)/python -m benchmarks.standing

bench-refine: venv  ## What the films' gradients add to a reconstruction: benchmarks/refine.md
	$(BIN)/python -m benchmarks.refine

# An environment of its own: the peers bring some 5 GB, and nothing else needs them.
.venv-bench/.installed: benchmarks/requirements.txt $(INSTALLED)
	$(BIN)/python -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -r benchmarks/requirements.txt -e .
	@touch $@

site: $(VENV)/.site  ## Render notebooks, guides and API as pages, offline: build/site/index.html
	$(BIN)/python docs/site/stage.py build/pages
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet -c docs/site build/pages build/site

$(VENV)/.site: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[site]'
	@touch $@

clean:  ## Remove caches and builds; the environment and runs/ stay
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +
