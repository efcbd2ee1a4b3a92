# Everything the project needs is set up by these targets; nothing is expected beyond Debian, Python 3.11+ and make.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := .make
APT := DEBIAN_FRONTEND=noninteractive $(if $(filter 0,$(shell id -u)),,sudo) apt-get

.DEFAULT_GOAL := help
.PHONY: help venv demo test check bench bench-deps gen gen-check lint types lock soak clean test-deps

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

venv: $(STAMPS)/venv ## Make the virtual environment with locked dependencies

$(STAMPS)/venv: requirements.lock pyproject.toml
	@mkdir -p $(STAMPS)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 to 3.13 is needed (libtorrent has no wheels for others); this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11 ...") if not (3,11) <= sys.version_info[:2] <= (3,13) else 0'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || ( echo "installing python3-venv"; $(APT) update -qq && $(APT) install -y -qq python3-venv )
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: venv ## Show the main job: a package crosses a fleet while the hub is dead
	$(BIN)/peat demo --json bench/demo.json

test-deps: $(STAMPS)/test-deps ## Install the system packages that tests use
$(STAMPS)/test-deps:
	@mkdir -p $(STAMPS)
	@bash .ci/system-packages
	@touch $@

test: venv test-deps ## Run the tests
	$(BIN)/python -m pytest

check: venv ## Run the linters, the type checker and the check that generated code is current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory gen-check

gen: venv ## Generate the Python code of proto/
	bash .ci/generate src/peat_p2p/wire/gen

gen-check: venv
	@d=$$(mktemp -d) && trap 'rm -rf "$$d"' EXIT && bash .ci/generate "$$d" && diff -r -x __pycache__ "$$d" src/peat_p2p/wire/gen \
	  && echo "generated code is current" || { echo "generated code differs from proto/: run make gen"; exit 1; }

bench-deps: venv ## Install the tools the benchmarks compare with
	@bash .ci/bench-packages

bench: venv ## List the benchmarks
	$(BIN)/python -m bench --help

soak: venv test-deps ## Run the long tests
	$(BIN)/python -m pytest -m soak --timeout 7200

lock: ## Resolve dependencies anew into requirements.lock
	$(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-options \
	  --extra dev --all-build-deps --output-file requirements.lock pyproject.toml

clean: ## Remove what make made
	rm -rf $(VENV) $(STAMPS) build dist *.egg-info
