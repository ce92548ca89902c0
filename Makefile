# Two commands for a newcomer: make demo, make test. Both set up everything they need in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Where `make demo` leaves its data, runs and report.
DEMO ?= demo

PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# For the tests of other libraries' models; the demo does without.
CLIENTS := $(VENV)/.clients

.PHONY: help demo test lint style bench campaign clean

help:
	@echo "make demo   compare single- and multi-layer training on embedded data (about 2 minutes)"
	@echo "make test   run the whole test suite"
	@echo "make lint   check style and types"
	@echo "make style  repair what style checks can repair"
	@echo "make bench  measure the engine against its targets and peers (JSON=file.json keeps the rows)"
	@echo "make campaign  damage files and kill commands for hours (CASES=2000 KILLS=350 SEED=1)"
	@echo "make clean  remove the environment and everything that was built"

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "mlet needs Python 3.10 or newer: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	@touch $@

$(CLIENTS): $(INSTALLED)
	$(PIP) --editable '.[clients]'
	$(PIP) --no-deps torchrec
	@touch $@

demo: $(INSTALLED)
	@test -f $(DEMO)/data/schema.json || $(BIN)/mlet synthesize --preset user-item --out $(DEMO)/data
	@$(BIN)/mlet compare $(DEMO)/data --out $(DEMO)/comparison --batch-size 1024

test: $(INSTALLED) $(CLIENTS)
	$(BIN)/pytest --numprocesses 2 --dist worksteal --durations 10

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

style: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED) $(CLIENTS)
	$(BIN)/python benchmarks/targets.py $(if $(JSON),--json $(JSON))

campaign: $(INSTALLED)
	$(BIN)/python tests/campaign/campaign.py --cases $(or $(CASES),2000) --seed $(or $(SEED),1)
	$(BIN)/python tests/campaign/kill.py --kills $(or $(KILLS),350) --seed $(or $(SEED),1)

clean:
	rm -rf $(VENV) $(DEMO) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
