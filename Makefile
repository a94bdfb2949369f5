# Everything goes through .venv, which `make setup` creates and keeps up to date; see `make help`.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench fuzz chaos scenarios lock

# A misspelt variable would otherwise be passed over, and an hour go to something else than what was asked for.
KNOWN_chaos := SEED SEEDS NOTIFICATIONS SKUS STORES KILLS WORKERS SECONDS_OF_FAULTS BROKER KEEP
KNOWN_bench := BENCH_%
KNOWN_fuzz := MINUTES HUB_FUZZ_EXAMPLES
LONG := $(filter chaos bench fuzz,$(MAKECMDGOALS))
KNOWN := $(foreach goal,$(LONG),$(KNOWN_$(goal))) ARGS PYTHON
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
UNKNOWN := $(if $(LONG),$(sort $(filter-out $(KNOWN) BIN,$(GIVEN))))
$(if $(UNKNOWN),$(error $(UNKNOWN): not read by $(LONG); write one of $(subst %,…,$(KNOWN)), or leave it out))

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */\1|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: ## create or renew .venv from requirements.lock (the others do it by themselves)
	@$(PYTHON) deploy/set_up.py

demo: setup ## the whole hub on this machine with simulators, a story in the terminal; ARGS=--once ends by itself
	@$(BIN)/hub demo $(ARGS)

test: setup ## all tests, on servers of their own; ARGS='-k stock' and the like go to pytest
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: setup ## style, types, import rules: seconds, no server
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest tests/check

bench: setup ## ours, peers and limits in one run, a long while; ARGS="intake engine" runs these only
	@$(BIN)/python -m bench $(ARGS)

chaos: setup ## the hub under kills, outages and lying peers from printed seeds; SEEDS=20, or SEED=7 for one, NOTIFICATIONS=1000 SKUS=100 for a small one
	@$(BIN)/python -m chaos $(ARGS)

fuzz: setup ## strangers' bytes, files and answers for MINUTES=60, in pieces, each with its seed; ARGS=SEED begins there
	@$(BIN)/python -m tests.fuzz $(ARGS)

scenarios: setup ## which acceptance scenarios have a test, per group
	@$(BIN)/python -m pytest --scenarios --collect-only -q

# The public index is named so that a mirror in somebody's environment never gets into the lock.
lock: setup ## compile requirements.lock anew from pyproject.toml (takes UV from PATH or .venv; ARGS=--upgrade)
	@uv=$$(command -v uv || echo $(BIN)/uv); test -x "$$uv" || $(BIN)/python -m pip install -q --require-hashes -r deploy/uv.txt; \
	"$$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --default-index https://pypi.org/simple \
	    --all-extras --group dev --group build $(ARGS) pyproject.toml -o requirements.lock --no-header
	@! grep -n '://' requirements.lock
