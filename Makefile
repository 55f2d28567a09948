# What one can do here. `make demo` and `make test` need nothing but Python 3.11 or newer and, for the first, a few minutes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test check bench faults fuzz sbom wheel clean format

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

demo: $(READY) ## Watch a broker, a hub and three devices grow one model
	$(BIN)/bramble demo

# At the niceness of the workers that train in some tests: or else those would wait for whatever other tests compute.
test: $(READY) ## Run every test, two at a time
	nice -n 19 $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(READY) ## Lint, types, and the floors of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml agent hatch_build.py
	$(BIN)/python -m tools.supply.audit

bench: $(READY) ## Measure, side by side with a peer; JSON on standard output
	@for script in bench/*.py; do echo "== $$script" >&2; $(BIN)/python $$script --json -; done

faults: $(READY) ## Break 300 communities in every way (RUNS=N, or SEED=N for that one)
	$(BIN)/python -m tests.faults $(if $(SEED),--seed $(SEED),--runs $(or $(RUNS),300)) $(if $(JSON),--json $(JSON))

fuzz: $(READY) ## Throw hostile input at every decoder, SECONDS=60 each (JSON=FILE, ONLY="TARGET ...")
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(PIP) --group fuzz
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60) $(if $(ONLY),--only $(ONLY)) $(if $(JSON),--json $(JSON))

sbom: $(READY) ## Write the bill of materials to build/bramble-agent.cdx.json (CycloneDX)
	@$(BIN)/python -m tools.supply.bill build/bramble-agent.cdx.json

wheel: sbom ## Build the wheel into dist/, with its bill of materials inside (PEP 770)
	@BRAMBLE_SBOM=$(CURDIR)/build/bramble-agent.cdx.json $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

format: $(READY) ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove what was made here
	rm -rf $(VENV) build dist agent/native/kernels-*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .fuzz .audit.json *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml hatch_build.py $(wildcard agent/native/source/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Bramble needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Setting up $(VENV). The first time this takes 5 to 10 minutes, most of it compiling llama.cpp:" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "  1/3 pip" >&2; $(PIP) --upgrade 'pip>=25.1'
	@echo "  2/3 llama.cpp (compiles when there is no wheel for this machine yet), torch for the CPU" >&2
	@$(PIP) llama-cpp-python==0.3.36 torch==2.13.0
	@echo "  3/3 Bramble and what it is checked with" >&2
	@$(PIP) --editable . --group dev
	@$(PIP) --no-deps --group oracle
	@touch $@
