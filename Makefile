# Each target makes the environment that it needs; nothing has to be installed before.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SUM := $(shell cat setup.cfg spvit_deploy/_version.py | cksum | cut -d' ' -f1)
CORE := $(VENV)/.core-$(SUM)
READY := $(VENV)/.ready-$(SUM)
# Triton's server, apart from the rest: it pins numpy < 2, and comes for this system alone.
SERVE := .venv-triton
SERVED := $(SERVE)/.ready-$(SUM)
HAS_SERVER := $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m))
# What the others share, and what needs a folder of data (--data-dir).
APART := harness quality_methods quality search_cost
SUITES := $(filter-out $(APART:%=benchmarks/suites/%.py),$(wildcard benchmarks/suites/*.py))

.PHONY: help demo test test-slow test-all lint bench serve-env clean
# Workers of pytest-xdist; more need more than 2 GB of memory each. They share the processors, so
# each computes on one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal
.DEFAULT_GOAL := help

help:
	@echo "make demo   train, search, export and benchmark a small model; writes demo/report.html"
	@echo "make test   run the tests, but for the slow ones: ten minutes on two cores"
	@echo "make test-all  run all tests"
	@echo "make lint   ruff, mypy, import-linter"
	@echo "make serve-env  Triton's server in $(SERVE), for spvit-deploy serve --server $(SERVE)"
	@echo "make bench  comparisons against peers; rewrites benchmarks/suites/results"

$(CORE):
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e .
	@rm -f $(VENV)/.core-*
	@touch $@

$(READY): $(CORE)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e ".[test]"
	@rm -f $(VENV)/.ready-*
	@touch $@

demo: $(CORE)
	$(BIN)/spvit-deploy demo -o demo/

# The extra alone, without this package and what it stands on.
$(SERVED):
	test -x $(SERVE)/bin/python || $(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/python -c "import configparser as c; f = c.ConfigParser(); f.read('setup.cfg'); \
	    print(f['options.extras_require']['triton-server'])" > $(SERVE)/requirements.txt
	$(SERVE)/bin/python -m pip install --disable-pip-version-check --quiet -r $(SERVE)/requirements.txt
	@rm -f $(SERVE)/.ready-*
	@touch $@

serve-env: $(SERVED)

test: $(READY) $(if $(HAS_SERVER),$(SERVED))
	$(PYTEST) -m "not slow and not gpu"

test-slow: $(READY) $(if $(HAS_SERVER),$(SERVED))
	$(PYTEST) -m "slow and not gpu"

test-all: test test-slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy -p spvit_deploy

bench: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e ".[bench]"
	set -e; for suite in $(SUITES); do echo $$suite; $(BIN)/python $$suite; done

clean:
	rm -rf $(VENV) $(SERVE) demo build dist *.egg-info
